package load

import (
	"encoding/binary"
	"net/netip"
)

const (
	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)

// ipPacket is a packet with that behind its header, whose addresses are those of
// the two ends.
func ipPacket(proto byte, from, to netip.Addr, body []byte) []byte {
	b := make([]byte, 20+len(body))
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	binary.BigEndian.PutUint16(b[10:], sum(b[:20]))
	copy(b[20:], body)
	return b
}

// datagram is a UDP packet without a checksum, as RFC 768 allows.
func datagram(from, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return ipPacket(protoUDP, from.Addr(), to.Addr(), append(b, payload...))
}

// syn asks for a connection.
func syn(from, to netip.AddrPort) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	b[12], b[13], b[14] = 5<<4, 2, 64
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[16:], sum(append(append(pseudo, 0, protoTCP, 0, 20), b...)))
	return ipPacket(protoTCP, from.Addr(), to.Addr(), b)
}

// malformed are packets that no honest stack sends to an app.
func malformed(own netip.Addr, to netip.AddrPort) [][]byte {
	from := netip.AddrPortFrom(own, 40_000)
	whole := syn(from, to)
	// with changes the header and makes its checksum right again.
	with := func(p []byte, change func([]byte)) []byte {
		b := append([]byte(nil), p...)
		change(b)
		if n := int(b[0]&15) * 4; n >= 20 && n <= len(b) {
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], sum(b[:n]))
		}
		return b
	}
	options := func(n int, kinds ...byte) []byte {
		b := append(append(append([]byte(nil), whole[:20]...), make([]byte, n)...), whole[20:]...)
		copy(b[20:], kinds)
		return with(b, func(b []byte) {
			b[0] = 0x40 | byte(5+n/4)
			binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		})
	}
	out := [][]byte{
		whole[:20], whole[:21], whole[:33], whole[:39],
		with(whole, func(b []byte) { binary.BigEndian.PutUint16(b[2:], 19) }),
		with(whole, func(b []byte) { binary.BigEndian.PutUint16(b[2:], 41) }),
		with(whole, func(b []byte) { binary.BigEndian.PutUint16(b[2:], 65535) }),
		with(whole, func(b []byte) { b[0] = 0x44 }), // a header shorter than a header
		with(whole, func(b []byte) { b[0] = 0x4f }), // and one longer than the packet
		options(40, 7, 39, 4), // record route
		options(4, 148, 4), options(4, 131, 200), options(4, 1, 1, 1, 1),
		with(whole, func(b []byte) { b[6] = 0x20 }),                          // a first fragment
		with(whole, func(b []byte) { b[7] = 1 }),                             // one that overlaps it
		with(whole, func(b []byte) { b[6], b[7] = 0x3f, 0xff }),              // one past the end
		with(whole, func(b []byte) { b[8] = 0 }),                             // no time to live
		with(whole, func(b []byte) { copy(b[12:16], []byte{224, 0, 0, 1}) }), // from a group
		syn(netip.AddrPortFrom(own, 0), to),
		syn(from, netip.AddrPortFrom(to.Addr(), 0)),
		syn(from, netip.AddrPortFrom(to.Addr(), 9)),
		syn(netip.AddrPortFrom(to.Addr(), to.Port()), to),
		datagram(netip.AddrPortFrom(own, 0), to, nil),
		with(datagram(from, to, make([]byte, 9)), func(b []byte) { b[25] = 255 }),
		with(whole, func(b []byte) { b[32] = 1 << 4 }),  // a TCP header shorter than one
		with(whole, func(b []byte) { b[32] = 15 << 4 }), // and one longer than the packet
		with(whole, func(b []byte) { b[33] = 0xff }),    // all flags
		with(whole, func(b []byte) { b[33] = 0 }),       // none
		ipPacket(protoICMP, own, to.Addr(), []byte{5, 1, 0, 0, 10, 0, 0, 1}),
		ipPacket(protoICMP, own, to.Addr(), []byte{3}),
		ipPacket(0, own, to.Addr(), nil),
		// To a group, broadcast and nowhere: what the device's own agent lets out.
		datagram(from, netip.MustParseAddrPort("224.0.0.251:5353"), []byte("mdns")),
		datagram(from, netip.MustParseAddrPort("255.255.255.255:67"), []byte("dhcp")),
	}
	for _, proto := range []byte{2, 4, 41, 47, 50, 51, 58, 89, 132, 255} { // IGMP, tunnels, SCTP, …
		out = append(out, ipPacket(proto, own, to.Addr(), make([]byte, 40)))
	}
	return out
}

// sum is the Internet checksum (RFC 1071) of b.
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b)-1; i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
