package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/portvakt/portvakt/internal/transport"
)

// pace is how patient a ladder is.
type pace struct {
	// handshake is how long UDP may leave a handshake unanswered. With the
	// opening of a WebSocket it stays below 3 s.
	handshake time.Duration
	// doubt is how long UDP may leave a question unanswered until the gateway is
	// asked whether it is there, calm how long it may bring no data while the
	// tunnel is in use, and late how much later than due the gateway may say
	// something by UDP. inUse is how long after its last question a tunnel is.
	doubt, calm, late, inUse time.Duration
	// every is how often the gateway is asked, and silence for how long in vain:
	// a path that loses every tenth datagram answers one of so many.
	every, silence time.Duration
	// open bounds the opening of a WebSocket.
	open time.Duration
	// again is how long after a failed opening the next one comes; it doubles
	// up to slow.
	again, slow time.Duration
	// probe is how often UDP is tried while on a WebSocket. It doubles, up to
	// slow, while UDP fails soon after it came back.
	probe time.Duration
	// linger is how long a WebSocket stays open for what is under way once
	// datagrams leave by UDP again: until the gateway heard from there.
	linger time.Duration
	// steady is how long UDP must work to be trusted as before.
	steady time.Duration
}

// With the opening of a WebSocket, a tunnel in use stays below 3 s of silence,
// and one that nobody used for a minute below one heartbeat and 2 s.
var normalPace = pace{
	handshake: 1500 * time.Millisecond,
	doubt:     400 * time.Millisecond, calm: 800 * time.Millisecond, late: 100 * time.Millisecond, inUse: time.Minute,
	every: 200 * time.Millisecond, silence: 1500 * time.Millisecond,
	open: 5 * time.Second, again: 500 * time.Millisecond, slow: 15 * time.Second,
	probe: 4 * time.Second, linger: 5 * time.Second, steady: time.Minute,
}

var (
	errClosed   = errors.New("the tunnel was closed")
	errUDPWorks = errors.New("UDP works again")
)

// ladder decides what a road's datagrams leave by: UDP, unless it is silent.
// One goroutine runs it.
type ladder struct {
	road *road
	pace pace
	dial func(ctx, life context.Context) (*transport.Stream, error)
	log  *slog.Logger
	// heartbeat is how often the gateway says something by itself, once it said
	// anything; 0 if it need not.
	heartbeat time.Duration
	// hail sends the gateway something at once: where that comes from is where
	// it answers.
	hail func()
	// ask asks the gateway inside the tunnel whether it is there, and greet outside
	// it: one that was restarted answers nothing else.
	ask, greet func()

	streams sync.WaitGroup
	counter uint64
	probe   time.Duration

	mu  sync.Mutex
	why string // guarded by mu; for people
}

func newLadder(r *road, dial func(ctx, life context.Context) (*transport.Stream, error), log *slog.Logger) *ladder {
	return &ladder{road: r, pace: normalPace, dial: dial, log: log}
}

// transport is the one in use, and why.
func (l *ladder) transport() (name, why string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.road.stream.Load() != nil {
		return TransportWebSocket, l.why
	}
	return TransportUDP, l.why
}

func (l *ladder) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = fmt.Sprintf(format, args...)
}

// run climbs until ctx is done. It leaves nothing running.
func (l *ladder) run(ctx context.Context) {
	defer l.streams.Wait()
	l.probe = l.pace.probe
	wait, back := l.pace.again, time.Time{}
	for l.silent(ctx) {
		l.greet()
		s, err := l.open(ctx)
		if errors.Is(err, errUDPWorks) {
			continue
		}
		if err != nil {
			l.say("UDP is not answered from this network, and a WebSocket cannot be opened either: %v", err)
			l.log.Debug("opening a WebSocket", "err", err)
			if !pause(ctx, wait) {
				return
			}
			wait = min(2*wait, l.pace.slow)
			continue
		}
		if time.Since(back) > l.pace.steady {
			l.probe = l.pace.probe
		} else {
			l.probe = min(2*l.probe, l.pace.slow)
		}
		begun := time.Now()
		switch {
		case l.stay(ctx, s):
			back, wait = time.Now(), l.pace.again
		case time.Since(begun) > l.pace.steady:
			wait = l.pace.again
		case !pause(ctx, wait):
			return
		default:
			wait = min(2*wait, l.pace.slow)
		}
	}
}

