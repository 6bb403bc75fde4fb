package tunread

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

// complete computes the checksum that the kernel has left to the network card:
// where it belongs there is the sum of the pseudo-header.
func complete(p []byte, start, at int) bool {
	at += start
	if at+2 > len(p) {
		return false
	}
	initial := binary.BigEndian.Uint16(p[at:])
	p[at], p[at+1] = 0, 0
	binary.BigEndian.PutUint16(p[at:], ^checksum.Checksum(p[start:], initial))
	return true
}

// cutter cuts a superpacket into the packets it stands for.
type cutter struct {
	packet []byte // checksums zeroed
	ip6    bool
	tcp    bool
	ip     int // bytes of the IP header
	header int // bytes of both headers
	sum    int // where the transport checksum is
	size   int // payload of a segment
	pseudo uint16
	i      int // of the next segment
	done   int // payload cut off so far, from header on
}

const (
	tcpHeader, udpHeader = 20, 8
	fin, psh             = 0x01, 0x08
)

// start takes a packet that is not the cutter's to keep beyond the last next.
// It reports false for what cannot be cut.
func (c *cutter) start(p []byte, gso byte, size, start, sum int) bool {
	c.packet = nil
	if len(p) < start+udpHeader || size <= 0 {
		return false
	}
	*c = cutter{ip: start, sum: start + sum, size: size, ip6: p[0]>>4 == 6}
	switch {
	case gso == unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		c.header = start + udpHeader
	case gso == unix.VIRTIO_NET_HDR_GSO_TCPV4 && !c.ip6, gso == unix.VIRTIO_NET_HDR_GSO_TCPV6 && c.ip6:
		// The header's length in the virtio header may be all of the first
		// packet's, where packets are forwarded.
		if len(p) < start+tcpHeader {
			return false
		}
		c.tcp, c.header = true, start+int(p[start+12]>>4)*4
		if c.header < start+tcpHeader {
			return false
		}
	default:
		return false
	}
	if c.header >= len(p) || c.sum+2 > c.header {
		return false
	}
	proto, addrs := byte(unix.IPPROTO_UDP), []byte(nil)
	if c.tcp {
		proto = unix.IPPROTO_TCP
	}
	switch {
	case c.ip6 && start >= 40:
		addrs = p[8:40]
	case p[0]>>4 == 4 && start >= 20:
		addrs = p[12:20]
		p[10], p[11] = 0, 0
	default:
		return false
	}
	p[c.sum], p[c.sum+1] = 0, 0
	c.pseudo = checksum.Combine(checksum.Checksum(addrs, 0), uint16(proto))
	c.packet = p
	return true
}

func (c *cutter) left() bool { return c.packet != nil }

// next puts the next segment into out and returns its length, 0 when it does
// not fit.
func (c *cutter) next(out []byte) int {
	from := c.header + c.done
	data := c.packet[from:min(from+c.size, len(c.packet))]
	last := from+len(data) == len(c.packet)
	total := c.header + len(data)
	if total > len(out) {
		c.packet = nil // nor do the others
		return 0
	}
	out = out[:total]
	copy(out, c.packet[:c.header])
	copy(out[c.header:], data)
	if c.ip6 {
		binary.BigEndian.PutUint16(out[4:], uint16(total-40))
	} else {
		binary.BigEndian.PutUint16(out[2:], uint16(total))
		binary.BigEndian.PutUint16(out[4:], binary.BigEndian.Uint16(out[4:])+uint16(c.i))
		binary.BigEndian.PutUint16(out[10:], ^checksum.Checksum(out[:c.ip], 0))
	}
	l4 := out[c.ip:]
	if c.tcp {
		binary.BigEndian.PutUint32(l4[4:], binary.BigEndian.Uint32(l4[4:])+uint32(c.done))
		if !last {
			l4[13] &^= fin | psh // those are the last one's
		}
	} else {
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	}
	sum := ^checksum.Checksum(l4, checksum.Combine(c.pseudo, uint16(len(l4))))
	if sum == 0 && !c.tcp {
		sum = 0xffff // RFC 768: 0 is none
	}
	binary.BigEndian.PutUint16(out[c.sum:], sum)
	c.i++
	c.done += len(data)
	if last {
		c.packet = nil
	}
	return total
}
