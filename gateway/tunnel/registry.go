package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/transport"
)

// registration is a key that may have a tunnel. There are as many as laptops
// that connected today, most of them asleep; only those that talk have a
// WireGuard peer, which costs fifty times as much.
type registration struct {
	key [32]byte

	// psk and addresses change when the key is registered again: written with
	// the tunnel's mu and the registry's mu held, read with either.
	psk       [32]byte
	addresses [2]netip.Addr

	// replay guards the device's clock: no initiation that is not newer than
	// the last accepted one counts, also after the peer or the process was gone.
	replay replay

	// The registry's mu guards what follows.
	place     place      // where its last authenticated packet came from
	from      netip.Addr // where it connected from
	handshake int64      // when the last handshake was complete, Unix nanoseconds
	told      bool       // the owner knows place
	dirty     bool       // the store does not know place, handshake or initiation
	peer      *peer      // while WireGuard has one
	held      [][]byte   // packets that wait for it, at most heldPackets
}

// place is where datagrams come from: an outer address and port by UDP, or a
// device's WebSocket, whose TCP connection may have the address and port that
// somebody else's UDP has.
type place struct {
	addr   netip.AddrPort
	device string // whose WebSocket it is; "" is UDP
}

func placeOf(ep conn.Endpoint) place {
	p := place{addr: transport.Remote(ep)}
	if s, ok := ep.(*transport.StreamEndpoint); ok {
		p.device = s.Device()
	}
	return p
}

// peer is what a live registration has besides.
type peer struct {
	// The registry's mu guards these.
	indexes [6]uint32 // of WireGuard's own for this peer, the newest last
	settled bool      // the place was confirmed since the last handshake message
	touched time.Time // of the last handshake message, either way
	passing *claim    // an initiation that WireGuard has unopened and has not answered
	vouched bool      // WireGuard knows the time stamp of an initiation that was opened here

	// suspect is set while the watcher is to look where the peer is, moved until
	// the peer's next packet is let in, which has to look itself.
	suspect, moved atomic.Bool
	wireguard      *device.Peer // never changes
	resets         resets
}

// registry finds registrations. Its mu is held for moments only, also on the
// goroutines that carry packets.
type registry struct {
	made      time.Time // its monotonic reading counts
	mu        sync.RWMutex
	byKey     map[[32]byte]*registration
	byAddress map[netip.Addr]*registration // inner
	byPlace   map[place]*registration      // of live peers, confirmed
	byIndex   map[uint32]*registration     // WireGuard's own indexes
	calls     map[uint32]*call             // initiations that the gateway sent
	expected  map[netip.Addr]int           // outer addresses that registrations had or connected from
	live      map[*registration]struct{}
	heldTotal int
	dirty     []*registration
	changed   chan struct{} // something is dirty
	unsure    atomic.Int64  // peers with moved set

	// former keeps the newest initiations of keys that are registered no more,
	// should one be again: a device that connects anew keeps its key.
	former     map[[32]byte]newest
	formerKeys [][32]byte // in the order they went
}

// call is an initiation of the gateway's; as many answers to it are let through.
type call struct {
	reg  *registration // may be nil
	at   time.Time
	left int
}

const (
	formerKept  = 4096
	callAnswers = 4
)

func newRegistry() *registry {
	return &registry{
		made:      time.Now(),
		byKey:     make(map[[32]byte]*registration),
		byAddress: make(map[netip.Addr]*registration),
		byPlace:   make(map[place]*registration),
		byIndex:   make(map[uint32]*registration),
		calls:     make(map[uint32]*call),
		live:      make(map[*registration]struct{}),
		expected:  make(map[netip.Addr]int),
		changed:   make(chan struct{}, 1),
		former:    make(map[[32]byte]newest),
	}
}

func (g *registry) sizes() (registered, live int) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return len(g.byKey), len(g.live)
}

func (g *registry) get(key [32]byte) *registration {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.byKey[key]
}

