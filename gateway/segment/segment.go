// Package segment decides, packet by packet, what a device may speak to.
//
// A [Table] holds for every device the immutable set of (app address,
// protocol, port) it may use now: its segment. Devices that may use the same
// share one. Everything that is not allowed looks closed, and looks the same
// whether the address is unknown, hidden, another device's or merely has no
// such port: a reset for TCP, silence for everything else.
//
// The Table is read by every packet and locks nothing there: a device's
// segment hangs on an atomic pointer beside its address.
package segment

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// IP protocol numbers an [Entry] can name.
const (
	ProtoTCP uint8 = 6
	ProtoUDP uint8 = 17
)

// An Entry is one thing a device may speak to. An Entry with an invalid or
// v4-mapped address or port 0 can match no packet.
type Entry struct {
	Addr  netip.Addr // of the app, or one of the gateway's own
	Proto uint8      // ProtoTCP or ProtoUDP
	Port  uint16
}

// address is an IP address in two words; an IPv4 address is in the last four
// bytes. Which family it is of is told beside it.
type address struct{ hi, lo uint64 }

// hash spreads addresses that follow one another, as devices' and apps' do.
func (a address) hash() uint64 {
	return (a.lo ^ bits.RotateLeft64(a.hi, 29)) * 0x9e3779b97f4a7c15
}

func addressOf(a netip.Addr) (ip address, v6 bool) {
	if a.Is4() {
		b := a.As4()
		return address{lo: uint64(binary.BigEndian.Uint32(b[:]))}, false
	}
	b := a.As16()
	return address{hi: binary.BigEndian.Uint64(b[:8]), lo: binary.BigEndian.Uint64(b[8:])}, true
}

// entry is an Entry in three words.
type entry struct {
	to   address
	what uint64 // family, protocol and port; never 0
}

func what(v6 bool, proto uint8, port uint16) uint64 {
	w := 1<<32 | uint64(proto)<<16 | uint64(port)
	if v6 {
		w |= 1 << 33
	}
	return w
}

func (e entry) hash() uint64 { return e.to.hash() + e.what*0xd6e8feb86659fd93 }

// segment is a hash table with open addressing, at most half full, so that a
// look-up touches one or two cache lines. It never changes.
type segment struct {
	cells []entry // a power of two of them; empty ones have what == 0
	shift uint8

	// The table's: its entries as text, and how many addresses lead here.
	key  string
	uses int
}

func newSegment(entries []Entry, key string) *segment {
	size := 1 << bits.Len(uint(2*len(entries)))
	s := &segment{cells: make([]entry, size), shift: uint8(64 - bits.Len(uint(size-1))), key: key}
	for _, e := range entries {
		if !e.Addr.IsValid() || e.Addr.Is4In6() || e.Port == 0 {
			continue
		}
		to, v6 := addressOf(e.Addr)
		c := entry{to: to, what: what(v6, e.Proto, e.Port)}
		for i := c.hash() >> s.shift; ; i = (i + 1) % uint64(size) {
			if s.cells[i] == c {
				break
			}
			if s.cells[i].what == 0 {
				s.cells[i] = c
				break
			}
		}
	}
	return s
}

func (s *segment) allows(e entry) bool {
	mask := uint64(len(s.cells) - 1)
	for i := e.hash() >> s.shift; ; i++ {
		c := &s.cells[i&mask]
		if c.what == 0 {
			return false
		}
		if *c == e {
			return true
		}
	}
}

// text is entries as bytes, so that equal lists are found to be equal.
func text(to []byte, entries []Entry) []byte {
	for _, e := range entries {
		ip, v6 := addressOf(e.Addr)
		to = binary.BigEndian.AppendUint64(to, ip.hi)
		to = binary.BigEndian.AppendUint64(to, ip.lo)
		to = binary.BigEndian.AppendUint64(to, what(v6, e.Proto, e.Port))
	}
	return to
}

// IsUDP says whether an IP packet claims to be UDP, without extension headers.
func IsUDP(packet []byte) bool {
	if len(packet) < 20 {
		return false
	}
	switch packet[0] >> 4 {
	case 4:
		return packet[9] == ProtoUDP
	case 6:
		return packet[6] == ProtoUDP
	}
	return false
}
