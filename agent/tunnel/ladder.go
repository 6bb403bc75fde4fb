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
	// silence is how long UDP may leave data unanswered.
	silence time.Duration
	// late is how much later than due the gateway may say something by UDP.
	late time.Duration
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

var normalPace = pace{
	handshake: 1500 * time.Millisecond, silence: 7 * time.Second, late: 1500 * time.Millisecond, open: 5 * time.Second, again: 500 * time.Millisecond, slow: 15 * time.Second,
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
		if time.Since(back) > l.pace.steady {
			l.probe = l.pace.probe
		} else {
			l.probe = min(2*l.probe, l.pace.slow)
		}
		s, err := l.open(ctx)
		if err != nil {
			l.say("UDP is not answered from this network, and a WebSocket cannot be opened either: %v", err)
			l.log.Debug("opening a WebSocket", "err", err)
			if !pause(ctx, wait) {
				return
			}
			wait = min(2*wait, l.pace.slow)
			continue
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
	for {
		left, waiting := l.left()
		if waiting && left <= 0 {
			return true
		}
		// What is waited for now was sent after UDP last answered.
		l.say("")
		t := time.NewTimer(left)
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

// left is how long UDP has yet to answer what it was asked, if it was.
func (l *ladder) left() (left time.Duration, waiting bool) {
	left = time.Hour
	look := func(since int64, patience time.Duration) {
		if !l.road.known {
			patience = 0
		}
		if since != 0 {
			left, waiting = min(left, time.Until(time.Unix(0, since).Add(patience))), true
		}
	}
	look(l.road.asked.Load(), l.pace.handshake)
	look(l.road.sent.Load(), l.pace.silence)
	if l.heartbeat != 0 {
		look(l.road.data.Load(), l.heartbeat+l.pace.late)
	}
	return left, waiting
}

// open opens a WebSocket and makes datagrams leave by it.
func (l *ladder) open(ctx context.Context) (*transport.Stream, error) {
	dialling, cancel := context.WithTimeout(ctx, l.pace.open)
	defer cancel()
	s, err := l.dial(dialling, ctx)
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
	l.streams.Go(func() {
		err := r.inbox.Carry(s, r.ep, func([]byte) {})
		l.log.Debug("a WebSocket ended", "err", err)
	})
	r.takeTo(s)
	l.hail()
	l.log.Info("the tunnel uses a WebSocket: UDP is not answered")
	return s, nil
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
