package proxy

import (
	"context"
	"net/netip"
	"time"
)

const (
	// calm is how many connections a device may be opening at a time and not be
	// eager. A browser that opens its tabs again stays near it.
	calm = 16
	// eagerEvery is how often one of an eager device's begins. Each costs some
	// hundred microseconds of a processor, in the gateway and in the kernel: as
	// many at once as a device asks for would be in the way of everybody's packets.
	eagerEvery = 2 * time.Millisecond
)

// turns are those of the connections that devices are opening, a queue for each
// device. Only a few of a queue are decided at a time: who asks for many at once
// has them one after the other, and in between the processors serve everybody
// else, packets of open connections above all. The Proxy's mu guards it.
type turns struct {
	limits  Limits
	of      map[netip.Addr]*queue // by Config.Device
	pending int                   // of all queues, those that are not decided
}

// queue is of one device.
type queue struct {
	deciding int
	decided  int // and not open yet: they wait for the app or for the device
	waiting  []*turn
	last     time.Time // when one began
	timer    *time.Timer
}

// turn is a connection's.
type turn struct {
	p      *Proxy
	device netip.Addr
	serve  func(ctx context.Context, t *turn)
	refuse func()
	at     stage // guarded by the Proxy's mu
}

// stage is how far a connection has come.
type stage uint8

const (
	waiting stage = iota
	deciding
	decided
	over // it is open or refused: no longer in the queue
)

// enter puts a connection in its device's queue; it reports whether there was room.
func (s *turns) enter(t *turn) (q *queue, ok bool) {
	q = s.of[t.device]
	if s.pending >= s.limits.Pending || q != nil && q.deciding+len(q.waiting) >= s.limits.DevicePending {
		return q, false
	}
	if q == nil {
		q = &queue{}
		s.of[t.device] = q
	}
	s.pending++
	q.waiting = append(q.waiting, t)
	return q, true
}

// next takes the one out that may begin now. Where it may only later, due is in
// how long.
func (q *queue) next(limits Limits) (t *turn, due time.Duration) {
	if len(q.waiting) == 0 || q.deciding >= limits.Deciding {
		return nil, 0
	}
	now := time.Now()
	if q.deciding+q.decided+len(q.waiting) > calm {
		if due := eagerEvery - now.Sub(q.last); due > 0 {
			return nil, due
		}
	}
	t, q.waiting = q.waiting[0], q.waiting[1:]
	t.at = deciding
	q.deciding++
	q.last = now
	return t, 0
}

// advance says how far t has come.
func (s *turns) advance(t *turn, to stage) {
	q := s.of[t.device]
	switch t.at {
	case over:
		return
	case decided:
		q.decided--
	default:
		q.deciding--
		s.pending--
	}
	if t.at = to; to == decided {
		q.decided++
	}
	if q.deciding+q.decided+len(q.waiting) == 0 {
		delete(s.of, t.device)
	}
}

// clear empties the queues of all that is not being decided yet.
func (s *turns) clear() (all []*turn) {
	for device, q := range s.of {
		all = append(all, q.waiting...)
		s.pending -= len(q.waiting)
		q.waiting = nil
		if q.timer != nil {
			q.timer.Stop()
		}
		if q.deciding+q.decided == 0 {
			delete(s.of, device)
		}
	}
	return all
}

// start runs serve in a goroutine of Run's when it is the device's turn. Where
// the Proxy is not running, stops before the turn comes, or too much waits,
// refuse is called.
func (p *Proxy) start(peer netip.Addr, serve func(ctx context.Context, t *turn), refuse func()) {
	t := &turn{p: p, device: p.cfg.Device(peer), serve: serve, refuse: refuse}
	p.mu.Lock()
	ok := false
	if p.running {
		var q *queue
		if q, ok = p.turns.enter(t); ok {
			p.goOnLocked(q)
		} else {
			p.dropped.Add(1)
		}
	}
	p.mu.Unlock()
	if !ok {
		refuse()
	}
}

// goOnLocked begins what may begin of a device's. Callers hold mu.
func (p *Proxy) goOnLocked(q *queue) {
	for {
		t, due := q.next(p.turns.limits)
		switch {
		case t != nil:
			ctx := p.ctx
			p.wg.Go(func() {
				defer t.open()
				t.serve(ctx, t)
			})
			continue
		case due > 0 && q.timer == nil:
			q.timer = time.AfterFunc(due, func() {
				p.mu.Lock()
				defer p.mu.Unlock()
				q.timer = nil
				p.goOnLocked(q)
			})
		}
		return
	}
}

// decided lets the next of the device begin: what the connection waits for now
// is not this process.
func (t *turn) decided() { t.advance(decided) }

// open is when the connection is established, or refused.
func (t *turn) open() { t.advance(over) }

func (t *turn) advance(to stage) {
	p := t.p
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.turns.of[t.device]
	p.turns.advance(t, to)
	if q != nil {
		p.goOnLocked(q)
	}
}

// Dropped counts the connections that were refused because as many as
// Limits.Pending or Limits.DevicePending waited for their decisions.
func (p *Proxy) Dropped() uint64 { return p.dropped.Load() }
