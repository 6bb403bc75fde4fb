package proxy

import (
	"errors"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
)

// lostConn and lostStream note that they were given up.
type lostConn struct {
	net.Conn
	yes bool
}

func (l *lostConn) Reset() { l.yes = true }

type lostStream struct {
	http.ResponseWriter
	yes bool
}

func (l *lostStream) SetReadDeadline(time.Time) error { l.yes = true; return nil }

// Whatever comes that may be of the body keeps a wait; what is of others does
// not.
func TestWait(t *testing.T) {
	const within = time.Minute
	for name, c := range map[string]struct {
		stream bool
		app    bool
		every  time.Duration // what comes comes so often
		comes  func(*exchange)
		lost   bool
	}{
		"nothing":                              {every: time.Hour, comes: func(*exchange) {}, lost: true},
		"a byte of a record now and then":      {every: 50 * time.Second, comes: func(x *exchange) { x.conn.came.Add(1) }},
		"too little too late":                  {every: 2 * time.Minute, comes: func(x *exchange) { x.conn.came.Add(1) }, lost: true},
		"a byte of a frame now and then":       {stream: true, every: 50 * time.Second, comes: func(x *exchange) { x.conn.came.Add(1) }},
		"frames of other streams":              {stream: true, every: time.Second, comes: func(x *exchange) { x.conn.came.Add(100); x.stream.framing.came.Add(1) }, lost: true},
		"an app that says nothing":             {app: true, every: time.Hour, comes: func(*exchange) {}, lost: true},
		"an app that waits for the device":     {app: true, every: 50 * time.Second, comes: func(x *exchange) { x.in.Add(1) }},
		"an app's record, a byte now and then": {app: true, every: 50 * time.Second, comes: func(x *exchange) { x.backend.conn.(*appConn).came.Add(1) }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ws := waits{within: within}
				device, answer := &lostConn{}, &lostStream{}
				x := &exchange{conn: &conn{Conn: device, gone: func() {}}}
				x.backend.conn = &appConn{}
				if c.stream {
					x.stream = &stream{ResponseWriter: answer, framing: &framing{}}
				}
				broken := errors.New("broken off")
				for range 3 { // as one that is used again
					device.yes, answer.yes, x.stalled, x.held.aborted = false, false, false, false
					w := ws.take(x, c.app)
					if err := w.begin(); err != nil {
						t.Fatal(err)
					}
					begun := time.Now()
					for time.Since(begun) < time.Hour {
						time.Sleep(c.every)
						c.comes(x)
					}
					err := w.done(broken)
					if c.lost != errors.Is(err, os.ErrDeadlineExceeded) || !c.lost && !errors.Is(err, broken) {
						t.Errorf("done: %v", err)
					}
					if answer.yes != (c.lost && c.stream) || device.yes != (c.lost && !c.stream && !c.app) || x.stalled != (c.lost && c.app) || x.held.aborted != (c.lost && c.app) {
						t.Errorf("stream %v, connection %v, app %v", answer.yes, device.yes, x.stalled)
					}
					time.Sleep(time.Hour) // nobody waits
					if ws.let(w, true) != c.lost {
						t.Error("given up without a wait")
					}
				}
			})
		})
	}
}

// Who reads on for an exchange that is over hurts nobody's.
func TestAWaitThatIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ws := waits{within: time.Minute}
		device := &lostConn{}
		w := ws.take(&exchange{conn: &conn{Conn: device, gone: func() {}}}, false)
		ws.let(w, false)
		_ = w.begin()
		time.Sleep(time.Hour)
		_ = w.done(nil)
		if device.yes {
			t.Error("the connection was reset")
		}
		if ws.pool.Get() != nil {
			t.Error("it is used again")
		}
		var none *wait
		if none.begin() != nil || none.done(nil) != nil || ws.let(none, true) {
			t.Error("no wait is one")
		}
	})
}

// However frames come apart, they are counted when they are whole.
func TestFramesAreCounted(t *testing.T) {
	frame := func(length int) []byte {
		return append([]byte{byte(length >> 16), byte(length >> 8), byte(length), 0, 0, 0, 0, 0, 1}, make([]byte, length)...)
	}
	sent := []byte(http2.ClientPreface)
	var ends []int
	for _, length := range []int{0, 1, 9, 70000, 0, 0, 16384} {
		sent = append(sent, frame(length)...)
		ends = append(ends, len(sent))
	}
	for _, piece := range []int{1, 2, 8, 9, 10, 24, 4096, len(sent)} {
		f := newFraming(nil, nil, nil)
		for at := 0; at < len(sent); {
			n := min(piece, len(sent)-at)
			f.count(sent[at : at+n])
			at += n
			whole := uint64(1) // the preface
			for _, end := range ends {
				if end <= at {
					whole++
				}
			}
			if at < len(http2.ClientPreface) {
				whole = 0
			}
			if got := f.came.Load(); got != whole {
				t.Fatalf("in pieces of %d, after %d bytes: %d frames, want %d", piece, at, got, whole)
			}
		}
	}
}
