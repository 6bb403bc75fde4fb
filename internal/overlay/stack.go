// Package overlay is the userspace TCP/IP stack both ends of a tunnel use: a
// gVisor stack behind the [tun.Device] of an unmodified WireGuard.
//
// On a gateway the stack answers for every address a packet was sent to and
// hands each new TCP connection to its owner, who decides
// before anything is answered. Nothing is ever routed: what comes out of the
// tunnel ends in this stack, so that no device reaches another through it.
// On an agent it has the device's inner addresses and dials.
package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/portvakt/portvakt/internal/halfopen"
)

const (
	nicID = 1

	// DefaultMTU is the inside MTU when Options name none: IPv6's minimum,
	// which fits any path that carries a tunnel at all.
	DefaultMTU = 1280

	// Keepalives of forwarded and dialled TCP connections: a vanished end is
	// noticed after 60 s + 4 x 15 s at the latest. The stack's default is two
	// hours, in which stuck pairs of copies pile up.
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 4

	// Buffers grow up to these sizes, in bytes; half of the receive buffer is
	// window. A connection moves 160 Mbit/s over a path of 100 ms with what it
	// may send. More than that is, on short paths, memory and a queue at the
	// other end: nothing there but a full socket tells TCP to stop growing.
	maxReceiveBuffer = 8 << 20
	maxSendBuffer    = 2 << 20

	// closeTimeout bounds how long Close waits for the stack's own goroutines.
	closeTimeout = 5 * time.Second
	// drainTimeout bounds how long Close waits for the resets of open
	// connections to leave through the device.
	drainTimeout = 100 * time.Millisecond
)

// Options configure a Stack.
type Options struct {
	// Addresses are the stack's own. They answer ICMP echo requests; on an
	// agent they are what it dials from.
	Addresses []netip.Addr
	// MTU of the inside, in bytes; 0 means DefaultMTU. At least 1280 with an
	// IPv6 address among Addresses.
	MTU int
	// Gateway makes the stack answer for every address and forward TCP to the
	// function below. It takes no UDP then: Filter does, and Inject answers.
	Gateway bool
	// TCP is called in a goroutine of its own for every connection asked for.
	// Without it every connection is refused.
	TCP func(*TCPRequest)
	// Filter judges every packet that comes out of the tunnel before the stack
	// sees it. It must neither change nor keep the packet and must not block.
	// A reply that is not nil, a whole IP packet, goes back into the tunnel; it
	// belongs to the Stack then.
	Filter func(packet []byte) (Action, []byte)
	// Taken is given the packets of one writing that the Filter says are its, in
	// their order, when all were judged. It must not keep them and must not
	// block. Without it nobody gets them.
	Taken func(packets [][]byte)
	// Refuse returns the reset that answers a SYN of a source that may ask for
	// no more, nil for silence. It must not keep the packet. Without it the stack
	// resets.
	Refuse func(packet []byte) []byte
	// MaxHalfOpen is how many connections of one source may wait for a decision
	// or for their handshake's end; more are refused. 0 means halfopen.PerSource.
	MaxHalfOpen int
	// Source returns the address that a source address counts with, the same
	// for all of one device. Without it each counts by itself.
	Source func(netip.Addr) netip.Addr
}

// Action is what becomes of a packet that came out of the tunnel.
type Action uint8

const (
	Drop  Action = iota // it is refused, and counted in [Stats]
	Pass                // the stack gets it
	Taken               // [Options.Taken] gets it
)

// ErrClosed is returned by everything after Close. It is [net.ErrClosed].
var ErrClosed = net.ErrClosed

// Stack is a TCP/IP stack in this process. Make one with New, give Device to
// WireGuard and Close it in the end. Its methods may be called from any
// goroutine.
type Stack struct {
	opts Options
	ip   *stack.Stack
	link *link
	dev  *device

	tcp  *tcp.Forwarder
	open requests // half-open TCP connections

	crowded, restless atomic.Uint64

	closing sync.Once
	closeEr error

	done chan struct{} // closed when Close begins

	// mu guards closed and, with it, the adding to ops; the group counts dials
	// and handshakes under way, which Close has to see the end of.
	mu     sync.Mutex
	closed bool
	ops    sync.WaitGroup
}

