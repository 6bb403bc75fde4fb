package session_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// What takes away waits for no refresh of the device: one that goes on, held up
// here by the cut of another flow, delays no other cut of the same device.
func TestCutWaitsForNoRefresh(t *testing.T) {
	at := func(g *gw) time.Time { return time.Unix(0, g.now.Load()) }
	for name, c := range map[string]struct {
		cause func(*gw, *laptop, store.Session)
		want  policy.Reason
	}{
		"revoke": {func(g *gw, l *laptop, _ store.Session) {
			g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
		}, policy.ReasonDeviceRevoked},
		"connect anew": {func(g *gw, l *laptop, _ store.Session) { g.reconnect(l.Device) }, policy.ReasonLoginRequired},
		"lockdown":     {func(g *gw, l *laptop, _ store.Session) { g.lockdown(store.ScopeDevice, l.ID) }, policy.ReasonLockedDown},
		"session revoked": {func(g *gw, _ *laptop, s store.Session) {
			if err := g.m.EndSession(context.Background(), store.End{SessionID: s.ID, Reason: "x", By: "os:0:root", At: at(g)}, policy.ReasonSessionRevoked); err != nil {
				g.t.Error(err)
			}
		}, policy.ReasonSessionRevoked},
		"logout": {func(g *gw, _ *laptop, s store.Session) {
			if err := g.m.EndSession(context.Background(), store.End{SessionID: s.ID, Reason: "logout", By: "subject", At: at(g)}, policy.ReasonLoginRequired); err != nil {
				g.t.Error(err)
			}
		}, policy.ReasonLoginRequired},
		"logged out by the provider": {func(g *gw, _ *laptop, s store.Session) {
			_, err := g.m.EndSessions(context.Background(), func(x store.Session) bool { return x.ID == s.ID }, store.End{Reason: "x", By: "idp", At: at(g)})
			if err != nil {
				g.t.Error(err)
			}
		}, policy.ReasonSessionRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			l := g.ready("anna")
			s, _ := g.m.SessionOf(l.ID)
			web, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[0], 4001), App: g.app("crm"), Action: policy.ActionRequest})
			if err != nil {
				t.Fatal(err)
			}
			defer web.End(session.Result{})
			if dec, err := web.Authorize(t.Context(), &policy.Request{Method: "GET", Host: "crm.example.com", Path: "/"}); err != nil || !dec.Allow {
				t.Fatalf("%+v %v", dec, err)
			}
			f := g.open(l, "desk") // from anywhere
			cut := make(chan struct{})
			f.OnCut(func() { close(cut) })
			// A change of place cuts web and stops there.
			cutting, goOn := make(chan struct{}), make(chan struct{})
			web.OnCut(func() { close(cutting); <-goOn })
			g.country.Store("US")
			var wg sync.WaitGroup
			wg.Go(func() { g.m.Endpoint(l.reg.TunnelKey, netip.MustParseAddrPort("198.51.100.7:4000")) })
			<-cutting
			if f.Check() != nil {
				t.Error("the flow was cut before its cause; the test shows nothing")
			}
			wg.Go(func() { c.cause(g, l, s) })
			select {
			case <-cut:
				if dec, _ := f.Cut(); dec.Reason != c.want {
					t.Errorf("cut with %s, want %s", dec.Reason, c.want)
				}
				if f.Check() == nil {
					t.Error("a byte passed after the cut")
				}
			case <-time.After(10 * time.Second):
				t.Error("the cut waits for the refresh")
			}
			close(goOn)
			wg.Wait()
		})
	}
}

// A report that takes away cuts before it is recorded; one that grants is
// recorded before it counts.
func TestFailedPostureCutsBeforeItsRecord(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.open(l, "desk")
	before := len(g.records(audit.KindPosture))
	atCut := -1
	f.OnCut(func() { atCut = len(g.records(audit.KindPosture)) })
	g.report(l, "fail")
	if dec, ok := f.Cut(); !ok || dec.Reason != policy.ReasonPostureFailed {
		t.Errorf("%v %+v", ok, dec)
	}
	if after := len(g.records(audit.KindPosture)); atCut != before || after != before+1 {
		t.Errorf("%d reports were recorded before, %d at the cut, %d after", before, atCut, after)
	}
}

// A Flow that facts move under while it is opened has one end in the log: the
// refusal, or the cut.
func TestOpeningEndsOnce(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	refuse := func() { g.report(l, "fail") }
	again := func() {
		g.country.Store("NO")
		g.m.Relocate()
		g.recording.Store(&refuse)
	}
	g.recording.Store(&again)
	f := g.flow(l, "desk")
	dec, err := f.Authorize(t.Context(), nil)
	if err != nil || dec.Reason != policy.ReasonPostureFailed {
		t.Fatalf("%+v %v", dec, err)
	}
	f.End(session.Result{Outcome: "cut"})
	refusals := 0
	for _, r := range g.records(audit.KindFlowOpen) {
		if r.Flow == f.ID() && !*r.Allow {
			refusals++
		}
	}
	ends := len(g.records(audit.KindFlowCut)) + len(g.records(audit.KindFlowClose))
	if refusals != 1 || ends != 0 {
		t.Errorf("%d refusals and %d ends", refusals, ends)
	}
}
