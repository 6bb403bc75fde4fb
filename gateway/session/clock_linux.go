package session

import (
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// bootEvery is how long the machine may have run, suspend not counted, since
// CLOCK_BOOTTIME was read last.
const bootEvery = time.Millisecond

var (
	start = time.Now()
	// ahead is how much more CLOCK_BOOTTIME shows than time since start; it
	// changes with a suspend only. readAt is when it was read, in time since start.
	ahead, readAt atomic.Int64
)

func init() { readAt.Store(int64(-bootEvery)) }

// sinceBoot is CLOCK_BOOTTIME: it goes on while the machine is suspended, so
// that a lease does not survive a lid that was closed over it. Reading that
// clock is a system call, and every chunk of every Flow asks. Between two
// readings the monotonic clock is added, which no suspend moves: what happens
// in the first millisecond after one may be told the time of before it.
func sinceBoot() time.Duration {
	now := time.Since(start)
	if now-time.Duration(readAt.Load()) < bootEvery {
		return now + time.Duration(ahead.Load())
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("session: the system has no CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has
	}
	boot := time.Duration(ts.Nano())
	ahead.Store(int64(boot - now))
	readAt.Store(int64(now))
	return boot
}
