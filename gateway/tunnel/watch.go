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
func (w *watcher) run(ctx context.Context) {
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
				if !w.look(r) {
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
				if w.later[r]--; w.look(r) || left == 1 {
					delete(w.later, r)
				}
			}
		case now := <-sweep.C:
			w.t.known.forgetCalls(now.Add(-device.RekeyAttemptTime))
			for _, r := range w.t.known.lives() {
				w.look(r)
				w.fade(r)
				w.t.retire(r, now)
			}
		}
	}
}

// look asks WireGuard where a peer is, and has the owner decide again if that is
// elsewhere. It is false while the peer's place is one that was only claimed:
// before a packet of its new session it proves nothing.
func (w *watcher) look(r *registration) (proven bool) {
	p := w.t.known.trust(r)
	if p == nil {
		return false
	}
	at, proven := w.t.locate(r, p)
	if proven && w.t.known.tell(r) && w.t.cfg.OnEndpoint != nil {
		w.t.cfg.OnEndpoint(r.key, at.addr)
	}
	return proven
}

// fade forgets what was odd at the last sweep: whatever came from there has been
// let in or was not the peer's.
func (w *watcher) fade(r *registration) {
	p := w.t.known.trust(r)
	if p == nil {
		return
	}
	odd := p.odd.Load()
	if odd == p.fading {
		w.t.known.sure(p, odd)
	}
	p.fading = odd
}

// locate asks WireGuard where a peer is and shows the owner what it does not know
// yet. It is false while that is not proven, or the peer is gone.
func (t *Tunnel) locate(r *registration, p *peer) (at place, proven bool) {
	p.look.Lock()
	defer p.look.Unlock()
	at, proven = t.bind.where(p.wireguard)
	if !proven || !t.known.settle(r, p, at, time.Now()) {
		return at, false
	}
	if p.shown != at.addr {
		p.shown = at.addr
		if t.cfg.OnMove != nil {
			t.cfg.OnMove(r.key, at.addr)
		}
	}
	return at, true
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
