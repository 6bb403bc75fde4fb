package overlay

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// queueLength is how many outbound packets wait for WireGuard's reader. It is
// the only place where packets queue in front of the tunnel.
const queueLength = 512

// pushPatience bounds how long a sender waits for room. It is far above what
// the encryption takes for a full queue; nothing waits on it when the reader
// is gone, since that closes the link.
const pushPatience = 50 * time.Millisecond

// outbound is a packet on its way into the tunnel: one of the stack's or a
// whole packet in bytes.
type outbound struct {
	packet *stack.PacketBuffer
	raw    []byte
}

func (o outbound) release() {
	if o.packet != nil {
		o.packet.DecRef()
	}
}

// reset reports whether the packet must not wait: a TCP reset, the one segment
// that is not sent again when lost, or an injected packet.
func (o outbound) reset() bool {
	if o.packet == nil {
		return true // an injected packet: whoever made it goes on meanwhile
	}
	if o.packet.TransportProtocolNumber != header.TCPProtocolNumber {
		return false
	}
	h := header.TCP(o.packet.TransportHeader().Slice())
	return len(h) >= header.TCPMinimumSize && h.Flags().Contains(header.TCPFlagRst)
}

// link is the stack's link endpoint: a ring of outbound packets and the
// dispatcher inbound ones go to.
type link struct {
	mtu     atomic.Uint32
	dropped atomic.Uint64
	wake    chan struct{} // holds a token when the reader has something to look at
	space   chan struct{} // holds a token when there is room after the ring was full

	mu         sync.Mutex
	dispatcher stack.NetworkDispatcher
	ring       [queueLength]outbound
	head, n    int
	closed     bool
}

var _ stack.LinkEndpoint = (*link)(nil)

func newLink(mtu uint32) *link {
	l := &link{wake: make(chan struct{}, 1), space: make(chan struct{}, 1)}
	l.mtu.Store(mtu)
	return l
}

// push queues o, which it owns from now on. When the ring is full it waits a
// moment: the reader is only as slow as the encryption behind it, and a sender
// that is held back loses nothing, where one whose segments are dropped starts
// over with a small window. After that moment the packet is lost, as in any
// full queue on the road; a reset takes the place of the oldest packet.
func (l *link) push(o outbound) bool {
	l.mu.Lock()
	if l.n == queueLength && !l.closed && !o.reset() {
		l.waitForSpace()
	}
	if l.closed {
		l.mu.Unlock()
		o.release()
		return false
	}
	if l.n == queueLength {
		l.dropped.Add(1)
		if !o.reset() {
			l.mu.Unlock()
			o.release()
			return false
		}
		l.ring[l.head].release()
		l.ring[l.head] = outbound{}
		l.head = (l.head + 1) % queueLength
		l.n--
	}
	l.ring[(l.head+l.n)%queueLength] = o
	l.n++
	more := l.n < queueLength
	l.mu.Unlock()
	signal(l.wake)
	if more {
		signal(l.space) // for the next one that waits
	}
	return true
}

// waitForSpace waits until the ring has room or is closed, at most for
// pushPatience. It is called and returns with mu held.
func (l *link) waitForSpace() {
	timer := time.NewTimer(pushPatience)
	defer timer.Stop()
	for l.n == queueLength && !l.closed {
		l.mu.Unlock()
		select {
		case <-l.space:
		case <-timer.C:
			l.mu.Lock()
			return
		}
		l.mu.Lock()
	}
}

// signal leaves a token unless there is one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pop takes up to len(into) packets and blocks until there is one. There is
// one reader. It returns os.ErrClosed once the link is shut.
func (l *link) pop(into []outbound) (int, error) {
	for {
		l.mu.Lock()
		n := min(l.n, len(into))
		for i := range n {
			into[i] = l.ring[l.head]
			l.ring[l.head] = outbound{}
			l.head = (l.head + 1) % queueLength
		}
		l.n -= n
		closed := l.closed
		l.mu.Unlock()
		if n > 0 {
			signal(l.space)
			return n, nil
		}
		if closed {
			return 0, os.ErrClosed
		}
		<-l.wake
	}
}

