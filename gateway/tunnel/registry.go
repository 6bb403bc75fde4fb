package tunnel

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

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

	// size is how long the packets to it may be, in bytes, as it says; 0 before.
	size atomic.Int32

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
	newcomer  chan struct{} // some of it is a registration's first handshake
	unsure    atomic.Int64  // peers with odd set
	small     atomic.Int64  // registrations whose path takes less than mtu
	mtu       int           // of the inside, in bytes
	strained  atomic.Int64  // until when some peer is under strain, see strain

	// former keeps the newest initiations of keys that are registered no more,
	// should one be again: a device that connects anew keeps its key.
	former     map[[32]byte]newest
	formerKeys [][32]byte // in the order they went
}

// formerKept is how many keys that are registered no more are remembered.
const formerKept = 4096

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
		newcomer:  make(chan struct{}, 1),
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
	g.resize(r, 0)
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
		k := Kept{Key: r.key}
		if r.place.device == "" { // by UDP nobody is at a WebSocket's address, or somebody else is
			k.Endpoint = r.place.addr
		}
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

// unkept has what the store did not take be given to it again.
func (g *registry) unkept(kept []Kept) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, k := range kept {
		if r := g.byKey[k.Key]; r != nil {
			g.dirtyLocked(r)
		}
	}
}

// where is the last proven place of a registration that is still one.
func (g *registry) where(r *registration) (at place, ok bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return r.place, g.byKey[r.key] == r
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
