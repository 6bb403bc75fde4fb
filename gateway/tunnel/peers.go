package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// peer is what a live registration has besides.
type peer struct {
	// The registry's mu guards these.
	indexes [6]uint32 // of WireGuard's own for this peer, the newest last
	settled bool      // the place was confirmed since the last handshake message
	touched time.Time // of the last handshake message, either way
	heard   time.Time // of the device's last initiation that was answered or waits
	call    *call     // the gateway's own initiation, if it was the last handshake message
	passing *claim    // an initiation that WireGuard has unopened and has not answered
	vouched bool      // WireGuard knows the time stamp of an initiation that was opened here

	// suspect is set while the watcher is to look where the peer is. odd is where
	// a message came from that may be the peer's and is from elsewhere: until a
	// packet from there is let in, or none came for a second, each looks itself.
	suspect   atomic.Bool
	odd       atomic.Pointer[place]
	wireguard *device.Peer // never changes
	resets    resets
	strain    strain

	// look is held while WireGuard is asked where the peer is, until the owner
	// knows: what the owner is told last is what WireGuard said last.
	look   sync.Mutex
	shown  netip.AddrPort // guarded by look: what the owner knows
	fading *place         // the watcher's: odd a sweep ago
}

// call is an initiation of the gateway's; as many answers to it are let through.
type call struct {
	reg  *registration // may be nil
	at   time.Time
	to   place
	left int
}

// callAnswers is how many answers to one call are let through.
const callAnswers = 4

// wake notes that a registration has a peer now, and returns the packets that
// waited for it. It is false when the registration was dropped meanwhile.
func (g *registry) wake(r *registration, wireguard *device.Peer, now time.Time) (held [][]byte, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.byKey[r.key] != r {
		return nil, false
	}
	if r.peer == nil {
		r.peer = &peer{touched: now, wireguard: wireguard}
		g.live[r] = struct{}{}
		if r.place.addr.IsValid() {
			g.byPlace[r.place] = r
		}
	}
	return g.releaseLocked(r), true
}

// sleepLocked notes that a registration has no peer any more. mu is held.
func (g *registry) sleepLocked(r *registration) {
	g.releaseLocked(r)
	if r.peer == nil {
		return
	}
	for _, i := range r.peer.indexes {
		if g.byIndex[i] == r {
			delete(g.byIndex, i)
		}
	}
	if g.byPlace[r.place] == r {
		delete(g.byPlace, r.place)
	}
	if r.peer.odd.Swap(nil) != nil {
		g.unsure.Add(-1)
	}
	r.peer = nil
	delete(g.live, r)
}

func (g *registry) releaseLocked(r *registration) [][]byte {
	held := r.held
	r.held = nil
	g.heldTotal -= len(held)
	return held
}

// heard notes a transport message. It returns the registration if it has to be
// looked at where that is: the message proves nothing by itself.
func (g *registry) heard(index uint32, src place) *registration {
	g.mu.RLock()
	defer g.mu.RUnlock()
	r := g.byIndex[index]
	if r == nil || r.peer == nil || r.peer.settled && r.place == src {
		return nil
	}
	if odd := r.peer.odd.Load(); odd == nil || *odd != src {
		if r.peer.odd.Swap(&src) == nil {
			g.unsure.Add(1)
		}
	}
	if r.peer.suspect.Swap(true) {
		return nil
	}
	return r
}

// arrived is the registration of an inner address, with its peer, if a message
// that may be the peer's came from elsewhere.
func (g *registry) arrived(inner netip.Addr) (*registration, *peer) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	r := g.byAddress[inner]
	if r == nil || r.peer == nil || r.peer.odd.Load() == nil {
		return nil, nil
	}
	return r, r.peer
}

// sure notes that nothing more is to be expected from odd, unless a later message
// came from elsewhere.
func (g *registry) sure(p *peer, odd *place) {
	if odd != nil && p.odd.CompareAndSwap(odd, nil) {
		g.unsure.Add(-1)
	}
}

// answered notes that WireGuard answered a registration's initiation, and with
// which index.
func (g *registry) answered(r *registration, index uint32, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.indexLocked(r, index, now)
	if r.peer != nil {
		r.peer.heard, r.peer.call = now, nil
	}
}

// indexLocked notes an index that WireGuard gave a handshake with a registration.
// mu is held.
func (g *registry) indexLocked(r *registration, index uint32, now time.Time) {
	p := r.peer
	if p == nil {
		return
	}
	if old := p.indexes[0]; g.byIndex[old] == r {
		delete(g.byIndex, old)
	}
	copy(p.indexes[:], p.indexes[1:])
	p.indexes[len(p.indexes)-1] = index
	g.byIndex[index] = r
	p.settled, p.touched, p.passing = false, now, nil
}

