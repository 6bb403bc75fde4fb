package proxy

import (
	"context"
	"maps"
	"net/netip"
	"time"
)

const (
	// atOnce is how many connections more than it closes a device may open without
	// waiting for its own. A browser that opens its tabs again stays near it.
	atOnce = 32
	// forgiven is how many of those a second are forgotten.
	forgiven = 50
	// step is how much longer the next one waits beyond atOnce, times the square of
	// how many there are, to longest, at which a device opens as many as are
	// forgiven: who has a few more hardly waits, who has many soon does. An opening
	// costs some hundred microseconds of a processor, in the gateway and in the
	// kernel: what a device may pile up of them is in the way of everybody's packets.
	step    = 2 * time.Microsecond
	longest = time.Second / forgiven
	// handshaken is what is given back when a connection with a TLS handshake is
	// closed, of 1: the handshake cost as much again, and who opens and closes
	// without end has at most forgiven/(1-handshaken) of them a second.
	handshaken = 0.875
	// late is how much of a wait may be made up for: timers are not exact.
	late = time.Millisecond
	// tidyEvery is after how many more queues those are forgotten that have
	// nothing to remember.
	tidyEvery = 1024
)

// turns are those of the connections that devices are opening, a queue for each
// device. Only a few of a queue are decided at a time, and who piles connections
// up waits longer for each: in between the processors serve everybody else,
// packets of open connections above all. The Proxy's mu guards it.
type turns struct {
	limits  Limits
	of      map[netip.Addr]*queue // by Config.Device
	pending int                   // of all queues, those that are not decided
	tidyAt  int                   // len(of) at which it is tidied next
}

// queue is of one device.
type queue struct {
	deciding int
	waiting  []*turn
	ahead    float64   // how many it opened and has not closed, less what was forgiven until at
	at       time.Time // of ahead
	due      time.Time // when the next may begin
	timer    *time.Timer
}

// turn is a connection's.
type turn struct {
	p      *Proxy
	device netip.Addr
	serve  func(ctx context.Context, t *turn)
	refuse func()
	past   bool // it is decided, or refused; guarded by the Proxy's mu
}

// forgive brings ahead up to date.
func (q *queue) forgive(now time.Time) {
	if passed := now.Sub(q.at); passed > 0 {
		q.ahead, q.at = max(0, q.ahead-passed.Seconds()*forgiven), now
	}
}

// over tells whether there is nothing to remember of a queue.
func (q *queue) over(now time.Time) bool {
	q.forgive(now)
	return q.deciding+len(q.waiting) == 0 && q.ahead == 0
}

// enter puts a connection in its device's queue; it reports whether there was
// room. There is for the only one of a device, however many others have.
func (s *turns) enter(t *turn) (q *queue, ok bool) {
	q = s.of[t.device]
	if q != nil {
		has := q.deciding + len(q.waiting)
		if has >= s.limits.DevicePending || has > 0 && s.pending >= s.limits.Pending {
			return q, false
		}
	} else {
		s.tidy()
		q = &queue{}
		s.of[t.device] = q
	}
	s.pending++
	q.waiting = append(q.waiting, t)
	return q, true
}

// tidy forgets queues that have nothing to remember, once there are many more.
func (s *turns) tidy() {
	if len(s.of) < s.tidyAt {
		return
	}
	now := time.Now()
	maps.DeleteFunc(s.of, func(_ netip.Addr, q *queue) bool { return q.over(now) })
	s.tidyAt = len(s.of) + tidyEvery
}

// next takes the one out that may begin now. Where it may only later, due is in
// how long.
func (q *queue) next(limits Limits) (t *turn, due time.Duration) {
	if len(q.waiting) == 0 || q.deciding >= limits.Deciding {
		return nil, 0
	}
	now := time.Now()
	if due := q.due.Sub(now); due > 0 {
		return nil, due
	}
	t, q.waiting = q.waiting[0], q.waiting[1:]
	q.deciding++
	q.forgive(now)
	q.ahead++
	if earliest := now.Add(-late); q.due.Before(earliest) {
		q.due = earliest
	}
	if more := q.ahead - atOnce; more > 0 {
		q.due = q.due.Add(min(longest, time.Duration(more*more*float64(step))))
	}
	return t, 0
}

// pass notes that t is decided, or refused. It returns the queue.
func (s *turns) pass(t *turn) *queue {
	q := s.of[t.device]
	if !t.past {
		t.past = true
		q.deciding--
		s.pending--
	}
	return q
}

// closed gives back so much of what a connection counted that was open. The
// device may have another queue by now, or none.
func (s *turns) closed(device netip.Addr, back float64) {
	q, now := s.of[device], time.Now()
	if q == nil {
		return
	}
	q.forgive(now)
	q.ahead = max(0, q.ahead-back)
	if q.over(now) {
		delete(s.of, device)
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
		if q.deciding == 0 {
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
				defer t.decided()
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
func (t *turn) decided() {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	if q := t.p.turns.pass(t); q != nil {
		t.p.goOnLocked(q)
	}
}

// closed is when a connection that was open ends, of which so much is given back.
// One that came to nothing is not: it cost as much.
func (t *turn) closed(back float64) {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	t.p.turns.closed(t.device, back)
}

// Dropped counts the connections that were refused because as many as
// Limits.Pending, or as Limits.DevicePending of the device's, waited for their
// decisions.
func (p *Proxy) Dropped() uint64 { return p.dropped.Load() }
