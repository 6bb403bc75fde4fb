package media

import (
	"encoding/binary"
	"net/netip"

	"github.com/portvakt/portvakt/internal/ipsum"
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

// parse reads a packet that is exactly one whole UDP datagram without IP
// options or extension headers. The segment filter lets no other pass; what a
// packet is read by here is still only what is checked here.
func parse(packet []byte, d *datagram) cause {
	var src, dst netip.Addr
	var l4 []byte
	var acc uint64
	switch {
	case len(packet) >= ip4Len+udpLen && packet[0] == 0x45 && packet[9] == udpIP:
		if int(binary.BigEndian.Uint16(packet[2:])) != len(packet) || binary.BigEndian.Uint16(packet[6:])&0xbfff != 0 {
			return malformed
		}
		if ipsum.Fold(ipsum.Add(0, packet[:ip4Len])) != 0xffff {
			return checksum
		}
		src, dst = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		acc = ipsum.Add(0, packet[12:20])
		l4 = packet[ip4Len:]
	case len(packet) >= ip6Len+udpLen && packet[0]>>4 == 6 && packet[6] == udpIP:
		if int(binary.BigEndian.Uint16(packet[4:]))+ip6Len != len(packet) {
			return malformed
		}
		src, dst = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
		acc = ipsum.Add(0, packet[8:40])
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
		if given == 0 || ipsum.Fold(ipsum.Add(acc+udpIP+uint64(len(l4)), l4)) != 0xffff {
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
		h.ip = ipsum.Add(0, b[:ip4Len])
		h.udp = ipsum.Add(udpIP, b[12:20])
	} else {
		b[0], b[6], b[7] = 0x60, udpIP, 64
		s, d := src.Addr().As16(), dst.Addr().As16()
		copy(b[8:], s[:])
		copy(b[24:], d[:])
		h.udp = ipsum.Add(udpIP, b[8:40])
	}
	u := b[h.size-udpLen:]
	binary.BigEndian.PutUint16(u, src.Port())
	binary.BigEndian.PutUint16(u[2:], dst.Port())
	h.udp = ipsum.Add(h.udp, u[:4])
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
		binary.BigEndian.PutUint16(p[10:], ^ipsum.Fold(h.ip+uint64(p[1])+uint64(len(p))))
	} else {
		p[0], p[1] = 0x60|class>>2, class<<6 // RFC 8200 section 3
		binary.BigEndian.PutUint16(p[4:], uint16(len(l4)))
	}
	binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	// The length stands in the pseudo header and in the header.
	c := ipsum.Of(h.udp+2*uint64(len(l4)), l4[udpLen:])
	if c == 0 {
		c = 0xffff // RFC 768: 0 would say that there is none
	}
	binary.BigEndian.PutUint16(l4[6:], c)
	return p
}
