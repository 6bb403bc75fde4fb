package tunnel

import (
	"context"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

const (
	// lookAfter is how long a packet from a new place has to be authenticated
	// before WireGuard is asked.
	lookAfter = 5 * time.Millisecond
	// tendEvery is how often overdue answers are looked for.
	tendEvery = 25 * time.Millisecond
	// lookAgain is how many times, tendEvery apart, a peer is looked at whose
	// answer WireGuard has yet to read.
	lookAgain = 20
	// sweepEvery is how often every live peer is looked at, should a sign have
	// been missed; 10,000 take some milliseconds.
	sweepEvery = time.Second
	// suspectQueue is how many peers wait to be looked at. One that finds no
	// room is suspected again with its next packet.
	suspectQueue = 1024
)

// watcher tells the owner where peers are. Upstream has no event for it. The
// ingress reports transport messages whose index is a peer's and whose source is
// not; the watcher then asks WireGuard, which believes only what it could
// decrypt, where that peer is. The first packet from there does not wait for it:
// see egress.Write.
type watcher struct {
	t        *Tunnel
	suspects chan *registration

	// later are the peers to be looked at again, with how often; run owns it.
	later map[*registration]int
}

func newWatcher(t *Tunnel) *watcher {
	return &watcher{t: t, suspects: make(chan *registration, suspectQueue), later: make(map[*registration]int)}
}

// suspect has a peer looked at. It runs on the receiving goroutines.
func (w *watcher) suspect(r *registration) {
	select {
	case w.suspects <- r:
	default:
		w.t.known.trust(r)
	}
}

// run watches until ctx is done.
func (w *watcher) run(ctx context.Context, dev *device.Device) {
	tend, sweep := time.NewTicker(tendEvery), time.NewTicker(sweepEvery)
	defer tend.Stop()
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-w.suspects:
			if !sleep(ctx, lookAfter) {
				return
			}
			for more := len(w.suspects); ; more-- {
				if !w.look(dev, r) {
					w.later[r] = lookAgain
				}
				if more == 0 {
					break
				}
				r = <-w.suspects
			}
		case now := <-tend.C:
			w.t.gate.overdue(now)
			for r, left := range w.later {
				if w.later[r]--; w.look(dev, r) || left == 1 {
					delete(w.later, r)
				}
			}
		case now := <-sweep.C:
			w.t.known.forgetCalls(now.Add(-device.RekeyAttemptTime))
			for _, r := range w.t.known.lives() {
				w.look(dev, r)
				w.t.retire(r, now)
			}
		}
	}
}

// look asks WireGuard where a peer is. It is false while the peer's place is one
// that was only claimed: before a packet of its new session it proves nothing.
func (w *watcher) look(dev *device.Device, r *registration) (proven bool) {
	w.t.known.trust(r)
	at, proven := w.t.bind.where(dev.LookupPeer(r.key))
	if proven && w.t.known.settle(r, at, time.Now()) && w.t.cfg.OnEndpoint != nil {
		w.t.cfg.OnEndpoint(r.key, at.addr)
	}
	return proven
}

// sleep waits for d and reports whether ctx is still good.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
