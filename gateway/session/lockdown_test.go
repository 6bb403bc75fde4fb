package session_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

func (g *gw) lockdown(scope store.Scope, value string) (store.Lockdown, int) {
	g.t.Helper()
	l, cuts, err := g.m.Lockdown(context.Background(), store.Lockdown{Scope: scope, Value: value, Reason: "incident", By: "os:0:root", At: time.Unix(0, g.now.Load())})
	if err != nil {
		g.t.Fatal(err)
	}
	return l, cuts
}

func (g *gw) lift(id string) {
	g.t.Helper()
	if _, err := g.m.LiftLockdown(context.Background(), session.Lift{ID: id, By: "os:1:second", At: time.Unix(0, g.now.Load())}); err != nil {
		g.t.Fatal(err)
	}
}

// A lockdown cuts what is of its scope and refuses it from then on, touches
// nothing else, and gives everything back when it is lifted.
func TestLockdownScopes(t *testing.T) {
	for name, c := range map[string]struct {
		scope            store.Scope
		value            string
		anna, crm, other bool // whether anna's desk, anna's crm and other's desk stay
	}{
		"all":                        {store.ScopeAll, "", false, false, false},
		"app":                        {store.ScopeApp, "desk", false, true, false},
		"person":                     {store.ScopeSubject, "https://idp#anna", false, false, true},
		"device":                     {store.ScopeDevice, "dev-anna", false, false, true},
		"site":                       {store.ScopeSite, "192.0.2.0/24", false, false, true},
		"site, one address":          {store.ScopeSite, "192.0.2.10/32", false, false, true},
		"another app":                {store.ScopeApp, "des", true, true, true},
		"another person":             {store.ScopeSubject, "https://idp#ann", true, true, true},
		"a person named as a device": {store.ScopeDevice, "https://idp#anna", true, true, true},
		"another site":               {store.ScopeSite, "192.0.3.0/24", true, true, true},
		"every IPv6 address":         {store.ScopeSite, "::/0", true, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			l, other := g.ready("anna"), g.ready("other")
			g.m.Endpoint(other.reg.TunnelKey, netip.MustParseAddrPort("198.51.100.7:4000"))
			request := func() *session.Flow {
				f, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[1], 4000), App: g.app("crm"), Action: policy.ActionRequest})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.End(session.Result{}) })
				return f
			}
			crm := request()
			if dec, err := crm.Authorize(t.Context(), &policy.Request{Method: "GET", Host: "crm.example.com", Path: "/"}); err != nil || !dec.Allow {
				t.Fatalf("%+v %v", dec, err)
			}
			desk, others := g.open(l, "desk"), g.open(other, "desk")

			want := 0
			for _, stays := range []bool{c.anna, c.crm, c.other} {
				if !stays {
					want++
				}
			}
			lock, cuts := g.lockdown(c.scope, c.value)
			if cuts != want {
				t.Errorf("%d flows cut, want %d", cuts, want)
			}
			for _, x := range []struct {
				what  string
				flow  *session.Flow
				stays bool
			}{{"desk", desk, c.anna}, {"crm", crm, c.crm}, {"the other laptop's desk", others, c.other}} {
				if (x.flow.Check() == nil) != x.stays {
					t.Errorf("%s: %v", x.what, x.flow.Check())
				}
				if dec, ok := x.flow.Cut(); ok && dec.Reason != policy.ReasonLockedDown {
					t.Errorf("%s: cut with %s", x.what, dec.Reason)
				}
			}
			again, err := g.flow(l, "desk").Authorize(t.Context(), nil)
			if err != nil || again.Allow != c.anna {
				t.Errorf("a new flow: %+v %v", again, err)
			}
			if !c.anna {
				fact := policy.Fact{Name: string(c.scope), Value: c.value, Wanted: "lockdown lifted"}
				if again.Reason != policy.ReasonLockedDown || again.ID == "" || *again.Fact != fact {
					t.Errorf("refused with %+v, fact %+v", again, again.Fact)
				}
				if v, _ := g.table.Filter(syn(l.Addresses[0], g.m.AppAddresses("desk")[0], 7000)); v != segment.Reset {
					t.Errorf("the segment still has desk: %v", v)
				}
				for _, r := range append(g.records(audit.KindFlowCut), g.records(audit.KindFlowOpen)...) {
					if r.Reason == string(policy.ReasonLockedDown) && (r.Input != nil || r.Device == "" || r.Subject == "") {
						t.Errorf("the record says more or less than was known: %+v", r)
					}
				}
			}
			dec, err := g.m.WhyDevice(l.ID, "crm")
			if err != nil || (dec.Reason == policy.ReasonLockedDown) == c.crm {
				t.Errorf("why: %+v %v", dec, err)
			}
			st, err := g.m.State(l.ID, "sv")
			if i := slices.IndexFunc(st.Apps, func(a wire.App) bool { return a.Name == "crm" }); err != nil || i < 0 || st.Apps[i].Allowed != c.crm ||
				!c.crm && st.Apps[i].Denial.Message != policy.Reasons[policy.ReasonLockedDown]["sv"].Message {
				t.Errorf("state: %+v %v", st.Apps, err)
			}

			g.lift(lock.ID)
			g.open(l, "desk")
			g.open(other, "desk")
			recs := g.records(audit.KindLockdown)
			if len(recs) != 2 || recs[0].Outcome != "on" || recs[0].Actor != "os:0:root" || recs[0].Detail["value"] != c.value ||
				recs[1].Outcome != "off" || recs[1].Actor != "os:1:second" || recs[1].Detail["lockdown"] != lock.ID {
				t.Errorf("the records: %+v", recs)
			}
			if left, err := g.store.Lockdowns(t.Context()); err != nil || len(left) != 0 || len(g.m.Lockdowns()) != 0 {
				t.Errorf("left: %v %v", left, err)
			}
		})
	}
}

