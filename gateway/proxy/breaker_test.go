package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/portvakt/portvakt/gateway/dial"
)

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &breakers{log: slog.New(slog.DiscardHandler), after: tripAfter, pause: leaveAlone}
		dead := errors.New("no route")
		answer, asked := error(dead), 0
		ask := func(app string) error {
			_, err := b.try(breakerKey{app, "10.0.0.1:80"}, func() (net.Conn, error) { asked++; return nil, answer })
			return err
		}
		for range tripAfter {
			if err := ask("crm"); !errors.Is(err, dead) {
				t.Fatal(err)
			}
		}
		for range 100 {
			if err := ask("crm"); !errors.Is(err, errLeftAlone) {
				t.Fatal(err)
			}
		}
		if asked != tripAfter {
			t.Fatalf("a dead app was asked %d times", asked)
		}
		if err := ask("desk"); !errors.Is(err, dead) {
			t.Errorf("another app: %v", err)
		}
		if err := ask("desk"); !errors.Is(err, dead) {
			t.Errorf("another app: %v", err)
		}
		p := &Proxy{upstreams: upstreams{breakers: breakers{all: b.all}}}
		if got := p.Unreachable(); !slices.Equal(got, []string{"crm"}) {
			t.Errorf("unreachable: %q", got)
		}

		// One probe after a while; the others are not kept waiting for it.
		time.Sleep(leaveAlone + time.Millisecond)
		probe := make(chan error)
		var probing sync.WaitGroup
		probing.Go(func() {
			_, err := b.try(breakerKey{"crm", "10.0.0.1:80"}, func() (net.Conn, error) { return nil, <-probe })
			if !errors.Is(err, dead) {
				t.Errorf("the probe: %v", err)
			}
		})
		synctest.Wait()
		if err := ask("crm"); !errors.Is(err, errLeftAlone) {
			t.Errorf("beside the probe: %v", err)
		}
		probe <- dead
		probing.Wait()
		if err := ask("crm"); !errors.Is(err, errLeftAlone) {
			t.Errorf("after a probe that failed: %v", err)
		}
		time.Sleep(leaveAlone + time.Millisecond)
		answer = nil
		for range 10 {
			if err := ask("crm"); err != nil {
				t.Errorf("the app is back: %v", err)
			}
		}
		if got := p.Unreachable(); len(got) != 0 {
			t.Errorf("unreachable: %q", got)
		}
	})
}

// When an app is left alone, and for how long, is for who runs the gateway to say.
func TestBreakerAsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBreakers(Config{Log: slog.New(slog.DiscardHandler), Limits: Limits{FailedDials: 2}, Timeouts: Timeouts{LeaveAlone: time.Minute}})
		asked := 0
		ask := func() {
			_, _ = b.try(breakerKey{"crm", "x"}, func() (net.Conn, error) { asked++; return nil, errors.New("no route") })
		}
		for range 5 {
			ask()
		}
		time.Sleep(59 * time.Second)
		if ask(); asked != 2 {
			t.Errorf("asked %d times before its minute is over, want 2", asked)
		}
		time.Sleep(2 * time.Second)
		if ask(); asked != 3 {
			t.Errorf("asked %d times after it, want 3", asked)
		}
	})
}

// An app that is gone is not unreachable for ever.
func TestBreakersAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &Proxy{upstreams: upstreams{breakers: breakers{log: slog.New(slog.DiscardHandler), after: tripAfter, pause: leaveAlone}}}
		ask := func(app string) {
			_, _ = p.upstreams.breakers.try(breakerKey{app, "x"}, func() (net.Conn, error) { return nil, errors.New("no route") })
		}
		for range tripAfter {
			ask("gone")
		}
		if got := p.Unreachable(); !slices.Equal(got, []string{"gone"}) {
			t.Errorf("unreachable: %q", got)
		}
		time.Sleep(forgetAfter + time.Second)
		if got := p.Unreachable(); len(got) != 0 {
			t.Errorf("unreachable: %q", got)
		}
		ask("new")
		if n := len(p.upstreams.breakers.all); n != 1 {
			t.Errorf("%d breakers are kept", n)
		}
	})
}

// A device that goes away, or an address that is forbidden, says nothing about an
// app, not even as a probe.
func TestBreakerCountsTheAppsFaultsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &breakers{log: slog.New(slog.DiscardHandler), after: tripAfter, pause: leaveAlone}
		asked := 0
		ask := func(answer error) error {
			_, err := b.try(breakerKey{"crm", "x"}, func() (net.Conn, error) { asked++; return nil, answer })
			return err
		}
		gone := &net.OpError{Op: "dial", Err: context.Canceled}
		for range 20 {
			_ = ask(gone)
			_ = ask(fmt.Errorf("%w: 127.0.0.1", dial.ErrForbidden))
		}
		if asked != 40 {
			t.Errorf("tripped after %d", asked)
		}
		for range tripAfter {
			_ = ask(context.DeadlineExceeded)
		}
		time.Sleep(leaveAlone + time.Millisecond)
		if err := ask(gone); !errors.Is(err, context.Canceled) {
			t.Errorf("a probe: %v", err)
		}
		if err := ask(nil); err != nil {
			t.Errorf("after a probe that nobody waited for: %v", err)
		}
	})
}
