package segment

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
)

// A Verdict is what to do with a packet.
type Verdict uint8

// Verdicts. The zero one drops.
const (
	Drop  Verdict = iota // nothing, in silence
	Pass                 // hand it to the stack
	Reset                // send [ResetFor] it back to the sender
)

// A Cause says why a packet was refused.
type Cause uint8

// Causes. CauseNone goes with Pass and is not counted.
const (
	CauseNone        Cause = iota
	CauseMalformed         // lengths, versions or ports that cannot be
	CauseFragment          // IPv4 fragments, IPv6 fragment headers
	CauseOptions           // IPv4 options, IPv6 extension headers
	CauseSource            // the inner source is no registered device's address
	CauseMulticast         // group, broadcast, loopback or link-local destination
	CauseProtocol          // neither TCP, UDP nor ICMP
	CauseICMP              // ICMP other than an echo request to the gateway
	CauseOtherDevice       // the destination is another device's address
	CauseClosed            // the segment does not hold it
	causes
)

// String is the cause as a metric label.
func (c Cause) String() string {
	switch c {
	case CauseNone:
		return "none"
	case CauseMalformed:
		return "malformed"
	case CauseFragment:
		return "fragment"
	case CauseOptions:
		return "options"
	case CauseSource:
		return "source"
	case CauseMulticast:
		return "multicast"
	case CauseProtocol:
		return "protocol"
	case CauseICMP:
		return "icmp"
	case CauseOtherDevice:
		return "other_device"
	case CauseClosed:
		return "closed"
	default:
		return "unknown"
	}
}

// A Table holds the segments of all registered devices. Its methods may be
// called from any goroutine.
type Table struct {
	gateway [2]addrKey

	mu     sync.Mutex // serialises writers
	shards [256]atomic.Pointer[shard]

	refused [causes]atomic.Uint64
}

// shard maps the addresses that end in the same byte. It is never changed, only
// replaced: a new device copies a 256th of the addresses.
type shard map[addrKey]*slot

// slot is a registered device; both its addresses lead to the same one, so
// that a new segment holds for both from one moment on.
type slot struct {
	segment atomic.Pointer[Segment]
}

// NewTable returns a table without devices. ICMP echo requests to the gateway's
// own addresses pass; what else the gateway serves on them is in the segments.
func NewTable(gateway [2]netip.Addr) *Table {
	t := &Table{}
	for i, a := range gateway {
		if a.IsValid() {
			t.gateway[i] = addrKeyOf(a)
		}
	}
	return t
}

// Set gives the device with these addresses a segment, in place of any it had.
// An invalid address of the pair is left out; a nil segment lets the device
// reach nothing.
func (t *Table) Set(addrs [2]netip.Addr, s *Segment) {
	if s == nil {
		s = &Segment{}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if sl := t.shared(addrs); sl != nil {
		sl.segment.Store(s)
		return
	}
	t.remove(addrs)
	sl := &slot{}
	sl.segment.Store(s)
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		k := addrKeyOf(a)
		p := t.shard(k)
		next := shard{k: sl}
		if old := p.Load(); old != nil {
			next = maps.Clone(*old)
			next[k] = sl
		}
		p.Store(&next)
	}
}

// Delete forgets the device with these addresses: from its return on no packet
// from either passes.
func (t *Table) Delete(addrs [2]netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(addrs)
}

// Filter judges a packet that came out of the tunnel. It allocates nothing and
// takes no lock. The caller has made sure that the inner source is the peer's
// own (WireGuard's AllowedIPs do); Filter makes sure that it is a registered
// device's.
func (t *Table) Filter(packet []byte) (Verdict, Cause) {
	v, c := t.judge(packet)
	if c != CauseNone {
		t.refused[c].Add(1)
	}
	return v, c
}

// Counts is the number of refused packets by cause since the table was made.
func (t *Table) Counts() map[string]uint64 {
	m := make(map[string]uint64, causes)
	for c := CauseNone + 1; c < causes; c++ {
		m[c.String()] = t.refused[c].Load()
	}
	return m
}

func (t *Table) judge(packet []byte) (Verdict, Cause) {
	var p parsed
	parseCause := parse(packet, &p)
	if parseCause != CauseNone {
		return Drop, parseCause
	}
	s := t.segment(p.src)
	if s == nil {
		return Drop, CauseSource
	}
	closed := Drop
	switch p.proto {
	case ProtoTCP:
		closed = Reset
	case ProtoUDP:
	case protoICMP, protoICMPv6:
		if p.echo() && (p.dst == t.gateway[0] || p.dst == t.gateway[1]) {
			return Pass, CauseNone
		}
		return Drop, CauseICMP
	default:
		return Drop, CauseProtocol
	}
	_, port, c := p.ports()
	if c != CauseNone {
		return Drop, c
	}
	var k entryKey
	copy(k[:17], p.dst[:])
	k[17] = p.proto
	binary.BigEndian.PutUint16(k[18:], port)
	if s.allows(k) && t.segment(p.dst) == nil {
		return Pass, CauseNone
	}
	if t.segment(p.dst) != nil {
		return closed, CauseOtherDevice
	}
	return closed, CauseClosed
}

// segment is the segment of a registered device, or nil.
func (t *Table) segment(k addrKey) *Segment {
	m := t.shard(k).Load()
	if m == nil {
		return nil
	}
	sl := (*m)[k]
	if sl == nil {
		return nil
	}
	return sl.segment.Load()
}

func (t *Table) shard(k addrKey) *atomic.Pointer[shard] {
	if k[16] == 4 {
		return &t.shards[k[3]]
	}
	return &t.shards[k[15]]
}

// shared is the slot both addresses already lead to. Callers hold mu.
func (t *Table) shared(addrs [2]netip.Addr) *slot {
	var found *slot
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		m := t.shard(addrKeyOf(a)).Load()
		if m == nil {
			return nil
		}
		sl := (*m)[addrKeyOf(a)]
		if sl == nil || found != nil && sl != found {
			return nil
		}
		found = sl
	}
	return found
}

// remove takes the addresses out and empties their slots, so that a packet
// that already holds a slot finds nothing in it. Callers hold mu.
func (t *Table) remove(addrs [2]netip.Addr) {
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		k := addrKeyOf(a)
		p := t.shard(k)
		old := p.Load()
		if old == nil {
			continue
		}
		sl, ok := (*old)[k]
		if !ok {
			continue
		}
		sl.segment.Store(nil)
		next := maps.Clone(*old)
		delete(next, k)
		p.Store(&next)
	}
}
