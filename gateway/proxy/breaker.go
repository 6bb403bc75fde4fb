package proxy

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/portvakt/portvakt/gateway/dial"
)

// breakers remember which apps cannot be connected to, each address by itself,
// so that whoever asks for one is told at once and nobody waits for a time-out
// that others have waited for.
type breakers struct {
	log   *slog.Logger
	after uint32        // connections in a row that fail until an app is left alone
	pause time.Duration // for how long it is; then one connection is tried

	mu  sync.Mutex // guards all
	all map[breakerKey]*breaker
}

type breaker struct {
	*gobreaker.CircuitBreaker[net.Conn]
	asked time.Time // last; guarded by breakers.mu
}

type breakerKey struct{ app, address string }

const (
	tripAfter  = 5               // unless Limits.FailedDials says otherwise
	leaveAlone = 2 * time.Second // unless Timeouts.LeaveAlone says otherwise
	// forgetAfter is how long nobody asked for an app, which may be gone by then
	// or elsewhere.
	forgetAfter = 10 * time.Minute
)

func newBreakers(cfg Config) breakers {
	return breakers{log: cfg.Log, after: uint32(cfg.Limits.FailedDials), pause: cfg.Timeouts.LeaveAlone}
}

// errLeftAlone is the error of a connection that was not tried.
var errLeftAlone = errors.New("the app did not answer several times and is not asked again yet")

// dial connects to an app, unless that failed several times just now.
func (b *breakers) dial(ctx context.Context, app string, with *net.Dialer, address string) (net.Conn, error) {
	return b.try(breakerKey{app, address}, func() (net.Conn, error) { return with.DialContext(ctx, "tcp", address) })
}

func (b *breakers) try(key breakerKey, connect func() (net.Conn, error)) (net.Conn, error) {
	c, err := b.of(key).Execute(connect)
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return nil, errLeftAlone
	}
	return c, err
}

func (b *breakers) of(key breakerKey) *breaker {
	now := time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if old := b.all[key]; old != nil {
		old.asked = now
		return old
	}
	if b.all == nil {
		b.all = map[breakerKey]*breaker{}
	}
	maps.DeleteFunc(b.all, func(_ breakerKey, old *breaker) bool { return now.Sub(old.asked) > forgetAfter })
	fresh := &breaker{asked: now, CircuitBreaker: gobreaker.NewCircuitBreaker[net.Conn](gobreaker.Settings{
		Name: key.app, MaxRequests: 1, Timeout: b.pause,
		ReadyToTrip: func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= b.after },
		// The device went away, or policy forbids the address: no word about the app.
		IsExcluded: func(err error) bool {
			return errors.Is(err, context.Canceled) || errors.Is(err, dial.ErrForbidden)
		},
		OnStateChange: func(app string, from, to gobreaker.State) {
			switch {
			case from == gobreaker.StateClosed:
				b.log.Warn("an app cannot be connected to; it is left alone for a while", "app", app)
			case to == gobreaker.StateClosed:
				b.log.Info("an app can be connected to again", "app", app)
			}
		},
	})}
	b.all[key] = fresh
	return fresh
}

// Unreachable names the apps that could not be connected to several times and
// not once since, of those that somebody asked for in the last ten minutes.
func (p *Proxy) Unreachable() []string {
	now := time.Now()
	b := &p.upstreams.breakers
	b.mu.Lock()
	defer b.mu.Unlock()
	apps := map[string]bool{}
	for key, cb := range b.all {
		if now.Sub(cb.asked) <= forgetAfter && cb.State() != gobreaker.StateClosed {
			apps[key.app] = true
		}
	}
	return slices.Sorted(maps.Keys(apps))
}

// unanswered is the level of the log's line about an app that does not answer:
// that it is left alone was said once.
func unanswered(err error) slog.Level {
	if errors.Is(err, errLeftAlone) {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}