// A device that comes to a locked site, or that could be anywhere, is refused.
func TestLockdownOfASiteFollowsTheDevice(t *testing.T) {
	g := newGateway(t)
	g.lockdown(store.ScopeSite, "198.51.100.0/24")
	l := g.ready("anna")
	f := g.open(l, "desk")
	g.m.Endpoint(l.reg.TunnelKey, netip.MustParseAddrPort("198.51.100.9:4000"))
	if dec, ok := f.Cut(); !ok || dec.Reason != policy.ReasonLockedDown {
		t.Errorf("after the move: %v %+v", ok, dec)
	}
	g.m.Endpoint(l.reg.TunnelKey, netip.MustParseAddrPort("192.0.2.10:4000"))
	g.open(l, "desk")
	if dec, ok := g.m.LockedDown(&policy.Input{}); !ok || dec.Fact.Value != "unknown" {
		t.Errorf("nobody knows where: %v %+v", ok, dec)
	}
}

// A site written as IPv6 locks down the IPv4 addresses that it means.
func TestLockdownOfASiteInIPv6(t *testing.T) {
	g := newGateway(t)
	g.lockdown(store.ScopeSite, "::ffff:198.51.100.0/120")
	for address, want := range map[string]bool{"198.51.100.7": true, "::ffff:198.51.100.7": true, "198.51.101.7": false, "2001:db8::7": false} {
		dec, ok := g.m.LockedDown(&policy.Input{Location: policy.Location{Address: address}})
		if ok != want || ok && dec.Fact.Value != "198.51.100.0/24" {
			t.Errorf("%s: %v %+v", address, ok, dec.Fact)
		}
	}
}

// Two lockdowns of one thing are two: lifting one gives nothing back.
func TestLockdownsAddUp(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	first, _ := g.lockdown(store.ScopeApp, "desk")
	second, _ := g.lockdown(store.ScopeApp, "desk")
	g.lift(first.ID)
	if dec, _ := g.flow(l, "desk").Authorize(t.Context(), nil); dec.Reason != policy.ReasonLockedDown {
		t.Errorf("%+v", dec)
	}
	g.lift(second.ID)
	g.open(l, "desk")
	if _, err := g.m.LiftLockdown(t.Context(), session.Lift{ID: second.ID}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("lifted twice: %v", err)
	}
}

