package overlay

import (
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// maxPacket is the largest packet that IP can tell the length of.
	maxPacket = 65535

	// TCP takes for headers from GSOMaxSize what it might need, and one byte;
	// and it takes the length of the longest options from each segment.
	gsoHeaders    = header.TCPTotalHeaderMaximumSize + 1
	segmentHeader = header.TCPMinimumSize + header.TCPOptionsMaximumSize
)

// perSegment is how many packets of the MTU one segment of TCP is cut into at
// most: as many as the socket behind the tunnel hands on as one message, with
// what WireGuard and UDP add to each.
func perSegment(mtu int) int { return (maxPacket - gsoHeaders) / (mtu + 80) }

// link is the stack's link endpoint: the queue of outbound packets and the
// dispatcher inbound ones go to.
type link struct {
	*queue
	mtu        atomic.Uint32
	dispatcher atomic.Pointer[stack.NetworkDispatcher] // nil when detached
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

func newLink(mtu uint32) *link {
	l := &link{queue: newQueue()}
	l.mtu.Store(mtu)
	return l
}

// deliver hands a packet to the stack. The packet stays the caller's.
func (l *link) deliver(proto tcpip.NetworkProtocolNumber, p *stack.PacketBuffer) {
	if d := l.dispatcher.Load(); d != nil {
		(*d).DeliverNetworkPacket(proto, p)
	}
}

// WritePackets implements [stack.LinkWriter].
func (l *link) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	n := 0
	for _, p := range packets.AsSlice() {
		if !l.push(p) {
			break
		}
		n++
	}
	return n, nil
}

// GSOMaxSize implements [stack.GSOEndpoint]. It leaves TCP a payload that full
// packets carry without a rest, over IPv4: short ones in the middle of a stream
// are what the roads behind cannot join.
func (l *link) GSOMaxSize() uint32 {
	mtu := int(l.MTU())
	return uint32(perSegment(mtu)*(mtu-header.IPv4MinimumSize-segmentHeader) + gsoHeaders)
}

// SupportedGSO implements [stack.GSOEndpoint]. "Host" means that TCP hands over
// segments uncut and unsummed.
func (*link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// Attach implements [stack.LinkEndpoint].
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatcher.Store(nil)
		return
	}
	l.dispatcher.Store(&d)
}

// IsAttached implements [stack.LinkEndpoint].
func (l *link) IsAttached() bool { return l.dispatcher.Load() != nil }

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

// Capabilities implements [stack.LinkEndpoint]. Inner checksums are verified
// before the stack sees a packet, since WireGuard proves who sent it and not
// that it is well-formed; see arrivals.
func (*link) Capabilities() stack.LinkEndpointCapabilities { return stack.CapabilityRXChecksumOffload }

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