func (l *link) queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

// shut ends pop; packets still queued are lost.
func (l *link) shut() {
	l.mu.Lock()
	l.closed = true
	for l.n > 0 {
		l.ring[l.head].release()
		l.ring[l.head] = outbound{}
		l.head = (l.head + 1) % queueLength
		l.n--
	}
	l.mu.Unlock()
	signal(l.wake)
	signal(l.space)
}

// deliver hands a packet to the stack.
func (l *link) deliver(proto tcpip.NetworkProtocolNumber, packet []byte) {
	l.mu.Lock()
	d := l.dispatcher
	l.mu.Unlock()
	if d == nil {
		return
	}
	// WireGuard uses its buffer again: MakeWithData copies.
	pkb := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
	d.DeliverNetworkPacket(proto, pkb)
	pkb.DecRef()
}

// WritePackets implements [stack.LinkWriter].
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, p := range packets.AsSlice() {
		if !l.push(outbound{packet: p.Clone()}) {
			break
		}
		n++
	}
	return n, nil
}

// Attach implements [stack.LinkEndpoint].
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

// IsAttached implements [stack.LinkEndpoint].
func (l *link) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dispatcher != nil
}

// MTU implements [stack.LinkEndpoint].
func (l *link) MTU() uint32 { return l.mtu.Load() }

// SetMTU implements [stack.LinkEndpoint].
func (l *link) SetMTU(mtu uint32) { l.mtu.Store(mtu) }

// MaxHeaderLength implements [stack.LinkEndpoint].
func (*link) MaxHeaderLength() uint16 { return 0 }

// LinkAddress implements [stack.LinkEndpoint].
func (*link) LinkAddress() tcpip.LinkAddress { return "" }

// SetLinkAddress implements [stack.LinkEndpoint].
func (*link) SetLinkAddress(tcpip.LinkAddress) {}

// Capabilities implements [stack.LinkEndpoint]. Inner checksums are verified:
// WireGuard proves who sent a packet, not that it is well-formed.
func (*link) Capabilities() stack.LinkEndpointCapabilities { return 0 }

// Wait implements [stack.LinkEndpoint].
func (*link) Wait() {}

// ARPHardwareType implements [stack.LinkEndpoint].
func (*link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }

// AddHeader implements [stack.LinkEndpoint].
func (*link) AddHeader(*stack.PacketBuffer) {}

// ParseHeader implements [stack.LinkEndpoint].
func (*link) ParseHeader(*stack.PacketBuffer) bool { return true }

// Close implements [stack.LinkEndpoint]. The queue outlives the interface, so
// that the last resets still leave.
func (*link) Close() {}

// SetOnCloseAction implements [stack.LinkEndpoint].
func (*link) SetOnCloseAction(func()) {}

// device is the tunnel's side of the link. WireGuard reads it from one
// goroutine and writes it from one for each peer.
type device struct {
	stack   *Stack
	link    *link
	events  chan tun.Event
	close   sync.Once
	refused atomic.Uint64

	batch []outbound // the reader's

	// inbound is read-locked while packets enter the stack; stopInbound takes
	// it whole, after which none is inside and none gets in.
	inbound sync.RWMutex
	stopped bool
}

var _ tun.Device = (*device)(nil)

func newDevice(s *Stack) *device {
	// No EventUp: whoever makes the WireGuard device brings it up when its
	// keys are set.
	d := &device{stack: s, link: s.link, events: make(chan tun.Event)}
	d.batch = make([]outbound, d.BatchSize())
	return d
}

// File implements [tun.Device]; there is none.
func (*device) File() *os.File { return nil }

