package segment

import (
	"encoding/binary"

	"github.com/portvakt/portvakt/internal/ipsum"
)

const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8
	icmpHeaderLen = 8

	protoICMP   uint8 = 1
	protoICMPv6 uint8 = 58

	tcpFIN = 1 << 0
	tcpSYN = 1 << 1
	tcpRST = 1 << 2
	tcpACK = 1 << 4
)

// parsed is what the filter needs of a packet. Its slices alias the packet.
type parsed struct {
	src, dst address
	v6       bool
	proto    uint8
	header   int    // length of the IP header
	l4       []byte // everything after it
}

// parse reads the IP header of packet strictly: exactly one packet of exactly
// its own length, no IPv4 options, no fragments, no IPv6 extension headers.
// None of these is sent by an honest agent, each has served to slip ports past
// a filter.
func parse(packet []byte, p *parsed) Cause {
	if len(packet) == 0 {
		return CauseMalformed
	}
	switch packet[0] >> 4 {
	case 4:
		return parse4(packet, p)
	case 6:
		return parse6(packet, p)
	default:
		return CauseMalformed
	}
}

func parse4(packet []byte, p *parsed) Cause {
	if len(packet) < ipv4HeaderLen {
		return CauseMalformed
	}
	switch ihl := int(packet[0]&0x0f) * 4; {
	case ihl < ipv4HeaderLen:
		return CauseMalformed
	case ihl > ipv4HeaderLen:
		return CauseOptions
	}
	if int(binary.BigEndian.Uint16(packet[2:])) != len(packet) {
		return CauseMalformed
	}
	// MF set or an offset: RFC 791 section 3.1. The reserved bit has no
	// meaning and is refused with them.
	if binary.BigEndian.Uint16(packet[6:])&0xbfff != 0 {
		return CauseFragment
	}
	p.src = address{lo: uint64(binary.BigEndian.Uint32(packet[12:]))}
	p.dst = address{lo: uint64(binary.BigEndian.Uint32(packet[16:]))}
	p.v6 = false
	p.proto = packet[9]
	p.header = ipv4HeaderLen
	p.l4 = packet[ipv4HeaderLen:]
	if groupOrNowhere4(packet[16:20]) {
		return CauseMulticast
	}
	return CauseNone
}

func parse6(packet []byte, p *parsed) Cause {
	if len(packet) < ipv6HeaderLen {
		return CauseMalformed
	}
	if int(binary.BigEndian.Uint16(packet[4:]))+ipv6HeaderLen != len(packet) {
		return CauseMalformed
	}
	p.src = address{hi: binary.BigEndian.Uint64(packet[8:]), lo: binary.BigEndian.Uint64(packet[16:])}
	p.dst = address{hi: binary.BigEndian.Uint64(packet[24:]), lo: binary.BigEndian.Uint64(packet[32:])}
	p.v6 = true
	p.proto = packet[6]
	p.header = ipv6HeaderLen
	p.l4 = packet[ipv6HeaderLen:]
	if groupOrNowhere6(packet[24:40]) {
		return CauseMulticast
	}
	switch p.proto {
	case ProtoTCP, ProtoUDP, protoICMPv6:
	case 44: // RFC 8200 section 4.5
		return CauseFragment
	case 0, 43, 50, 51, 60, 135, 139, 140, 253, 254:
		return CauseOptions
	}
	return CauseNone
}

// groupOrNowhere4 reports destinations that no answer may come from: group,
// broadcast and reserved (224/3), unspecified (0/8), loopback and link-local.
func groupOrNowhere4(b []byte) bool {
	return b[0] >= 224 || b[0] == 0 || b[0] == 127 || b[0] == 169 && b[1] == 254
}

// groupOrNowhere6 is the same for IPv6: ff00::/8, fe80::/10 and everything in
// ::/8, which holds the unspecified, loopback and v4-mapped addresses.
func groupOrNowhere6(b []byte) bool {
	return b[0] == 0xff || b[0] == 0 || b[0] == 0xfe && b[1]&0xc0 == 0x80
}

// ports reads source and destination port of a TCP or UDP packet whose own
// lengths are right.
func (p *parsed) ports() (src, dst uint16, c Cause) {
	switch p.proto {
	case ProtoTCP:
		if len(p.l4) < tcpHeaderLen {
			return 0, 0, CauseMalformed
		}
		if off := int(p.l4[12]>>4) * 4; off < tcpHeaderLen || off > len(p.l4) {
			return 0, 0, CauseMalformed
		}
	case ProtoUDP:
		if len(p.l4) < udpHeaderLen || int(binary.BigEndian.Uint16(p.l4[4:])) != len(p.l4) {
			return 0, 0, CauseMalformed
		}
	}
	src, dst = binary.BigEndian.Uint16(p.l4), binary.BigEndian.Uint16(p.l4[2:])
	if src == 0 || dst == 0 {
		return 0, 0, CauseMalformed
	}
	return src, dst, CauseNone
}

