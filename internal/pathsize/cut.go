// Package pathsize makes TCP fit a path that takes less than both ends were told
// when they began: of a segment that is too long two are made, which no end has
// to know about. News of a smaller path ("too big") could not do it: a router's
// may never come, and below 1,280 bytes no IPv6 stack believes them.
package pathsize

import (
	"encoding/binary"

	"github.com/portvakt/portvakt/internal/ipsum"
)

// Least is the least size in bytes of a path's packets that is believed. Two
// packets of it hold what any one of a tunnel does.
const Least = 1120

// Cutter reads from a tun.Device and cuts what it read. It belongs to the one
// goroutine that reads.
type Cutter struct {
	// spill is the second part of a segment that found no room, from offset on.
	spill       []byte
	spillSize   int
	spillOffset int
}

// Read reads by read, which is a tun.Device's, and cuts TCP segments that are
// longer than limit says of them, 0 for no limit. While small is set it leaves
// room for that; with a single buffer the second part comes with the next Read.
func (c *Cutter) Read(read func([][]byte, []int, int) (int, error), bufs [][]byte, sizes []int, offset int, small bool, limit func(packet []byte) int) (int, error) {
	if c.spillSize > 0 {
		sizes[0] = copy(bufs[0][offset:], c.spill[c.spillOffset:c.spillOffset+c.spillSize])
		class(bufs[0], c.spill)
		c.spillSize = 0
		return 1, nil
	}
	if !small {
		return read(bufs, sizes, offset)
	}
	if len(bufs) > 1 {
		n, err := read(bufs[:len(bufs)/2], sizes, offset)
		return cut(bufs, sizes, offset, n, limit), err
	}
	n, err := read(bufs, sizes, offset)
	if n == 1 {
		if len(c.spill) != len(bufs[0]) {
			c.spill = make([]byte, len(bufs[0]))
		}
		both := [2]int{sizes[0]}
		if cut([][]byte{bufs[0], c.spill}, both[:], offset, 1, limit) == 2 {
			sizes[0], c.spillSize, c.spillOffset = both[0], both[1], offset
		}
	}
	return n, err
}

// class copies the note of a packet's class, see transport.Mark.
func class(to, from []byte) { to[len(to)-1] = from[len(from)-1] }

// cut cuts what is too long among the first n packets of bufs, as far as there is
// room behind them, and returns how many there are then. Their order stays.
func cut(bufs [][]byte, sizes []int, offset, n int, limit func([]byte) int) int {
	total := n
	for i := range n {
		if total == len(bufs) {
			break
		}
		p := bufs[i][offset : offset+sizes[i]]
		if len(p) <= Least {
			continue
		}
		most := limit(p)
		if most == 0 || len(p) <= most {
			continue
		}
		if head := headers(p); head > 0 && most >= Least && len(p)-head <= 2*(most-head) {
			sizes[i] = -most // to be cut
			total++
		}
	}
	if total == n {
		return n
	}
	lengths := sizes[:total]
	// From the last on: each moves to where nothing is any more.
	for i, j := n-1, total-1; i < j; i-- {
		if lengths[i] >= 0 {
			copy(bufs[j][offset:], bufs[i][offset:offset+lengths[i]])
			class(bufs[j], bufs[i])
			lengths[j] = lengths[i]
			j--
			continue
		}
		first, second := bufs[j-1][offset:], bufs[j][offset:]
		lengths[j-1], lengths[j] = halve(first, second, bufs[i][offset:], -lengths[i])
		class(bufs[j], bufs[i])
		class(bufs[j-1], bufs[i])
		j -= 2
	}
	return total
}

// Close closes up what is left of n packets when those of size 0 are taken out,
// and returns how many those are. Where packets are counted, as transport.Pace
// does, none may be handed out that is none.
func Close(bufs [][]byte, sizes []int, offset, n int) (left int) {
	for i := range n {
		if sizes[i] == 0 {
			continue
		}
		if i != left {
			copy(bufs[left][offset:], bufs[i][offset:offset+sizes[i]])
			class(bufs[left], bufs[i])
			sizes[left] = sizes[i]
		}
		left++
	}
	return left
}

const (
	ip4, ip6, tcp      = 20, 40, 20 // bytes of headers without options
	fin, syn, rst      = 0x01, 0x02, 0x04
	psh, urg, cwr      = 0x08, 0x20, 0x80
	protoTCP      byte = 6
)

// headers is the length of both headers of a whole TCP segment that may be cut,
// 0 if it is none. One whose checksum is wrong stays wrong.
func headers(p []byte) int {
	ip := 0
	switch {
	case len(p) >= ip4 && p[0] == 0x45 && p[9] == protoTCP && binary.BigEndian.Uint16(p[6:])&0x3fff == 0 && int(binary.BigEndian.Uint16(p[2:])) == len(p):
		ip = ip4
	case len(p) >= ip6 && p[0]>>4 == 6 && p[6] == protoTCP && int(binary.BigEndian.Uint16(p[4:])) == len(p)-ip6:
		ip = ip6
	default:
		return 0
	}
	if len(p) < ip+tcp {
		return 0
	}
	head := ip + int(p[ip+12]>>4)*4
	if head < ip+tcp || head >= len(p) || p[ip+13]&(syn|rst|urg) != 0 {
		return 0
	}
	if ipsum.Fold(ipsum.Add(pseudo(p, ip, len(p)), p[ip:])) != 0xffff {
		return 0
	}
	return head
}

// pseudo is the sum of the pseudo header of a TCP segment whose packet has length
// bytes.
func pseudo(p []byte, ip, length int) uint64 {
	s := uint64(protoTCP) + uint64(length-ip)
	if ip == ip4 {
		return ipsum.Add(s, p[12:20])
	}
	return ipsum.Add(s, p[8:40])
}

// halve makes two segments, in first and second, of the one in p that headers
// approved, and returns their lengths: the first has most bytes. first may be p.
func halve(first, second, p []byte, most int) (n, m int) {
	ip, length := ip4, int(binary.BigEndian.Uint16(p[2:]))
	if p[0]>>4 == 6 {
		ip, length = ip6, ip6+int(binary.BigEndian.Uint16(p[4:]))
	}
	head := ip + int(p[ip+12]>>4)*4
	m = head + length - most
	copy(second, p[:head])
	copy(second[head:], p[most:length])
	copy(first, p[:most])
	first, second = first[:most], second[:m]
	first[ip+13] &^= fin | psh // those are the last one's
	second[ip+13] &^= cwr      // and this the first one's
	binary.BigEndian.PutUint32(second[ip+4:], binary.BigEndian.Uint32(second[ip+4:])+uint32(most-head))
	if ip == ip4 {
		binary.BigEndian.PutUint16(second[4:], binary.BigEndian.Uint16(second[4:])+1)
	}
	seal(first, ip)
	seal(second, ip)
	return most, m
}

// seal writes the length and the checksums of a packet.
func seal(p []byte, ip int) {
	if ip == ip4 {
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ipsum.Of(0, p[:ip4]))
	} else {
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ip6))
	}
	p[ip+16], p[ip+17] = 0, 0
	binary.BigEndian.PutUint16(p[ip+16:], ipsum.Of(pseudo(p, ip, len(p)), p[ip:]))
}
