package session

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The clock of leases is the system's at every moment, whoever reads it.
func TestClockOfLeases(t *testing.T) {
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for end := time.Now().Add(50 * time.Millisecond); time.Now().Before(end); {
				var before, after unix.Timespec
				_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &before)
				got := sinceBoot()
				_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &after)
				// The slack is what a reader may be held up between its two clocks.
				if slack := 50 * time.Millisecond; got < time.Duration(before.Nano())-slack || got > time.Duration(after.Nano())+slack {
					t.Errorf("%v, the system says %v to %v", got, before.Nano(), after.Nano())
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkClockOfLeases(b *testing.B) {
	for b.Loop() {
		sinceBoot()
	}
}
