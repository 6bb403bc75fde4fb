package http1

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Handler answers one request. A request that was refused comes with why, and
// without anything of itself but a context; the connection ends with its answer.
//
// The request, its header and body, and the header of the answer are the
// handler's until it returns and nobody's afterwards. The request's context is
// the connection's: it ends when the other end went away or the server does.
type Handler func(w http.ResponseWriter, r *http.Request, why *Malformed)

// Server answers requests on connections that somebody else accepted. Handler
// is required; a zero field means its default.
type Server struct {
	Handler Handler
	// HeadBytes bounds a request's line and header; 64 KiB.
	HeadBytes int
	// HeadTimeout bounds how long a head may take from its first byte, and how
	// long a new connection may say nothing; 10 s.
	HeadTimeout time.Duration
	// IdleTimeout is how long a connection may wait for its next request; 2 min.
	IdleTimeout time.Duration
	// Panicked is told what a handler panicked with, unless it was
	// http.ErrAbortHandler, which ends the connection without a word.
	Panicked func(v any, stack []byte)

	closing atomic.Bool
	mu      sync.Mutex // guards conns
	conns   map[*served]struct{}
}

const (
	// watchAfter is how long a handler may take before somebody watches whether
	// the other end is still there.
	watchAfter = 50 * time.Millisecond
	// lingers is how long the other end may take to read the last answer when it
	// has sent more than was read: a reset would destroy it.
	lingers = 500 * time.Millisecond
)

var past = time.Unix(1, 0)

func (s *Server) headBytes() int {
	if s.HeadBytes <= 0 {
		return 64 << 10
	}
	return s.HeadBytes
}

func or(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}

// Drain ends the connections that wait for a request, and every other one with
// the answer that is on its way. It does not wait.
func (s *Server) Drain() {
	s.closing.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.mu.Lock()
		if c.phase == idle {
			c.expire()
		}
		c.mu.Unlock()
	}
}

// Serve answers requests on nc until it ends, and closes it unless a handler
// took it over. Cancelling ctx reaches handlers only: whoever wants an end of a
// connection closes it.
func (s *Server) Serve(ctx context.Context, nc net.Conn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &served{
		reader: reader{nc: nc, limit: s.headBytes()}, srv: s, cancel: cancel,
		head: or(s.HeadTimeout, 10*time.Second), idle: or(s.IdleTimeout, 2*time.Minute),
		req: newRequest(ctx, nc.RemoteAddr().String()),
	}
	c.answer = response{c: c, header: make(http.Header, 16)}
	if under, ok := nc.(interface{ NetConn() net.Conn }); ok {
		c.answer.gather, _ = under.NetConn().(Gatherer)
	}
	s.mu.Lock()
	if s.conns == nil {
		s.conns = map[*served]struct{}{}
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		c.stop()
		c.free()
		c.answer.drop()
		if c.answer.state != hijacked {
			_ = nc.Close()
		}
	}()
	for wait := c.head; c.await(wait) && c.serve(); wait = c.idle {
	}
}

// served is a connection on which requests come.
type served struct {
	reader
	srv        *Server
	cancel     context.CancelFunc
	head, idle time.Duration
	req        request
	answer     response
	body       *body   // of the request being handled, nil without one or once it was taken back
	one        [1]byte // what a connection that holds no buffer reads into

	clock
}

// await returns once there is something of a request. A connection that waits
// holds no buffer and nothing of the last message.
func (c *served) await(wait time.Duration) bool {
	if c.r == c.w {
		c.free()
		c.forget()
		c.req.forget()
		if !c.enter(idle, wait) || c.srv.closing.Load() {
			return false
		}
		if n, err := c.nc.Read(c.one[:]); n == 0 || err != nil {
			return false
		}
		c.keep()
	}
	c.begin()
	return c.enter(heading, c.head)
}

// keep puts the byte that was waited for where the others are.
func (c *served) keep() {
	c.begin()
	(*c.buf)[0], c.r, c.w = c.one[0], 0, 1
}