// Whatever the order, a flow that opens while a lockdown comes passes no byte
// once the lockdown is in force.
func TestLockdownDuringOpeningIsNeverMissed(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	var opened, refused int
	for i := range 300 {
		f := g.flow(l, "desk")
		var inForce, allowed atomic.Bool
		var wg sync.WaitGroup
		wg.Go(func() {
			if i%2 == 0 {
				time.Sleep(time.Duration(i) * time.Microsecond / 2)
			}
			dec, err := f.Authorize(context.Background(), nil)
			if err != nil {
				t.Error(err)
			}
			allowed.Store(dec.Allow)
			for dec.Allow { // a byte each
				after := inForce.Load()
				if f.Check() != nil {
					return
				}
				if after {
					t.Error("a byte passed while the lockdown was in force")
					return
				}
			}
		})
		var lock store.Lockdown
		wg.Go(func() {
			lock, _ = g.lockdown(store.ScopeApp, "desk")
			inForce.Store(true)
		})
		wg.Wait()
		if allowed.Load() {
			opened++
		} else {
			refused++
		}
		if allowed.Load() && f.Check() == nil {
			t.Fatal("a flow outlived the lockdown")
		}
		f.End(session.Result{})
		g.lift(lock.ID)
	}
	t.Logf("%d were allowed and cut, %d refused", opened, refused)
}

