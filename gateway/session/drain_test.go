package session_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// calls is an app whose calls may be finished; newGateway's clock stands at a
// Monday 10:00 UTC.
const calls = `
name: calls
title: Calls
protocol: tcp
upstream: calls.example.com:7000
ports: [7000]
on_loss: {drain: 10m}
access:
  - groups: [sales]
    posture: {host_firewall: pass}
    countries: [SE]
    hours: {from: "08:00", to: "17:00", zone: UTC}
`

const bound = 10 * time.Minute

// office is a gateway with the app calls, Anna logged in until 16:00 and a call of hers.
func office(t *testing.T, apps ...string) (*gw, *laptop, *session.Flow) {
	t.Helper()
	g := newGateway(t)
	if apps == nil {
		apps = []string{calls}
	}
	g.publish(apps...)
	l := g.connect("anna")
	if err := g.m.Extend(t.Context(), l.ID, time.Unix(0, g.now.Load()).Add(1000*time.Hour)); err != nil {
		t.Fatal(err)
	}
	g.loginUntil(l, 6*time.Hour)
	g.report(l, "pass")
	return g, l, g.open(l, "calls")
}

func (g *gw) loginUntil(l *laptop, d time.Duration) {
	g.t.Helper()
	now := time.Unix(0, g.now.Load())
	_, err := g.m.Login(g.t.Context(), store.Session{
		DeviceID: l.ID, OSUser: "1000:anna", Subject: policy.Subject{Issuer: "https://idp", ID: "anna", Name: "anna", Groups: []string{"sales"}, AuthenticatedAt: now},
		StartedAt: now, LastSeen: now, ExpiresAt: now.Add(d),
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// pass lets time pass on both clocks, in steps that a lease outlives, with what
// Run does every second.
func (g *gw) pass(d time.Duration) {
	for ; d > 0; d -= 5 * time.Second {
		step := min(d, 5*time.Second)
		g.now.Add(int64(step))
		g.elapsed.Add(int64(step))
		g.m.Tick()
		g.settle()
	}
}

// ageing is pass while the laptop reports as it should.
func (g *gw) ageing(l *laptop, d time.Duration) {
	for ; d > 0; d -= time.Minute {
		g.pass(min(d, time.Minute))
		g.report(l, "pass")
	}
}

func (g *gw) expire(l *laptop) {
	g.t.Helper()
	g.now.Add(int64(6 * time.Hour))
	g.elapsed.Add(int64(time.Second))
	g.report(l, "pass")
	g.m.Tick()
	g.settle()
}

func (g *gw) drains(f *session.Flow, until time.Duration) {
	g.t.Helper()
	if err := f.Check(); err != nil {
		dec, _ := f.Cut()
		g.t.Fatalf("the flow does not drain: %v, %+v, %+v", err, dec, dec.Fact)
	}
	all := g.m.Flows()
	i := slices.IndexFunc(all, func(o session.OpenFlow) bool { return o.ID == f.ID() })
	if want := time.Unix(0, g.now.Load()).Add(until); i < 0 || !all[i].DrainUntil.Equal(want) {
		g.t.Fatalf("flows: %+v, want one that drains until %s", all, want)
	}
}

// lasts lets d pass: until then the flow goes on, and not a moment longer.
func (g *gw) lasts(f *session.Flow, d time.Duration, want policy.Reason) {
	g.t.Helper()
	g.pass(d - time.Second)
	if err := f.Check(); err != nil {
		dec, _ := f.Cut()
		g.t.Fatalf("cut before its time: %+v", dec)
	}
	g.now.Add(int64(time.Second))
	g.elapsed.Add(int64(time.Second))
	if f.Check() == nil {
		g.t.Fatal("a byte passed after the bound")
	}
	if dec, ok := f.Cut(); !ok || dec.Reason != want {
		g.t.Fatalf("cut with %+v, want %s", dec, want)
	}
}

// What becomes of an open call by what takes its permission, in an app that
// lets calls be finished.
func TestDrainByCause(t *testing.T) {
	for name, c := range map[string]struct {
		cause func(*gw, *laptop)
		want  policy.Reason // of the record
		cut   bool
	}{
		"session expired": {func(g *gw, l *laptop) { g.expire(l) }, policy.ReasonSessionExpired, false},
		"shift end": {func(g *gw, l *laptop) {
			g.loginUntil(l, 12*time.Hour)
			g.now.Add(int64(7 * time.Hour))
			g.report(l, "pass")
			g.m.Minute()
		}, policy.ReasonOutsideHours, false},
		"report aged":    {func(g *gw, _ *laptop) { g.pass(91 * time.Second) }, policy.ReasonPostureStale, false},
		"signal unknown": {func(g *gw, l *laptop) { g.report(l, "unknown") }, policy.ReasonPostureUnknown, false},
		"publish takes the group": {func(g *gw, _ *laptop) {
			g.publish(strings.Replace(calls, "[sales]", "[support]", 1))
		}, policy.ReasonGroupNotAllowed, false},

		"publish takes the group and says cut": {func(g *gw, _ *laptop) {
			g.publish(strings.NewReplacer("[sales]", "[support]", "{drain: 10m}", "cut").Replace(calls))
		}, policy.ReasonGroupNotAllowed, true},
		"app removed":    {func(g *gw, _ *laptop) { g.publish(desk) }, policy.ReasonUnknownApp, true},
		"firewall fails": {func(g *gw, l *laptop) { g.report(l, "fail") }, policy.ReasonPostureFailed, true},
		"moved": {func(g *gw, l *laptop) {
			g.country.Store("US")
			g.m.Endpoint(l.reg.TunnelKey, netip.MustParseAddrPort("198.51.100.7:4000"))
		}, policy.ReasonLocationNotAllowed, true},
		"nobody knows where": {func(g *gw, l *laptop) {
			g.country.Store("")
			g.m.Relocate()
		}, policy.ReasonLocationUnknown, true},
		"publish wants another place": {func(g *gw, _ *laptop) {
			g.publish(strings.Replace(calls, "[SE]", "[NO]", 1))
		}, policy.ReasonLocationNotAllowed, true},
		"login with other groups": {func(g *gw, l *laptop) { g.login(l, "support") }, policy.ReasonGroupNotAllowed, true},
		"login of another": {func(g *gw, l *laptop) {
			if _, err := g.loginAs(l, "bert", "1000:anna", "sales"); err != nil {
				g.t.Fatal(err)
			}
		}, policy.ReasonLoginRequired, true},
		"logout":          {func(g *gw, l *laptop) { g.endSession(l, policy.ReasonLoginRequired) }, policy.ReasonLoginRequired, true},
		"session revoked": {func(g *gw, l *laptop) { g.endSession(l, policy.ReasonSessionRevoked) }, policy.ReasonSessionRevoked, true},
		"device revoked": {func(g *gw, l *laptop) {
			g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
		}, policy.ReasonDeviceRevoked, true},
		"connect anew": {func(g *gw, l *laptop) { g.reconnect(l.Device) }, policy.ReasonLoginRequired, true},
		"lockdown":     {func(g *gw, _ *laptop) { g.lockdown(store.ScopeAll, "") }, policy.ReasonLockedDown, true},
		"policy taken away": {func(g *gw, l *laptop) {
			g.engine.Activate(nil)
			g.report(l, "unknown")
		}, policy.ReasonPolicyUnavailable, true},
	} {
		t.Run(name, func(t *testing.T) {
			g, l, f := office(t)
			c.cause(g, l)
			if !c.cut {
				if f.Check() != nil {
					dec, _ := f.Cut()
					t.Fatalf("cut: %+v", dec)
				}
				recs := g.records(audit.KindFlowDrain)
				if len(recs) != 1 || recs[0].Reason != string(c.want) || recs[0].Outcome != "begun" || recs[0].Detail["drain_until"] == "" ||
					recs[0].Flow != f.ID() || recs[0].Subject != "https://idp#anna" || *recs[0].Allow || recs[0].Input == nil {
					t.Errorf("the records: %+v", recs)
				}
				again, err := g.flow(l, "calls").Authorize(t.Context(), nil)
				if err != nil || again.Allow {
					t.Errorf("a new flow while one drains: %+v %v", again, err)
				}
				return
			}
			if f.Check() == nil {
				t.Fatal("it goes on")
			}
			if dec, ok := f.Cut(); !ok || dec.Reason != c.want {
				t.Errorf("cut with %+v, want %s", dec, c.want)
			}
			if recs := g.records(audit.KindFlowDrain); len(recs) != 0 {
				t.Errorf("drained: %+v", recs)
			}
		})
	}
}

func (g *gw) endSession(l *laptop, reason policy.Reason) {
	g.t.Helper()
	s, ok := g.m.SessionOf(l.ID)
	if !ok {
		if s, ok = g.m.Finishing(l.ID); !ok {
			g.t.Fatal("no session to end")
		}
	}
	if err := g.m.EndSession(context.Background(), store.End{SessionID: s.ID, Reason: "x", By: "test", At: time.Unix(0, g.now.Load())}, reason); err != nil {
		g.t.Fatal(err)
	}
}

// A call that is being finished is cut by what is hard, also where policy's own
// answer stays the soft one.
func TestHardCausesCutWhatDrains(t *testing.T) {
	for name, c := range map[string]struct {
		cause func(*gw, *laptop)
		want  policy.Reason
	}{
		"firewall fails": {func(g *gw, l *laptop) { g.report(l, "fail") }, policy.ReasonPostureFailed},
		"moved": {func(g *gw, l *laptop) {
			g.country.Store("US")
			g.m.Endpoint(l.reg.TunnelKey, netip.MustParseAddrPort("198.51.100.7:4000"))
		}, policy.ReasonLocationNotAllowed},
		"lockdown of the person": {func(g *gw, _ *laptop) { g.lockdown(store.ScopeSubject, "https://idp#anna") }, policy.ReasonLockedDown},
		"lockdown of the app":    {func(g *gw, _ *laptop) { g.lockdown(store.ScopeApp, "calls") }, policy.ReasonLockedDown},
		"logout":                 {func(g *gw, l *laptop) { g.endSession(l, policy.ReasonLoginRequired) }, policy.ReasonLoginRequired},
		"session revoked":        {func(g *gw, l *laptop) { g.endSession(l, policy.ReasonSessionRevoked) }, policy.ReasonSessionRevoked},
		"logout at the provider": {func(g *gw, _ *laptop) {
			n, err := g.m.EndSessions(context.Background(), func(s store.Session) bool { return s.Subject.ID == "anna" }, store.End{Reason: "x", By: "idp", At: time.Unix(0, g.now.Load())})
			if n != 1 || err != nil {
				g.t.Errorf("%d ended, %v", n, err)
			}
		}, policy.ReasonSessionRevoked},
		"device revoked": {func(g *gw, l *laptop) {
			g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
		}, policy.ReasonDeviceRevoked},
		"login of another": {func(g *gw, l *laptop) {
			if _, err := g.loginAs(l, "bert", "1000:anna", "sales"); err != nil {
				g.t.Fatal(err)
			}
		}, policy.ReasonLoginRequired},
		"login of another who may not": {func(g *gw, l *laptop) {
			if _, err := g.loginAs(l, "bert", "1000:anna", "none"); err != nil {
				g.t.Fatal(err)
			}
		}, policy.ReasonGroupNotAllowed},
		"app removed":  {func(g *gw, _ *laptop) { g.publish(desk) }, policy.ReasonUnknownApp},
		"says cut":     {func(g *gw, _ *laptop) { g.publish(strings.Replace(calls, "{drain: 10m}", "cut", 1)) }, policy.ReasonSessionExpired},
		"connect anew": {func(g *gw, l *laptop) { g.reconnect(l.Device) }, policy.ReasonLoginRequired},
	} {
		t.Run(name, func(t *testing.T) {
			g, l, f := office(t)
			g.expire(l)
			g.drains(f, bound)
			c.cause(g, l)
			if f.Check() == nil {
				t.Fatal("it goes on draining")
			}
			if dec, ok := f.Cut(); !ok || dec.Reason != c.want {
				t.Errorf("cut with %+v, want %s", dec, c.want)
			}
			cuts := g.records(audit.KindFlowCut)
			if len(cuts) != 1 || cuts[0].Detail["drain"] != "cut" {
				t.Errorf("the records: %+v", cuts)
			}
		})
	}
}

// The bound holds whatever is tried to move it.
func TestDrainIsNeverLonger(t *testing.T) {
	t.Run("left alone", func(t *testing.T) {
		g, l, f := office(t)
		g.expire(l)
		g.drains(f, bound)
		g.lasts(f, bound, policy.ReasonSessionExpired)
		f.End(session.Result{Outcome: "cut"})
		cuts, closed := g.records(audit.KindFlowCut), g.records(audit.KindFlowClose)
		if len(cuts) != 1 || cuts[0].Detail["drain"] != "over" || len(closed) != 1 || closed[0].Outcome != "cut" {
			t.Errorf("the records: %+v %+v", cuts, closed)
		}
	})
	t.Run("the gateway looks late", func(t *testing.T) {
		g, l, f := office(t)
		g.expire(l)
		g.pass(bound - 5*time.Second)
		g.now.Add(int64(6 * time.Second)) // and no tick: the lease alone must end it
		g.elapsed.Add(int64(6 * time.Second))
		if f.Check() == nil {
			t.Error("a byte passed after the bound on a lease given before")
		}
	})
	t.Run("the wall clock goes back", func(t *testing.T) {
		g, l, f := office(t)
		g.expire(l)
		g.drains(f, bound)
		for range 10 {
			g.now.Add(-int64(2 * time.Minute))
			g.pass(time.Minute)
		}
		if f.Check() == nil {
			t.Error("time that goes back made it longer")
		}
	})
	t.Run("a longer bound is published", func(t *testing.T) {
		g, l, f := office(t)
		g.expire(l)
		g.pass(5 * time.Minute)
		g.publish(strings.Replace(calls, "10m", "30m", 1))
		g.drains(f, 5*time.Minute)
		g.lasts(f, 5*time.Minute, policy.ReasonSessionExpired)
	})
	t.Run("a shorter bound is published", func(t *testing.T) {
		g, l, f := office(t)
		g.expire(l)
		g.pass(5 * time.Minute)
		g.publish(strings.Replace(calls, "10m", "6m", 1))
		g.drains(f, time.Minute)
		g.publish(calls) // and back
		g.drains(f, time.Minute)
		g.lasts(f, time.Minute, policy.ReasonSessionExpired)
		recs := g.records(audit.KindFlowDrain)
		if len(recs) != 2 || recs[1].Outcome != "shortened" {
			t.Errorf("the records: %+v", recs)
		}
	})
	t.Run("policy flips back and forth", func(t *testing.T) {
		g, l, f := office(t)
		without := strings.Replace(calls, "[sales]", "[support]", 1)
		for range 4 {
			g.publish(without)
			g.ageing(l, 2*time.Minute)
			g.publish(calls)
			g.ageing(l, 5*time.Minute)
			if f.Check() != nil {
				t.Fatal("cut before its time was used")
			}
		}
		g.publish(without)
		g.drains(f, 2*time.Minute)
		g.ageing(l, 2*time.Minute)
		if dec, ok := f.Cut(); !ok || dec.Reason != policy.ReasonGroupNotAllowed {
			t.Fatalf("%v %+v", ok, dec)
		}
		recs := g.records(audit.KindFlowDrain)
		if len(recs) != 9 || recs[1].Outcome != "allowed_again" {
			t.Errorf("%d records: %+v", len(recs), recs)
		}
	})
	t.Run("reports that come and stay away", func(t *testing.T) {
		g, l, f := office(t)
		drained := time.Duration(0)
		for range 20 {
			g.pass(4 * time.Minute) // 90 s of them on the report
			if _, ok := f.Cut(); ok {
				break
			}
			drained += 4*time.Minute - 90*time.Second
			g.report(l, "pass")
		}
		if f.Check() == nil || drained > bound {
			t.Errorf("it drained for %s", drained)
		}
	})
	t.Run("the same person logs in again and again", func(t *testing.T) {
		g, l, f := office(t)
		for range 12 {
			g.expire(l)
			g.ageing(l, time.Minute)
			if _, ok := f.Cut(); ok {
				break
			}
			g.now.Add(int64(18*time.Hour - time.Minute)) // the next morning
			g.loginUntil(l, 6*time.Hour)
			g.report(l, "pass")
		}
		if f.Check() == nil {
			t.Error("a call outlived its bound over new logins")
		}
	})
	t.Run("used up", func(t *testing.T) {
		g, l, f := office(t)
		g.expire(l)
		g.ageing(l, bound-time.Second)
		g.loginUntil(l, time.Minute)
		if f.Check() != nil {
			t.Fatal("cut although it is allowed again")
		}
		g.ageing(l, 2*time.Minute)
		if f.Check() == nil {
			t.Error("it drained anew")
		}
	})
}

// What is shown, and what becomes of the segment.
func TestDrainIsShown(t *testing.T) {
	g, l, f := office(t)
	w, err := g.m.Watch(l.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	reachable := func() bool {
		v, _ := g.table.Filter(syn(l.Addresses[0], g.m.AppAddresses("calls")[0], 7000))
		return v == segment.Pass
	}
	<-w.C
	g.expire(l)
	<-w.C
	st, err := g.m.State(l.ID, "sv")
	if err != nil {
		t.Fatal(err)
	}
	until := time.Unix(0, g.now.Load()).Add(bound).UTC()
	want := wire.Finish{Until: until, OSUser: "1000:anna", Message: policy.Finish["sv"]}
	if st.Session != nil || st.Finish == nil || *st.Finish != want {
		t.Errorf("finish: %+v, want %+v", st.Finish, want)
	}
	// calls is hidden from whoever may not use it; not from who finishes a call.
	if len(st.Apps) != 1 || st.Apps[0].Allowed || st.Apps[0].Denial == nil || st.Apps[0].FinishBy == nil || !st.Apps[0].FinishBy.Equal(until) {
		t.Errorf("apps: %+v", st.Apps)
	}
	if !reachable() {
		t.Error("the call's packets do not pass")
	}
	if c := g.m.Counts(); c.Draining != 1 {
		t.Errorf("%+v", c)
	}
	g.pass(time.Minute)
	f.End(session.Result{Outcome: "done", BytesIn: 7})
	g.pass(time.Second)
	<-w.C
	if st, err = g.m.State(l.ID, "sv"); err != nil || st.Finish != nil || len(st.Apps) != 0 {
		t.Errorf("after the call: %+v %+v %v", st.Finish, st.Apps, err)
	}
	if reachable() {
		t.Error("the segment still has the app")
	}
	if closed := g.records(audit.KindFlowClose); len(closed) != 1 || closed[0].Outcome != "drained" || closed[0].BytesIn != 7 {
		t.Errorf("the records: %+v", closed)
	}
	if c := g.m.Counts(); c.Draining != 0 {
		t.Errorf("%+v", c)
	}
}

// What may go on needs its record first: without a log nothing drains.
func TestNoDrainWithoutARecord(t *testing.T) {
	g, _, f := office(t)
	if err := g.audit.Close(); err != nil {
		t.Fatal(err)
	}
	g.now.Add(int64(6 * time.Hour))
	g.elapsed.Add(int64(time.Second))
	g.m.Minute()
	g.settle()
	if f.Check() == nil {
		t.Error("it drains unrecorded")
	}
}

// A log that hangs holds up no cut: not of another flow, not of what would drain.
func TestDrainHoldsUpNoCut(t *testing.T) {
	other := strings.NewReplacer("name: calls", "name: desk", "on_loss: {drain: 10m}\n", "").Replace(calls)
	for name, c := range map[string]struct {
		cause func(*gw, *laptop)
		want  policy.Reason // of what would drain; empty: it drains once the log answers
	}{
		"the log answers": {func(*gw, *laptop) {}, ""},
		"lockdown":        {func(g *gw, _ *laptop) { g.lockdown(store.ScopeApp, "calls") }, policy.ReasonLockedDown},
		"moved": {func(g *gw, _ *laptop) {
			g.country.Store("US")
			g.m.Relocate()
		}, policy.ReasonLocationNotAllowed},
		"the lease is over": {func(g *gw, _ *laptop) {
			g.elapsed.Add(int64(30 * time.Second))
			g.m.Tick()
		}, policy.ReasonSessionExpired},
	} {
		t.Run(name, func(t *testing.T) {
			g, l, f := office(t, calls, other)
			for range 30 {
				g.open(l, "calls")
			}
			d := g.open(l, "desk")
			answer := make(chan struct{})
			g.hanging.Store(&answer)
			g.now.Add(int64(6 * time.Hour))
			g.elapsed.Add(int64(time.Second))
			g.m.Tick()
			if n := g.m.Awaited(); n != 31 {
				t.Errorf("%d records are awaited, want 31", n)
			}
			if d.Check() == nil {
				t.Error("the flow that is to be cut goes on")
			}
			if f.Check() != nil {
				t.Error("the call was cut although its lease runs")
			}
			c.cause(g, l)
			if c.want != "" && f.Check() == nil {
				t.Error("the call goes on unrecorded")
			}
			close(answer)
			g.settle()
			if dec, cut := f.Cut(); cut != (c.want != "") || dec.Reason != c.want {
				t.Errorf("cut %v with %q, want %q", cut, dec.Reason, c.want)
			}
		})
	}
}

// An exchange that drains is recorded when it ends, and the next request on the
// same connection is refused.
func TestDrainingRequest(t *testing.T) {
	const web = "name: web\nprotocol: http\nhosts: [web.example.com]\nupstream: http://127.0.0.1:1\non_loss: {drain: 10m}\naccess: [{groups: [sales]}]\n"
	g, l, _ := office(t, calls, web)
	request := func() (*session.Flow, policy.Decision) {
		f, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[1], 4000), App: g.app("web"), Action: policy.ActionRequest})
		if err != nil {
			t.Fatal(err)
		}
		dec, err := f.Authorize(t.Context(), &policy.Request{Method: "GET", Host: "web.example.com", Path: "/film"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.End(session.Result{}) })
		return f, dec
	}
	f, dec := request()
	if !dec.Allow {
		t.Fatalf("%+v", dec)
	}
	g.expire(l)
	g.drains(f, bound)
	if _, dec := request(); dec.Allow || dec.Reason != policy.ReasonSessionExpired {
		t.Errorf("the next request: %+v", dec)
	}
	f.End(session.Result{Outcome: "done", Status: 200})
	if closed := g.records(audit.KindFlowClose); len(closed) != 1 || closed[0].Outcome != "drained" || closed[0].Status != 200 {
		t.Errorf("the records: %+v", closed)
	}
	if recs := g.records(audit.KindFlowDrain); len(recs) != 2 || !slices.ContainsFunc(recs, func(r audit.Record) bool { return r.Path == "/film" }) {
		t.Errorf("the records: %+v", recs)
	}
}

// A gateway that starts again knows of no drain: what was being finished is
// over, and begins no more.
func TestRestartEndsDrains(t *testing.T) {
	g, l, _ := office(t)
	g.expire(l)
	after := session.New(session.Config{
		Engine: g.engine, Store: g.store, Audit: g.audit, Table: g.table, Gateway: g.store.GatewayAddresses(), ControlPort: 80,
		Locate:  func(a netip.Addr) policy.Location { return policy.Location{Address: a.String(), Country: "SE"} },
		AddPeer: func(session.Connection) error { return nil }, RemovePeer: func([32]byte) error { return nil },
		Now: func() time.Time { return time.Unix(0, g.now.Load()) }, Elapsed: func() time.Duration { return 0 },
	})
	if err := after.Publish(t.Context(), g.engine.Active(), "test"); err != nil {
		t.Fatal(err)
	}
	resumed, err := g.store.PutRegistration(t.Context(), l.reg)
	if err != nil {
		t.Fatal(err)
	}
	if err := after.Connect(session.Connection{Device: l.Device, Registration: l.reg, Session: resumed}); err != nil {
		t.Fatal(err)
	}
	st, err := after.State(l.ID, "en")
	if err != nil || st.Finish != nil || len(st.Apps) != 0 || len(after.Flows()) != 0 {
		t.Errorf("%+v %+v %v", st.Finish, st.Apps, err)
	}
	if v, _ := g.table.Filter(syn(l.Addresses[0], g.m.AppAddresses("calls")[0], 7000)); v == segment.Pass {
		t.Error("the segment has the app")
	}
	f, err := after.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[0], 4000), App: g.app("calls"), Action: policy.ActionFlow, Port: 7000})
	if err != nil {
		t.Fatal(err)
	}
	defer f.End(session.Result{})
	if dec, err := f.Authorize(t.Context(), nil); err != nil || dec.Allow {
		t.Errorf("%+v %v", dec, err)
	}
}
