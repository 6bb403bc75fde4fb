package overlay

import (
	"encoding/binary"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// lookBack is how many units a packet is compared with to find its flow's. One
// that is not found starts a unit of its own, which loses nothing but work.
const lookBack = 16

// arrivals joins the packets of one batch that the stack can take as one:
// consecutive TCP segments of a flow become a long one, and of acknowledgements
// that only go further the last is kept. What cannot be joined goes through as
// it is, and the order within a flow stays. It verifies every checksum, so that
// nothing behind it has to.
//
// Packets stay where they are until deliver copies each once.
type arrivals struct {
	packets []arrival
	units   []unit
	taken   [][]byte // what is not the stack's
}

// arrival is a packet of a unit.
type arrival struct {
	bytes   []byte
	payload int // where it starts in bytes
	next    int // index of the unit's next packet, 0 after the last
}

// unit is what the stack gets as one packet.
type unit struct {
	proto       tcpip.NetworkProtocolNumber
	first, last int // in packets
	size        int // bytes, the first packet's headers included

	tcp  bool // flow is set
	flow flow
	open bool   // more may join
	asks bool   // it asks for a connection
	next uint32 // sequence number behind the last byte
}

// flow tells TCP flows of one batch apart: addresses and ports as they stand
// in the packet.
type flow struct {
	addresses [32]byte
	ports     uint32
}

var arrivalsPool = sync.Pool{New: func() any {
	// packets[0] is taken, so that 0 can mean none.
	return &arrivals{packets: make([]arrival, 1, 129), units: make([]unit, 0, 32)}
}}

// add takes a packet, which has to stay as it is until deliver. It returns
// false for one that is malformed, which is dropped.
func (a *arrivals) add(packet []byte) bool {
	switch packet[0] >> 4 {
	case 4:
		return a.add4(packet)
	case 6:
		return a.add6(packet)
	}
	return false
}

func (a *arrivals) add4(packet []byte) bool {
	if len(packet) < header.IPv4MinimumSize {
		return false
	}
	h := header.IPv4(packet)
	ihl, length := int(h.HeaderLength()), int(h.TotalLength())
	if ihl < header.IPv4MinimumSize || ihl > length || length > len(packet) || checksum.Checksum(packet[:ihl], 0) != 0xffff {
		return false
	}
	packet = packet[:length]
	if h.More() || h.FragmentOffset() != 0 {
		// The sum is over the whole. Only an agent gets here with one, and
		// from the gateway.
		a.alone(header.IPv4ProtocolNumber, packet)
		return true
	}
	pseudo := checksum.Checksum(packet[12:20], uint16(packet[9]))
	return a.addTransport(header.IPv4ProtocolNumber, packet, ihl, h.TransportProtocol(), pseudo)
}

func (a *arrivals) add6(packet []byte) bool {
	if len(packet) < header.IPv6MinimumSize {
		return false
	}
	h := header.IPv6(packet)
	length := header.IPv6MinimumSize + int(h.PayloadLength())
	if length > len(packet) {
		return false
	}
	packet = packet[:length]
	pseudo := checksum.Checksum(packet[8:40], uint16(packet[6]))
	return a.addTransport(header.IPv6ProtocolNumber, packet, header.IPv6MinimumSize, h.TransportProtocol(), pseudo)
}

// addTransport goes on behind an IP header of ip bytes. pseudo is the sum of
// the pseudo-header without the length.
func (a *arrivals) addTransport(proto tcpip.NetworkProtocolNumber, packet []byte, ip int, transport tcpip.TransportProtocolNumber, pseudo uint16) bool {
	l4 := packet[ip:]
	sum := func() uint16 { return checksum.Checksum(l4, checksum.Combine(pseudo, uint16(len(l4)))) }
	switch transport {
	case header.TCPProtocolNumber:
		if len(l4) < header.TCPMinimumSize {
			return false
		}
		offset := int(header.TCP(l4).DataOffset())
		if offset < header.TCPMinimumSize || offset > len(l4) || sum() != 0xffff {
			return false
		}
		a.addTCP(proto, packet, ip, ip+offset)
		return true
	case header.UDPProtocolNumber:
		if len(l4) < header.UDPMinimumSize {
			return false
		}
		switch h := header.UDP(l4); {
		case int(h.Length()) != len(l4):
			return false
		case h.Checksum() == 0 && proto == header.IPv6ProtocolNumber:
			return false
		case h.Checksum() != 0 && sum() != 0xffff:
			return false
		}
	}
	// ICMP's sums are the stack's to verify, and so is what an agent finds
	// behind an extension header.
	a.alone(proto, packet)
	return true
}

func (a *arrivals) alone(proto tcpip.NetworkProtocolNumber, packet []byte) {
	i := len(a.packets)
	a.packets = append(a.packets, arrival{bytes: packet})
	a.units = append(a.units, unit{proto: proto, first: i, last: i, size: len(packet)})
}

// addTCP takes a well-formed TCP packet whose TCP header starts at ip and whose
// payload at payload.
func (a *arrivals) addTCP(proto tcpip.NetworkProtocolNumber, packet []byte, ip, payload int) {
	t := header.TCP(packet[ip:])
	u := unit{proto: proto, size: len(packet), tcp: true}
	if proto == header.IPv4ProtocolNumber {
		copy(u.flow.addresses[:], packet[12:20])
	} else {
		copy(u.flow.addresses[:], packet[8:40])
	}
	u.flow.ports = binary.BigEndian.Uint32(t)
	data := len(packet) - payload
	u.next = t.SequenceNumber() + uint32(data)
	u.open = ip == header.IPv4MinimumSize || proto == header.IPv6ProtocolNumber
	switch t.Flags() {
	case header.TCPFlagAck:
	case header.TCPFlagAck | header.TCPFlagPsh:
		u.open = u.open && data > 0
	default:
		u.open, u.asks = false, begins(t)
	}

	i := len(a.packets)
	a.packets = append(a.packets, arrival{bytes: packet, payload: payload})
	if at := a.find(&u.flow); at != nil && at.open && u.open && a.joins(at, packet, ip, payload) {
		if data == 0 {
			at.first, at.last = i, i // the later one says all of it
			return
		}
		a.packets[at.last].next = i
		at.last, at.next = i, u.next
		at.size += data
		at.open = t.Flags()&header.TCPFlagPsh == 0
		return
	}
	u.first, u.last = i, i
	u.open = u.open && t.Flags()&header.TCPFlagPsh == 0
	a.units = append(a.units, u)
}

// find returns the last unit of a flow.
func (a *arrivals) find(f *flow) *unit {
	for i := len(a.units) - 1; i >= max(0, len(a.units)-lookBack); i-- {
		if u := &a.units[i]; u.tcp && u.flow == *f {
			return u
		}
	}
	return nil
}

// joins reports whether a packet of the same flow continues u: all that is not
// payload, sequence number, sum or window is the same. The options are compared
// byte for byte, timestamps among them, so that none is lost.
func (a *arrivals) joins(u *unit, packet []byte, ip, payload int) bool {
	first := &a.packets[u.first]
	if first.payload != payload {
		return false
	}
	was, is := first.bytes, packet
	if u.proto == header.IPv4ProtocolNumber {
		// Type of service; flags; time to live.
		if was[1] != is[1] || was[6] != is[6] || was[8] != is[8] {
			return false
		}
	} else if binary.BigEndian.Uint32(was) != binary.BigEndian.Uint32(is) || was[7] != is[7] {
		return false
	}
	wasTCP, isTCP := header.TCP(was[ip:]), header.TCP(is[ip:])
	if string(wasTCP[header.TCPMinimumSize:payload-ip]) != string(isTCP[header.TCPMinimumSize:payload-ip]) || u.next != isTCP.SequenceNumber() {
		return false
	}
	empty, data := len(was) == payload, len(packet)-payload
	if empty || data == 0 {
		// Two acknowledgements, the second of more. Equal ones are counted by
		// the stack: they tell of a loss.
		return empty && data == 0 && int32(isTCP.AckNumber()-wasTCP.AckNumber()) > 0
	}
	return wasTCP.AckNumber() == isTCP.AckNumber() && u.size+data <= maxPacket
}

// deliver copies every unit into memory of the stack's own, hands it over and
// forgets it.
func (a *arrivals) deliver(l *link) {
	for i := range a.units {
		u := &a.units[i]
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(a.copied(u))})
		l.deliver(u.proto, p)
		p.DecRef()
	}
	clear(a.packets)
	a.packets, a.units = a.packets[:1], a.units[:0]
}

