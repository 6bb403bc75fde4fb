package proxy

import (
	"crypto/tls"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// wait is patience with an end that is to send a body, the device or the app:
// begin and done go around what reads. However slow a body comes, it may go on;
// when nothing of it came for a time, its exchange ends.
//
// Waits are used again, with their timers left on their way, so that most bodies
// move none.
type wait struct {
	patience
	app bool // it is the app's body
	of  *exchange

	// What [wait.Taken] saw last.
	frames, bytes, moved uint64
}

// waits are those of one Proxy, whose times are all the same.
type waits struct {
	within time.Duration
	pool   sync.Pool
}

// take returns one for a body of x.
func (ws *waits) take(x *exchange, app bool) *wait {
	w, _ := ws.pool.Get().(*wait)
	if w == nil {
		w = &wait{}
		w.patience = patience{within: ws.within, conn: w, over: w.end}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.of, w.app = x, app
	w.writing, w.still, w.lost = 0, 0, false
	return w
}

// let ends a wait, which may be nil, and reports whether the other end was given
// up. Somebody may still read for an exchange that is over: then its wait is not
// used again.
func (ws *waits) let(w *wait, again bool) (lost bool) {
	if w == nil {
		return false
	}
	w.mu.Lock()
	w.writing, w.of, lost = 0, nil, w.lost
	if !again && w.timer != nil {
		w.timer.Stop()
	}
	w.mu.Unlock()
	if again {
		ws.pool.Put(w)
	}
	return lost
}

// begin is that of patience, of a wait that may be nil.
func (w *wait) begin() error {
	if w == nil {
		return nil
	}
	return w.patience.begin()
}

// done returns the error of what read, or why it failed. One reads at a time.
func (w *wait) done(err error) error {
	if w == nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writing = 0; w.lost && err != nil {
		return errStill
	}
	return err
}

// read reads what is waited for, as long as the other end was not given up.
func (w *wait) read(from io.Reader, b []byte) (int, error) {
	if err := w.begin(); err != nil {
		return 0, err
	}
	n, err := from.Read(b)
	return n, w.done(err)
}

// end gives the other end up. mu is held.
func (w *wait) end() {
	x := w.of
	switch {
	case x == nil:
	case !w.app && x.stream != nil: // others share the connection
		_ = http.NewResponseController(x.stream.ResponseWriter).SetReadDeadline(time.Unix(1, 0))
	case !w.app:
		x.conn.reset()
	case x.lane != nil:
		x.sending.over()
	default:
		x.stall()
		x.held.abort()
	}
}

// Taken changes whenever something came that may be of the body, also where no
// whole record of TLS or frame of HTTP/2 did. mu is held.
func (w *wait) Taken() uint64 {
	x := w.of
	switch {
	case x == nil:
	case w.app:
		// An app may wait for more of the request before it goes on.
		return uint64(x.in.Load()) + x.answered()
	case x.stream == nil:
		return x.conn.came.Load()
	case x.stream.framing != nil:
		// Of what came of a frame nobody can say yet whose it is.
		f := x.stream.framing
		frames, bytes := f.came.Load(), x.conn.came.Load()
		if frames == w.frames && bytes != w.bytes {
			w.moved++
		}
		w.frames, w.bytes = frames, bytes
	}
	return w.moved
}

// answered is how much came on the connection of a lane, unless others may
// share it. On the direct road whatever comes ends the read.
func (x *exchange) answered() uint64 {
	x.mu.Lock()
	c := x.backend.conn
	x.mu.Unlock()
	if t, ok := c.(*tls.Conn); ok && t.ConnectionState().NegotiatedProtocol != "h2" {
		c = t.NetConn()
	}
	if a, ok := c.(*appConn); ok {
		return a.came.Load()
	}
	return 0
}

// came counts bytes that a connection has read.
type came struct{ atomic.Uint64 }

func (c *came) add(n int, err error) (int, error) {
	if n > 0 {
		c.Add(uint64(n))
	}
	return n, err
}

// lasting says that a body of this media type may be silent for as long as its
// Flow has leases.
func lasting(mediaType string) bool {
	for _, t := range [...]string{"text/event-stream", "application/grpc"} {
		if len(mediaType) >= len(t) && strings.EqualFold(mediaType[:len(t)], t) {
			return true
		}
	}
	return false
}
