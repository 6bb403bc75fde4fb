package tunnel

import "sync/atomic"

type counter = atomic.Uint64

// counters counts handshake messages by what became of them.
type counters struct {
	badSize, badSource, badMAC, badOpening, unknownKey, replayed, repeated counter
	limited, queueFull, cookies, unasked, notAdded, heldFull, heldLost     counter
	passed, opened, crossed, woken, hailed, removed                        counter
}

// Refused returns how many handshake messages and packets were dropped, by cause.
func (t *Tunnel) Refused() map[string]uint64 {
	c := &t.counters
	return map[string]uint64{
		"malformed":       c.badSize.Load(),    // a handshake message of the wrong length
		"bad_source":      c.badSource.Load(),  // from port 0, a multicast or unspecified address
		"bad_mac1":        c.badMAC.Load(),     // made without the gateway's public key
		"not_opened":      c.badOpening.Load(), // it or its time stamp cannot be opened
		"unknown_key":     c.unknownKey.Load(), // no registration has the key
		"replayed":        c.replayed.Load(),   // not newer than the last one of its key
		"repeated":        c.repeated.Load(),   // the same bytes failed before
		"limited":         c.limited.Load(),    // its source's openings fail too often
		"cookie":          c.cookies.Load(),    // told to prove its address first
		"queue_full":      c.queueFull.Load(),
		"unasked":         c.unasked.Load(),  // an answer to nothing that was sent
		"peer_not_added":  c.notAdded.Load(), // WireGuard refused the peer
		"held_full":       c.heldFull.Load(), // a packet for a dormant device that was one too many
		"held_no_address": c.heldLost.Load(), // a packet for a dormant device nobody knows the place of
	}
}

// Handshakes are numbers about peers on demand.
type Handshakes struct {
	Registered, Live int
	// Passed initiations went to WireGuard unopened, since they came from where
	// their live peer is; Opened ones were opened here first. Crossed are those
	// of the latter that waited for the answer to a call of the gateway's.
	Passed, Opened, Crossed uint64
	// Woken peers were made for a packet to a dormant device, Hailed ones after
	// a restart; Removed ones were idle.
	Woken, Hailed, Removed uint64
}

// Handshakes returns the current numbers.
func (t *Tunnel) Handshakes() Handshakes {
	c := &t.counters
	h := Handshakes{Passed: c.passed.Load(), Opened: c.opened.Load(), Crossed: c.crossed.Load(), Woken: c.woken.Load(), Hailed: c.hailed.Load(), Removed: c.removed.Load()}
	h.Registered, h.Live = t.known.sizes()
	return h
}
