package gc

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"testing"
	"time"
)

func TestGrowthOf(t *testing.T) {
	for _, c := range []struct {
		live, roots uint64
		want        int
	}{
		{0, 0, 800},
		{1 << 20, 1 << 20, 775},
		{4 << 20, 0, 700},
		{4 << 20, 3 << 20, 400},
		{16 << 20, 0, 100},
		{24 << 20, 0, 50},
		{32 << 20, 1 << 20, 50},
		{1 << 30, 1 << 20, 50},
	} {
		if got := growthOf(c.live, c.roots); got != c.want {
			t.Errorf("%d live bytes and %d of roots: %d %%, want %d", c.live, c.roots, got, c.want)
		}
	}
}

// A heap that grows and shrinks again is paced anew each time.
func TestPace(t *testing.T) {
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	goal := func(is func(goal, live uint64) bool) {
		t.Helper()
		s := []metrics.Sample{{Name: "/gc/heap/goal:bytes"}, {Name: "/gc/heap/live:bytes"}}
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			runtime.GC()
			metrics.Read(s)
			g, l := s[0].Value.Uint64(), s[1].Value.Uint64()
			if is(g, l) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%d bytes live, the next collection at %d", l, g)
			}
		}
	}
	t.Setenv("GOGC", "100")
	Pace()
	goal(func(goal, live uint64) bool { return goal < smallHeap })
	t.Setenv("GOGC", "")
	t.Setenv("GOMEMLIMIT", "")
	Pace()
	near := func(goal, _ uint64) bool { return goal > smallHeap*8/10 && goal < smallHeap*14/10 }
	goal(near)
	large := make([]byte, 128<<20)
	goal(func(goal, live uint64) bool { return live > 128<<20 && goal < live*16/10+1<<20 })
	runtime.KeepAlive(large)
	goal(near)
}
