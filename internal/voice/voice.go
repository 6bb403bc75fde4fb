// Package voice tells calls from what else is sent by UDP. The gateway and the
// laptop mark what is a call for the network by the same rule.
package voice

import (
	"encoding/binary"
	"sync/atomic"
)

const (
	// DSCP of voice: expedited forwarding (RFC 3246, RFC 4594 section 4.1).
	DSCP = 46

	// Longest is the largest datagram of a call, in bytes: 60 ms of G.711 with
	// its RTP header, authentication tag and room for extensions. Video has larger ones.
	Longest = 600
)

// Flow finds out whether what one end sends in a flow is a call. It looks at
// nothing but lengths and the fixed part of the RTP header, which SRTP leaves
// in the clear. The zero Flow has seen nothing. Its method may be called from
// any goroutine.
type Flow struct {
	// state is one of the states below, with the SSRC of the last datagram that
	// looked like RTP in its lower half. What two write at once is what either saw.
	state atomic.Uint64
}

const (
	seen uint64 = (iota + 1) << 32 // one datagram that looked like RTP
	call
	none // for good
)

// Look takes the next datagram and says whether to mark it. A flow is a call
// from its second RTP datagram of one source on, and none any more once it
// carries one that is too large for speech.
func (f *Flow) Look(payload []byte) bool {
	state := f.state.Load()
	switch {
	case state == none:
		return false
	case len(payload) > Longest:
		f.state.Store(none)
		return false
	case state == call:
		return true
	}
	// RFC 3550 section 5.1: version 2. RFC 5761 section 4: 64 to 95 are RTCP's
	// in the lower seven bits of the second byte.
	if len(payload) < 12 || payload[0]>>6 != 2 || payload[1]&0x7f >= 64 && payload[1]&0x7f < 96 {
		return false
	}
	now := seen | uint64(binary.BigEndian.Uint32(payload[8:]))
	if state == now {
		f.state.Store(call)
		return true
	}
	f.state.Store(now)
	return false
}
