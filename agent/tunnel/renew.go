package tunnel

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/transport"
)

const (
	// renewedEvery is how often a handshake whose message was seen is looked for,
	// and renewedWithin how long.
	renewedEvery  = 20 * time.Millisecond
	renewedWithin = 2 * time.Second
	// doubtAfter is after how much silence TCP connections are asked about while
	// there is doubt, which lasts for doubtFor: one question and another. The
	// kernel counts in whole seconds.
	doubtAfter       = 100 * time.Millisecond
	doubtFor         = 250 * time.Millisecond
	doubtForOfKernel = 1200 * time.Millisecond
)

// A handshake is all that is to be seen of a gateway that was restarted: it
// called, or answered, and knows nothing any more of what was open inside. That
// it says of each connection when it is asked, and forgets no SYN that it is sent
// now. Both ends renew their sessions in the same way every two minutes, so that
// nothing is given up for a handshake alone.

// shook notes a datagram from the gateway that may end a handshake. Its own
// initiation ends ours: sent again, that would only end the gateway's, and both
// would begin once more after 5 s.
func (r *road) shook(b []byte) {
	switch transport.Kind(b) {
	case device.MessageInitiationType:
		r.mu.Lock()
		r.initiation = nil
		r.mu.Unlock()
	case device.MessageResponseType:
	default:
		return
	}
	select {
	case r.shakes <- struct{}{}:
	default:
	}
}

// watchHandshakes doubts what is open whenever there is a new session. What
// anybody could have sent makes none.
func (t *Tunnel) watchHandshakes(ctx context.Context) {
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.ladder.road.shakes:
		}
		for end := time.Now().Add(renewedWithin); time.Now().Before(end); {
			at := t.Status().LastHandshake
			if at.After(last) {
				// The first one found may not be the first there was: what is open
				// already came after another.
				if !last.IsZero() || t.anyOpen() {
					t.doubt(ctx)
				}
				last = at
				break
			}
			if !pause(ctx, renewedEvery) {
				return
			}
		}
	}
}

func (t *Tunnel) anyOpen() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.conns) > 0
}

// doubt asks soon whether each open TCP connection is still known; what is not
// breaks off with [syscall.ECONNRESET], to the rest nothing happens. What is being
// dialled to the gateway itself begins anew. It returns when it was asked.
func (t *Tunnel) doubt(ctx context.Context) {
	t.toGateway.again()
	t.mu.Lock()
	var open []*tracked
	for _, conns := range t.conns {
		open = slices.AppendSeq(open, maps.Keys(conns))
	}
	t.mu.Unlock()
	for _, c := range open {
		_ = c.ask(doubtAfter) // one that is closed, or is UDP's, is not asked
	}
	wait := doubtFor
	if t.routes != nil {
		wait = doubtForOfKernel
	}
	pause(ctx, wait)
	for _, c := range open {
		_ = c.ask(c.asks.Load().Idle)
	}
}

// Redial has every dial of an app that waits begin anew: a SYN that a gateway
// took along is repeated by itself only after a second, and then after longer.
func (t *Tunnel) Redial() { t.toApps.again() }

// greet begins a handshake unless one began within 5 s: the gateway may be one
// that cannot call, since it does not know where this device is.
func (t *Tunnel) greet() {
	if p := t.dev.LookupPeer(t.peerKey); p != nil {
		_ = p.SendHandshakeInitiation(false) // UDP may be refused on this very machine
	}
}

// dialling is where the dials to dst belong to.
func (t *Tunnel) dialling(dst netip.AddrPort) *dials {
	if slices.Contains(t.gateway, dst.Addr().Unmap()) {
		return &t.toGateway
	}
	return &t.toApps
}

// dials are dials that can all be begun anew.
type dials struct {
	mu    sync.Mutex
	since chan struct{} // guarded by mu: closed when they are; nil while there were none
}

// again begins them anew.
func (d *dials) again() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.since != nil {
		close(d.since)
		d.since = nil
	}
}

// dial dials until that is not begun anew any more.
func (d *dials) dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	for {
		d.mu.Lock()
		if d.since == nil {
			d.since = make(chan struct{})
		}
		since := d.since
		d.mu.Unlock()
		dialling, cancel := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() {
			defer close(done)
			select {
			case <-since:
				cancel()
			case <-dialling.Done():
			}
		}()
		c, err := dial(dialling)
		over := dialling.Err() != nil && ctx.Err() == nil
		cancel()
		<-done
		if err == nil || !over {
			return c, err
		}
	}
}
