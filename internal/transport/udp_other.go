//go:build !linux

package transport

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// UDP is a [conn.Bind] of UDP sockets: upstream's, or a plain socket for a
// single address, which upstream's has no way to ask for.
type UDP struct {
	conn.Bind
	port uint16
}

// NewUDP makes a closed UDP.
func NewUDP(opts UDPOptions) *UDP {
	u := &UDP{port: opts.Listen.Port()}
	if a := opts.Listen.Addr(); a.IsValid() && !a.IsUnspecified() {
		u.Bind = &singleBind{addr: a}
	} else {
		u.Bind = conn.NewDefaultBind()
	}
	return u
}

// Stats counts nothing: upstream's sockets do not.
func (u *UDP) Stats() Stats { return Stats{} }

// sayRoom says nothing: what upstream's sockets hold is not known.
func (*UDP) sayRoom() {}

// Open implements [conn.Bind]. The device asks for port 0 first and for the one
// it got when it opens again.
func (u *UDP) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if port == 0 {
		port = u.port
	}
	return u.Bind.Open(port)
}

// singleBind listens on one address. Upstream's bind takes a port only.
type singleBind struct {
	addr netip.Addr

	mu   sync.Mutex
	conn *net.UDPConn
}

var _ conn.Bind = (*singleBind)(nil)

// Open implements [conn.Bind].
func (b *singleBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.addr, port)))
	if err != nil {
		return nil, 0, err
	}
	// The kernel gives what it allows.
	_ = c.SetReadBuffer(socketBuffer)
	_ = c.SetWriteBuffer(socketBuffer)
	b.conn = c
	receive := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		n, src, err := c.ReadFromUDPAddrPort(packets[0])
		if err != nil {
			return 0, err // net.ErrClosed after Close, which ends the device's reader
		}
		sizes[0] = n
		eps[0] = &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(src.Addr().Unmap(), src.Port())}
		return 1, nil
	}
	return []conn.ReceiveFunc{receive}, c.LocalAddr().(*net.UDPAddr).AddrPort().Port(), nil
}

// Close implements [conn.Bind].
func (b *singleBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn == nil {
		return nil
	}
	err := b.conn.Close()
	b.conn = nil
	return err
}

// SetMark implements [conn.Bind]; marks are not used.
func (*singleBind) SetMark(uint32) error { return nil }

// Send implements [conn.Bind].
func (b *singleBind) Send(bufs [][]byte, ep conn.Endpoint) error {
	b.mu.Lock()
	c := b.conn
	b.mu.Unlock()
	if c == nil {
		return net.ErrClosed
	}
	dst, ok := ep.(*conn.StdNetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	var errs error
	for _, buf := range bufs {
		if _, err := c.WriteToUDPAddrPort(buf, dst.AddrPort); err != nil {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// ParseEndpoint implements [conn.Bind].
func (*singleBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &conn.StdNetEndpoint{AddrPort: ap}, nil
}

// BatchSize implements [conn.Bind].
func (*singleBind) BatchSize() int { return 1 }
