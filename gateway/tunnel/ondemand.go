package tunnel

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/pathsize"
)

const (
	// heldPackets is how many packets wait for one dormant device, and heldTotal
	// for all of them, while its peer is made.
	heldPackets = 32
	heldTotal   = 4096
	// recently is how long after a handshake its session can still be in use
	// (REJECT_AFTER_TIME and some): a restarted gateway calls these devices.
	recently = 185 * time.Second
	// idleAfter is when nothing is left of a peer's last handshake.
	idleAfter = 190 * time.Second
	// hailBurst peers are called at once after a restart, then one every
	// hailEvery: WireGuard believes that it is under load with 128 answers.
	hailBurst = 32
	hailEvery = time.Millisecond
	// keepEvery is the least time between two writes of what must outlive the
	// process; they take one part in keepShare of the time at most. The first
	// handshake of a registration waits for neither. keepTimeout is how long the
	// last write may take.
	keepEvery   = 100 * time.Millisecond
	keepShare   = 10
	keepTimeout = 5 * time.Second
	// keepAgain is when a write that failed is tried again.
	keepAgain = time.Second
)

// raise makes the WireGuard peer of a registration, if it has none. It must not
// run on a goroutine that carries packets: closing the device waits for those
// with the lock held that making a peer needs.
func (t *Tunnel) raise(r *registration) error {
	if t.known.awake(r) {
		return nil
	}
	t.mu.Lock()
	held, err := t.raiseLocked(r, false)
	t.mu.Unlock()
	if len(held) > 0 {
		t.Inject(held)
	}
	return err
}

// call makes a registration's peer and tells WireGuard where it was last: it is
// for packets to a dormant device.
func (t *Tunnel) call(r *registration) {
	t.mu.Lock()
	held, err := t.raiseLocked(r, true)
	t.mu.Unlock()
	switch {
	case err != nil:
		t.counters.heldLost.Add(1)
		t.log.Warn("making a peer for a packet", "err", err)
	case len(held) > 0:
		t.counters.woken.Add(1)
		t.Inject(held)
	}
}

// raiseLocked makes a peer; with toLast it is to be found where it was last. It
// returns the packets that waited. mu is held.
func (t *Tunnel) raiseLocked(r *registration, toLast bool) (held [][]byte, err error) {
	if t.state != running {
		return nil, ErrClosed
	}
	at, ok := t.known.where(r)
	if !ok {
		return nil, nil // removed meanwhile
	}
	if !t.known.awake(r) {
		var last conn.Endpoint
		if toLast {
			if last, err = t.endpoint(at); err != nil {
				return nil, err
			}
		}
		if toLast && last == nil {
			t.counters.heldLost.Add(uint64(len(t.known.release(r))))
			return nil, nil
		}
		var conf strings.Builder
		confPeer(&conf, r)
		if err := t.dev.IpcSet(conf.String()); err != nil {
			// Half a peer must not stay.
			t.known.release(r)
			t.lowerLocked(r)
			return nil, fmt.Errorf("making a peer: %w", err)
		}
		if toLast {
			if p := t.dev.LookupPeer(r.key); p != nil {
				p.SetEndpointFromPacket(&claim{Endpoint: last, src: at, reg: r})
			}
		}
	}
	held, ok = t.known.wake(r, t.dev.LookupPeer(r.key), time.Now())
	if !ok {
		t.lowerLocked(r)
		return nil, nil
	}
	return held, nil
}

// endpoint is where datagrams to a former place of a peer go; nil where nothing
// can: it never had one, or that was a WebSocket that has ended.
func (t *Tunnel) endpoint(at place) (conn.Endpoint, error) {
	if at.device != "" {
		if s, ok := t.outside.Stream(at.device, at.addr); ok {
			return s, nil
		}
		return nil, nil
	}
	if !at.addr.IsValid() {
		return nil, nil
	}
	ep, err := t.bind.ParseEndpoint(at.addr.String())
	if err != nil {
		return nil, fmt.Errorf("reading a peer's endpoint: %w", err)
	}
	return ep, nil
}

// lowerLocked takes a registration's peer away from WireGuard: when it returns,
// no packet of it enters or leaves. mu is held.
func (t *Tunnel) lowerLocked(r *registration) {
	t.known.sleep(r)
	if t.dev != nil {
		t.dev.RemovePeer(r.key)
	}
}

// retire removes peers that are idle and that nothing holds.
func (t *Tunnel) retire(r *registration, now time.Time) {
	before := now.Add(-t.cfg.IdleAfter)
	if !t.known.idle(r, before) || t.cfg.Held != nil && t.cfg.Held(r.key) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != running || !t.known.idle(r, before) {
		return
	}
	t.lowerLocked(r)
	r.replay.settle(t.gate.opener)
	t.known.markDirty(r)
	t.counters.removed.Add(1)
}

