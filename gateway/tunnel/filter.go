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
		t.narrow(packet)
		if t.cfg.UDP != nil && segment.IsUDP(packet) {
			return overlay.Taken, nil
		}
		return overlay.Pass, nil
	case segment.Reset:
		return overlay.Drop, t.refuse(packet)
	default:
		t.known.refused(packet, time.Now())
		return overlay.Drop, nil
	}
}

// refuse is the reset that answers a device's TCP packet, nil if none is due or
// if it has been sent too many: then it takes no memory and no answer.
func (t *Tunnel) refuse(packet []byte) []byte {
	now := time.Now()
	if p := t.known.refused(packet, now); p == nil || !p.resets.may(now.Sub(t.known.made)) {
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

// may takes one, at a time since the registry was made.
func (r *resets) may(at time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.bucket.empty(resetRate, at) {
		return false
	}
	r.bucket.spend(resetRate, at)
	return true
}
