package proxy

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// looks is how often a write that is under way is looked at within the time it
// has. That it stood still at each look is what ends it: a gateway that stood
// still itself blames nobody.
const looks = 4

// patience is for an end that takes nothing of what it is sent. However slow it
// is, it may go on; when it has taken nothing for a time it is given up. begin
// and done go around every write. One timer does all of it, which most writes
// leave as it is.
type patience struct {
	within time.Duration
	conn   any    // on which progress within a write shows; nil if on none
	over   func() // ends the write; begin and done wait for it

	mu      sync.Mutex // guards what follows
	timer   *time.Timer
	looking bool   // the timer is on its way
	writing int    // writes under way
	begun   uint64 // and all that ever were
	seen    uint64 // begun, at the last look
	taken   uint64 // likewise
	still   int    // looks in a row at which nothing had moved
	lost    bool
}

var errStill = fmt.Errorf("the other end stood still: %w", os.ErrDeadlineExceeded)

// begin fails once the other end was given up.
func (p *patience) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost {
		return errStill
	}
	p.writing++
	p.begun++
	if !p.looking {
		p.looking = true
		if p.timer == nil {
			p.timer = time.AfterFunc(p.within/looks, p.look)
		} else {
			p.timer.Reset(p.within / looks)
		}
	}
	return nil
}

// done returns the error of a write, or why it failed.
func (p *patience) done(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writing > 0 {
		p.writing--
	}
	if p.lost && err != nil {
		return errStill
	}
	return err
}

func (p *patience) look() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.looking = p.writing > 0 && !p.lost; !p.looking {
		return
	}
	taken := takenOf(p.conn)
	if p.begun != p.seen || taken != p.taken {
		p.seen, p.taken, p.still = p.begun, taken, 0
	} else {
		p.still++
	}
	if p.still < looks {
		p.timer.Reset(p.within / looks)
		return
	}
	p.looking, p.lost = false, true
	p.over()
}

// gaveUp says that the other end took nothing for too long.
func (p *patience) gaveUp() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}

// stop ends the looks; over is not called any more.
func (p *patience) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writing = 0
	if p.timer != nil {
		p.timer.Stop()
	}
}

// takenOf is how much the other end has taken so far, as far as it is known.
func takenOf(c any) uint64 {
	switch c := c.(type) {
	case interface{ Taken() uint64 }: // of the tunnel's own stack
		return c.Taken()
	case syscall.Conn:
		return acked(c)
	}
	return 0
}

// appConn is a connection to an app, which has to take what it is sent.
type appConn struct {
	net.Conn
	patience
	may  func() bool // whether anything may be written; nil where it may
	came came
}

var errAsleep = errors.New("the gateway stood still, and has not decided again")

func newAppConn(c net.Conn, within time.Duration, may func() bool) *appConn {
	a := &appConn{Conn: c, may: may}
	a.patience = patience{within: within, conn: c, over: func() {
		_ = a.SetLinger(0) // whoever closes it now is not waited for
		_ = c.SetWriteDeadline(time.Unix(1, 0))
	}}
	return a
}

// Read implements [net.Conn].
func (a *appConn) Read(b []byte) (int, error) { return a.came.add(a.Conn.Read(b)) }

// Write implements [net.Conn].
func (a *appConn) Write(b []byte) (int, error) {
	if a.may != nil && !a.may() {
		_ = a.SetLinger(0) // nothing that is queued leaves either
		return 0, errAsleep
	}
	if err := a.begin(); err != nil {
		return 0, err
	}
	n, err := a.Conn.Write(b)
	return n, a.done(err)
}

// Close implements [net.Conn].
func (a *appConn) Close() error {
	a.stop()
	return a.Conn.Close()
}

// SetLinger is that of a [net.TCPConn], for what is aborted.
func (a *appConn) SetLinger(sec int) error {
	if l, ok := a.Conn.(interface{ SetLinger(sec int) error }); ok {
		return l.SetLinger(sec)
	}
	return nil
}

// SyscallConn implements [syscall.Conn].
func (a *appConn) SyscallConn() (syscall.RawConn, error) {
	s, ok := a.Conn.(syscall.Conn)
	if !ok {
		return nil, syscall.ENOTSUP
	}
	return s.SyscallConn()
}

// stream is the answer on an HTTP/2 stream. The device may take everything else
// on the connection and nothing of this: then the stream alone is reset.
type stream struct {
	http.ResponseWriter
	patience
	framing *framing
	unsent  bool // something may wait in ResponseWriter
}

// frameBytes is the most that HTTP/2 sends at once unasked (RFC 9113, 4.2).
const frameBytes = 16 << 10

func newStream(w http.ResponseWriter, within time.Duration) *stream {
	s := &stream{ResponseWriter: w}
	s.patience = patience{within: within, over: func() {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Unix(1, 0))
	}}
	return s
}

// WriteHeader implements [http.ResponseWriter].
func (s *stream) WriteHeader(status int) {
	for i, a := range itsAnswers {
		if status == a.status && s.framing != nil {
			s.framing.answered[i].Add(1)
		}
	}
	s.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (s *stream) Write(b []byte) (n int, err error) {
	s.unsent = true
	for {
		piece := b[n:min(len(b), n+frameBytes)]
		if err := s.begin(); err != nil {
			return n, err
		}
		m, err := s.ResponseWriter.Write(piece)
		n += m
		if err := s.done(err); err != nil || n >= len(b) {
			return n, err
		}
	}
}

// FlushError is for [http.ResponseController].
func (s *stream) FlushError() error {
	if err := s.begin(); err != nil {
		return err
	}
	err := s.done(http.NewResponseController(s.ResponseWriter).Flush())
	s.unsent = s.unsent && err != nil
	return err
}

// Unwrap is for [http.ResponseController].
func (s *stream) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// end sends what may wait while it can still be given up, and must come before
// the handler returns.
func (s *stream) end() {
	if s.unsent {
		_ = s.FlushError()
	}
}