// echo reports whether the packet is an ICMP echo request.
func (p *parsed) echo() bool {
	if len(p.l4) < icmpHeaderLen || p.l4[1] != 0 {
		return false
	}
	switch {
	case !p.v6 && p.proto == protoICMP:
		return p.l4[0] == 8
	case p.v6 && p.proto == protoICMPv6:
		return p.l4[0] == 128
	}
	return false
}

// leastMTU is the least a path has to carry, in bytes: RFC 8200 section 5, and
// what the tunnel promises to IPv4 too. News of less would only make segments
// small.
const leastMTU = 1280

// tooBig is the news that a TCP segment of ours did not fit (RFC 1191 section 4,
// RFC 4443 section 3.2), told by the device it was sent to. It returns the port
// of the address p was sent to that the segment came from.
func (p *parsed) tooBig() (port uint16, ok bool) {
	if len(p.l4) < icmpHeaderLen {
		return 0, false
	}
	var about parsed // only its beginning is there
	var mtu uint32
	b := p.l4[icmpHeaderLen:]
	switch {
	case !p.v6 && p.proto == protoICMP && p.l4[0] == 3 && p.l4[1] == 4:
		if len(b) < ipv4HeaderLen+8 || b[0] != 0x45 {
			return 0, false
		}
		mtu = uint32(binary.BigEndian.Uint16(p.l4[6:]))
		about.src = address{lo: uint64(binary.BigEndian.Uint32(b[12:]))}
		about.dst = address{lo: uint64(binary.BigEndian.Uint32(b[16:]))}
		about.proto, about.l4 = b[9], b[ipv4HeaderLen:]
	case p.v6 && p.proto == protoICMPv6 && p.l4[0] == 2 && p.l4[1] == 0:
		if len(b) < ipv6HeaderLen+8 || b[0]>>4 != 6 {
			return 0, false
		}
		mtu = binary.BigEndian.Uint32(p.l4[4:])
		about.src = address{hi: binary.BigEndian.Uint64(b[8:]), lo: binary.BigEndian.Uint64(b[16:])}
		about.dst = address{hi: binary.BigEndian.Uint64(b[24:]), lo: binary.BigEndian.Uint64(b[32:])}
		about.proto, about.l4 = b[6], b[ipv6HeaderLen:]
	default:
		return 0, false
	}
	own := about.proto == ProtoTCP && about.src == p.dst && about.dst == p.src
	return binary.BigEndian.Uint16(about.l4), own && mtu >= leastMTU
}

// ResetFor returns the reset that answers a refused TCP packet as a closed
// port would (RFC 9293 section 3.10.7.1), a whole IP packet of its own memory.
// It returns nil where none is due: packet is no TCP, malformed, fragmented,
// sent to a group, has a wrong checksum or is a reset itself.
func ResetFor(packet []byte) []byte {
	var p parsed
	if parse(packet, &p) != CauseNone || p.proto != ProtoTCP {
		return nil
	}
	srcPort, dstPort, c := p.ports()
	if c != CauseNone {
		return nil
	}
	flags := p.l4[13]
	if flags&tcpRST != 0 {
		return nil
	}
	if !ipsum.TCP(packet, p.header) {
		return nil
	}

	out := make([]byte, p.header+tcpHeaderLen)
	if p.header == ipv4HeaderLen {
		out[0] = 0x45
		binary.BigEndian.PutUint16(out[2:], uint16(len(out)))
		out[6] = 0x40 // DF
		out[8] = 64
		out[9] = ProtoTCP
		copy(out[12:16], packet[16:20])
		copy(out[16:20], packet[12:16])
		binary.BigEndian.PutUint16(out[10:], ipsum.Of(0, out[:ipv4HeaderLen]))
	} else {
		out[0] = 0x60
		binary.BigEndian.PutUint16(out[4:], tcpHeaderLen)
		out[6] = ProtoTCP
		out[7] = 64
		copy(out[8:24], packet[24:40])
		copy(out[24:40], packet[8:24])
	}
	t := out[p.header:]
	binary.BigEndian.PutUint16(t, dstPort)
	binary.BigEndian.PutUint16(t[2:], srcPort)
	t[12] = tcpHeaderLen / 4 << 4
	if flags&tcpACK != 0 {
		copy(t[4:8], p.l4[8:12])
		t[13] = tcpRST
	} else {
		n := uint32(len(p.l4) - int(p.l4[12]>>4)*4)
		if flags&tcpSYN != 0 {
			n++
		}
		if flags&tcpFIN != 0 {
			n++
		}
		binary.BigEndian.PutUint32(t[8:], binary.BigEndian.Uint32(p.l4[4:])+n)
		t[13] = tcpRST | tcpACK
	}
	binary.BigEndian.PutUint16(t[16:], ipsum.Of(ipsum.PseudoTCP(out, p.header, len(t)), t))
	return out
}
