package segment

import (
	"math/bits"
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
	CauseICMP              // ICMP other than an echo request to the gateway or news of a smaller path of a flow
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
	gateway [2]netip.Addr
	own     [2]address // the same, by family

	mu      sync.Mutex                   // serialises writers and guards the next line
	shared  map[string]*segment          // by their text
	devices [2]atomic.Pointer[directory] // by address, IPv4 and IPv6
	refused [causes]atomic.Uint64
}

// directory finds the segment of an address: a hash table with open
// addressing, at most half full. A cell's address is written once, before its
// segment: who sees the segment sees the address. Cells are emptied only by
// making a new directory.
type directory struct {
	cells []cell // a power of two of them
	shift uint8
	used  int // cells with an address
}

type cell struct {
	at      address
	segment atomic.Pointer[segment] // nil in a cell never used
	_       uint64                  // two cells to a cache line
}

// departed marks the address of a device that is registered no more.
var departed = newSegment(nil, "")

func newDirectory(size int) *directory {
	return &directory{cells: make([]cell, size), shift: uint8(64 - bits.Len(uint(size-1)))}
}

// find returns the cell of an address, or the empty one where it would be.
func (d *directory) find(a address) (c *cell, s *segment) {
	mask := uint64(len(d.cells) - 1)
	for i := a.hash() >> d.shift; ; i++ {
		c = &d.cells[i&mask]
		s = c.segment.Load()
		if s == nil || c.at == a {
			return c, s
		}
	}
}

// NewTable returns a table without devices. ICMP echo requests to the gateway's
// own addresses pass; what else the gateway serves on them is in the segments.
func NewTable(gateway [2]netip.Addr) *Table {
	t := &Table{gateway: gateway, shared: map[string]*segment{}}
	for i, a := range gateway {
		if a.IsValid() {
			t.own[i], _ = addressOf(a)
		}
		t.devices[i].Store(newDirectory(64))
	}
	return t
}

// Set lets the device with these addresses speak to entries, and to nothing
// else from its return on. An invalid address of the pair is left out.
func (t *Table) Set(addrs [2]netip.Addr, entries []Entry) {
	var room [4096]byte
	key := text(room[:0], entries)
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.shared[string(key)]
	if s == nil {
		s = newSegment(entries, string(key))
		t.shared[s.key] = s
	}
	s.uses++ // so that replacing it by itself does not drop it
	for _, a := range addrs {
		if a.IsValid() {
			t.put(a, s)
		}
	}
	t.drop(s)
}

// Delete forgets the device with these addresses: from its return on no packet
// from either passes.
func (t *Table) Delete(addrs [2]netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range addrs {
		if !a.IsValid() {
			continue
		}
		ip, v6 := addressOf(a)
		if c, old := t.directory(v6).Load().find(ip); old != nil && old != departed {
			c.segment.Store(departed)
			t.drop(old)
		}
	}
}

// put gives one address a segment. Callers hold mu.
func (t *Table) put(a netip.Addr, s *segment) {
	ip, v6 := addressOf(a)
	d := t.directory(v6).Load()
	c, old := d.find(ip)
	if old == nil {
		if 2*(d.used+1) > len(d.cells) {
			d = d.grown()
			t.directory(v6).Store(d)
			c, _ = d.find(ip)
		}
		d.used++
		c.at = ip
	}
	s.uses++
	c.segment.Store(s)
	if old != nil && old != departed {
		t.drop(old)
	}
}

// drop ends one use of a segment. Callers hold mu.
func (t *Table) drop(s *segment) {
	if s.uses--; s.uses == 0 {
		delete(t.shared, s.key)
	}
}

// grown is a directory of the addresses in use with room for as many again.
// Readers may go on in the old one meanwhile: the writer holds the table's mu
// until the new one is in its place.
func (d *directory) grown() *directory {
	live := 0
	for i := range d.cells {
		if s := d.cells[i].segment.Load(); s != nil && s != departed {
			live++
		}
	}
	next := newDirectory(1 << bits.Len(uint(max(32, 4*live))))
	for i := range d.cells {
		if s := d.cells[i].segment.Load(); s != nil && s != departed {
			c, _ := next.find(d.cells[i].at)
			c.at = d.cells[i].at
			c.segment.Store(s)
		}
	}
	next.used = live
	return next
}

func (t *Table) directory(v6 bool) *atomic.Pointer[directory] {
	if v6 {
		return &t.devices[1]
	}
	return &t.devices[0]
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
	devices := t.directory(p.v6).Load()
	_, s := devices.find(p.src)
	if s == nil || s == departed {
		return Drop, CauseSource
	}
	closed := Drop
	switch p.proto {
	case ProtoTCP:
		closed = Reset
	case ProtoUDP:
	case protoICMP, protoICMPv6:
		if p.echo() && t.ownAddress(&p) {
			return Pass, CauseNone
		}
		// Whether there is such a connection, and whether it waits for just that
		// segment, is the stack's to know.
		if port, ok := p.tooBig(); ok && s.allows(entry{to: p.dst, what: what(p.v6, ProtoTCP, port)}) {
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
	// Both are looked up whatever the first says: what is refused takes the
	// same time whether it is hidden, unknown, closed or another device's.
	allowed := s.allows(entry{to: p.dst, what: what(p.v6, p.proto, port)})
	_, other := devices.find(p.dst)
	switch {
	case other != nil && other != departed:
		return closed, CauseOtherDevice
	case !allowed:
		return closed, CauseClosed
	}
	return Pass, CauseNone
}

func (t *Table) ownAddress(p *parsed) bool {
	if p.v6 {
		return t.gateway[1].IsValid() && p.dst == t.own[1]
	}
	return t.gateway[0].IsValid() && p.dst == t.own[0]
}