// hail calls devices that had a session when the gateway stopped: a stock
// WireGuard would find out by itself only after 15 s of silence (its keepalive
// and rekey time-outs).
func (t *Tunnel) hail(ctx context.Context) {
	pace := time.NewTicker(hailEvery)
	defer pace.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-t.hails.wake:
		}
		for _, r := range t.hails.take() {
			if n++; n > hailBurst {
				select {
				case <-ctx.Done():
					return
				case <-pace.C:
				}
			}
			t.hailOne(r)
		}
	}
}

func (t *Tunnel) hailOne(r *registration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != running || t.known.awake(r) {
		return // it was faster
	}
	held, err := t.raiseLocked(r, true)
	if err != nil {
		t.log.Warn("calling a device that was here before the restart", "err", err)
		return
	}
	if len(held) > 0 {
		t.Inject(held)
	}
	if p := t.dev.LookupPeer(r.key); p != nil {
		t.counters.hailed.Add(1)
		p.SendKeepalive() // without a session, that begins a handshake
	}
}

// egress is the stack's device. It sees every packet to a device before
// WireGuard does, and keeps those to a dormant one until its peer is made; and
// every packet from a device before the stack does.
type egress struct {
	tun.Device
	t      *Tunnel
	cutter pathsize.Cutter // Read's
}

// Write implements [tun.Device]. It runs on the receiving goroutine of the peer
// whose packets these are, after WireGuard noted where they came from. Where that
// may be a new place it is looked at before any of them counts for anything.
func (e *egress) Write(bufs [][]byte, offset int) (int, error) {
	if len(bufs) > 0 && e.t.known.unsure.Load() > 0 {
		if src, ok := source(bufs[0][offset:]); ok {
			e.t.arrived(src)
		}
	}
	return e.Device.Write(bufs, offset)
}

// arrived tells the owner where the packets of a device come from now. It takes
// no lock that is held while a peer is removed: that waits for this goroutine.
func (t *Tunnel) arrived(inner netip.Addr) {
	r, p := t.known.arrived(inner)
	if p == nil {
		return
	}
	odd := p.odd.Load() // before WireGuard is asked: what comes later is not answered by it
	if at, proven := t.locate(r, p); proven && odd != nil && at == *odd {
		t.known.sure(p, odd)
	}
}

// Read implements [tun.Device].
func (e *egress) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := e.cutter.Read(e.Device.Read, bufs, sizes, offset, e.t.known.small.Load() > 0, e.t.known.pathOf)
	var last []byte // destination of a packet that may pass
	kept := false
	for i := range n {
		if sizes[i] == 0 {
			continue
		}
		packet := bufs[i][offset : offset+sizes[i]]
		dst := destination(packet)
		if dst == nil || string(dst) == string(last) {
			continue
		}
		a, _ := netip.AddrFromSlice(dst)
		r, asleep := e.t.known.dormant(a)
		if !asleep {
			last = dst
			continue
		}
		call, pass := e.t.known.hold(r, packet, &e.t.counters)
		if pass {
			continue
		}
		sizes[i], kept = 0, true
		if !call {
			continue
		}
		select {
		case e.t.gate.wakes <- r:
		default:
			e.t.counters.heldFull.Add(uint64(len(e.t.known.release(r))))
		}
	}
	if kept {
		n = pathsize.Close(bufs, sizes, offset, n)
	}
	return n, err
}

// destination is where an IP packet goes, nil for what is none.
func destination(p []byte) []byte {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		return p[16:20]
	case len(p) >= 40 && p[0]>>4 == 6:
		return p[24:40]
	}
	return nil
}

// hails are the registrations to be called.
type hails struct {
	wake chan struct{}

	mu   sync.Mutex
	list []*registration
}

func (h *hails) add(r *registration) {
	h.mu.Lock()
	h.list = append(h.list, r)
	h.mu.Unlock()
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hails) take() []*registration {
	h.mu.Lock()
	defer h.mu.Unlock()
	list := h.list
	h.list = nil
	return list
}

// keep gives Config.Keep what changed: at once after a quiet moment or when a
// registration's first handshake is complete, in batches else, and when the
// tunnel ends. Without that first one a gateway that is killed would not find the
// device again; that it costs a write of its own is bounded by the registration
// having cost one.
func (t *Tunnel) keep(ctx context.Context) {
	if t.cfg.Keep == nil {
		return
	}
	failed := false
	write := func(ctx context.Context) {
		select {
		case <-t.known.newcomer: // it is in this write
		default:
		}
		if changed := t.known.takeDirty(); len(changed) > 0 {
			err := t.cfg.Keep(ctx, changed)
			switch {
			case err == nil:
				t.known.stored(changed)
			case !failed:
				t.log.Error("storing where devices are and when they were heard; trying again", "err", err)
				fallthrough
			default:
				t.known.unkept(changed)
			}
			failed = err != nil
		}
	}
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), keepTimeout)
			defer cancel()
			write(last)
			return
		case <-t.known.changed:
		}
		begun := time.Now()
		write(context.WithoutCancel(ctx))
		pause := max(keepEvery, keepShare*time.Since(begun))
		if failed {
			pause = max(pause, keepAgain)
		}
		quiet := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.known.newcomer:
		case <-quiet.C:
		}
		quiet.Stop()
	}
}