// called notes an initiation of the gateway's own.
func (g *registry) called(r *registration, to place, index uint32, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := &call{reg: r, at: now, to: to, left: callAnswers}
	g.calls[index] = c
	if r == nil {
		return
	}
	g.indexLocked(r, index, now)
	if r.peer != nil {
		r.peer.call = c
	}
}

// crosses tells whether the device whose initiation c is was just called where
// it is, and until when an answer to that may come.
func (g *registry) crosses(c *claim, patience time.Duration, now time.Time) (until time.Time, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := c.reg.peer
	if p == nil || !p.calledWithin(patience, now) || p.call.to != c.src {
		return until, false
	}
	p.heard = now
	return p.call.at.Add(patience), true
}

// calledWithin tells whether the last handshake message was a call, just now.
func (p *peer) calledWithin(patience time.Duration, now time.Time) bool {
	return p.call != nil && now.Sub(p.call.at) < patience
}

// asked tells whether a message answers a call, and of which registration.
func (g *registry) asked(index uint32) (r *registration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.calls[index]
	if c == nil || c.left == 0 {
		return nil, false
	}
	c.left--
	if c.reg == nil || c.reg.peer == nil || c.reg.peer.suspect.Swap(true) {
		return nil, true
	}
	return c.reg, true
}

// settle notes where an authenticated packet of a registration's peer came from.
// It is false if that is not its peer any more.
func (g *registry) settle(r *registration, p *peer, at place, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.peer != p || g.byKey[r.key] != r {
		return false
	}
	if !r.peer.settled {
		if r.handshake == 0 {
			select {
			case g.newcomer <- struct{}{}:
			default:
			}
		}
		r.handshake = now.UnixNano()
		g.dirtyLocked(r)
	}
	r.peer.settled = true
	if r.place != at {
		if g.byPlace[r.place] == r {
			delete(g.byPlace, r.place)
		}
		g.expect(r.place.addr.Addr(), -1)
		r.told = r.told && r.place.addr == at.addr
		r.place = at
		g.expect(at.addr.Addr(), 1)
		g.dirtyLocked(r)
	}
	g.byPlace[at] = r
	return true
}

// tell reports whether the owner has yet to decide again for where a
// registration is, and notes that it will.
func (g *registry) tell(r *registration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	tell := !r.told
	r.told = true
	return tell
}

// lives lists the registrations that have a peer.
func (g *registry) lives() []*registration {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]*registration, 0, len(g.live))
	for r := range g.live {
		out = append(out, r)
	}
	return out
}

// trust lets the watcher be sent to a registration again. It returns the
// registration's peer.
func (g *registry) trust(r *registration) *peer {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if r.peer != nil {
		r.peer.suspect.Store(false)
	}
	return r.peer
}

// idle tells whether a live registration's last handshake message is older than
// that.
func (g *registry) idle(r *registration, before time.Time) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return r.peer != nil && r.peer.touched.Before(before) && r.handshake < before.UnixNano()
}

// forgetCalls drops calls nobody can answer any more.
func (g *registry) forgetCalls(before time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, c := range g.calls {
		if c.at.Before(before) {
			delete(g.calls, i)
		}
	}
}

// awake tells whether a registration has a peer.
func (g *registry) awake(r *registration) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return r.peer != nil
}

func (g *registry) sleep(r *registration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sleepLocked(r)
}

// passing notes that an initiation is passed for r, unless one is or was just
// before, or WireGuard would take an old one: a peer that the gateway called has
// shown it none yet. Nor while a call is out: they would cross.
func (g *registry) passing(r *registration, c *claim, patience time.Duration, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := r.peer
	if p == nil || !p.vouched || p.passing != nil || now.Sub(p.touched) < apart || p.calledWithin(patience, now) {
		return false
	}
	p.passing = c
	return true
}

// passed notes that a passed initiation is over.
func (g *registry) passed(c *claim) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := c.reg.peer; p != nil && p.passing == c {
		p.passing = nil
	}
}

// recent tells whether an initiation of r's was taken just now.
func (g *registry) recent(r *registration, now time.Time) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return r.peer != nil && r.peer.passing == nil && now.Sub(r.peer.heard) < apart
}

// vouch notes that WireGuard took an initiation that was opened here.
func (g *registry) vouch(r *registration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.peer != nil {
		r.peer.vouched = true
	}
}
