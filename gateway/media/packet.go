package media

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

const (
	ip4Len  = 20
	ip6Len  = 40
	udpLen  = 8
	udpIP   = 17
	headMax = ip6Len + udpLen
)

// datagram is a UDP datagram in an IP packet. The payload is the packet's.
type datagram struct {
	src, dst netip.AddrPort
	payload  []byte
}

// isUDP says whether a packet claims to be UDP.
func isUDP(packet []byte) bool {
	if len(packet) < ip4Len {
		return false
	}
	switch packet[0] >> 4 {
	case 4:
		return packet[9] == udpIP
	case 6:
		return packet[6] == udpIP
	}
	return false
}

// parse reads a packet that is exactly one whole UDP datagram without IP
// options or extension headers. The segment filter lets no other pass; what a
// packet is read by here is still only what is checked here.
func parse(packet []byte, d *datagram) cause {
	var src, dst netip.Addr
	var l4 []byte
	var acc uint64
	switch {
	case len(packet) >= ip4Len+udpLen && packet[0] == 0x45:
		if int(binary.BigEndian.Uint16(packet[2:])) != len(packet) || binary.BigEndian.Uint16(packet[6:])&0xbfff != 0 {
			return malformed
		}
		if fold(sum(packet[:ip4Len], 0)) != 0xffff {
			return checksum
		}
		src, dst = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		acc = sum(packet[12:20], 0)
		l4 = packet[ip4Len:]
	case len(packet) >= ip6Len+udpLen && packet[0]>>4 == 6:
		if int(binary.BigEndian.Uint16(packet[4:]))+ip6Len != len(packet) {
			return malformed
		}
		src, dst = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
		acc = sum(packet[8:40], 0)
		l4 = packet[ip6Len:]
	default:
		return malformed
	}
	sport, dport := binary.BigEndian.Uint16(l4), binary.BigEndian.Uint16(l4[2:])
	if int(binary.BigEndian.Uint16(l4[4:])) != len(l4) || sport == 0 || dport == 0 {
		return malformed
	}
	// IPv4 may leave the checksum out (RFC 768); IPv6 may not (RFC 8200
	// section 8.1).
	if given := binary.BigEndian.Uint16(l4[6:]); given != 0 || dst.Is6() {
		if given == 0 || fold(sum(l4, acc+udpIP+uint64(len(l4)))) != 0xffff {
			return checksum
		}
	}
	d.src, d.dst, d.payload = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport), l4[udpLen:]
	return passed
}

// header makes the IP and UDP headers of what goes one way in one flow.
type header struct {
	b    [headMax]byte // the last size bytes are used
	size int
	udp  uint64 // sum of the pseudo header and the ports, without lengths
	ip   uint64 // sum of the IPv4 header without its length and traffic class
}

func newHeader(src, dst netip.AddrPort) header {
	h := header{size: ip4Len + udpLen}
	if src.Addr().Is6() {
		h.size = ip6Len + udpLen
	}
	b := h.b[headMax-h.size:]
	if src.Addr().Is4() {
		b[0], b[6], b[8], b[9] = 0x45, 0x40, 64, udpIP // DF: then no ID is needed (RFC 6864 section 4.1)
		s, d := src.Addr().As4(), dst.Addr().As4()
		copy(b[12:], s[:])
		copy(b[16:], d[:])
		h.ip = sum(b[:ip4Len], 0)
		h.udp = sum(b[12:20], udpIP)
	} else {
		b[0], b[6], b[7] = 0x60, udpIP, 64
		s, d := src.Addr().As16(), dst.Addr().As16()
		copy(b[8:], s[:])
		copy(b[24:], d[:])
		h.udp = sum(b[8:40], udpIP)
	}
	u := b[h.size-udpLen:]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	h.udp = sum(u[:4], h.udp)
	return h
}

// wrap completes the packet whose payload is buf[headMax:] and returns it, a
// part of buf. class is the DSCP.
func (h *header) wrap(buf []byte, class byte) []byte {
	p := buf[headMax-h.size:]
	copy(p, h.b[headMax-h.size:])
	l4 := p[h.size-udpLen:]
	if h.size == ip4Len+udpLen {
		p[1] = class << 2
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		binary.BigEndian.PutUint16(p[10:], ^fold(h.ip+uint64(p[1])+uint64(len(p))))
	} else {
		p[0], p[1] = 0x60|class>>2, class<<6 // RFC 8200 section 3
		binary.BigEndian.PutUint16(p[4:], uint16(len(l4)))
	}
	binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	// The length stands in the pseudo header and in the header.
	c := ^fold(sum(l4[udpLen:], h.udp+2*uint64(len(l4))))
	if c == 0 {
		c = 0xffff // RFC 768: 0 would say that there is none
	}
	binary.BigEndian.PutUint16(l4[6:], c)
	return p
}

// sum adds b, as 16-bit words, to a one's complement sum (RFC 1071), eight
// bytes at a time.
func sum(b []byte, acc uint64) uint64 {
	var c uint64
	for len(b) >= 32 {
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b), 0)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[8:]), c)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[16:]), c)
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b[24:]), c)
		acc, c = bits.Add64(acc, 0, c)
		acc += c
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, c = bits.Add64(acc, binary.BigEndian.Uint64(b), 0)
		acc += c
		b = b[8:]
	}
	var last [8]byte
	copy(last[:], b)
	acc, c = bits.Add64(acc, binary.BigEndian.Uint64(last[:]), 0)
	return acc + c
}

func fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}
