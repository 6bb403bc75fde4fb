package transport

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestTally(t *testing.T) {
	now := time.Unix(1000, 0)
	tally := &Tally{now: func() time.Time { return now }}
	want := func(noSession, barren uint64) {
		t.Helper()
		if n, b := tally.Refused(); n != noSession || b != barren {
			t.Errorf("%d without a session and %d without a packet, want %d and %d", n, b, noSession, barren)
		}
	}
	want(0, 0)
	tally.enter(10)
	want(0, 0) // they are under way
	tally.write(7)
	tally.back(1)
	want(1, 0)
	now = now.Add(settled)
	want(1, 2)
	want(1, 2)
	tally.enter(5)
	tally.write(5)
	want(1, 2)
	now = now.Add(settled)
	want(1, 2)
}

// Whatever comes at whatever pace, the count never falls, is never too high, and
// is behind by what comes in some more than a second.
func TestTallyIsNeverTooHigh(t *testing.T) {
	now := time.Unix(1000, 0)
	tally := &Tally{now: func() time.Time { return now }}
	random := rand.New(rand.NewPCG(1, 2))
	type delivery struct {
		at time.Time
		n  int
	}
	var under []delivery
	var lost, last uint64
	var recent []delivery
	for range 20000 {
		n := random.IntN(64)
		bad := min(n, random.IntN(4))
		tally.enter(n)
		lost += uint64(bad)
		under = append(under, delivery{now.Add(time.Duration(random.IntN(int(settled) * 9 / 10))), n - bad})
		recent = append(recent, delivery{now, n})
		now = now.Add(time.Duration(random.IntN(10)) * time.Millisecond)
		kept := under[:0]
		for _, d := range under {
			if d.at.After(now) {
				kept = append(kept, d)
			} else {
				tally.write(d.n)
			}
		}
		under = kept
		for len(recent) > 0 && now.Sub(recent[0].at) > settled*5/4+10*time.Millisecond {
			recent = recent[1:]
		}
		lag := uint64(0)
		for _, d := range recent {
			lag += uint64(d.n)
		}
		_, got := tally.Refused()
		if got > lost || got < last || got+lag < lost {
			t.Fatalf("%d counted of %d lost, %d before, %d recent", got, lost, last, lag)
		}
		last = got
	}
	for _, d := range under {
		tally.write(d.n)
	}
	now = now.Add(settled)
	if _, got := tally.Refused(); got != lost {
		t.Errorf("%d counted in the end, want %d", got, lost)
	}
}