// copied is u as one packet. Of a joined one the TCP checksum is not that of
// the whole; the parts' were verified.
func (a *arrivals) copied(u *unit) *buffer.View {
	v := buffer.NewView(u.size)
	first, last := &a.packets[u.first], &a.packets[u.last]
	_, _ = v.Write(first.bytes)
	if u.asks {
		ip := header.IPv6MinimumSize
		if u.proto == header.IPv4ProtocolNumber {
			ip = int(header.IPv4(first.bytes).HeaderLength())
		}
		raiseMSS(v.AsSlice()[ip+header.TCPMinimumSize : first.payload])
	}
	if u.first == u.last {
		return v
	}
	for i := first.next; i != 0; i = a.packets[i].next {
		p := &a.packets[i]
		_, _ = v.Write(p.bytes[p.payload:])
	}
	b := v.AsSlice()
	ip := header.IPv6MinimumSize
	if u.proto == header.IPv4ProtocolNumber {
		ip = header.IPv4MinimumSize
		h := header.IPv4(b)
		h.SetTotalLength(uint16(u.size))
		h.SetChecksum(0)
		h.SetChecksum(^h.CalculateChecksum())
	} else {
		header.IPv6(b).SetPayloadLength(uint16(u.size - header.IPv6MinimumSize))
	}
	t, end := header.TCP(b[ip:]), header.TCP(last.bytes[ip:])
	t.SetFlags(uint8(t.Flags() | end.Flags()))
	t.SetWindowSize(end.WindowSize())
	return v
}