// silent waits until UDP is silent. It returns false when ctx ends.
func (l *ladder) silent(ctx context.Context) bool {
	var asked time.Time
	for {
		now := time.Now()
		ask, over := l.patience(now)
		if over <= 0 {
			return true
		}
		// What is waited for now was sent after UDP last answered.
		l.say("")
		if ask = max(ask, l.pace.every-now.Sub(asked)); ask <= 0 {
			asked, ask = now, l.pace.every
			l.ask()
		}
		t := time.NewTimer(min(ask, over))
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-l.road.poke:
		case <-t.C:
		}
		t.Stop()
	}
}

// patience is how long UDP has yet until the gateway is asked, and until it is
// silent.
func (l *ladder) patience(now time.Time) (ask, over time.Duration) {
	ask, over = time.Hour, time.Hour
	since := func(at int64) time.Duration { return now.Sub(time.Unix(0, at)) }
	doubt := func(at int64, allowed time.Duration) {
		if at != 0 {
			left := allowed - since(at)
			ask, over = min(ask, left), min(over, left+l.pace.silence)
		}
	}
	asked, sent, data := l.road.asked.Load(), l.road.sent.Load(), l.road.data.Load()
	if !l.road.known && (asked != 0 || sent != 0) {
		return 0, 0
	}
	if asked != 0 { // what an older session brings is an answer, too
		ask, over = l.pace.doubt-since(asked), l.pace.handshake-since(asked)
	}
	doubt(sent, l.pace.doubt)
	if since(l.road.used.Load()) < l.pace.inUse {
		doubt(data, l.pace.calm)
	}
	if l.heartbeat != 0 {
		doubt(data, l.heartbeat+l.pace.late)
	}
	return ask, over
}

// open opens a WebSocket and makes datagrams leave by it, unless UDP answers
// first.
func (l *ladder) open(ctx context.Context) (*transport.Stream, error) {
	dialling, cancel := context.WithTimeout(ctx, l.pace.open)
	defer cancel()
	var s *transport.Stream
	var err error
	opened := make(chan struct{})
	go func() {
		defer close(opened)
		s, err = l.dial(dialling, ctx)
	}()
	again := time.NewTicker(l.pace.every)
	defer again.Stop()
	answered := false
	for waiting := true; waiting; {
		select {
		case <-opened:
			waiting = false
		case now := <-again.C:
			if _, over := l.patience(now); over > 0 {
				answered = true
				cancel()
			} else {
				l.ask()
			}
		}
	}
	if _, over := l.patience(time.Now()); err == nil && (answered || over > 0) {
		s.End(errUDPWorks)
		l.carry(s)
		err = errUDPWorks
	}
	if answered {
		return nil, errUDPWorks
	}
	if err != nil {
		return nil, err
	}
	r := l.road
	key := s.Probe()
	r.probe.Store(&key)
	if r.known {
		l.say("UDP to %s is not answered from this network; it is tried again every few seconds", transport.Remote(r.to))
	} else {
		l.say("the gateway's address for UDP cannot be found from this network")
	}
	l.carry(s)
	r.takeTo(s)
	l.hail()
	l.log.Info("the tunnel uses a WebSocket: UDP is not answered")
	return s, nil
}

// carry runs a WebSocket until it ends.
func (l *ladder) carry(s *transport.Stream) {
	l.streams.Go(func() {
		err := l.road.inbox.Carry(s, l.road.ep, l.road.shook)
		l.log.Debug("a WebSocket ended", "err", err)
	})
}

// stay keeps to a WebSocket until UDP answers, and then says true, or the
// WebSocket ends.
func (l *ladder) stay(ctx context.Context, s *transport.Stream) bool {
	r := l.road
	first := l.counter + 1
	tick := time.NewTicker(l.probe)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.End(errClosed)
			return false
		case <-s.Done():
			r.takeTo(nil)
			r.sent.Store(1) // long ago: UDP is silent until it is heard
			l.say("the WebSocket ended; UDP and another WebSocket are tried")
			return false
		case <-tick.C:
			if r.known {
				l.counter++
				// It may be refused on this very machine: then it is blocked still.
				_ = r.udp.Send([][]byte{s.Probe().Question(l.counter)}, r.to)
			}
		case n := <-r.answers:
			if n < first {
				continue
			}
			r.takeTo(nil)
			r.data.Store(time.Now().UnixNano())
			l.hail()
			l.say("")
			l.log.Info("the tunnel uses UDP again")
			l.streams.Go(func() {
				t := time.NewTimer(l.pace.linger)
				defer t.Stop()
				select {
				case <-t.C:
				case <-ctx.Done():
				case <-s.Done():
				}
				s.End(errUDPWorks)
			})
			return true
		}
	}
}

// pause waits and says whether ctx is still good.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
