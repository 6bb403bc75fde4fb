// Package ipsum has the Internet's checksum: the one's complement of the one's
// complement sum of 16-bit words (RFC 1071).
package ipsum

import (
	"encoding/binary"
	"math/bits"
)

// Add adds b to a sum, eight bytes at a time. Of several parts only the last may
// have an odd length. A number of 16 bits may be added to a sum as it is.
func Add(sum uint64, b []byte) uint64 {
	var c uint64
	for len(b) >= 32 {
		sum, c = bits.Add64(sum, binary.BigEndian.Uint64(b), 0)
		sum, c = bits.Add64(sum, binary.BigEndian.Uint64(b[8:]), c)
		sum, c = bits.Add64(sum, binary.BigEndian.Uint64(b[16:]), c)
		sum, c = bits.Add64(sum, binary.BigEndian.Uint64(b[24:]), c)
		sum, c = bits.Add64(sum, 0, c)
		sum += c
		b = b[32:]
	}
	for len(b) >= 8 {
		sum, c = bits.Add64(sum, binary.BigEndian.Uint64(b), 0)
		sum += c
		b = b[8:]
	}
	var last [8]byte
	copy(last[:], b)
	sum, c = bits.Add64(sum, binary.BigEndian.Uint64(last[:]), 0)
	return sum + c
}

// Fold is a sum in 16 bits, 0xffff over what has a right checksum in it. The
// checksum to be written is its complement.
func Fold(sum uint64) uint16 {
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>32 + sum&0xffffffff
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	return uint16(sum)
}

// Of is the checksum of b behind a sum of what comes before it, a pseudo header's.
func Of(sum uint64, b []byte) uint16 { return ^Fold(Add(sum, b)) }

// PseudoTCP is the sum of the pseudo-header (RFC 9293 section 3.1) of an IP packet
// that has length bytes of TCP behind a header of 20 or 40 bytes.
func PseudoTCP(packet []byte, header, length int) uint64 {
	const protocol = 6
	s := uint64(protocol) + uint64(length)
	if header == 20 {
		return Add(s, packet[12:20])
	}
	return Add(s, packet[8:40])
}

// TCP reports whether the checksums of an IP packet are right that has TCP behind
// a header of 20 bytes, without options, or of 40.
func TCP(packet []byte, header int) bool {
	if header == 20 && Fold(Add(0, packet[:header])) != 0xffff {
		return false
	}
	l4 := packet[header:]
	return Fold(Add(PseudoTCP(packet, header, len(l4)), l4)) == 0xffff
}
