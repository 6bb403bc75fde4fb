package overlay

import (
	"bytes"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Conn is a TCP connection of the stack. Its errors are those of package net:
// net.ErrClosed, os.ErrDeadlineExceeded, syscall.ECONNRESET and so on.
type Conn struct {
	ep            tcpip.Endpoint
	local, remote *net.TCPAddr
	segment       int // see WriteSize
	done          chan struct{}
	closing       sync.Once

	reading, writing side
	payload          bytes.Reader // what is being written
	taken            atomic.Uint64
}

// side is one direction of a Conn: one call at a time.
type side struct {
	mu       sync.Mutex
	entry    waiter.Entry
	ready    chan struct{} // holds a token when it may be worth another try
	deadline deadline
}

func (s *Stack) newConn(wq *waiter.Queue, ep tcpip.Endpoint) *Conn {
	c := &Conn{ep: ep, done: make(chan struct{}), local: &net.TCPAddr{}, remote: &net.TCPAddr{}}
	// They last as long as the endpoint: a wait costs no more than the wait.
	c.reading.init(wq, waiter.ReadableEvents)
	c.writing.init(wq, waiter.WritableEvents)
	ip := header.IPv4MinimumSize
	if a, err := ep.GetLocalAddress(); err == nil {
		c.local = net.TCPAddrFromAddrPort(addrPort(a.Addr, a.Port))
	}
	if a, err := ep.GetRemoteAddress(); err == nil {
		c.remote = net.TCPAddrFromAddrPort(addrPort(a.Addr, a.Port))
		if a.Addr.Len() == header.IPv6AddressSize {
			ip = header.IPv6MinimumSize
		}
	}
	mtu := int(s.link.MTU())
	c.segment = perSegment(mtu) * (mtu - ip - segmentHeader)
	return c
}

func (s *side) init(wq *waiter.Queue, mask waiter.EventMask) {
	s.entry, s.ready = waiter.NewChannelEntry(mask | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&s.entry)
	s.deadline.pass = make(chan struct{})
}

// WriteSize is how many bytes at once leave in full packets without a rest.
// Whoever copies much takes a buffer of this size.
func (c *Conn) WriteSize() int { return c.segment }

// Read implements [net.Conn]. It returns all there is, as much as fits.
func (c *Conn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.reading.mu.Lock()
	defer c.reading.mu.Unlock()
	for {
		if err := c.interrupted(&c.reading); err != nil {
			return 0, c.fault("read", err)
		}
		w := tcpip.SliceWriter(b)
		res, err := c.ep.Read(&w, tcpip.ReadOptions{})
		switch err.(type) {
		case nil:
			c.ep.ModerateRecvBuf(res.Count)
			return res.Count, nil
		case *tcpip.ErrWouldBlock:
			c.wait(&c.reading)
		case *tcpip.ErrClosedForReceive:
			if err := c.interrupted(&c.reading); err != nil {
				return 0, c.fault("read", err)
			}
			return 0, io.EOF
		default:
			return 0, c.fault("read", fromTCPIP(err))
		}
	}
}

// Write implements [net.Conn].
func (c *Conn) Write(b []byte) (n int, err error) {
	c.writing.mu.Lock()
	defer c.writing.mu.Unlock()
	defer c.payload.Reset(nil)
	for n < len(b) {
		if err := c.interrupted(&c.writing); err != nil {
			return n, c.fault("write", err)
		}
		c.payload.Reset(b[n:min(len(b), n+c.segment)])
		m, err := c.ep.Write(&c.payload, tcpip.WriteOptions{})
		n += int(m)
		c.taken.Add(uint64(m))
		switch err.(type) {
		case nil:
		case *tcpip.ErrWouldBlock:
			c.wait(&c.writing)
		default:
			return n, c.fault("write", fromTCPIP(err))
		}
	}
	return n, nil
}

// Taken is how many written bytes the stack has taken so far. A Write that waits
// looks at once whether it takes more: gVisor wakes it only when half of the
// buffer is free, which takes a slow reader long.
func (c *Conn) Taken() uint64 {
	select {
	case c.writing.ready <- struct{}{}:
	default:
	}
	return c.taken.Load()
}

// interrupted is why a call must not go on, if there is a reason.
func (c *Conn) interrupted(s *side) error {
	select {
	case <-c.done:
		return net.ErrClosed
	case <-s.deadline.passed():
		return os.ErrDeadlineExceeded
	default:
		return nil
	}
}

// wait returns when the endpoint may have become ready or the call is over.
func (c *Conn) wait(s *side) {
	select {
	case <-s.ready:
	case <-c.done:
	case <-s.deadline.passed():
	}
}

func (c *Conn) fault(op string, err error) error {
	select {
	case <-c.done:
		err = net.ErrClosed // whatever came of it
	default:
	}
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// Close ends the connection. What was written is still delivered; if there is
// unread data the other end gets a reset instead of an end of file.
func (c *Conn) Close() error {
	c.closing.Do(func() { close(c.done) })
	c.ep.Close()
	return nil
}

// CloseWrite tells the other end that nothing more is coming; reading goes on.
func (c *Conn) CloseWrite() error { return c.shutdown(tcpip.ShutdownWrite) }

// CloseRead discards what arrives from now on.
func (c *Conn) CloseRead() error { return c.shutdown(tcpip.ShutdownRead) }

func (c *Conn) shutdown(how tcpip.ShutdownFlags) error {
	if err := c.ep.Shutdown(how); err != nil {
		return c.fault("close", fromTCPIP(err))
	}
	return nil
}

// Reset breaks the connection off: the other end gets a reset, and bytes that
// were written but not sent, or received but not read, are discarded.
func (c *Conn) Reset() {
	c.closing.Do(func() { close(c.done) })
	c.ep.Abort()
	// Abort leaves an endpoint that has been closed before, or was reset by
	// the other end, as it is; Close then lets go of it.
	c.ep.Close()
}

// LocalAddr implements [net.Conn].
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements [net.Conn].
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error {
	c.reading.deadline.set(t)
	c.writing.deadline.set(t)
	return nil
}

// SetReadDeadline implements [net.Conn].
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.reading.deadline.set(t)
	return nil
}

// SetWriteDeadline implements [net.Conn].
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.writing.deadline.set(t)
	return nil
}

