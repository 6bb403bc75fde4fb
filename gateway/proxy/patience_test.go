package proxy

import (
	"errors"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

// slowly is a connection whose other end takes a byte now and then.
type slowly struct {
	wire
	since time.Time
	every time.Duration
}

func (s *slowly) Taken() uint64 { return uint64(time.Since(s.since) / s.every) }

func TestPatience(t *testing.T) {
	const within = time.Minute
	for name, c := range map[string]struct {
		every time.Duration // 0: nothing is taken at all
		takes time.Duration // until the write is over
		lost  bool
	}{
		"a quick one":                        {0, time.Second, false},
		"one that takes nothing":             {0, time.Hour, true},
		"a slow one":                         {50 * time.Second, time.Hour, false},
		"one that takes too little too late": {2 * time.Minute, time.Hour, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var over time.Duration
				begun := time.Now()
				p := patience{within: within, over: func() { over = time.Since(begun) }}
				if c.every > 0 {
					p.conn = &slowly{since: begun, every: c.every}
				}
				if err := p.begin(); err != nil {
					t.Fatal(err)
				}
				time.Sleep(c.takes)
				broken := errors.New("broken off")
				err := p.done(broken)
				if c.lost != errors.Is(err, os.ErrDeadlineExceeded) || c.lost != p.gaveUp() || !c.lost && !errors.Is(err, broken) {
					t.Errorf("done: %v", err)
				}
				if c.lost && (over < within || over > 2*within) {
					t.Errorf("given up after %v", over)
				}
				if err := p.begin(); (err != nil) != c.lost {
					t.Errorf("the next write: %v", err)
				}
				_ = p.done(nil)
				time.Sleep(time.Hour)
				if p.gaveUp() != c.lost {
					t.Error("given up without a write under way")
				}
				p.stop()
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // many short writes, whenever it is looked
		p := patience{within: within, over: func() { t.Error("given up while writes end") }}
		for range 600 {
			_ = p.begin()
			time.Sleep(time.Second)
			_ = p.done(nil)
		}
		p.stop()
	})
}

// That a slow reader takes something is seen while the write still waits.
func TestProgressWithinAWrite(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	from, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	to, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	go func() { _, _ = from.Write(make([]byte, 64<<20)) }()
	settled := func() uint64 {
		for last := takenOf(from); ; {
			time.Sleep(200 * time.Millisecond)
			now := takenOf(from)
			if now == last && now > 0 {
				return now
			}
			last = now
		}
	}
	for full, took := settled(), 0; takenOf(from) == full; time.Sleep(time.Millisecond) {
		if took > 32<<20 {
			t.Fatal("what was read does not show")
		}
		n, err := to.Read(make([]byte, 16<<10))
		if took += n; err != nil {
			t.Fatal(err)
		}
	}
}
