package tunnel

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"runtime"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

const (
	// inFlight is how many initiations WireGuard may have to answer at a time:
	// half of what makes it believe that it is under load and ask for cookies of
	// its own, which would not be ours.
	inFlight = 64
	// knownQueue and strangersQueue are how many initiations wait to be opened:
	// those of sources with a claim to be heard, and all others.
	knownQueue     = 2048
	strangersQueue = 512
	// cookieQueue is how many cookie replies wait to be sent.
	cookieQueue = 1024
	// answerWithin is how long WireGuard may take to answer. An initiation that
	// it took unopened and did not answer is opened after that: another device
	// may sit behind the same address and port now.
	answerWithin = 250 * time.Millisecond
	forgetAfter  = 500 * time.Millisecond
	// apart is the least time between two initiations of one key. A WireGuard
	// sends one in five seconds.
	apart = 100 * time.Millisecond
	// crossPatience is how long after a call of the gateway's an initiation from
	// there waits. Two that cross are both lost, since either end drops its own
	// for the other's, and WireGuard begins anew after 5 s at the earliest. It is
	// longer than to a satellite and back, and with the way less than the 1.5 s
	// that an agent gives UDP for a handshake.
	crossPatience = 700 * time.Millisecond
)

// gate decides which initiations WireGuard sees. On the receiving goroutine it
// checks what costs a microsecond; its workers open what is left, make the peer
// and hand the initiation on. Openings that fail spend their source's tokens;
// a source without any has to prove its address (mac2), and while strangers
// come faster than they may be opened, so has every stranger.
type gate struct {
	t       *Tunnel
	opener  *opener
	checker device.CookieChecker
	limiter *limiter
	refused *refused

	known, strangers chan job
	cookies          chan job
	wakes            chan *registration
	slots            chan struct{} // one for each initiation in flight
	crossPatience    time.Duration

	mu      sync.Mutex
	flights map[*claim]struct{}
	crossed map[*registration]crossing
}

// crossing is an initiation that waits for the answer to a call.
type crossing struct {
	claim *claim
	until time.Time
}

// job is an initiation to be opened, or to be answered with a cookie, or one that
// was opened and has waited.
type job struct {
	waited   *claim // nil but for the last kind, which has nothing else
	datagram datagram
	ep       conn.Endpoint
	src      place
	standing standing
	reserved bool // it has a token of a live peer's place
}

func newGate(t *Tunnel) *gate {
	g := &gate{
		t: t, opener: newOpener(t.cfg.PrivateKey, t.public),
		limiter: newLimiter(), refused: &refused{seed: maphash.MakeSeed()},
		known: make(chan job, knownQueue), strangers: make(chan job, strangersQueue), cookies: make(chan job, cookieQueue),
		wakes: make(chan *registration, knownQueue),
		slots: make(chan struct{}, inFlight), crossPatience: crossPatience,
		flights: make(map[*claim]struct{}), crossed: make(map[*registration]crossing),
	}
	g.checker.Init(t.public)
	return g
}

// admit looks at an initiation on the receiving goroutine. It returns a claim if
// WireGuard may have it at once; it keeps nothing of d.
func (g *gate) admit(d *datagram, ep conn.Endpoint) *claim {
	c, src := &g.t.counters, placeOf(ep)
	addr := src.addr.Addr()
	if a := addr; src.addr.Port() == 0 || !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
		c.badSource.Add(1)
		return nil
	}
	if !g.checker.CheckMAC1(d[:]) {
		c.badMAC.Add(1)
		return nil
	}
	now := time.Now()
	r, known := g.t.known.at(src)
	if r != nil {
		if claim := g.pass(r, d, ep, src, now); claim != nil {
			return claim
		}
	}
	if g.refused.has(d) {
		c.repeated.Add(1)
		return nil
	}
	j := job{datagram: *d, ep: ep, src: src}
	j.reserved = r != nil && g.limiter.reserve(src, now)
	switch {
	case j.reserved || known && !g.limiter.expectedSpent(addr, now):
		j.standing = expected
	case src.device != "" || g.checker.CheckMAC2(d[:], ep.DstToBytes()): // TCP and a certificate proved who sends
		j.standing = proven
		if g.limiter.sourceSpent(addr, proven, now) || g.limiter.allSpent(proven, now) {
			c.limited.Add(1)
			return nil
		}
	case len(g.strangers) >= strangersQueue/2, g.limiter.sourceSpent(addr, stranger, now), g.limiter.allSpent(stranger, now):
		g.queue(g.cookies, j)
		return nil
	default:
		g.queue(g.strangers, j)
		return nil
	}
	g.queue(g.known, j)
	return nil
}

func (g *gate) queue(q chan job, j job) {
	select {
	case q <- j:
	default:
		g.t.counters.queueFull.Add(1)
	}
}

// pass lets WireGuard have an initiation unopened that comes from where a live
// peer is, one at a time and if it is not busy.
func (g *gate) pass(r *registration, d *datagram, ep conn.Endpoint, src place, now time.Time) *claim {
	if len(g.known) > 0 {
		return nil
	}
	select {
	case g.slots <- struct{}{}:
	default:
		return nil
	}
	cl := &claim{Endpoint: ep, src: src, reg: r, passed: true, at: now}
	if !g.t.known.passing(r, cl, g.crossPatience, now) {
		<-g.slots
		return nil
	}
	kept := *d
	cl.datagram = &kept
	g.fly(cl)
	g.t.counters.passed.Add(1)
	return cl
}

func (g *gate) fly(c *claim) {
	g.mu.Lock()
	g.flights[c] = struct{}{}
	g.mu.Unlock()
}

