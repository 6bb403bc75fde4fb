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

// left are the queues in which something waits or is decided.
func left(p *Proxy) (n int) {
	for _, q := range p.turns.of {
		if q.deciding+len(q.waiting) > 0 {
			n++
		}
	}
	return n
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
	if p.turns.pending != 0 || left(p) != 0 {
		t.Errorf("%d pending, %d queues are left", p.turns.pending, left(p))
	}
}

// A burst of twice the 64 connections that programs open at once is refused
// none; nothing of it is lost by a reset.
func TestABurstWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var limits Limits
		limits.defaults()
		p := queued(limits)
		var begun, refused atomic.Int64
		end := make(chan struct{})
		for range 129 {
			p.start(deviceAddr(1), func(context.Context, *turn) {
				begun.Add(1)
				<-end
			}, func() { refused.Add(1) })
		}
		close(end)
		time.Sleep(time.Minute) // each waits a little longer than the one before
		p.wg.Wait()
		if begun.Load() != 128 || refused.Load() != 1 {
			t.Errorf("%d of 129 begin and %d are refused, want 128 and 1", begun.Load(), refused.Load())
		}
	})
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
	if p.turns.pending != 0 || left(p) != 0 {
		t.Errorf("%d pending, %d queues are left", p.turns.pending, left(p))
	}
}

// Devices that have as many waiting as all may have keep nobody out who has none.
func TestTheFirstOfADeviceIsHeard(t *testing.T) {
	p := queued(Limits{Pending: 6, DevicePending: 3, Deciding: 1})
	end := make(chan struct{})
	var begun, refused [5]atomic.Int64
	ask := func(device int) {
		p.start(deviceAddr(device), func(context.Context, *turn) {
			begun[device].Add(1)
			<-end
		}, func() { refused[device].Add(1) })
	}
	for _, device := range []int{1, 1, 1, 1, 2, 2, 2, 3, 3, 4} {
		ask(device)
	}
	for device, want := range []int64{0, 1, 0, 1, 0} {
		if n := refused[device].Load(); n != want {
			t.Errorf("%d of device %d are refused, want %d", n, device, want)
		}
	}
	close(end)
	p.wg.Wait()
	for device, want := range []int64{0, 3, 3, 1, 1} {
		if n := begun[device].Load(); n != want {
			t.Errorf("%d of device %d have begun, want %d", n, device, want)
		}
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
	if p.turns.pending != 0 || left(p) != 0 {
		t.Errorf("%d pending, %d queues are left", p.turns.pending, left(p))
	}
}

// opener asks for connections of devices in a bubble of synctest; what is decided
// at once is open until it is closed, or comes to nothing.
type opener struct {
	t     *testing.T
	p     *Proxy
	begun map[int][]time.Time // by device
	open  map[int][]*turn
}

func newOpener(t *testing.T) *opener {
	return &opener{t, queued(Limits{Pending: 1000, DevicePending: 128, Deciding: 4}), map[int][]time.Time{}, map[int][]*turn{}}
}

func (o *opener) ask(device, address int, opens bool) {
	o.p.start(deviceAddr(address), func(_ context.Context, t *turn) {
		o.p.mu.Lock()
		defer o.p.mu.Unlock()
		o.begun[device] = append(o.begun[device], time.Now())
		if opens {
			o.open[device] = append(o.open[device], t)
		}
	}, func() { o.t.Error("refused") })
	synctest.Wait()
}

func (o *opener) closeAll(device int, back float64) {
	o.p.mu.Lock()
	all := o.open[device]
	o.open[device] = nil
	o.p.mu.Unlock()
	for _, t := range all {
		t.closed(back)
	}
	synctest.Wait()
}

func (o *opener) times(device int) []time.Time {
	o.p.mu.Lock()
	defer o.p.mu.Unlock()
	return o.begun[device]
}

func (o *opener) waiting(device int) int {
	o.p.mu.Lock()
	defer o.p.mu.Unlock()
	if q := o.p.turns.of[deviceAddr(device)]; q != nil {
		return len(q.waiting)
	}
	return 0
}

// Whoever opens a page's connections at once hardly waits for the last one, by
// whichever of its addresses they come.
func TestAPageOpensAtOnce(t *testing.T) {
	for _, c := range []struct {
		connections int
		within      time.Duration
	}{{1, 0}, {17, 0}, {atOnce, 0}, {48, 4 * time.Millisecond}, {64, 25 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			o, at := newOpener(t), time.Now()
			for i := range c.connections {
				o.ask(1, 1+100*(i%2), true)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if n := len(o.times(1)); n != c.connections {
				t.Fatalf("%d of %d have begun", n, c.connections)
			}
			if last := o.times(1)[c.connections-1].Sub(at); last > c.within {
				t.Errorf("the last of %d begins after %v, want %v at most", c.connections, last, c.within)
			}
		})
	}
}

// Whoever piles connections up, or asks for what comes to nothing, has ever fewer
// begin, and as many as are forgiven in the end; another device's turn is at once.
// Nothing of that is left when time has forgiven it.
func TestWhoPilesUpWaits(t *testing.T) {
	for _, opens := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			o := newOpener(t)
			const seconds = 10
			for ms := range seconds * 1000 {
				for o.waiting(1) < 60 {
					o.ask(1, 1, opens)
				}
				if ms%100 == 0 {
					at := time.Now()
					o.ask(2, 2, true)
					if n := len(o.times(2)); n != ms/100+1 || !o.times(2)[n-1].Equal(at) {
						t.Fatalf("another device waits for its turn: %d of %d", n, ms/100+1)
					}
				}
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			begun := o.times(1)
			if n := len(begun); n < seconds*forgiven || n > 140+seconds*forgiven {
				t.Errorf("%d have begun in %d s", n, seconds)
			}
			if last, before := begun[len(begun)-1], begun[len(begun)-2]; last.Sub(before) < longest*9/10 {
				t.Errorf("in the end one begins %v after the other, want %v", last.Sub(before), longest)
			}
			time.Sleep(5 * time.Second)
			synctest.Wait()
			o.p.turns.tidyAt = 0
			o.p.turns.tidy()
			if len(o.p.turns.of) != 0 || o.p.turns.pending != 0 {
				t.Errorf("%d queues, %d pending are left", len(o.p.turns.of), o.p.turns.pending)
			}
			o.closeAll(1, 1) // long after they were forgiven: nobody has a credit of them
			at := time.Now()
			for range 64 {
				o.ask(1, 1, opens)
			}
			time.Sleep(time.Second)
			synctest.Wait()
			if last := o.times(1)[len(o.times(1))-1].Sub(at); last < 15*time.Millisecond || last > 25*time.Millisecond {
				t.Errorf("the last of 64 begins after %v", last)
			}
		})
	}
}