// New makes a stack. It runs until Close.
func New(o Options) (*Stack, error) {
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	has4, has6, err := checkOptions(o)
	if err != nil {
		return nil, err
	}
	s := &Stack{
		opts: o,
		ip: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
			// HandleLocal would short-cut packets between addresses of the
			// stack past the tunnel's filter.
			HandleLocal: false,
		}),
		link: newLink(uint32(o.MTU)),
		done: make(chan struct{}),
	}
	s.dev = newDevice(s)
	s.open.table = halfopen.New(o.MaxHalfOpen, o.Source)
	if err := s.configure(has4, has6); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func checkOptions(o Options) (has4, has6 bool, err error) {
	for _, a := range o.Addresses {
		switch {
		case a.Is4():
			has4 = true
		case a.Is6() && !a.Is4In6():
			has6 = true
		default:
			return false, false, fmt.Errorf("making overlay stack: %q is no usable address", a)
		}
	}
	least := header.IPv4MinimumMTU
	if has6 || o.Gateway {
		least = header.IPv6MinimumMTU
	}
	if o.MTU < least || o.MTU > 65535-80 {
		return false, false, fmt.Errorf("making overlay stack: MTU is %d, expected %d to %d", o.MTU, least, 65535-80)
	}
	return has4, has6, nil
}

func (s *Stack) configure(has4, has6 bool) error {
	sack := tcpip.TCPSACKEnabled(true) // off by default
	rack := tcpip.TCPRecovery(0)       // gVisor's RACK loses throughput on reordering paths
	reno := tcpip.CongestionControlOption("reno")
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	recv := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcp.DefaultReceiveBufferSize, Max: maxReceiveBuffer}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: tcp.DefaultSendBufferSize, Max: maxSendBuffer}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &rack, &reno, &moderate, &recv, &send} {
		if err := s.ip.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("setting TCP option %T: %v", o, err)
		}
	}
	if s.opts.Gateway {
		s.tcp = tcp.NewForwarder(s.ip, 0, 2*halfopen.Total, s.forwardTCP)
		s.ip.SetTransportProtocolHandler(tcp.ProtocolNumber, s.handleTCP)
	}
	if err := s.ip.CreateNIC(nicID, s.link); err != nil {
		return fmt.Errorf("creating interface: %v", err)
	}
	if s.opts.Gateway {
		if err := s.ip.SetPromiscuousMode(nicID, true); err != nil {
			return fmt.Errorf("taking packets for every address: %v", err)
		}
		if err := s.ip.SetSpoofing(nicID, true); err != nil {
			return fmt.Errorf("answering from every address: %v", err)
		}
		has4, has6 = true, true
	}
	for _, a := range s.opts.Addresses {
		pa := tcpip.ProtocolAddress{Protocol: protocolOf(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.ip.AddProtocolAddress(nicID, pa, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("adding address %v: %v", a, err)
		}
	}
	if has4 {
		s.ip.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, NIC: nicID})
	}
	if has6 {
		s.ip.AddRoute(tcpip.Route{Destination: header.IPv6EmptySubnet, NIC: nicID})
	}
	return nil
}

// Device is the stack's end of the tunnel: WireGuard reads from it what the
// stack sends and writes to it what arrived. Closing it closes the stack's
// link, not the stack.
func (s *Stack) Device() tun.Device { return s.dev }

// Inject sends whole IP packets into the tunnel past the stack and returns how
// many were queued: answers made from a packet alone. It copies them and never
// blocks. When the queue is full they take the place of the oldest packets in
// it, which counts as dropped; none is queued after Close.
func (s *Stack) Inject(packets [][]byte) (accepted int) {
	for _, p := range packets {
		if len(p) > 0 && s.link.inject(bytes.Clone(p)) {
			accepted++
		}
	}
	return accepted
}

// Stats counts packets since the stack was made.
type Stats struct {
	Dropped     uint64 // outbound, for want of room in the queue
	Refused     uint64 // inbound, by Options.Filter or as NotForStack
	NotForStack uint64 // inbound, of a kind that a gateway's stack does not take
	Malformed   uint64 // inbound, empty or with a wrong length or checksum
	Crowded     uint64 // SYNs refused, of a source whose requests are MaxHalfOpen, or beside too many of all
	Restless    uint64 // SYNs refused, of a source that gave up too many connections before they were established
}