// land ends a flight; it is false if that had ended.
func (g *gate) land(c *claim) bool {
	g.mu.Lock()
	_, ok := g.flights[c]
	delete(g.flights, c)
	g.mu.Unlock()
	if ok {
		<-g.slots
	}
	return ok
}

// responded is told of every handshake response WireGuard sends, and to what
// claim. It runs in WireGuard's handshake workers.
func (g *gate) responded(b []byte, c *claim) {
	if c == nil || c.datagram == nil || !answers(b, c.datagram, &c.reg.key) {
		return // the watcher finds the peer all the same
	}
	if !g.land(c) {
		return
	}
	if c.passed {
		c.reg.replay.took(c.datagram)
	} else {
		g.t.known.vouch(c.reg)
	}
	now := time.Now()
	g.t.known.answered(c.reg, binary.LittleEndian.Uint32(b[4:]), now)
	g.t.known.markDirty(c.reg)
}

// overdue opens what WireGuard took unopened and has not answered, forgets what
// it will not answer any more, and hands on what has waited for an answer. If that
// came, the device drops what WireGuard says to its own initiation.
func (g *gate) overdue(now time.Time) {
	var late, waited []*claim
	g.mu.Lock()
	for r, x := range g.crossed {
		if !now.Before(x.until) {
			waited = append(waited, x.claim)
			delete(g.crossed, r)
		}
	}
	for c := range g.flights {
		if age := now.Sub(c.at); age > forgetAfter || c.passed && age > answerWithin {
			late = append(late, c)
		}
	}
	g.mu.Unlock()
	for _, c := range waited {
		g.queue(g.known, job{waited: c})
	}
	for _, c := range late {
		if !g.land(c) || !c.passed {
			continue
		}
		g.t.known.passed(c)
		g.queue(g.known, job{datagram: *c.datagram, ep: c.Endpoint, src: c.src, standing: expected})
	}
}

// run works until ctx is done.
func (g *gate) run(ctx context.Context) {
	var wg sync.WaitGroup
	for range min(max(runtime.GOMAXPROCS(0), 2), 8) {
		wg.Go(func() { g.work(ctx) })
	}
	wg.Go(func() { g.sendCookies(ctx) })
	wg.Wait()
}

func (g *gate) work(ctx context.Context) {
	for {
		// Those with a claim to be heard first.
		select {
		case j := <-g.known:
			g.open(ctx, &j)
			continue
		case r := <-g.wakes:
			g.t.call(r)
			continue
		default:
		}
		select {
		case <-ctx.Done():
			return
		case j := <-g.known:
			g.open(ctx, &j)
		case r := <-g.wakes:
			g.t.call(r)
		case j := <-g.strangers:
			g.open(ctx, &j)
		}
	}
}

// open opens an initiation and hands it on.
func (g *gate) open(ctx context.Context, j *job) {
	if j.waited != nil {
		g.hand(ctx, j.waited)
		return
	}
	g.t.counters.opened.Add(1)
	r, d, cause := g.judge(j)
	if cause != nil {
		cause.Add(1)
		g.refused.add(&j.datagram)
		g.limiter.failed(j.src.addr.Addr(), j.standing, time.Now())
		return
	}
	if j.reserved {
		g.limiter.release(j.src)
	}
	g.t.known.markDirty(r)
	c := &claim{Endpoint: j.ep, src: j.src, reg: r, datagram: d}
	if until, ok := g.t.known.crosses(c, g.crossPatience, time.Now()); ok {
		g.t.counters.crossed.Add(1)
		g.mu.Lock()
		g.crossed[r] = crossing{c, until}
		g.mu.Unlock()
		return
	}
	g.hand(ctx, c)
}

// hand makes the peer of an opened initiation's sender and gives it to WireGuard.
func (g *gate) hand(ctx context.Context, c *claim) {
	if err := g.t.raise(c.reg); err != nil {
		g.t.counters.notAdded.Add(1)
		g.t.log.Warn("making a peer for a device that calls", "err", err)
		return
	}
	select {
	case g.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	c.at = time.Now()
	g.fly(c)
	select {
	case g.t.bind.injected <- c:
	default:
		g.land(c)
		g.t.counters.queueFull.Add(1)
	}
}

// judge reads an initiation: whose it is, if it is new.
func (g *gate) judge(j *job) (*registration, *datagram, *counter) {
	c := &g.t.counters
	in, ok := g.opener.open(&j.datagram)
	if !ok {
		return nil, nil, &c.badOpening
	}
	defer in.wipe()
	r := g.t.known.get(in.key)
	if r == nil {
		return nil, nil, &c.unknownKey
	}
	d, cause := r.replay.check(g.opener, &in, g.t.known.recent(r, time.Now()), c)
	return r, d, cause
}

// sendCookies tells sources to prove their address first. A reply is smaller
// than the question (64 of 148 bytes), and nothing is kept of whom it went to.
func (g *gate) sendCookies(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-g.cookies:
			reply, err := g.checker.CreateReply(j.datagram[:], binary.LittleEndian.Uint32(j.datagram[4:]), j.ep.DstToBytes())
			if err != nil {
				g.t.log.Error("making a handshake cookie", "err", err)
				continue
			}
			b := make([]byte, 0, device.MessageCookieReplySize)
			b = binary.LittleEndian.AppendUint32(b, reply.Type)
			b = binary.LittleEndian.AppendUint32(b, reply.Receiver)
			b = append(append(b, reply.Nonce[:]...), reply.Cookie[:]...)
			g.t.counters.cookies.Add(1)
			_ = g.t.bind.Bind.Send([][]byte{b}, j.ep) // whoever it is asks again
		}
	}
}