// Whoever closes what it opens never waits, however often.
func TestOpenAndCloseNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOpener(t)
		for range 1000 {
			at := time.Now()
			for range 8 {
				o.ask(1, 1, true)
			}
			if n := len(o.times(1)); n%8 != 0 || !o.times(1)[n-1].Equal(at) {
				t.Fatalf("%d have begun", n)
			}
			o.closeAll(1, 1)
			if len(o.p.turns.of) != 0 {
				t.Fatal("a queue that has nothing to remember is left")
			}
		}
	})
}

// A handshake of TLS is not given back whole: who opens and closes such
// connections without end has a bounded number, who does so now and then hardly
// waits.
func TestHandshakesAreBounded(t *testing.T) {
	for _, c := range []struct {
		pause       time.Duration // between eight
		least, most int           // in ten seconds
	}{
		{time.Millisecond, 4000, 5200},
		{25 * time.Millisecond, 8 * 40 * 10 * 9 / 10, 8 * 40 * 10},
	} {
		synctest.Test(t, func(t *testing.T) {
			o, at := newOpener(t), time.Now()
			for time.Since(at) < 10*time.Second {
				for range 8 {
					o.ask(1, 1, true)
				}
				for o.waiting(1) > 0 {
					time.Sleep(time.Millisecond)
					synctest.Wait()
				}
				o.closeAll(1, handshaken)
				time.Sleep(c.pause)
			}
			if n := len(o.times(1)); n < c.least || n > c.most {
				t.Errorf("%d in 10 s with a pause of %v, want %d to %d", n, c.pause, c.least, c.most)
			}
		})
	}
}

// What waits for its time when the Proxy stops is refused, and nothing begins.
func TestNothingBeginsAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOpener(t)
		for range 60 {
			o.ask(1, 1, true)
		}
		p := o.p
		p.mu.Lock()
		p.running = false
		waiting := len(p.turns.clear())
		p.mu.Unlock()
		had := len(o.times(1))
		if had+waiting != 60 || waiting == 0 {
			t.Errorf("%d have begun, %d wait", had, waiting)
		}
		time.Sleep(time.Minute)
		o.closeAll(1, 1)
		p.wg.Wait()
		if n := len(o.times(1)); n != had || len(p.turns.of) != 0 || p.turns.pending != 0 {
			t.Errorf("%d begin after the end; %d queues, %d pending", n-had, len(p.turns.of), p.turns.pending)
		}
	})
}