// holders are the other keys that have one of these inner addresses.
func (g *registry) holders(p *Peer) []*registration {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var out []*registration
	for _, a := range p.Addresses {
		if r := g.byAddress[a]; r != nil && r.key != p.Key && (len(out) == 0 || out[0] != r) {
			out = append(out, r)
		}
	}
	return out
}

// put adds a registration or changes the one of that key. shared is the exchange
// of the static keys.
func (g *registry) put(p *Peer, shared [32]byte) *registration {
	g.mu.Lock()
	defer g.mu.Unlock()
	r := g.byKey[p.Key]
	if r == nil {
		r = &registration{key: p.Key, place: place{addr: p.Endpoint}}
		r.replay.shared = shared
		if !p.Handshake.IsZero() {
			r.handshake = p.Handshake.UnixNano()
		}
		if n, ok := g.former[p.Key]; ok {
			r.replay.newest = n
		} else if len(p.Initiation) == len(datagram{}) {
			r.replay.newest.accepted = (*datagram)(append([]byte(nil), p.Initiation...))
		}
		g.byKey[p.Key] = r
		g.expect(r.place.addr.Addr(), 1)
	}
	for _, a := range r.addresses {
		delete(g.byAddress, a)
	}
	r.psk, r.addresses = p.PresharedKey, p.Addresses
	for _, a := range r.addresses {
		if a.IsValid() {
			g.byAddress[a] = r
		}
	}
	g.expect(r.from, -1)
	r.from = p.From.Unmap()
	g.expect(r.from, 1)
	return r
}

// drop forgets a registration.
func (g *registry) drop(r *registration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sleepLocked(r)
	delete(g.byKey, r.key)
	for _, a := range r.addresses {
		if g.byAddress[a] == r {
			delete(g.byAddress, a)
		}
	}
	g.expect(r.place.addr.Addr(), -1)
	g.expect(r.from, -1)
	last := r.replay.state()
	if last == (newest{}) {
		return
	}
	if _, ok := g.former[r.key]; !ok {
		g.formerKeys = append(g.formerKeys, r.key)
	}
	g.former[r.key] = last
	for len(g.formerKeys) > formerKept {
		delete(g.former, g.formerKeys[0])
		g.formerKeys = g.formerKeys[1:]
	}
}

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
	if r.peer.moved.Swap(false) {
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

// expect counts registrations by outer address. mu is held.
func (g *registry) expect(a netip.Addr, n int) {
	if !a.IsValid() {
		return
	}
	if g.expected[a] += n; g.expected[a] <= 0 {
		delete(g.expected, a)
	}
}

// at is the live registration that is there, and whether any registration is
// known from that outer address.
func (g *registry) at(src place) (r *registration, expected bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.byPlace[src], g.expected[src.addr.Addr()] > 0
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
	if !r.peer.moved.Swap(true) {
		g.unsure.Add(1)
	}
	if r.peer.suspect.Swap(true) {
		return nil
	}
	return r
}

// arrived is the registration of an inner address, with its peer, if a message
// that may be the peer's came from elsewhere since the last packet of it.
func (g *registry) arrived(inner netip.Addr) (*registration, *device.Peer) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	r := g.byAddress[inner]
	if r == nil || r.peer == nil || !r.peer.moved.Swap(false) {
		return nil, nil
	}
	g.unsure.Add(-1)
	return r, r.peer.wireguard
}