func TestLockdownSurvivesARestart(t *testing.T) {
	g := newGateway(t)
	lock, _ := g.lockdown(store.ScopeDevice, "dev-anna")
	lifted, _ := g.lockdown(store.ScopeApp, "desk")
	g.lift(lifted.ID)
	after := session.New(session.Config{Store: g.store, Audit: g.audit, Engine: g.engine})
	if err := after.RestoreLockdowns(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := after.Lockdowns(); len(got) != 1 || got[0].ID != lock.ID || got[0].Reason != "incident" || !got[0].At.Equal(lock.At) {
		t.Errorf("restored %+v, want %+v", got, lock)
	}
	if dec, ok := after.LockedDown(&policy.Input{Device: policy.Device{ID: "dev-anna"}}); !ok || dec.Reason != policy.ReasonLockedDown {
		t.Errorf("%v %+v", ok, dec)
	}
	if err := g.store.PutLockdown(t.Context(), store.Lockdown{ID: "lock-x", Scope: store.ScopeSite, Value: "nowhere", At: lock.At}); err != nil {
		t.Fatal(err)
	}
	if err := after.RestoreLockdowns(t.Context()); err == nil {
		t.Error("a stored lockdown that cannot be understood was passed over")
	}
	g.lift(lock.ID)
}

// What takes away goes on without log and store; what gives back does not.
func TestLockdownWithoutLogOrStore(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f, web := g.open(l, "desk"), g.open(l, "desk")
	if err := g.audit.Close(); err != nil {
		t.Fatal(err)
	}
	lock, cuts, err := g.m.Lockdown(t.Context(), store.Lockdown{Scope: store.ScopeApp, Value: "desk", By: "os:0:root", At: time.Unix(0, g.now.Load())})
	if err != nil || cuts != 2 || f.Check() == nil || web.Check() == nil {
		t.Errorf("without a log: %d cuts, %v", cuts, err)
	}
	if _, err := g.m.LiftLockdown(t.Context(), session.Lift{ID: lock.ID, By: "os:1:second"}); err == nil || len(g.m.Lockdowns()) != 1 {
		t.Errorf("lifted without a record: %v", err)
	}
	closed, err := store.Open(t.Context(), store.Options{
		Path: filepath.Join(t.TempDir(), "data", "gateway.db"), IPv4: netip.MustParsePrefix("100.96.0.0/16"), IPv6: netip.MustParsePrefix("fd70:7674:766b::/64"), SealKey: [32]byte{1},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	other := newGateway(t)
	m := session.New(session.Config{Store: closed, Audit: other.audit, Engine: other.engine})
	unstored, _, err := m.Lockdown(t.Context(), store.Lockdown{Scope: store.ScopeAll, By: "os:0:root"})
	if _, locked := m.LockedDown(&policy.Input{}); err == nil || !locked || unstored.ID == "" {
		t.Errorf("without a store: %+v %v", unstored, err)
	}
	if _, err := m.LiftLockdown(t.Context(), session.Lift{ID: unstored.ID, By: "os:1:second"}); err == nil || len(m.Lockdowns()) != 1 {
		t.Errorf("lifted without a store: %v", err)
	}
	if err := m.RestoreLockdowns(t.Context()); err == nil {
		t.Error("lockdowns that cannot be read were passed over")
	}
	recs := other.records(audit.KindLockdown)
	if len(recs) != 3 || recs[0].Detail["stored"] == "" || recs[2].Outcome != "not_off" {
		t.Errorf("the records: %+v", recs)
	}
}

// The log cannot be written while five thousand flows are cut, more than its
// queue keeps of anything else: every cut and every end is recorded once.
func TestNoCutOfAMassGoesUnrecorded(t *testing.T) {
	g := newGateway(t)
	var flows []*session.Flow
	for i := range 100 {
		l := g.ready(fmt.Sprintf("laptop-%d", i))
		for range 50 {
			flows = append(flows, g.open(l, "desk"))
		}
	}
	away := g.audit.Path() + ".away"
	if err := os.Rename(g.audit.Path(), away); err != nil {
		t.Fatal(err)
	}
	healthy := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); (g.audit.Healthy() == nil) != want; {
			if time.Now().After(deadline) {
				t.Fatalf("the log: %v", g.audit.Healthy())
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	healthy(false)
	_, cuts, err := g.m.Lockdown(t.Context(), store.Lockdown{Scope: store.ScopeAll, By: "os:0:root", At: time.Unix(0, g.now.Load())})
	if err != nil || cuts != len(flows) {
		t.Errorf("%d cuts, %v", cuts, err)
	}
	for _, f := range flows {
		f.End(session.Result{Outcome: "cut"})
	}
	if g.audit.Lost() != 0 || g.audit.Pending() < 2*len(flows) {
		t.Errorf("%d records wait, %d are lost", g.audit.Pending(), g.audit.Lost())
	}
	if err := os.Rename(away, g.audit.Path()); err != nil {
		t.Fatal(err)
	}
	healthy(true)
	for kind, recs := range map[audit.Kind][]audit.Record{
		audit.KindFlowCut: g.records(audit.KindFlowCut), audit.KindFlowClose: g.records(audit.KindFlowClose),
	} {
		seen := map[string]bool{}
		for _, r := range recs {
			seen[r.Flow] = true
		}
		if len(recs) != len(flows) || len(seen) != len(flows) {
			t.Errorf("%d records of kind %s of %d flows, %d were open", len(recs), kind, len(seen), len(flows))
		}
	}
}

func TestCheckLockdown(t *testing.T) {
	for _, bad := range []store.Lockdown{
		{},
		{Scope: "everything"},
		{Scope: store.ScopeAll, Value: "x"},
		{Scope: store.ScopeApp},
		{Scope: store.ScopeSubject},
		{Scope: store.ScopeDevice},
		{Scope: store.ScopeSite},
		{Scope: store.ScopeSite, Value: "198.51.100.7"},
		{Scope: store.ScopeSite, Value: "198.51.100.7/24"},
		{Scope: store.ScopeSite, Value: "::ffff:198.51.100.0/90"},
		{Scope: store.ScopeSite, Value: "::fffe:0:0/95"},
	} {
		if err := session.CheckLockdown(bad); err == nil {
			t.Errorf("%+v was taken", bad)
		}
	}
}
