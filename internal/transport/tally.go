package transport

import (
	"sync"
	"time"
)

// settled is after how long what WireGuard was given has come out at the other
// end, if it does at all.
const settled = time.Second

// Tally counts what WireGuard refuses, of which it says nothing itself: messages
// that it is given and that bring no packet. Of keepalives it counts only those
// of no session.
type Tally struct {
	now func() time.Time

	mu sync.Mutex
	// entered messages were given to WireGuard, unnamed ones of these came
	// right back, and written packets came out at the other end.
	entered, unnamed, written uint64
	strays                    uint64    // keepalives that came right back
	last                      time.Time // of entered
	// marks are what entered was at times in the past, quarters of settled apart,
	// the newest last.
	marks [6]mark
	// barren is the largest number that is certain so far.
	barren uint64
}

type mark struct {
	at      time.Time
	entered uint64
}

func (t *Tally) enter(n int) {
	if n == 0 {
		return
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if now.Sub(t.marks[len(t.marks)-1].at) >= settled/4 {
		copy(t.marks[:], t.marks[1:])
		t.marks[len(t.marks)-1] = mark{now, t.entered}
	}
	t.entered += uint64(n)
	t.last = now
}

func (t *Tally) back(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unnamed += uint64(n)
}

func (t *Tally) stray(n int) {
	if n == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.strays += uint64(n)
}

func (t *Tally) write(n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.written += uint64(n)
}

// Refused is how many messages had an index of no session, and how many had a
// live one's and brought no packet all the same: they were changed, repeated or
// older than what counts as new, or WireGuard refused the packet, as one that is
// not from its peer's address. The latter is never too high. It lags behind by as
// many as come in a second, and is exact after a second without any.
func (t *Tally) Refused() (noSession, barren uint64) {
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	sure := uint64(0) // of entered, nothing is under way any more
	if now.Sub(t.last) >= settled {
		sure = t.entered
	} else {
		for _, m := range t.marks {
			if !m.at.IsZero() && now.Sub(m.at) >= settled {
				sure = m.entered
			}
		}
	}
	if out := t.unnamed + t.written; sure > out {
		t.barren = max(t.barren, sure-out)
	}
	return t.unnamed + t.strays, t.barren
}
