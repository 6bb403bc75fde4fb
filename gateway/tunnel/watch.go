package tunnel

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	// pollEvery is how often peers' endpoints are read in any case: two peers
	// behind one address that change places send from no new one.
	pollEvery = time.Second
	// pollAfter is how long a datagram from a new address has to be
	// authenticated before the endpoints are read.
	pollAfter = 25 * time.Millisecond
	// pollApart is the least time between two readings, however many strangers
	// send.
	pollApart = 50 * time.Millisecond
	// pollShare bounds the time spent reading, to one part in pollShare:
	// reading 10,000 peers takes tens of milliseconds.
	pollShare = 20
)

// watcher tells the owner where peers are. Upstream has no event for it: the
// socket reports source addresses that are no peer's, the watcher then reads
// all endpoints and compares.
type watcher struct {
	tunnel *Tunnel
	wake   chan struct{}

	// known holds the endpoints of the last reading. It is replaced whole, and
	// read for every datagram.
	known atomic.Pointer[map[netip.AddrPort]struct{}]

	// last is what the owner was told; the tunnel's mu guards it.
	last map[[32]byte]netip.AddrPort
}

func newWatcher(t *Tunnel) *watcher {
	w := &watcher{tunnel: t, wake: make(chan struct{}, 1), last: make(map[[32]byte]netip.AddrPort)}
	w.known.Store(&map[netip.AddrPort]struct{}{})
	return w
}

// seen notes a datagram's source. It runs on the receiving goroutines.
func (w *watcher) seen(src netip.AddrPort) {
	src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
	if _, ok := (*w.known.Load())[src]; ok {
		return
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// forgetLocked makes the next endpoint of a key a first one again. Callers hold
// the tunnel's mu.
func (w *watcher) forgetLocked(key [32]byte) { delete(w.last, key) }

// run polls until ctx is done.
func (w *watcher) run(ctx context.Context) {
	if w.tunnel.cfg.OnEndpoint == nil {
		return
	}
	timer := time.NewTimer(pollEvery)
	defer timer.Stop()
	for {
		timer.Reset(pollEvery)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.wake:
			if !sleep(ctx, pollAfter) {
				return
			}
		}
		begun := time.Now()
		w.poll()
		if !sleep(ctx, max(pollApart-pollAfter, pollShare*time.Since(begun))) {
			return
		}
	}
}

func (w *watcher) poll() {
	peers, err := w.tunnel.Peers()
	if err != nil {
		w.tunnel.log.Warn("peers' endpoints cannot be read", "err", err)
		return
	}
	known := make(map[netip.AddrPort]struct{}, len(peers))
	for _, p := range peers {
		// Before its first whole handshake a peer's endpoint proves nothing: a
		// recorded initiation sent again would set it.
		if !p.Endpoint.IsValid() || p.LastHandshake == 0 {
			continue
		}
		known[p.Endpoint] = struct{}{}
		if w.changed(p) {
			w.tunnel.cfg.OnEndpoint(p.Key, p.Endpoint)
		}
	}
	w.known.Store(&known)
}

func (w *watcher) changed(p PeerInfo) bool {
	w.tunnel.mu.Lock()
	defer w.tunnel.mu.Unlock()
	if _, ok := w.tunnel.peers[p.Key]; !ok {
		return false // removed since the reading
	}
	if w.last[p.Key] == p.Endpoint {
		return false
	}
	w.last[p.Key] = p.Endpoint
	return true
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
