package session_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// A report is as old as what has elapsed since, suspend included: after an hour
// asleep, which the wall clock need not show, nothing is allowed on it, not even
// before anything else has noticed.
func TestReportsAgeAsleep(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.open(l, "desk")
	g.elapsed.Add(int64(time.Hour))
	if dec, _ := g.flow(l, "desk").Authorize(t.Context(), nil); dec.Reason != policy.ReasonPostureStale {
		t.Errorf("a new flow an hour later: %v %s", dec.Allow, dec.Reason)
	}
	if st, err := g.m.State(l.ID, "en"); err != nil || len(st.Posture) != 0 {
		t.Errorf("shown an hour later: %+v %v", st.Posture, err)
	}
	if err := f.Check(); !errors.Is(err, session.ErrCut) {
		t.Errorf("an open flow an hour later: %v", err)
	}
	if dec, _ := f.Cut(); dec.Reason != policy.ReasonPostureStale {
		t.Errorf("cut with %s", dec.Reason)
	}
	// The same report is a new one: it grants again, so it is recorded.
	before := len(g.records("posture"))
	g.report(l, "pass")
	if n := len(g.records("posture")); n != before+1 {
		t.Errorf("%d records of reports, want %d", n, before+1)
	}
	g.open(l, "desk")
}

// A step of the wall clock makes no report old and keeps none young.
func TestReportsAgeThroughClockSteps(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.open(l, "desk")
	g.now.Add(int64(time.Hour))
	g.m.Minute()
	if err := f.Check(); err != nil {
		t.Errorf("set forward by an hour: %v", err)
	}
	if st, err := g.m.State(l.ID, "en"); err != nil || len(st.Posture) != 1 || st.Posture[0].AgeSeconds != 0 {
		t.Errorf("shown then: %+v %v", st.Posture, err)
	}
	g.now.Add(-int64(2 * time.Hour))
	g.elapsed.Add(int64(90 * time.Second))
	g.m.Tick()
	if err := f.Check(); err != nil {
		t.Errorf("90 s after it came: %v", err)
	}
	g.elapsed.Add(int64(time.Second))
	g.m.Tick()
	if dec, ok := f.Cut(); !ok || dec.Reason != policy.ReasonPostureStale {
		t.Errorf("91 s after it came: %v %s", ok, dec.Reason)
	}
}

// A login and a registration end when their records say, not by a clock that
// stops during suspend: that is what a monotonic reading would compare.
func TestEndsAreWallClock(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	end := time.Now().Add(1000 * time.Hour)
	if err := g.m.Extend(context.Background(), l.ID, end); err != nil {
		t.Fatal(err)
	}
	s, err := g.m.Login(t.Context(), store.Session{
		DeviceID: l.ID, OSUser: "1000:anna", Subject: policy.Subject{Issuer: "https://idp", ID: "anna"}, StartedAt: end, LastSeen: end, ExpiresAt: end,
	})
	if err != nil {
		t.Fatal(err)
	}
	st, ok := g.m.Status(l.ID)
	if !ok || st.Expires != end.Round(0) || st.Session.ExpiresAt != end.Round(0) || s.ExpiresAt != end.Round(0) {
		t.Errorf("the registration ends at %v, the login at %v and %v", st.Expires, st.Session.ExpiresAt, s.ExpiresAt)
	}
}
