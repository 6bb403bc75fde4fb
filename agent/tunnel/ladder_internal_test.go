package tunnel

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/transport"
)

// climbing is a ladder whose gateway is a function.
type climbing struct {
	*ladder
	asks, dials atomic.Int64
	greets      atomic.Int64
	dialled     atomic.Int64 // when first, Unix nanoseconds
}

// climb runs a ladder. reached says how long the gateway's answer takes, false
// for never.
func climb(t *testing.T, reached func() (time.Duration, bool)) *climbing {
	t.Helper()
	r, err := newRoad(netip.MustParseAddrPort("192.0.2.1:51820"), transport.UDPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := &climbing{}
	c.ladder = newLadder(r, func(context.Context, context.Context) (*transport.Stream, error) {
		c.dials.Add(1)
		c.dialled.CompareAndSwap(0, time.Now().UnixNano())
		return nil, errors.New("none")
	}, slog.New(slog.DiscardHandler))
	c.heartbeat = 5 * time.Second
	c.greet = func() { c.greets.Add(1) }
	c.ask = func() {
		c.asks.Add(1)
		c.question(reached, false)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return c
}

// question sends something, and hears the answer if there is one.
func (c *climbing) question(reached func() (time.Duration, bool), used bool) {
	c.road.question(used)
	if after, ok := reached(); ok {
		time.AfterFunc(after, c.data)
	}
}

// data is that the gateway says something.
func (c *climbing) data() {
	b := make([]byte, 96)
	b[0] = device.MessageTransportType
	c.road.heard(b, c.road.to)
}

func TestBlockedUDPIsNoticed(t *testing.T) {
	for name, c := range map[string]struct {
		used   time.Duration // for how long before it is blocked
		idle   time.Duration // for how long then
		late   time.Duration // for how long it is blocked before somebody speaks
		speaks bool          // once it is blocked
		within time.Duration
	}{
		"before anything else":                 {speaks: true, within: 2 * time.Second},
		"in a conversation":                    {used: time.Minute, speaks: true, within: 2 * time.Second},
		"after one":                            {used: time.Minute, within: 2400 * time.Millisecond},
		"after a pause":                        {used: time.Minute, idle: 30 * time.Second, within: 2400 * time.Millisecond},
		"in the middle of the night":           {used: time.Minute, idle: time.Hour, within: 6700 * time.Millisecond},
		"at the first word after a long pause": {used: time.Minute, idle: time.Hour, speaks: true, within: 2 * time.Second},
		"at the first word, blocked since 4 s": {used: time.Minute, idle: time.Hour, late: 4 * time.Second, speaks: true, within: 2 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var blocked atomic.Bool
				reached := func() (time.Duration, bool) { return 40 * time.Millisecond, !blocked.Load() }
				l := climb(t, reached)
				stop := make(chan struct{})
				defer close(stop)
				go func() { // the gateway's heartbeat
					beat := time.NewTicker(l.heartbeat)
					defer beat.Stop()
					for {
						select {
						case <-stop:
							return
						case <-beat.C:
							if !blocked.Load() {
								l.data()
							}
						}
					}
				}()
				for begun := time.Now(); time.Since(begun) < c.used; time.Sleep(300 * time.Millisecond) {
					l.question(reached, true)
				}
				time.Sleep(c.idle)
				before := l.asks.Load()
				time.Sleep(min(c.idle, 20*time.Second))
				if n := l.asks.Load() - before; c.idle > l.pace.inUse && n > 0 {
					t.Errorf("a tunnel that nobody uses is asked %d times in 20 s", n)
				}
				if n, m := l.dials.Load(), l.greets.Load(); n != 0 || m != 0 {
					t.Fatalf("%d WebSockets and %d handshakes though UDP works", n, m)
				}
				blocked.Store(true)
				time.Sleep(c.late)
				begun := time.Now()
				if c.speaks {
					l.question(reached, true)
				}
				time.Sleep(10 * time.Second)
				if l.dials.Load() == 0 {
					t.Fatal("it is not noticed")
				}
				if l.greets.Load() == 0 {
					t.Error("nobody asks whether the gateway was restarted")
				}
				if took := time.Unix(0, l.dialled.Load()).Sub(begun); took > c.within {
					t.Errorf("it takes %v", took)
				}
			})
		})
	}
}

// A path that loses every tenth datagram each way is no blocked one: nothing is
// opened in two hours of a busy day (a chance of 1 in 200; two are none).
func TestLossIsNoBlockade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		random := rand.New(rand.NewPCG(1, 2))
		pause := rand.New(rand.NewPCG(3, 4))
		reached := func() (time.Duration, bool) {
			mu.Lock()
			defer mu.Unlock()
			return time.Duration(20+random.IntN(200)) * time.Millisecond, random.Float64() < 0.9*0.9
		}
		l := climb(t, reached)
		for begun := time.Now(); time.Since(begun) < 2*time.Hour; {
			l.question(reached, true)
			time.Sleep(time.Duration(pause.IntN(6000)) * time.Millisecond)
		}
		if n := l.dials.Load(); n > 1 {
			t.Errorf("%d WebSockets", n)
		}
	})
}

// An initiation of the gateway's ends ours: a WebSocket that opens then must not
// take it along, or both begin once more after 5 s. Anything else does not.
func TestACallEndsOurInitiation(t *testing.T) {
	r, err := newRoad(netip.MustParseAddrPort("127.0.0.1:9"), transport.UDPOptions{})
	if err != nil {
		t.Fatal(err)
	}
	message := func(kind byte, size int) []byte {
		b := make([]byte, size)
		b[0] = kind
		return b
	}
	for _, d := range [][]byte{
		message(device.MessageResponseType, device.MessageResponseSize),
		message(device.MessageTransportType, 32),
		message(device.MessageInitiationType, device.MessageInitiationSize),
	} {
		_ = r.Send([][]byte{message(device.MessageInitiationType, device.MessageInitiationSize)}, nil) // it is closed
		r.heard(d, r.to)
		if ended := r.initiation == nil; ended != (d[0] == device.MessageInitiationType) {
			t.Errorf("after a message of type %d: ended %v", d[0], ended)
		}
	}
}