// Stats returns the stack's counters.
func (s *Stack) Stats() Stats {
	return Stats{
		Dropped: s.link.dropped.Load(), Refused: s.dev.refused.Load(), NotForStack: s.dev.notForStack.Load(),
		Malformed: s.dev.malformed.Load(), Crowded: s.crowded.Load(), Restless: s.restless.Load(),
	}
}

// DialTCP connects to dst from the stack's own address. A connection the other
// end refuses fails with syscall.ECONNREFUSED, a family without an address of
// ours with syscall.ENETUNREACH. The result is a [Conn].
func (s *Stack) DialTCP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(dst), Err: err}
	}
	if !dst.IsValid() {
		return fail(errors.New("invalid address"))
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if !s.enter() {
		return fail(ErrClosed)
	}
	defer s.ops.Done()
	wq := new(waiter.Queue)
	ep, terr := s.ip.NewEndpoint(tcp.ProtocolNumber, protocolOf(dst.Addr()), wq)
	if terr != nil {
		return fail(fromTCPIP(terr))
	}
	entry, ready := waiter.NewChannelEntry(waiter.WritableEvents)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	tune(ep)
	terr = ep.Connect(fullAddress(dst))
	if _, started := terr.(*tcpip.ErrConnectStarted); started {
		select {
		case <-ready:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Close()
			return fail(ctx.Err())
		case <-s.done:
			ep.Abort()
			return fail(ErrClosed)
		}
	}
	if terr != nil {
		ep.Close()
		return fail(fromTCPIP(terr))
	}
	return s.newConn(wq, ep), nil
}

// DialUDP returns a socket connected to dst. Nothing is sent by it.
func (s *Stack) DialUDP(dst netip.AddrPort) (net.Conn, error) {
	dst = netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port())
	fail := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "udp", Addr: net.UDPAddrFromAddrPort(dst), Err: err}
	}
	if !dst.IsValid() {
		return fail(errors.New("invalid address"))
	}
	if !s.enter() {
		return fail(ErrClosed)
	}
	defer s.ops.Done()
	wq := new(waiter.Queue)
	ep, terr := s.ip.NewEndpoint(udp.ProtocolNumber, protocolOf(dst.Addr()), wq)
	if terr != nil {
		return fail(fromTCPIP(terr))
	}
	if terr := ep.Connect(fullAddress(dst)); terr != nil {
		ep.Close()
		return fail(fromTCPIP(terr))
	}
	return &datagramConn{UDPConn: gonet.NewUDPConn(wq, ep)}, nil
}

// Close resets every connection, ends every flow and stops the stack. It is
// safe while packets flow, and more than once. Requests not yet answered are
// reset; connections still held return errors.
func (s *Stack) Close() error {
	s.closing.Do(func() { s.closeEr = s.close() })
	return s.closeEr
}

func (s *Stack) close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	close(s.done)
	// From here no packet enters, so that nothing new appears in the stack
	// while it is taken down.
	s.dev.stopInbound()
	s.open.resetAll()

	// A dial or handshake that got in before closed was set may register its
	// endpoint after a sweep: sweep until the last one is out.
	ended := make(chan struct{})
	go func() {
		s.ops.Wait()
		close(ended)
	}()
	for waiting := true; waiting; {
		for _, ep := range s.ip.RegisteredEndpoints() {
			ep.Abort()
		}
		select {
		case <-ended:
			waiting = false
		case <-time.After(2 * time.Millisecond):
		}
	}

	stopped := make(chan struct{})
	go func() {
		s.ip.Destroy()
		close(stopped)
	}()
	var err error
	select {
	case <-stopped:
	case <-time.After(closeTimeout):
		err = errors.New("closing overlay stack: its goroutines did not end in time")
	}
	s.dev.drain(drainTimeout)
	return errors.Join(err, s.dev.Close())
}

// enter counts one more operation Close has to wait for; the caller owes
// s.ops.Done if it returns true.
func (s *Stack) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.ops.Add(1)
	return true
}

func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(addr, port)
}