// Read implements [tun.Device].
func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := d.link.pop(d.batch[:min(len(bufs), len(d.batch))])
	for i, o := range d.batch[:n] {
		to := bufs[i][offset:]
		sizes[i] = copy(to, o.raw)
		if o.packet != nil {
			for _, b := range o.packet.AsSlices() {
				sizes[i] += copy(to[sizes[i]:], b)
			}
		}
		o.release()
		d.batch[i] = outbound{}
	}
	return n, err
}

// Write implements [tun.Device]. A packet that is no IP or that the filter
// refuses is no error.
func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	d.inbound.RLock()
	defer d.inbound.RUnlock()
	if d.stopped {
		return 0, os.ErrClosed
	}
	for _, b := range bufs {
		d.enter(b[offset:])
	}
	return len(bufs), nil
}

func (d *device) enter(packet []byte) {
	if len(packet) == 0 {
		return
	}
	if f := d.stack.opts.Filter; f != nil {
		action, reply := f(packet)
		if reply != nil {
			d.link.push(outbound{raw: reply})
		}
		switch action {
		case Pass:
		case Taken:
			return
		default:
			d.refused.Add(1)
			return
		}
	}
	if d.stack.opts.Gateway && !d.forGateway(packet) {
		d.refused.Add(1)
		return
	}
	switch packet[0] >> 4 {
	case 4:
		d.link.deliver(header.IPv4ProtocolNumber, packet)
	case 6:
		d.link.deliver(header.IPv6ProtocolNumber, packet)
	}
}

// forGateway keeps from a stack that answers for every address what such a
// stack must not act on: ICMP but for echo requests to its own addresses, and
// IPv6 extension headers, behind which ICMP could hide. It holds with any
// filter and without one.
func (d *device) forGateway(packet []byte) bool {
	var proto, echo byte
	var dst netip.Addr
	var l4 []byte
	switch {
	case len(packet) >= header.IPv4MinimumSize && packet[0]>>4 == 4:
		proto, echo = packet[9], byte(header.ICMPv4Echo)
		dst, _ = netip.AddrFromSlice(packet[16:20])
		l4 = packet[min(int(packet[0]&0x0f)*4, len(packet)):]
	case len(packet) >= header.IPv6MinimumSize && packet[0]>>4 == 6:
		proto, echo = packet[6], byte(header.ICMPv6EchoRequest)
		dst, _ = netip.AddrFromSlice(packet[24:40])
		l4 = packet[header.IPv6MinimumSize:]
	default:
		return false
	}
	switch tcpip.TransportProtocolNumber(proto) {
	case header.TCPProtocolNumber, header.UDPProtocolNumber:
		return true
	case header.ICMPv4ProtocolNumber, header.ICMPv6ProtocolNumber:
		return len(l4) > 0 && l4[0] == echo && slices.Contains(d.stack.opts.Addresses, dst)
	}
	return false
}

// MTU implements [tun.Device].
func (d *device) MTU() (int, error) { return int(d.link.MTU()), nil }

// Name implements [tun.Device].
func (*device) Name() (string, error) { return "portvakt", nil }

// Events implements [tun.Device].
func (d *device) Events() <-chan tun.Event { return d.events }

// BatchSize implements [tun.Device]. It is what the socket's side uses on the
// same system; more would only take memory, 64 KiB a packet.
func (*device) BatchSize() int {
	if runtime.GOOS == "linux" {
		return conn.IdealBatchSize
	}
	return 1
}

// Close implements [tun.Device].
func (d *device) Close() error {
	d.close.Do(func() {
		d.stopInbound()
		d.link.shut()
		close(d.events)
	})
	return nil
}

func (d *device) stopInbound() {
	d.inbound.Lock()
	defer d.inbound.Unlock()
	d.stopped = true
}

// drain waits until the queue is empty, at most for limit.
func (d *device) drain(limit time.Duration) {
	for end := time.Now().Add(limit); d.link.queued() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}
