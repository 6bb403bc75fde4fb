package tunnel

import (
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/internal/transport"
	"github.com/portvakt/portvakt/internal/voice"
)

const (
	// maxCalls is how many flows that may be calls are remembered; with one more
	// all are told anew, which takes a datagram of each.
	maxCalls = 1024
	// callIdle is how long, in seconds, a flow may be silent before it is told
	// anew: the gateway forgets it then, too.
	callIdle = 120
)

// classes decides how what leaves is to travel. A datagram to an app whose calls
// are told to the network is marked when it is a call's, by the rule the gateway
// has, or when the program that sent it marked it itself. Nothing else is,
// whatever its program says: an app may be one whose calls nobody is to see.
type classes struct {
	apps  atomic.Pointer[places] // whose calls are told; nil for none
	began time.Time

	// What follows is Read's.
	calls  map[call]*heard
	marked bool // a buffer was marked, or came marked: each has to be written
}

// place is an address, in its form of 16 bytes, and a port as a packet has it.
type place [18]byte

// call is a flow of the laptop's: where it leads, and its port.
type call struct {
	to   place
	from [2]byte
}

type heard struct {
	voice.Flow
	last uint32 // seconds since began, plus one
}

// mark notes the class of each packet by [transport.Mark]. Buffers come back:
// once there was voice in one, each has to be marked. Until then their ends, a
// page of memory each, are left alone.
func (c *classes) mark(bufs [][]byte, sizes []int, offset int) {
	apps := c.apps.Load()
	var now uint32
	for i, buf := range bufs {
		p := buf[offset : offset+sizes[i]]
		said, class := transport.ClassOf(p), transport.ClassNone
		if apps != nil && apps.may(p) {
			if flow, payload, ok := datagram(p); ok && apps.have(flow.to) {
				if now == 0 {
					now = uint32(time.Since(c.began)/time.Second) + 1
				}
				if c.heard(flow, now).Look(payload) || said == transport.ClassVoice {
					class = transport.ClassVoice
				}
			}
		}
		if said|class != transport.ClassNone {
			c.marked = true
		}
		if c.marked {
			transport.Mark(buf, class)
		}
	}
}

// places is a set of them.
type places struct {
	all  map[place]struct{}
	bits uint64 // each one's bit
}

// bit is a place's, by the last byte of its address and of its port.
func bit(addr, port byte) uint64 { return 1 << ((addr + port) & 63) }

// may tells most of what is no datagram to one of the places at once.
func (s *places) may(p []byte) bool {
	switch {
	case len(p) >= 28 && p[0] == 0x45 && p[9] == 17:
		return s.bits&bit(p[19], p[23]) != 0
	case len(p) >= 48 && p[0]>>4 == 6 && p[6] == 17:
		return s.bits&bit(p[39], p[43]) != 0
	}
	return false
}

func (s *places) have(p place) bool {
	_, ok := s.all[p]
	return ok
}

// heard is what was heard of a flow so far.
func (c *classes) heard(flow call, now uint32) *heard {
	h := c.calls[flow]
	if h == nil || now-h.last > callIdle {
		if len(c.calls) >= maxCalls {
			clear(c.calls)
		}
		h = new(heard)
		c.calls[flow] = h
	}
	h.last = now
	return h
}

// datagram reads a packet that is one whole UDP datagram, without options or
// extension headers, as the gateway wants it.
func datagram(p []byte) (flow call, payload []byte, ok bool) {
	var l4 []byte
	switch {
	case len(p) >= 28 && p[0] == 0x45 && p[9] == 17 && binary.BigEndian.Uint16(p[6:])&0x3fff == 0:
		flow.to[10], flow.to[11] = 0xff, 0xff // RFC 4291 section 2.5.5.2
		copy(flow.to[12:], p[16:20])
		l4 = p[20:]
	case len(p) >= 48 && p[0]>>4 == 6 && p[6] == 17:
		copy(flow.to[:], p[24:40])
		l4 = p[40:]
	default:
		return call{}, nil, false
	}
	copy(flow.to[16:], l4[2:4])
	copy(flow.from[:], l4)
	return flow, l4[8:], true
}

func placeOf(a netip.AddrPort) (p place) {
	addr := a.Addr().As16()
	copy(p[:], addr[:])
	binary.BigEndian.PutUint16(p[16:], a.Port())
	return p
}

// SetCalls says to which addresses and ports calls are told to the network:
// packets of what looks like a call leave with DSCP EF outside, where the
// system lets a datagram have one (Linux; not on a WebSocket). At first there
// are none.
func (t *Tunnel) SetCalls(apps []netip.AddrPort) {
	if len(apps) == 0 {
		t.fit.classes.apps.Store(nil)
		return
	}
	s := &places{all: make(map[place]struct{}, len(apps))}
	for _, a := range apps {
		p := placeOf(a)
		s.all[p] = struct{}{}
		s.bits |= bit(p[15], p[17])
	}
	t.fit.classes.apps.Store(s)
}