// serve answers one request. It reports whether another may follow.
func (c *served) serve() bool {
	f := framing{kind: none}
	raw, err := c.rawHead()
	if err == nil {
		c.fields, f, err = c.req.parse(raw, c.fields[:0])
	}
	var why *Malformed
	if err != nil {
		if why = refusal(err); why == nil {
			return false
		}
		f = framing{kind: none}
		c.req.empty()
	}
	c.expect(f)
	var b *body
	if !c.over {
		b = &body{c: c}
		c.req.http.Body = b
	}
	if c.r == c.w {
		c.free()
	}
	expects := b != nil && c.req.http.ProtoMinor == 1 && hasToken(c.req.header["Expect"], "100-continue")
	c.answer.begin(why != nil || !f.reusable, expects)
	c.begun(c.over)
	c.body = b
	ok := c.handle(why)
	c.takeBack()
	if !ok || c.answer.state == hijacked {
		return false
	}
	more := c.answer.end()
	c.listen()
	if c.answer.deadline {
		_ = c.nc.SetReadDeadline(time.Time{})
	}
	if more && !c.over {
		more = c.enter(heading, c.head) && c.skip() == nil
	}
	if !more && c.answer.err == nil && !c.gone && (why != nil || !c.over || c.r < c.w) {
		c.linger()
	}
	return more && !c.gone
}

// refusal is why a message was refused, nil when it could not be read at all.
func refusal(err error) (why *Malformed) {
	errors.As(err, &why)
	return why
}

// takeBack ends the reading of the body by the handler and whoever it gave it
// to. Nothing follows on the connection when a part of it may be lost, or too
// much is left.
func (c *served) takeBack() {
	if c.body != nil {
		if !c.body.end() || !c.over && c.framing.kind == sized && c.left > mostUnread {
			c.answer.close = true
		}
		c.body = nil
	}
}

// handle calls the handler. It reports false when the connection must end
// without another byte.
func (c *served) handle(why *Malformed) (ok bool) {
	defer func() {
		if ok {
			return
		}
		v := recover()
		if v != http.ErrAbortHandler && c.srv.Panicked != nil { //nolint:errorlint // as net/http compares it
			c.srv.Panicked(v, debug.Stack())
		}
	}()
	c.srv.Handler(&c.answer, c.req.http, why)
	return true
}

// linger lets the other end read the last answer.
func (c *served) linger() {
	if w, ok := c.nc.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		return
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(lingers))
	if c.buf == nil {
		c.begin()
	}
	for {
		if n, err := c.nc.Read(*c.buf); n == 0 || err != nil {
			return
		}
	}
}

// give hands over what was read and belongs to nobody yet.
func (c *served) give() []byte {
	c.listen()
	c.mu.Lock()
	c.phase = away
	c.mu.Unlock()
	c.forget() // the request itself is still the handler's
	if c.r == c.w {
		return nil
	}
	return append([]byte(nil), (*c.buf)[c.r:c.w]...)
}

// Hijack implements http.Hijacker. What the other end has sent after the request
// is read from the connection first.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if w.state != unsaid {
		return nil, nil, errors.New("http1: the answer has begun, or the connection is another's")
	}
	rest := w.c.give()
	w.drop()
	w.state = hijacked
	nc := &given{Conn: w.c.nc, rest: rest}
	return nc, bufio.NewReadWriter(bufio.NewReader(nc), bufio.NewWriter(nc)), nil
}

// given is a connection that was taken over.
type given struct {
	net.Conn
	rest []byte // read before
}

func (g *given) Read(b []byte) (int, error) {
	if len(g.rest) > 0 {
		n := copy(b, g.rest)
		g.rest = g.rest[n:]
		return n, nil
	}
	return g.Conn.Read(b)
}

// NetConn returns the connection underneath.
func (g *given) NetConn() net.Conn { return g.Conn }
