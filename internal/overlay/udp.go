package overlay

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxFlowsPerPeer and maxFlows bound the open UDP flows of one source
	// address and of all; datagrams that would open one more vanish.
	maxFlowsPerPeer = 512
	maxFlows        = 16384
)

// UDPFlow is a new UDP exchange of a device: one source, one destination. The
// owner decides and either reads and writes its datagrams, the first of which
// waits in it, or takes no notice: the device hears nothing until something is
// written. In every case the owner closes it, at the latest when it is idle;
// an open flow counts against the device's limit. A datagram after Close is a
// new flow.
type UDPFlow struct {
	// Conn reads and writes whole datagrams. A read into less than a
	// datagram's length loses the rest.
	net.Conn
	peer, local netip.AddrPort
}

// Peer is the device's end: its inner address and port.
func (f *UDPFlow) Peer() netip.AddrPort { return f.peer }

// Local is the address and port the device sends to.
func (f *UDPFlow) Local() netip.AddrPort { return f.local }

// flows counts open flows by source address.
type flows struct {
	mu     sync.Mutex
	total  int
	byPeer map[tcpip.Address]int
}

func (f *flows) admit(peer tcpip.Address) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.total >= maxFlows || f.byPeer[peer] >= maxFlowsPerPeer {
		return false
	}
	if f.byPeer == nil {
		f.byPeer = make(map[tcpip.Address]int)
	}
	f.total++
	f.byPeer[peer]++
	return true
}

func (f *flows) release(peer tcpip.Address) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.total--
	if f.byPeer[peer]--; f.byPeer[peer] <= 0 {
		delete(f.byPeer, peer)
	}
}

// handleUDP sees every datagram no endpoint took. It always returns true: an
// ICMP unreachable would tell a closed port from a silent one.
func (s *Stack) handleUDP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if s.opts.UDP == nil {
		return true
	}
	h := header.UDP(pkt.TransportHeader().Slice())
	if len(h) < header.UDPMinimumSize {
		return true
	}
	// The forwarder makes an endpoint before it looks at the checksum.
	ip := pkt.Network()
	if okLength, okSum := header.UDPValid(h, func() uint16 { return pkt.Data().Checksum() }, uint16(pkt.Data().Size()),
		pkt.NetworkProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), false); !okLength || !okSum {
		return true
	}
	s.udp.HandlePacket(id, pkt)
	return true
}

// forwardUDP runs on the goroutine that brought the datagram. The endpoint is
// made here and not later, so that the datagrams right behind the first find
// it and do not each open a flow.
func (s *Stack) forwardUDP(req *udp.ForwarderRequest) {
	id := req.ID()
	if !s.flows.admit(id.RemoteAddress) {
		return
	}
	wq := new(waiter.Queue)
	ep, terr := req.CreateEndpoint(wq)
	if terr != nil {
		s.flows.release(id.RemoteAddress)
		return
	}
	c := &datagramConn{UDPConn: gonet.NewUDPConn(wq, ep), onClose: func() { s.flows.release(id.RemoteAddress) }}
	f := &UDPFlow{Conn: c, peer: addrPort(id.RemoteAddress, id.RemotePort), local: addrPort(id.LocalAddress, id.LocalPort)}
	go s.opts.UDP(f)
}

// datagramConn is a connected UDP socket of the stack with the errors of
// package net.
type datagramConn struct {
	*gonet.UDPConn
	closed  atomic.Bool
	onClose func()
}

// Read implements [net.Conn]. There is no end of file on datagrams: a closed
// socket reads net.ErrClosed.
func (c *datagramConn) Read(b []byte) (int, error) {
	n, err := c.UDPConn.Read(b)
	if err == io.EOF {
		return 0, &net.OpError{Op: "read", Net: "udp", Err: net.ErrClosed}
	}
	return n, fromGonet(err, c.closed.Load())
}

// Write implements [net.Conn].
func (c *datagramConn) Write(b []byte) (int, error) {
	n, err := c.UDPConn.Write(b)
	return n, fromGonet(err, c.closed.Load())
}

// Close implements [net.Conn].
func (c *datagramConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	err := c.UDPConn.Close()
	if c.onClose != nil {
		c.onClose()
	}
	return err
}
