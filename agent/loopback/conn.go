package loopback

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/agent/peeruser"
)

// peer is an accepted connection whose owner is known. It ends at the latest
// with its context.
type peer struct {
	*net.TCPConn
	in     *bufio.Reader // every read goes through it: the first byte is peeked at
	screen *screen       // nil, or what keeps web pages out; set before the first Read
	uid    uint32
	ctx    context.Context
	cancel context.CancelFunc
	once   sync.Once
	closed chan struct{}
}

// Read reads what was peeked at first.
func (p *peer) Read(b []byte) (int, error) {
	if p.screen != nil {
		return p.screen.read(p.in, b)
	}
	return p.in.Read(b)
}

// WriteTo hides TCPConn's, which would read past the buffer.
func (p *peer) WriteTo(w io.Writer) (int64, error) { return p.in.WriteTo(w) }

// Close closes the connection once.
func (p *peer) Close() error {
	err := net.ErrClosed
	p.once.Do(func() { err = p.TCPConn.Close(); close(p.closed) })
	return err
}

// abort closes with a reset: what was cut must not look like a proper end.
func (p *peer) abort() {
	p.SetLinger(0)
	p.Close()
}

// accept serves l until ctx ends, each connection in a goroutine of its own. It
// returns an error only if the listener broke while ctx lived.
func (s *Server) accept(ctx context.Context, l net.Listener, handle func(*peer)) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := l.Accept()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // out of descriptors, or the client left early
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
			continue
		}
		tc := c.(*net.TCPConn)
		select {
		case s.slots <- struct{}{}:
		default:
			s.log.Warn("too many loopback connections", "remote", c.RemoteAddr().String())
			reset(tc)
			continue
		}
		s.work.Go(func() {
			defer func() { <-s.slots }()
			s.admit(ctx, tc, handle)
		})
	}
}

func reset(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// admit finds out who connected and handles the connection if they may.
func (s *Server) admit(ctx context.Context, c *net.TCPConn, handle func(*peer)) {
	uid, err := s.owner(c)
	if err != nil {
		s.logRefusal(c.RemoteAddr().String(), err)
		reset(c)
		return
	}
	p := &peer{TCPConn: c, in: bufio.NewReaderSize(c, 4096), uid: uid, closed: make(chan struct{})}
	p.ctx, p.cancel = context.WithCancel(ctx)
	defer p.cancel()
	stop := context.AfterFunc(p.ctx, p.abort)
	defer stop()
	s.mu.Lock()
	s.peers[p] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.peers, p)
		s.mu.Unlock()
	}()
	// A logout between the lookup and the line above has not seen this one.
	if !s.allowed(uid) {
		p.abort()
		return
	}
	defer p.Close()
	handle(p)
}

// logRefusal speaks at most once a second: another account must not be able to
// fill the log.
func (s *Server) logRefusal(remote string, err error) {
	now, last := time.Now().UnixNano(), s.lastRefusal.Load()
	if now-last >= int64(time.Second) && s.lastRefusal.CompareAndSwap(last, now) {
		s.log.Warn("loopback connection refused", "remote", remote, "err", err)
	}
}

var errUser = errors.New("the account that connected is not the one that logged in")

// owner returns the user at the other end if that user may pass.
func (s *Server) owner(c *net.TCPConn) (uint32, error) {
	if !c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap().IsLoopback() {
		return 0, errors.New("not from this machine")
	}
	if !peeruser.Supported {
		return 0, nil // Run has refused to start unless AllowAnyLocalUser is set
	}
	uid, err := peeruser.Conn(c)
	if err != nil {
		return 0, err
	}
	if !s.cfg.UserAllowed(uid) {
		return 0, errUser
	}
	return uid, nil
}

// serveTCP carries one connection of a TCP app's own loopback port.
func (s *Server) serveTCP(p *peer, t *target) {
	p.screen = screenPort(p.LocalAddr().(*net.TCPAddr).AddrPort())
	remote, err := s.dial(p.ctx, t)
	if err != nil {
		s.log.Info("app not reached", "app", t.key.app, "err", err)
		p.abort()
		return
	}
	s.relay(p, t, remote)
}

// dial opens the app's port through the tunnel. The connection does not outlive
// the app.
func (s *Server) dial(ctx context.Context, t *target) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stop := context.AfterFunc(t.ctx, cancel)
	defer stop()
	c, err := s.cfg.Dial(ctx, "tcp", t.dst())
	if err != nil {
		return nil, err
	}
	if t.ctx.Err() != nil {
		c.Close()
		return nil, context.Cause(t.ctx)
	}
	return c, nil
}

// relay carries bytes both ways until both sides have finished, one breaks, the
// app is gone or the user may no longer use it.
func (s *Server) relay(p *peer, t *target, remote net.Conn) {
	defer remote.Close()
	cut := func() { p.abort(); remote.Close() }
	defer context.AfterFunc(t.ctx, cut)()
	defer context.AfterFunc(p.ctx, cut)()
	var half atomic.Bool
	up := make(chan error, 1)
	s.work.Go(func() {
		err := copyHalf(remote, p, &half)
		if errors.Is(err, errPage) {
			s.logRefusal(p.RemoteAddr().String(), err)
		}
		if err != nil {
			cut()
		}
		up <- err
	})
	if err := copyHalf(p, remote, &half); err != nil {
		cut() // a flow that the gateway cut reaches the program as a reset
	}
	<-up
}

// copyHalf copies until src ends, then says so to dst. half is shared by the
// two directions: once one is done, the other may be silent for halfOpenLimit
// at a time, since a side that has gone for good is not noticed by reading.
func copyHalf(dst, src net.Conn, half *atomic.Bool) error {
	buf := make([]byte, 32<<10)
	for {
		if half.Load() {
			src.SetReadDeadline(time.Now().Add(halfOpenLimit))
		}
		n, err := src.Read(buf)
		if n > 0 {
			if _, werr := dst.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			w, ok := dst.(interface{ CloseWrite() error })
			if !ok {
				return errors.New("the other side cannot be half closed")
			}
			half.Store(true)
			dst.SetReadDeadline(time.Now().Add(halfOpenLimit))
			w.CloseWrite() // fails only if dst is gone, which its own direction notices
			return nil
		}
		if err != nil {
			return err
		}
	}
}
