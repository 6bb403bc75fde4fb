package tunnel

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"
)

// socketBuffer is what the sockets ask for, in bytes, as upstream's do.
const socketBuffer = 7 << 20

// bind is the device's socket: upstream's batching one for all addresses, a
// plain one for a single address. It shows the source of every datagram to
// seen, on the receiving goroutine.
type bind struct {
	conn.Bind
	want uint16 // the configured port, 0 for any
	port atomic.Uint32
	seen func(src netip.AddrPort)
}

func newBind(listen netip.AddrPort, seen func(netip.AddrPort)) *bind {
	b := &bind{want: listen.Port(), seen: seen}
	if listen.Addr().IsUnspecified() {
		b.Bind = conn.NewStdNetBind()
	} else {
		b.Bind = &singleBind{addr: listen.Addr()}
	}
	return b
}

// Open implements [conn.Bind]. The device asks for port 0 first and for the
// one it got when it opens again.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	if port == 0 {
		port = b.want
	}
	fns, port, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	b.port.Store(uint32(port))
	for i, fn := range fns {
		fns[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(packets, sizes, eps)
			for j := range n {
				if ep, ok := eps[j].(*conn.StdNetEndpoint); ok && sizes[j] > 0 {
					b.seen(ep.AddrPort)
				}
			}
			return n, err
		}
	}
	return fns, port, nil
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
