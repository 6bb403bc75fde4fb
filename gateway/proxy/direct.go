package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"

	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/http1"
)

// direct is the road to apps that speak plain HTTP/1.1: on the goroutine of the
// request, with one write(2) for a request whose body is small. What reaches
// the app is made from the canonical request and nothing else.
func (p *Proxy) direct(w http.ResponseWriter, r *http.Request, x *exchange) {
	// The cut: the connection to the device dies with what is queued on it,
	// other HTTP/2 streams of the same device and app included, because bytes
	// of this one may wait among theirs. So does the app's.
	x.flow.OnCut(func() {
		x.conn.reset()
		x.held.abort()
	})
	if g, ok := w.(interface{ OnGone(fn func()) }); ok {
		g.OnGone(x.held.abort)
	} else { // HTTP/2
		defer context.AfterFunc(r.Context(), x.held.abort)()
	}
	x.upload = upload{w: w, x: x, r: r, body: requestBody{ReadCloser: r.Body, x: x}}
	up := &x.upload
	c, head, err := p.ask(r, x, up)
	if err != nil {
		p.fault(w, r, x, err)
		return
	}
	whole := false
	defer func() {
		sent := up.end(c)
		c.Release(x.held.let() && sent && whole)
	}()
	if err := x.answer(w, c, head); err != nil {
		panic(http.ErrAbortHandler) // the device must not take the answer for whole
	}
	whole = true
}

// held is the app's connection of an exchange, while it has one.
type held struct {
	mu      sync.Mutex
	conn    *http1.Conn
	aborted bool
}

// hold reports false, and ends the connection, when the exchange was aborted.
func (h *held) hold(c *http1.Conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.aborted {
		c.Abort()
		return false
	}
	h.conn = c
	return true
}

// let gives the connection up, and reports false when it was aborted.
func (h *held) let() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conn = nil
	return !h.aborted
}

func (h *held) abort() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.aborted = true
	if h.conn != nil {
		h.conn.Abort()
	}
}

var errAborted = errors.New("the exchange was aborted")

// ask sends the request and reads the head of the answer. A connection that was
// idle may have died. If that is seen before anything is sent, the next one is
// asked; if not, and only when nothing was answered and asking again changes
// nothing (RFC 9110, 9.2.2), a fresh one is.
func (p *Proxy) ask(r *http.Request, x *exchange, up *upload) (*http1.Conn, http1.Head, error) {
	buf := requests.Get().(*[]byte)
	defer func() {
		if cap(*buf) <= 64<<10 {
			requests.Put(buf)
		}
	}()
	var err error
	if *buf, err = up.begin((*buf)[:0]); err != nil {
		return nil, http1.Head{}, err
	}
	for fresh := false; ; {
		var c *http1.Conn
		if !fresh {
			c = x.upstream.pool.Idle(x.holder(), x.conn.peer)
		}
		if c == nil {
			if c, err = x.dial(r.Context()); err != nil {
				return nil, http1.Head{}, err
			}
		}
		if !x.held.hold(c) {
			return nil, http1.Head{}, errAborted
		}
		head, err := p.exchange(r, x, up, c, *buf)
		if err == nil {
			return c, head, nil
		}
		stale := errors.Is(err, http1.ErrStale)
		again := c.Reused() && !c.Answered() && up.length == 0 && r.ContentLength == 0 && !timedOut(err) && repeatable(x.req.method)
		c.Abort()
		up.end(c)
		let := x.held.let()
		c.Release(false)
		if !let || !again && !stale {
			return nil, http1.Head{}, err
		}
		fresh = !stale // nothing was sent on a stale one: another that waits will do as well
	}
}

