package admin_test

import (
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/admin"
)

// Who may act alone for ten minutes may not do so when the gateway's machine
// slept through them, nor when its clock was set back.
func TestBreakGlassEndsAsleep(t *testing.T) {
	g := newGateway(t) // whose wall clock stands still
	ctx := t.Context()
	lift := func() string {
		t.Helper()
		l, err := g.Lockdown(ctx, admin.Lockdown{Scope: "app", Value: "crm"})
		g.must(err)
		a, err := g.LiftLockdown(ctx, l.ID, admin.Revoke{})
		g.must(err)
		return a.Status
	}
	_, err := g.BreakGlass(ctx, admin.BreakGlass{Reason: "nobody awake", Minutes: 10})
	g.must(err)
	g.elapsed.Add(int64(10*time.Minute - time.Second))
	if got := lift(); got != "break_glass" {
		t.Errorf("in its last second: %s", got)
	}
	g.elapsed.Add(int64(time.Second))
	if got := lift(); got != "pending" {
		t.Errorf("after its time: %s", got)
	}
	if all, err := g.Lockdowns(ctx); err != nil || len(all.BreakGlass) != 0 {
		t.Errorf("announced after its time: %+v %v", all, err)
	}
}
