package tunnel

import (
	"net/netip"
	"sync"
	"time"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/internal/overlay"
)

// resetRate is how many resets a device is answered with. Each costs what its
// question did, and a device that asks for more is not looking for an app.
var resetRate = rate{500, 1000}

// filter runs for every packet on its peer's receiving goroutine.
func (t *Tunnel) filter(packet []byte) (overlay.Action, []byte) {
	switch v, _ := t.cfg.Table.Filter(packet); v {
	case segment.Pass:
		if t.cfg.UDP != nil && t.cfg.UDP(packet) {
			return overlay.Taken, nil
		}
		return overlay.Pass, nil
	case segment.Reset:
		return overlay.Drop, t.refuse(packet)
	default:
		return overlay.Drop, nil
	}
}

// refuse is the reset that answers a device's TCP packet, nil if none is due or
// if it has been sent too many: then it takes no memory and no answer.
func (t *Tunnel) refuse(packet []byte) []byte {
	src, ok := source(packet)
	if ok && !t.known.mayReset(src, time.Now()) {
		t.withheld.Add(1)
		return nil
	}
	return segment.ResetFor(packet)
}

// source is where an IP packet says it is from. The filter has compared that
// with the peer's own addresses.
func source(p []byte) (a netip.Addr, ok bool) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(p[12:])), true
	case len(p) >= 40 && p[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(p[8:])), true
	}
	return a, false
}

// resets are what a live device was answered with.
type resets struct {
	mu     sync.Mutex
	bucket bucket // guarded by mu
}

// mayReset takes a reset of a device's, by one of its inner addresses. One that
// has no peer any more gets none.
func (g *registry) mayReset(inner netip.Addr, now time.Time) bool {
	g.mu.RLock()
	var p *peer
	if r := g.byAddress[inner]; r != nil {
		p = r.peer
	}
	g.mu.RUnlock()
	if p == nil {
		return false
	}
	at := now.Sub(g.made)
	p.resets.mu.Lock()
	defer p.resets.mu.Unlock()
	if p.resets.bucket.empty(resetRate, at) {
		return false
	}
	p.resets.bucket.spend(resetRate, at)
	return true
}