// SetKeepAliveConfig sets when silence is asked about, as for a
// [net.TCPConn]. Fields that are zero keep their value.
func (c *Conn) SetKeepAliveConfig(cfg net.KeepAliveConfig) error {
	keepalive(c.ep, cfg)
	return nil
}

// deadline is a channel that closes at a time that can be changed.
type deadline struct {
	mu    sync.Mutex
	pass  chan struct{}
	timer *time.Timer // closes pass
}

// passed is closed once the deadline has passed. It is the same channel until
// then, so that a call that waits sees every change.
func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pass
}

// set moves the deadline; the zero time is never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fired := d.timer != nil && !d.timer.Stop() // it closes the channel of its time
	d.timer = nil
	if fired || isClosed(d.pass) {
		d.pass = make(chan struct{})
	}
	pass := d.pass
	switch wait := time.Until(t); {
	case t.IsZero():
	case wait <= 0:
		close(pass)
	default:
		d.timer = time.AfterFunc(wait, func() { close(pass) })
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// tune sets the options of every connection, forwarded or dialled.
func tune(ep tcpip.Endpoint) {
	ep.SocketOptions().SetDelayOption(false)
	keepalive(ep, net.KeepAliveConfig{Enable: true, Idle: keepaliveIdle, Interval: keepaliveInterval, Count: keepaliveCount})
}

// keepalive sets options that no TCP endpoint of gVisor refuses.
func keepalive(ep tcpip.Endpoint, cfg net.KeepAliveConfig) {
	ep.SocketOptions().SetKeepAlive(cfg.Enable)
	if cfg.Idle > 0 {
		idle := tcpip.KeepaliveIdleOption(cfg.Idle)
		_ = ep.SetSockOpt(&idle)
	}
	if cfg.Interval > 0 {
		interval := tcpip.KeepaliveIntervalOption(cfg.Interval)
		_ = ep.SetSockOpt(&interval)
	}
	if cfg.Count > 0 {
		_ = ep.SetSockOptInt(tcpip.KeepaliveCountOption, cfg.Count)
	}
}
