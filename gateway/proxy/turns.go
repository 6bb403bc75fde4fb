package proxy

import (
	"context"
	"net/netip"
	"sync"
)

// turns are those of the connections that wait to be decided, a queue for each
// device address. Only a few of a queue are decided at a time: who asks for many
// at once has them one after the other, and in between the processors serve
// everybody else, packets of open connections above all. The Proxy's mu guards
// it.
type turns struct {
	limits  Limits
	of      map[netip.Addr]*queue
	pending int // of all queues, those being decided among them
}

type queue struct {
	deciding int
	waiting  []waiting
}

// waiting is a connection in a queue.
type waiting struct {
	serve  func(ctx context.Context, decided func())
	refuse func()
}

// enter puts a connection in its device's queue. It may begin at once if now
// is true, and has to be refused if ok is not.
func (t *turns) enter(device netip.Addr, w waiting) (now, ok bool) {
	own := t.of[device]
	if t.pending >= t.limits.Pending || own != nil && own.deciding+len(own.waiting) >= t.limits.DevicePending {
		return false, false
	}
	if own == nil {
		own = &queue{}
		t.of[device] = own
	}
	t.pending++
	if own.deciding < t.limits.Deciding {
		own.deciding++
		return true, true
	}
	own.waiting = append(own.waiting, w)
	return false, true
}

// leave takes a connection out that was being decided, and returns the next of
// its queue, if there is one.
func (t *turns) leave(device netip.Addr) (next waiting, ok bool) {
	own := t.of[device]
	t.pending--
	if len(own.waiting) > 0 {
		next, own.waiting = own.waiting[0], own.waiting[1:]
		return next, true
	}
	if own.deciding--; own.deciding == 0 {
		delete(t.of, device)
	}
	return next, false
}

// clear empties the queues of all that is not being decided yet.
func (t *turns) clear() (all []waiting) {
	for _, own := range t.of {
		all = append(all, own.waiting...)
		t.pending -= len(own.waiting)
		own.waiting = nil
	}
	return all
}

// start runs serve in a goroutine of Run's when it is the device's turn. serve
// calls decided once it no longer waits for a decision. Where the Proxy is not
// running, stops before the turn comes, or too much waits, refuse is called.
func (p *Proxy) start(device netip.Addr, serve func(ctx context.Context, decided func()), refuse func()) {
	w := waiting{serve, refuse}
	p.mu.Lock()
	now, ok := false, false
	if p.running {
		if now, ok = p.turns.enter(device, w); !ok {
			p.dropped.Add(1)
		}
	}
	if now {
		p.beginLocked(device, w)
	}
	p.mu.Unlock()
	if !ok {
		refuse()
	}
}

// beginLocked is for when a connection's turn has come. Callers hold mu.
func (p *Proxy) beginLocked(device netip.Addr, w waiting) {
	ctx := p.ctx
	p.wg.Go(func() {
		decided := sync.OnceFunc(func() { p.decided(device) })
		defer decided()
		w.serve(ctx, decided)
	})
}

// decided lets the next of a device begin.
func (p *Proxy) decided(device netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if next, ok := p.turns.leave(device); ok {
		p.beginLocked(device, next)
	}
}

// Dropped counts the connections that were refused because as many as
// Limits.Pending or Limits.DevicePending waited for their decisions.
func (p *Proxy) Dropped() uint64 { return p.dropped.Load() }
