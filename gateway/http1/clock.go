package http1

import (
	"errors"
	"os"
	"sync"
	"time"
)

// phase is what a connection is doing.
type phase int

const (
	idle     phase = iota // nothing of a request has come
	heading               // a head is being read, or the rest of a body that nobody wanted
	handling              // the handler has it
	away                  // nobody times it any more
)

// clock bounds how long a connection takes, and sees whether the other end is
// there while a handler takes long. One timer does all of it: it stays on its way
// when what it is for moves later, so that a request on a busy connection moves
// none.
type clock struct {
	mu      sync.Mutex // guards what follows
	phase   phase
	due     time.Time // when the phase has taken too long; zero for never
	fires   time.Time // when the timer does; zero for never
	timer   *time.Timer
	expired bool
	whole   bool          // of a request being handled: all of it was read
	watcher chan struct{} // closed when nobody watches any more; nil when nobody does

	onGone   func() // what the handler wants to be called when the other end went away
	departed bool   // it did, and who asks only now is told at once

	// gone says that the other end went away. It is the watcher's, and then of
	// whoever waited for it.
	gone bool
}

// enter begins a phase. It reports false when the one before took too long.
func (c *served) enter(p phase, d time.Duration) bool {
	due := time.Now().Add(d)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase, c.due = p, due
	c.arm(due, d)
	return !c.expired
}

// arm sees that the timer fires no later than due. mu is held.
func (c *served) arm(due time.Time, d time.Duration) {
	if !c.fires.IsZero() && !c.fires.After(due) {
		return
	}
	if c.fires = due; c.timer == nil {
		c.timer = time.AfterFunc(d, c.fire)
		return
	}
	c.timer.Reset(d)
}

// begun begins the phase of the handler.
func (c *served) begun(whole bool) {
	due := time.Now().Add(watchAfter)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase, c.whole, c.due = handling, whole, time.Time{}
	if whole {
		c.due = due
		c.arm(due, watchAfter)
	}
}

// heard says that all of the request was read: from now on only the watcher
// reads, until the handler returns.
func (c *served) heard() {
	due := time.Now().Add(watchAfter)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.whole = true; c.phase == handling {
		c.due = due
		c.arm(due, watchAfter)
	}
}

// fire is what the timer does.
func (c *served) fire() {
	if done := c.look(); done != nil {
		c.watch(done)
	}
}

// look returns what to close when the watch that begins now is over, nil when
// none does.
func (c *served) look() (done chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fires = time.Time{}
	if c.due.IsZero() || c.phase == away {
		return nil
	}
	if d := time.Until(c.due); d > 0 {
		c.arm(c.due, d)
		return nil
	}
	c.due = time.Time{}
	if c.phase != handling {
		c.expire()
		return nil
	}
	if !c.whole || c.watcher != nil {
		return nil
	}
	c.watcher = make(chan struct{})
	return c.watcher
}

// expire wakes whoever waits for the other end, for good. mu is held.
func (c *served) expire() {
	c.expired = true
	_ = c.nc.SetReadDeadline(past)
}

// watch reads ahead while a handler takes long: that is how the end of a
// connection is seen. It stops where the buffer is full.
func (c *served) watch(done chan struct{}) {
	defer close(done)
	for c.buf == nil || c.w < len(*c.buf) {
		var n int
		var err error
		if c.buf == nil {
			if n, err = c.nc.Read(c.one[:]); n > 0 {
				c.buf, c.r = small.Get().(*[]byte), 0
				(*c.buf)[0] = c.one[0]
				c.w = 1
			}
		} else {
			n, err = c.nc.Read((*c.buf)[c.w:])
			c.w += n
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if n == 0 || err != nil {
			c.gone = true
			c.cancel()
			c.mu.Lock()
			fn := c.onGone
			c.departed = true
			c.mu.Unlock()
			if fn != nil {
				fn()
			}
			return
		}
	}
}

// listen ends the phase of the handler: the connection is read by its own
// goroutine again.
func (c *served) listen() {
	c.mu.Lock()
	c.phase, c.due, c.onGone = heading, time.Time{}, nil
	done := c.watcher
	c.mu.Unlock()
	if done == nil {
		return
	}
	_ = c.nc.SetReadDeadline(past)
	<-done
	_ = c.nc.SetReadDeadline(time.Time{})
	c.mu.Lock()
	c.watcher = nil
	c.mu.Unlock()
}

// stop ends the timer, and nobody watches any more.
func (c *served) stop() {
	c.listen()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = away
	if c.timer != nil {
		c.timer.Stop()
	}
}
