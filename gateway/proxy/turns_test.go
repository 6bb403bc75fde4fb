package proxy

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func deviceAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{100, 96, 0, byte(i)}) }

// queued is a Proxy that only has queues. Devices have their address and the one
// 100 above it.
func queued(l Limits) *Proxy {
	device := func(a netip.Addr) netip.Addr { return deviceAddr(int(a.As4()[3]) % 100) }
	return &Proxy{cfg: Config{Device: device}, turns: turns{limits: l, of: map[netip.Addr]*queue{}}, running: true, ctx: context.Background()}
}

// One device that asks for many connections has a few decided at a time, in
// their order, and a bounded number wait; another device's turn is at once.
func TestEachDeviceHasItsTurns(t *testing.T) {
	p := queued(Limits{Pending: 100, DevicePending: 8, Deciding: 2})
	begun := make(chan int, 100)
	var end [100]chan struct{}
	var refused atomic.Int64
	ask := func(device, i int) {
		end[i] = make(chan struct{})
		p.start(deviceAddr(device), func(context.Context, *turn) {
			begun <- i
			<-end[i]
		}, func() { refused.Add(1) })
	}
	for i := range 20 {
		ask(1, i)
	}
	if n := refused.Load(); n != 12 || p.Dropped() != 12 {
		t.Errorf("%d refused, %d counted, want 12", n, p.Dropped())
	}
	if a, b := <-begun, <-begun; a+b != 1 {
		t.Errorf("%d and %d are first", a, b)
	}
	ask(101, 50)
	if n := refused.Load(); n != 13 {
		t.Errorf("another address of the same device is another's: %d refused", n)
	}
	ask(2, 50)
	if i := <-begun; i != 50 {
		t.Errorf("%d comes before another device's", i)
	}
	for i := range 6 {
		close(end[i])
		if next := <-begun; next != i+2 {
			t.Errorf("%d follows, want %d", next, i+2)
		}
	}
	for _, i := range []int{6, 7, 50} {
		close(end[i])
	}
	p.wg.Wait()
	if p.turns.pending != 0 || len(p.turns.of) != 0 {
		t.Errorf("%d pending, %d queues are left", p.turns.pending, len(p.turns.of))
	}
}

// What is decided no longer takes a place, whatever it does then.
func TestDecidedTakesNoPlace(t *testing.T) {
	p := queued(Limits{Pending: 1, DevicePending: 1, Deciding: 1})
	stop := make(chan struct{})
	for range 10 {
		decidedNow := make(chan struct{})
		p.start(deviceAddr(1), func(_ context.Context, t *turn) {
			t.decided()
			close(decidedNow)
			<-stop
		}, func() { t.Error("refused") })
		<-decidedNow
	}
	close(stop)
	p.wg.Wait()
	if p.turns.pending != 0 || len(p.turns.of) != 0 {
		t.Errorf("%d pending, %d queues are left", p.turns.pending, len(p.turns.of))
	}
}

// Whatever comes and goes in whatever order: each is served or refused once, no
// bound is passed, and nothing is left.
func TestTurnsAreBounded(t *testing.T) {
	limits := Limits{Pending: 40, DevicePending: 8, Deciding: 2}
	p := queued(limits)
	var deciding [8]atomic.Int64
	var served, refused atomic.Int64
	const each = 500
	var askers sync.WaitGroup
	for device := range deciding {
		askers.Go(func() {
			for range each {
				p.start(deviceAddr(device), func(context.Context, *turn) {
					if n := deciding[device].Add(1); n > int64(limits.Deciding) {
						t.Errorf("%d are decided at a time", n)
					}
					for range rand.IntN(100) {
						_ = rand.Int()
					}
					served.Add(1)
					deciding[device].Add(-1)
				}, func() { refused.Add(1) })
			}
		})
	}
	askers.Wait()
	p.mu.Lock()
	p.running = false
	waiting := p.turns.clear()
	p.mu.Unlock()
	p.wg.Wait()
	if n := served.Load() + refused.Load() + int64(len(waiting)); n != int64(len(deciding))*each {
		t.Errorf("%d served, %d refused, %d waited", served.Load(), refused.Load(), len(waiting))
	}
	if p.turns.pending != 0 || len(p.turns.of) != 0 {
		t.Errorf("%d pending, %d queues are left", p.turns.pending, len(p.turns.of))
	}
}

// A device that opens many connections at a time has one begin now and then,
// by whichever of its addresses, though each is decided at once; a device that
// opens few does not wait, nor does the first once the others are open.
func TestAnEagerDeviceWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := queued(Limits{Pending: 1000, DevicePending: 100, Deciding: 4})
		open := make(chan struct{})
		var begun [3]int
		ask := func(device, address int) {
			p.start(deviceAddr(address), func(_ context.Context, t *turn) {
				t.decided()
				p.mu.Lock()
				begun[device]++
				p.mu.Unlock()
				<-open // the device answers
			}, func() { t.Error("refused") })
		}
		const many = 40
		for i := range many {
			ask(1, 1+100*(i%2))
			synctest.Wait()
		}
		at := calm
		for range 5 {
			if begun[1] != at {
				t.Errorf("%d of an eager device's have begun, want %d", begun[1], at)
			}
			ask(2, 2)
			synctest.Wait()
			time.Sleep(eagerEvery)
			synctest.Wait()
			at++
		}
		if begun[2] != 5 {
			t.Errorf("%d of another device's have begun", begun[2])
		}
		time.Sleep(many * eagerEvery)
		synctest.Wait()
		if begun[1] != many {
			t.Errorf("%d of an eager device's have begun in the end", begun[1])
		}
		close(open)
		synctest.Wait()
		ask(1, 1)
		ask(1, 101)
		synctest.Wait()
		if begun[1] != many+2 || len(p.turns.of) != 0 || p.turns.pending != 0 {
			t.Errorf("%d have begun, %d queues, %d pending", begun[1], len(p.turns.of), p.turns.pending)
		}
	})
}

// What waits for its time when the Proxy stops is refused, and nothing begins.
func TestNothingBeginsAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := queued(Limits{Pending: 1000, DevicePending: 100, Deciding: 4})
		open := make(chan struct{})
		begun := 0
		for range 30 {
			p.start(deviceAddr(1), func(_ context.Context, t *turn) {
				p.mu.Lock()
				begun++
				p.mu.Unlock()
				t.decided()
				<-open
			}, func() {})
			synctest.Wait()
		}
		p.mu.Lock()
		p.running = false
		waiting := len(p.turns.clear())
		p.mu.Unlock()
		if begun+waiting != 30 || waiting == 0 {
			t.Errorf("%d have begun, %d wait", begun, waiting)
		}
		had := begun
		time.Sleep(time.Minute)
		close(open)
		p.wg.Wait()
		if begun != had || len(p.turns.of) != 0 || p.turns.pending != 0 {
			t.Errorf("%d begin after the end; %d queues, %d pending", begun-had, len(p.turns.of), p.turns.pending)
		}
	})
}
