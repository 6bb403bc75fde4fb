// Package segment decides, packet by packet, what a device may speak to.
//
// A [Segment] is the immutable set of (app address, protocol, port) one device
// may use now; a [Table] finds the Segment of the device a packet came from.
// Everything that is not allowed looks closed, and looks the same whether the
// address is unknown, hidden, another device's or merely has no such port: a
// reset for TCP, silence for everything else.
//
// The Table is read by every packet and locks nothing there: a shard of
// addresses and a device's Segment each hang on an atomic pointer.
package segment

import (
	"encoding/binary"
	"net/netip"
)

// IP protocol numbers an [Entry] can name.
const (
	ProtoTCP uint8 = 6
	ProtoUDP uint8 = 17
)

// An Entry is one thing a device may speak to.
type Entry struct {
	Addr  netip.Addr // of the app, or one of the gateway's own
	Proto uint8      // ProtoTCP or ProtoUDP
	Port  uint16     // never 0: port 0 is refused by [Table.Filter]
}

// A Segment is the immutable set of entries of one device. The nil Segment
// allows nothing.
type Segment struct {
	entries map[entryKey]struct{}
}

// entryKey is an Entry as one comparable run of bytes: address (IPv4 in the
// first four), family, protocol, port. The family byte keeps 4-byte and
// v4-mapped addresses apart.
type entryKey [20]byte

// addrKey is an address as bytes with its family last.
type addrKey [17]byte

// New compiles entries. Entries with an invalid or v4-mapped address or port 0
// can match no packet and are left out.
func New(entries []Entry) *Segment {
	s := &Segment{entries: make(map[entryKey]struct{}, len(entries))}
	for _, e := range entries {
		if !e.Addr.IsValid() || e.Addr.Is4In6() || e.Port == 0 {
			continue
		}
		s.entries[keyOf(e.Proto, netip.AddrPortFrom(e.Addr, e.Port))] = struct{}{}
	}
	return s
}

// Allows reports whether the segment holds (dst, proto).
func (s *Segment) Allows(proto uint8, dst netip.AddrPort) bool {
	if !dst.Addr().IsValid() || dst.Addr().Is4In6() {
		return false
	}
	return s.allows(keyOf(proto, dst))
}

// Len is the number of entries.
func (s *Segment) Len() int {
	if s == nil {
		return 0
	}
	return len(s.entries)
}

func (s *Segment) allows(k entryKey) bool {
	if s == nil {
		return false
	}
	_, ok := s.entries[k]
	return ok
}

func keyOf(proto uint8, dst netip.AddrPort) entryKey {
	var k entryKey
	a := addrKeyOf(dst.Addr())
	copy(k[:17], a[:])
	k[17] = proto
	binary.BigEndian.PutUint16(k[18:], dst.Port())
	return k
}

func addrKeyOf(a netip.Addr) addrKey {
	var k addrKey
	if a.Is4() {
		b := a.As4()
		copy(k[:], b[:])
		k[16] = 4
		return k
	}
	b := a.As16()
	copy(k[:], b[:])
	k[16] = 6
	return k
}
