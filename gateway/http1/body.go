package http1

import (
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// body is the body of one request. Whoever it was handed to may read it until
// the handler returns, and gets an error afterwards.
type body struct {
	c  *served
	mu sync.Mutex // held by who reads

	err    error // of the last read, for good
	closed atomic.Bool
}

// Read implements io.Reader. The first call asks for the body, if the other end
// waits for that.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed.Load():
		return 0, http.ErrBodyReadAfterClose
	case b.err != nil || len(p) == 0:
		return 0, b.err
	}
	b.c.answer.sayContinue()
	n, err := b.c.read(p)
	if b.c.over {
		err = io.EOF
		b.trailer()
		b.c.heard()
	}
	b.err = err
	return n, err
}

// trailer hands over what came behind the body.
func (b *body) trailer() {
	r := b.c.req.http
	for _, f := range b.c.trailer() {
		if r.Trailer == nil {
			r.Trailer = http.Header{}
		}
		r.Trailer[f.Name] = append(r.Trailer[f.Name], f.Value)
	}
}

// Close implements io.Closer. What was not read is the server's business.
func (b *body) Close() error {
	b.closed.Store(true)
	return nil
}

// end takes the body back. It reports false when somebody was still waiting for
// a part of it, which may have been lost.
func (b *body) end() bool {
	b.closed.Store(true)
	if b.mu.TryLock() {
		b.mu.Unlock()
		return true
	}
	_ = b.c.nc.SetReadDeadline(past)
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.c.nc.SetReadDeadline(time.Time{})
	return false
}

// mostUnread is how much of a body that no handler wanted is read, so that the
// connection can go on.
const mostUnread = 256 << 10

var errUnread = errors.New("more of a body than is read for nothing")

// skip reads what is left of a body.
func (c *served) skip() error {
	if c.framing.kind == sized && c.left > mostUnread {
		return errUnread
	}
	if c.buf == nil {
		c.begin()
	}
	for n := 0; ; {
		b, err := c.next(mostUnread)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if n += len(b); n > mostUnread {
			return errUnread
		}
	}
}
