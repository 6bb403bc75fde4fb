package tunnel

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// rate is a token bucket's: tokens a second, and how many it holds.
type rate struct{ perSecond, burst float64 }

// standing is what is known of the source of an initiation.
type standing uint8

const (
	stranger standing = iota
	expected          // a registered device was there, or connected from there
	proven            // mac2 is good, or it came by a WebSocket
)

// What failed openings may cost: one is about 50 us of one core. Openings that
// succeed cost no token, so that any number of devices behind one address come
// in. Each standing has buckets of its own: nobody else can empty those of
// sources that proved their address, and strangers around a device that is
// expected leave it its own.
var (
	strangerNarrow = rate{50, 200}    // IPv4 /32, IPv6 /64
	strangerWide   = rate{100, 400}   // IPv4 /24, IPv6 /48
	strangerAll    = rate{1000, 2000} // everyone together
	expectedNarrow = rate{50, 200}
	expectedAll    = rate{1000, 2000}
	provenNarrow   = rate{200, 800}
	provenWide     = rate{400, 1600}
	provenAll      = rate{4000, 10000}
	// livePlace is what one place may have waiting, and have fail, while a live
	// peer is there. Its own initiations need none.
	livePlace = rate{5, 8}
)

// limiterSlots is how many sources of a kind are told apart. More share: with
// the bounds for everyone, fewer than that are ever empty at once.
const limiterSlots = 4096

// limiter holds the token buckets of sources whose initiations fail.
type limiter struct {
	seed maphash.Seed
	made time.Time // its monotonic reading counts: a wall clock set back fills no bucket

	mu      sync.Mutex
	classes [proven + 1]class
	places  bucketTable
}

type class struct {
	narrow  bucketTable
	wide    bucketTable // without a rate, it is never empty
	all     bucket
	allRate rate
}

type bucketTable struct {
	rate  rate
	slots [limiterSlots]bucket
}

// bucket counts what is missing in it, so that the zero value is full.
type bucket struct {
	missing float64
	at      time.Duration // since the limiter was made, of missing
}

func newLimiter() *limiter {
	return &limiter{
		seed: maphash.MakeSeed(),
		made: time.Now(),
		classes: [proven + 1]class{
			stranger: {bucketTable{rate: strangerNarrow}, bucketTable{rate: strangerWide}, bucket{}, strangerAll},
			expected: {bucketTable{rate: expectedNarrow}, bucketTable{}, bucket{}, expectedAll},
			proven:   {bucketTable{rate: provenNarrow}, bucketTable{rate: provenWide}, bucket{}, provenAll},
		},
		places: bucketTable{rate: livePlace},
	}
}

func (b *bucket) fill(r rate, at time.Duration) {
	if passed := at - b.at; passed > 0 {
		b.missing = max(0, b.missing-passed.Seconds()*r.perSecond)
		b.at = at
	}
}

func (b *bucket) empty(r rate, at time.Duration) bool {
	if b.missing == 0 {
		return false // most are
	}
	b.fill(r, at)
	return b.missing > r.burst-1
}

func (b *bucket) spend(r rate, at time.Duration) {
	if r == (rate{}) {
		return
	}
	b.fill(r, at)
	// Those that were queued before it was empty make a debt.
	b.missing = min(2*r.burst, b.missing+1)
}

// buckets are those of an address. The seed is secret, so that nobody chooses
// whom to share with.
func (l *limiter) buckets(c *class, src netip.Addr) (narrow, wide *bucket) {
	n, w := 32, 24
	if src.Is6() {
		n, w = 64, 48
	}
	at := func(t *bucketTable, bits int) *bucket {
		p, err := src.Prefix(bits)
		if err != nil {
			return &c.all // an address without a family is nobody's
		}
		return &t.slots[maphash.Comparable(l.seed, p)%limiterSlots]
	}
	return at(&c.narrow, n), at(&c.wide, w)
}

// sourceSpent tells whether a source's buckets are empty, allSpent whether
// everyone's is. Neither costs a token.
func (l *limiter) sourceSpent(src netip.Addr, of standing, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &l.classes[of]
	narrow, wide := l.buckets(c, src)
	return narrow.empty(c.narrow.rate, now.Sub(l.made)) || wide.empty(c.wide.rate, now.Sub(l.made))
}

// expectedSpent tells whether an address where a device is expected has nothing
// left: because those who are expected fail, or because strangers fail who write
// that very address. Its neighbourhood does not matter.
func (l *limiter) expectedSpent(src netip.Addr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := now.Sub(l.made)
	s, e := &l.classes[stranger], &l.classes[expected]
	narrow, _ := l.buckets(s, src)
	own, _ := l.buckets(e, src)
	return narrow.empty(s.narrow.rate, at) || own.empty(e.narrow.rate, at) || e.all.empty(e.allRate, at)
}

func (l *limiter) allSpent(of standing, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &l.classes[of]
	return c.all.empty(c.allRate, now.Sub(l.made))
}

// failed takes the tokens of one failed opening.
func (l *limiter) failed(src netip.Addr, of standing, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &l.classes[of]
	narrow, wide := l.buckets(c, src)
	at := now.Sub(l.made)
	narrow.spend(c.narrow.rate, at)
	wide.spend(c.wide.rate, at)
	c.all.spend(c.allRate, at)
}

// reserve takes a token of a live peer's place, if there is one, for an
// initiation that is to wait there: anyone can write that place as a sender.
// release gives it back, for one that was opened.
func (l *limiter) reserve(src place, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, at := l.at(src), now.Sub(l.made)
	if b.empty(livePlace, at) {
		return false
	}
	b.spend(livePlace, at)
	return true
}

func (l *limiter) release(src place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.at(src)
	b.missing = max(0, b.missing-1)
}

func (l *limiter) at(src place) *bucket {
	return &l.places.slots[maphash.Comparable(l.seed, src)%limiterSlots]
}

// refused remembers which initiations failed, by their ephemeral keys: the same
// bytes again cost no exchange. It forgets the oldest by overwriting.
type refused struct {
	seed maphash.Seed

	mu    sync.Mutex
	slots [limiterSlots]uint64
}

func (r *refused) hash(d *datagram) uint64 { return maphash.Bytes(r.seed, d[ephemeralAt:mac1At]) | 1 }

func (r *refused) add(d *datagram) {
	h := r.hash(d)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.slots[h>>1%limiterSlots] = h
}

func (r *refused) has(d *datagram) bool {
	h := r.hash(d)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.slots[h>>1%limiterSlots] == h
}
