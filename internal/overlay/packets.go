package overlay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// ListenUDP returns a socket on one of the stack's own addresses that sends to
// and receives from many: one port for all that a program sends (RFC 4787,
// endpoint-independent mapping). Port 0 takes a free one; a taken one fails.
func (s *Stack) ListenUDP(local netip.AddrPort) (net.PacketConn, error) {
	fail := func(err error) (net.PacketConn, error) {
		return nil, &net.OpError{Op: "listen", Net: "udp", Addr: net.UDPAddrFromAddrPort(local), Err: err}
	}
	if !local.IsValid() {
		return fail(errors.New("invalid address"))
	}
	if !s.enter() {
		return fail(ErrClosed)
	}
	defer s.ops.Done()
	wq := new(waiter.Queue)
	ep, terr := s.ip.NewEndpoint(udp.ProtocolNumber, protocolOf(local.Addr()), wq)
	if terr != nil {
		return fail(fromTCPIP(terr))
	}
	if terr := ep.Bind(fullAddress(local)); terr != nil {
		ep.Close()
		return fail(fromTCPIP(terr))
	}
	return &packetConn{UDPConn: gonet.NewUDPConn(wq, ep)}, nil
}

// packetConn is a socket for many destinations whose errors are those of
// package net.
type packetConn struct {
	*gonet.UDPConn
	closed atomic.Bool
}

// ReadFrom implements [net.PacketConn].
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(b)
	if err == io.EOF {
		return 0, nil, &net.OpError{Op: "read", Net: "udp", Err: net.ErrClosed}
	}
	return n, from, fromGonet(err, c.closed.Load())
}

// WriteTo implements [net.PacketConn].
func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := c.UDPConn.WriteTo(b, to)
	return n, fromGonet(err, c.closed.Load())
}

// Close implements [net.PacketConn].
func (c *packetConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	return c.UDPConn.Close()
}
