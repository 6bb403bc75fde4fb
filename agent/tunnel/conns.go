package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

// keepalives are those of TCP connections inside, as the userspace stack has them.
var keepalives = net.KeepAliveConfig{Enable: true, Idle: 60 * time.Second, Interval: 15 * time.Second, Count: 4}

// fenced is a socket that sends to allowed addresses only.
type fenced struct {
	net.PacketConn
	tunnel *Tunnel
}

// WriteTo implements [net.PacketConn].
func (f *fenced) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, fmt.Errorf("sending to a %T: not a UDP address", to)
	}
	if err := f.tunnel.reachable("udp", a.AddrPort()); err != nil {
		return 0, err
	}
	return f.PacketConn.WriteTo(b, to)
}

// track notes c under its destination, unless that went away during the dial.
func (t *Tunnel) track(network string, dst netip.AddrPort, c net.Conn) (net.Conn, error) {
	tc := &tracked{Conn: c, tunnel: t, addr: dst.Addr().Unmap()}
	tc.asks.Store(&keepalives)
	t.mu.Lock()
	_, ok := t.allowed[tc.addr]
	if ok {
		m := t.conns[tc.addr]
		if m == nil {
			m = make(map[*tracked]struct{})
			t.conns[tc.addr] = m
		}
		m[tc] = struct{}{}
	}
	t.mu.Unlock()
	if !ok {
		tc.Reset()
		return nil, t.reachable(network, dst)
	}
	return tc, nil
}

// tracked is a connection that ends with its destination's place in the
// allowed set.
type tracked struct {
	net.Conn
	tunnel *Tunnel
	addr   netip.Addr
	asks   atomic.Pointer[net.KeepAliveConfig]
}

// Close implements [net.Conn].
func (c *tracked) Close() error {
	t := c.tunnel
	t.mu.Lock()
	delete(t.conns[c.addr], c)
	if len(t.conns[c.addr]) == 0 {
		delete(t.conns, c.addr)
	}
	t.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite tells the other end of a TCP connection that nothing more is
// coming.
func (c *tracked) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}

// SetKeepAliveConfig sets when silence of a TCP connection is asked about.
func (c *tracked) SetKeepAliveConfig(cfg net.KeepAliveConfig) error {
	c.asks.Store(&cfg)
	return c.ask(cfg.Idle)
}

// ask sets after how much silence of a TCP connection it is asked about.
func (c *tracked) ask(idle time.Duration) error {
	cfg := *c.asks.Load()
	cfg.Idle = idle
	if k, ok := c.Conn.(interface {
		SetKeepAliveConfig(net.KeepAliveConfig) error
	}); ok {
		return k.SetKeepAliveConfig(cfg)
	}
	return errors.ErrUnsupported
}

// Reset breaks the connection off, so that the other end sees it.
func (c *tracked) Reset() {
	if r, ok := c.Conn.(interface{ Reset() }); ok {
		r.Reset()
	}
	_ = c.Close()
}
