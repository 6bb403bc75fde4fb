// Package halfopen bounds the TCP connections that a device asks for and that
// are not established yet, for either of the gateway's stacks: how many there
// are at a time, and how many it may give up. Each costs a decision and a dial,
// so that who asks and goes, as a flood of SYNs does, would take the processors
// from all others.
package halfopen

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// PerSource is how many one source may have when no other bound is given.
	// Programs open 64 at once, beside some whose handshakes are not over yet. With
	// 192 a flood of SYNs doubled the round trips of everybody else.
	PerSource = 96
	// Total bounds those of all sources together.
	Total = 8192

	// perSecond and burst are how many a source may give up before it is refused
	// more. A program that races IPv6 against IPv4 (RFC 8305) gives up one of two.
	perSecond = 32
	burst     = 256

	// tidyEvery is after how many more sources those that have
	// nothing to remember are forgotten.
	tidyEvery = 1024
)

// Verdict is what becomes of a SYN.
type Verdict uint8

// Verdicts.
const (
	Admitted Verdict = iota
	Crowded          // too many wait, of its source or of all
	Restless         // its source gave too many up
)

// Table counts by source. New makes one; its methods may be called from any
// goroutine.
type Table struct {
	max    int
	source func(netip.Addr) netip.Addr
	now    func() time.Time

	mu      sync.Mutex
	sources map[netip.Addr]*source // guarded by mu
	open    int                    // guarded by mu: of all sources
	tidyAt  int                    // guarded by mu: len(sources) at which it is tidied next
	closed  bool                   // guarded by mu
}

type source struct {
	open    int
	givenUp float64 // less what time forgave until at
	at      time.Time
}

// New makes a Table with room for perSource connections a source, PerSource if
// it is 0. of returns the address that an address counts with, the same for all
// of one device; nil lets each count by itself.
func New(perSource int, of func(netip.Addr) netip.Addr) *Table {
	if perSource == 0 {
		perSource = PerSource
	}
	if of == nil {
		of = func(a netip.Addr) netip.Addr { return a }
	}
	return &Table{max: perSource, source: of, now: time.Now, sources: make(map[netip.Addr]*source), tidyAt: tidyEvery}
}

// Admit takes a place for a SYN from an address, if it may have one. It returns
// what the place counts with, which Leave has to be given: addresses may change
// hands before it ends.
func (t *Table) Admit(a netip.Addr) (of netip.Addr, v Verdict) {
	of = t.source(a)
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sources[of]
	if v := t.judgeLocked(s); v != Admitted {
		return of, v
	}
	if s == nil {
		if len(t.sources) >= t.tidyAt {
			t.tidyLocked()
		}
		s = &source{at: t.now()}
		t.sources[of] = s
	}
	s.open++
	t.open++
	return of, Admitted
}

// Would is what Admit would say, and takes nothing.
func (t *Table) Would(a netip.Addr) Verdict {
	of := t.source(a)
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.judgeLocked(t.sources[of])
}

// judgeLocked judges a SYN of s, which may be nil. Callers hold mu.
func (t *Table) judgeLocked(s *source) Verdict {
	switch {
	case t.closed || t.open >= Total:
		return Crowded
	case s == nil:
		return Admitted
	case s.open >= t.max:
		return Crowded
	}
	// Those that wait may all be given up, too.
	if s.givenUp > 0 && t.forgiveLocked(s)+float64(s.open) >= burst {
		return Restless
	}
	return Admitted
}

func (t *Table) forgiveLocked(s *source) float64 {
	now := t.now()
	if passed := now.Sub(s.at); passed > 0 {
		s.givenUp, s.at = max(0, s.givenUp-passed.Seconds()*perSecond), now
	}
	return s.givenUp
}

// Leave gives a place back that Admit took. givenUp says that the device let
// the connection come to nothing: it was answered and never established.
func (t *Table) Leave(of netip.Addr, givenUp bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.sources[of]
	s.open--
	t.open--
	if givenUp {
		t.forgiveLocked(s)
		s.givenUp++
	} else if s.open == 0 && s.givenUp == 0 {
		delete(t.sources, of)
	}
}

// tidyLocked forgets the sources that have nothing to be remembered for. Callers
// hold mu.
func (t *Table) tidyLocked() {
	for of, s := range t.sources {
		if s.open == 0 && t.forgiveLocked(s) == 0 {
			delete(t.sources, of)
		}
	}
	t.tidyAt = len(t.sources) + tidyEvery
}

// Close lets nothing in any more.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}