// index notes an index that WireGuard gave a handshake with a registration.
func (g *registry) index(r *registration, index uint32, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
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
func (g *registry) called(r *registration, index uint32, now time.Time) {
	g.mu.Lock()
	g.calls[index] = &call{reg: r, at: now, left: callAnswers}
	g.mu.Unlock()
	if r != nil {
		g.index(r, index, now)
	}
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

// settle notes where an authenticated packet of a live registration came from.
// It tells whether the owner has to be told.
func (g *registry) settle(r *registration, at place, now time.Time) (tell bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.settleLocked(r, at, now) {
		return false
	}
	tell = !r.told
	r.told = true
	return tell
}

// arrive is settle for the packet itself: somebody else tells the owner the rest.
func (g *registry) arrive(r *registration, at place, now time.Time) (moved bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.settleLocked(r, at, now) && !r.told
}

// settleLocked is false for a registration that has no peer. Callers hold mu.
func (g *registry) settleLocked(r *registration, at place, now time.Time) bool {
	if r.peer == nil || g.byKey[r.key] != r {
		return false
	}
	if !r.peer.settled {
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

func (g *registry) markDirty(r *registration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dirtyLocked(r)
}

func (g *registry) dirtyLocked(r *registration) {
	if !r.dirty {
		r.dirty = true
		g.dirty = append(g.dirty, r)
	}
	select {
	case g.changed <- struct{}{}:
	default:
	}
}

// takeDirty returns what the store does not know yet, and counts it as known.
func (g *registry) takeDirty() []Kept {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]Kept, 0, len(g.dirty))
	for _, r := range g.dirty {
		r.dirty = false
		if g.byKey[r.key] != r {
			continue
		}
		k := Kept{Key: r.key, Endpoint: r.place.addr}
		if r.handshake != 0 {
			k.Handshake = time.Unix(0, r.handshake)
		}
		if n := r.replay.state(); n.accepted != nil {
			k.Initiation = n.accepted[:]
		}
		out = append(out, k)
	}
	g.dirty = nil
	return out
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

// infos is the state of all registrations.
func (g *registry) infos() []PeerInfo {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]PeerInfo, 0, len(g.byKey))
	for _, r := range g.byKey {
		i := PeerInfo{Key: r.key, Endpoint: r.place.addr, Live: r.peer != nil}
		if r.handshake != 0 {
			i.LastHandshake = time.Unix(0, r.handshake)
		}
		out = append(out, i)
	}
	return out
}

// trust lets the watcher be sent to a registration again.
func (g *registry) trust(r *registration) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if r.peer != nil {
		r.peer.suspect.Store(false)
	}
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

// where is the last proven place of a registration that is still one.
func (g *registry) where(r *registration) (at place, ok bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return r.place, g.byKey[r.key] == r
}

func (g *registry) sleep(r *registration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.sleepLocked(r)
}

// dormant finds the registration of an inner address if it has no peer.
func (g *registry) dormant(inner netip.Addr) (r *registration, asleep bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	r = g.byAddress[inner]
	return r, r != nil && r.peer == nil
}

// hold keeps a packet for a dormant device. call tells that somebody has to make
// its peer, pass that it has one by now.
func (g *registry) hold(r *registration, packet []byte, c *counters) (call, pass bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.peer != nil {
		return false, true
	}
	if len(r.held) >= heldPackets || g.heldTotal >= heldTotal {
		c.heldFull.Add(1)
		return false, false
	}
	r.held = append(r.held, append([]byte(nil), packet...))
	g.heldTotal++
	return len(r.held) == 1, false
}

// release takes the packets back that wait for a device.
func (g *registry) release(r *registration) [][]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.releaseLocked(r)
}

// passing notes that an initiation is passed for r, unless one is or was just
// before, or WireGuard would take an old one: a peer that the gateway called has
// shown it none yet.
func (g *registry) passing(r *registration, c *claim, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.peer == nil || !r.peer.vouched || r.peer.passing != nil || now.Sub(r.peer.touched) < apart {
		return false
	}
	r.peer.passing = c
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

// recent tells whether a handshake message of r's passed just now, and notes
// this one.
func (g *registry) recent(r *registration, now time.Time) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return r.peer != nil && r.peer.passing == nil && now.Sub(r.peer.touched) < apart
}

// vouch notes that WireGuard took an initiation that was opened here.
func (g *registry) vouch(r *registration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.peer != nil {
		r.peer.vouched = true
	}
}

// stored lets go of what was kept for the store only.
func (g *registry) stored(kept []Kept) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	for _, k := range kept {
		if r := g.byKey[k.Key]; r != nil {
			r.replay.stored(k.Initiation)
		}
	}
}
