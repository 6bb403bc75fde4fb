package session_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// What a lapse of the gateway leaves queued may leave it only once everything
// was decided again.
func TestNothingIsAwakeBeforeItIsDecidedAgain(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	if err := g.m.Extend(t.Context(), l.ID, time.Unix(0, g.now.Load()).Add(24*time.Hour)); err != nil {
		t.Fatal(err)
	}
	f := g.open(l, "desk")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.m.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	if !g.m.Awake() {
		t.Error("it does not begin awake")
	}
	var early atomic.Bool
	f.OnCut(func() { early.Store(g.m.Awake() || g.m.Decided()) })
	g.now.Add(int64(13 * time.Hour)) // the logins are over
	g.elapsed.Add(int64(31 * time.Second))
	for deadline := time.Now().Add(10 * time.Second); !g.m.Awake(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never comes awake again")
		}
	}
	if !g.m.Decided() {
		t.Error("awake, and not decided again")
	}
	if dec, ok := f.Cut(); !ok || dec.Reason != policy.ReasonSessionExpired || early.Load() {
		t.Errorf("awake again: cut %v with %s; awake before it %v", ok, dec.Reason, early.Load())
	}
}

// A wall clock that jumps over the end of a login cuts at the next tick, and
// one that jumps back gives no lease more time.
func TestClockJump(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.open(l, "desk")
	g.now.Add(int64(13 * time.Hour))
	g.m.Minute()
	if f.Check() == nil {
		t.Error("a jump over the login's end left the flow open")
	}
	g = newGateway(t)
	l = g.ready("anna")
	f = g.open(l, "desk")
	g.report(l, "fail") // cuts
	g.now.Add(-int64(time.Hour))
	if f.Check() == nil {
		t.Error("a jump back opened it")
	}
	again := g.flow(l, "desk")
	if dec, _ := again.Authorize(t.Context(), nil); dec.Allow {
		t.Error("a jump back allows what failed")
	}
}
