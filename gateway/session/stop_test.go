package session

import (
	"context"
	"testing"
	"time"
)

// A stop between the look at the clock and the note of it is not lost.
func TestLapseBetweenLookAndNoteIsSeen(t *testing.T) {
	var now time.Duration
	armed := false
	m := New(Config{Elapsed: func() time.Duration {
		was := now
		if armed {
			now, armed = 40*time.Second, false // the process stands still after this look
		}
		return was
	}})
	armed = true
	once, cancel := context.WithCancel(t.Context())
	cancel()
	m.watchLapses(once)
	if m.Awake() || m.Decided() {
		t.Error("awake after a lapse for which nothing was decided again")
	}
}
