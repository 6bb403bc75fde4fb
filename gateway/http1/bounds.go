package http1

import (
	"net"
	"sync"
	"time"
)

// bounds say by when an app must have said something, and taken what it is
// sent. They move with every request, and one timer does for both: as that of
// clock it stays on its way when what it is for moves later, so that a request
// moves none.
type bounds struct {
	mu          sync.Mutex // guards what follows
	read, write bound
	timer       *time.Timer
	fires       time.Time // when the timer does; zero for never
	ended       bool      // the connection is closed: nothing is timed any more
}

type bound struct {
	due    time.Time // zero for never
	struck bool      // the connection's own deadline has passed
	set    func(time.Time) error
}

func (b *bounds) of(nc net.Conn) { b.read.set, b.write.set = nc.SetReadDeadline, nc.SetWriteDeadline }

// move puts one of the bounds somewhere else; the zero time lifts it.
func (b *bounds) move(which *bound, due time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if which.due = due; which.struck {
		which.struck = false
		_ = which.set(time.Time{})
	}
	if b.ended || due.IsZero() || !b.fires.IsZero() && !b.fires.After(due) {
		return
	}
	d := time.Until(due)
	if d <= 0 {
		which.strike()
		return
	}
	if b.fires = due; b.timer == nil {
		b.timer = time.AfterFunc(d, b.fire)
		return
	}
	b.timer.Reset(d)
}

// strike wakes who waits for the app, and lets nobody wait again until the bound
// moves. mu is held.
func (b *bound) strike() {
	b.due, b.struck = time.Time{}, true
	_ = b.set(past)
}

// fire is what the timer does.
func (b *bounds) fire() {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	b.fires = time.Time{}
	for _, which := range [...]*bound{&b.read, &b.write} {
		switch {
		case which.due.IsZero():
		case !which.due.After(now):
			which.strike()
		case b.fires.IsZero() || which.due.Before(b.fires):
			b.fires = which.due
		}
	}
	if !b.fires.IsZero() && !b.ended {
		b.timer.Reset(b.fires.Sub(now))
	}
}

// end lets go of the timer.
func (b *bounds) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended = true; b.timer != nil {
		b.timer.Stop()
	}
}