// timedOut says that an app is slow, which is not to be dead.
func timedOut(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func (x *exchange) dial(ctx context.Context) (*http1.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(x.flow.Context(), cancel)()
	return x.upstream.pool.Dial(ctx, x.holder(), x.conn.peer)
}

func (p *Proxy) exchange(r *http.Request, x *exchange, up *upload, c *http1.Conn, request []byte) (http1.Head, error) {
	if err := x.flow.Check(); err != nil {
		return http1.Head{}, err
	}
	wait := p.cfg.Timeouts.ResponseHeader
	begun, err := c.Send(request, up.length == 0, wait)
	if c.Reused() && !begun.IsZero() {
		p.lags.add(begun.Sub(x.begun))
	}
	if err != nil && (!c.Reused() && !timedOut(err)) {
		// It may have answered and gone. What it said is read all the same.
		up.failed = true
	} else if err != nil {
		return http1.Head{}, err
	}
	if up.failed || up.length != 0 {
		up.rest(c, wait)
	}
	head, err := c.ReadHead(r.Method, func(h http1.Head) error { return x.interim(up.w, h) })
	up.answered(c)
	return head, err
}

var requests = sync.Pool{New: func() any { b := make([]byte, 0, 4<<10); return &b }}

// upload is the request on its way to the app. What is small goes out with the
// head; the rest is sent by a goroutine of its own, because an app may answer
// before it has all of it. end waits for that goroutine.
type upload struct {
	w    http.ResponseWriter
	r    *http.Request
	x    *exchange
	body requestBody
	// length is that of the body that is not in the head's write: 0 for none,
	// -1 for chunks.
	length int64
	failed bool          // the request was not sent as a whole
	done   chan struct{} // closed when the goroutine is; nil without one

	mu   sync.Mutex // guards head and the read deadline
	head bool       // the answer's head is there
}

// wholeBody is how large a body may be to go out with the head.
const wholeBody = 16 << 10

// begin makes the head of the request, with the body if it is small.
func (u *upload) begin(dst []byte) ([]byte, error) {
	n := u.r.ContentLength
	dst, err := u.x.appendHead(dst, u.r, n)
	if err != nil || n == 0 {
		return dst, err
	}
	u.x.asked = u.x.waits.take(u.x, false)
	if n < 0 || n > wholeBody {
		u.length = n
		return dst, nil
	}
	at := len(dst)
	dst = append(dst, make([]byte, n)...)
	if _, err := io.ReadFull(&u.body, dst[at:]); err != nil {
		u.x.mu.Lock()
		u.x.clientErr = err
		u.x.mu.Unlock()
		return dst, fmt.Errorf("reading the device's body: %w", err)
	}
	return dst, nil
}

// rest sends what the head did not hold, if that was sent at all, and bounds the
// wait for an answer from then on.
func (u *upload) rest(c *http1.Conn, wait time.Duration) {
	if u.failed {
		c.SetReadDeadline(time.Now().Add(wait))
		return
	}
	_ = http.NewResponseController(u.w).EnableFullDuplex() // HTTP/2 is so anyway
	u.done = make(chan struct{})
	go func() {
		defer close(u.done)
		err := u.send(c)
		cut := u.x.flow.Check() != nil
		u.x.mu.Lock()
		cut = cut || u.x.clientErr != nil
		u.x.mu.Unlock()
		u.mu.Lock()
		defer u.mu.Unlock()
		u.failed = err != nil
		switch {
		case cut:
			c.Abort() // the app must not take a part for the whole, nor answer a device that is gone
		case timedOut(err) && !u.head:
			c.SetReadDeadline(time.Unix(1, 0)) // it reads nothing, and would not be waited for longer
		case timedOut(err):
			c.Abort()
		case u.head: // and whoever reads the answer decides
		default:
			c.SetReadDeadline(time.Now().Add(wait))
		}
	}()
}

// answered lifts the bound on the wait.
func (u *upload) answered(c *http1.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.head = true
	c.SetReadDeadline(time.Time{})
}

// grace is how long an answered request may still be on its way.
const grace = 50 * time.Millisecond

// end waits for the goroutine of rest, which ends soon: the app's connection is
// aborted and the device no longer listened to if it does not by itself. It
// reports whether the request was sent as a whole.
func (u *upload) end(c *http1.Conn) (sent bool) {
	if u.done != nil {
		t := time.NewTimer(grace)
		select {
		case <-u.done:
			t.Stop()
		case <-t.C:
			c.Abort()
			_ = http.NewResponseController(u.w).SetReadDeadline(time.Unix(1, 0))
			<-u.done
			u.failed = true
		}
		u.done = nil
	}
	return !u.failed
}

func (u *upload) send(c *http1.Conn) error {
	buf := chunks.Get()
	defer chunks.Put(buf)
	if u.length > 0 {
		_, err := io.CopyBuffer(struct{ io.Writer }{c}, io.LimitReader(&u.body, u.length), buf)
		return err
	}
	const room = 10 // for a chunk's size in front, and two more behind
	for {
		n, err := u.body.Read(buf[room : len(buf)-2])
		if n > 0 {
			size := strconv.AppendInt(buf[:0:room], int64(n), 16)
			size = append(size, "\r\n"...)
			begin := room - len(size)
			copy(buf[begin:], append([]byte(nil), size...))
			copy(buf[room+n:], "\r\n")
			if _, err := c.Write(buf[begin : room+n+2]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			_, err := c.Write(appendTrailer(append(buf[:0], "0\r\n"...), u.r.Trailer, nominations(u.r.Header["Connection"])))
			return err
		}
		if err != nil {
			return err
		}
	}
}

func appendField(dst []byte, name, value string) []byte {
	dst = append(dst, name...)
	dst = append(dst, ": "...)
	dst = append(dst, value...)
	return append(dst, "\r\n"...)
}

// hopByHop are about one connection and never pass (RFC 9110, 7.6.1).
var hopByHop = map[string]bool{
	"Connection": true, "Proxy-Connection": true, "Keep-Alive": true, "Proxy-Authenticate": true, "Proxy-Authorization": true,
	"Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

// appendHead makes the head from what was decided on and the headers that may
// pass.
func (x *exchange) appendHead(dst []byte, r *http.Request, length int64) ([]byte, error) {
	dst = append(dst, x.req.method...)
	dst = append(dst, ' ')
	dst = append(dst, x.req.target.escaped...)
	dst = append(dst, x.req.target.query...)
	dst = append(dst, " HTTP/1.1\r\n"...)
	dst = appendField(dst, "Host", x.req.host)
	named := nominations(r.Header["Connection"])
	for name, values := range r.Header {
		switch name {
		case "Host", "Content-Length", "Expect": // said by others: us, the framing, our own server
			continue
		case "Range":
			if greedyRange(values) {
				continue
			}
		case "Cookie":
			values = theirCookies(values)
		}
		if hopByHop[name] || !ordinary[name] && reserved(name) || named[name] {
			continue
		}
		for _, v := range values {
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(v) {
				return dst, fmt.Errorf("a header that cannot be sent: %.40q", name)
			}
			dst = appendField(dst, name, v)
		}
	}
	if tokens(r.Header["Te"], "trailers") {
		dst = appendField(dst, "Te", "trailers")
	}
	remote := x.flow.Facts().Outer
	if remote == "" {
		remote = x.conn.peer.Addr().Unmap().String()
	}
	dst = appendField(dst, "X-Forwarded-For", remote)
	dst = appendField(dst, "X-Forwarded-Host", x.req.host)
	dst = appendField(dst, "X-Forwarded-Proto", "https")
	dst = appendField(dst, assertion.Header, x.assertion)
	switch {
	case length > 0, length == 0 && (x.req.method == http.MethodPost || x.req.method == http.MethodPut || x.req.method == http.MethodPatch):
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, length, 10)
		dst = append(dst, "\r\n"...)
	case length < 0:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
		for name := range r.Trailer {
			if trailerAllowed(name, named) {
				dst = appendField(dst, "Trailer", name)
			}
		}
	}
	return append(dst, "\r\n"...), nil
}

// pass copies the headers of an app's answer that may reach the device. named
// is what its Connection headers name; trailers says that there will be some.
func pass(h http.Header, fields []http1.Field) (named nominated, trailers bool) {
	var connection []string
	for _, f := range fields {
		if f.Name == "Connection" {
			connection = append(connection, f.Value)
		}
	}
	named = nominations(connection)
	values := make([]string, len(fields))
	for i, f := range fields {
		switch {
		case f.Name == "Trailer":
			trailers = true
			continue
		case hopByHop[f.Name] || ours(f.Name) || f.Name == "Set-Cookie" && isOurCookie(f.Value) || named[f.Name]:
			continue
		}
		if old, there := h[f.Name]; there {
			h[f.Name] = append(old, f.Value)
			continue
		}
		values[i] = f.Value
		h[f.Name] = values[i : i+1 : i+1]
	}
	return named, trailers
}

// interim passes an answer before the real one on (RFC 9110, 15.2).
func (x *exchange) interim(w http.ResponseWriter, head http1.Head) error {
	if err := x.flow.Check(); err != nil {
		return err
	}
	h := w.Header()
	pass(h, head.Fields)
	w.WriteHeader(head.Status)
	clear(h)
	return nil
}

// answer passes the app's answer on. What is there goes out before more is
// waited for; but a head alone waits for its body, whose length it says.
func (x *exchange) answer(w http.ResponseWriter, c *http1.Conn, head http1.Head) error {
	if err := x.flow.Check(); err != nil {
		return err
	}
	h := w.Header()
	named, trailers := pass(h, head.Fields)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // net/http would guess one
	}
	x.note(head.Status, outcomeDone)
	w.WriteHeader(head.Status)
	var flush func() error
	var gone error // why the device cannot be written to
	waits := head.Length < 0 || lasting(h.Get("Content-Type"))
	if waits || head.Length > int64(c.Buffered()) {
		if !lasting(h.Get("Content-Type")) {
			x.awaited = x.waits.take(x, true)
		}
		flush = func() error {
			if waits {
				gone = http.NewResponseController(w).Flush()
			}
			if gone != nil {
				return gone
			}
			return x.awaited.begin()
		}
	}
	if trailers && head.Length < 0 {
		_ = flush() // makes chunks of it, which trailers need
	}
	for {
		b, err := c.Next(flush)
		err = x.awaited.done(err)
		if cut := x.flow.Check(); cut != nil {
			return cut
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if gone == nil && !x.held.over() {
				x.note(head.Status, outcomeBroke)
			}
			return err
		}
		n, err := w.Write(b)
		x.out.Add(int64(n))
		if waits = true; err != nil {
			return err
		}
	}
	for _, f := range c.Trailer() {
		if trailerReturns(f.Name, named) {
			h.Add(http.TrailerPrefix+f.Name, f.Value)
		}
	}
	return nil
}

// over says that the exchange was aborted, which is no fault of the app's.
func (h *held) over() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.aborted
}
