package session_test

import (
	"net/netip"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// What a device asks for in its first packet from a new place is decided there;
// what was open from the old one is when Endpoint follows.
func TestFirstPacketFromANewPlace(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	ask := func() (*session.Flow, policy.Decision) {
		t.Helper()
		f, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[0], 4001), App: g.app("crm"), Action: policy.ActionRequest})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.End(session.Result{}) })
		dec, err := f.Authorize(t.Context(), &policy.Request{Method: "GET", Host: "crm.example.com", Path: "/"})
		if err != nil {
			t.Fatal(err)
		}
		return f, dec
	}
	open, dec := ask()
	if !dec.Allow {
		t.Fatalf("at home: %+v", dec)
	}
	there := netip.MustParseAddrPort("198.51.100.7:4000")
	g.country.Store("US")
	g.m.Moved(l.reg.TunnelKey, there)
	if _, dec := ask(); dec.Allow || dec.Reason != policy.ReasonLocationNotAllowed {
		t.Errorf("a request from a new place is decided at the old one: %+v", dec)
	}
	g.m.Endpoint(l.reg.TunnelKey, there)
	if dec, ok := open.Cut(); !ok || dec.Reason != policy.ReasonLocationNotAllowed {
		t.Errorf("what was open: cut %v, %+v", ok, dec)
	}
	recs := g.records(audit.KindLocation)
	if last := recs[len(recs)-1]; last.Detail["country"] != "US" || last.Detail["before"] != "SE" || last.Remote != "198.51.100.7" {
		t.Errorf("the record of the move: %+v", last)
	}
}

// Who is back before Endpoint follows has not moved, but what was opened
// meanwhile is decided again.
func TestThereAndBack(t *testing.T) {
	g := newGateway(t)
	g.country.Store("US")
	l := g.ready("anna")
	home, there := netip.MustParseAddrPort("192.0.2.7:4000"), netip.MustParseAddrPort("198.51.100.7:4000")
	g.m.Endpoint(l.reg.TunnelKey, home)
	before := len(g.records(audit.KindLocation))
	g.country.Store("SE")
	g.m.Moved(l.reg.TunnelKey, there)
	f, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[0], 4001), App: g.app("crm"), Action: policy.ActionRequest})
	if err != nil {
		t.Fatal(err)
	}
	defer f.End(session.Result{})
	if dec, err := f.Authorize(t.Context(), &policy.Request{Method: "GET", Host: "crm.example.com", Path: "/"}); err != nil || !dec.Allow {
		t.Fatalf("%+v %v", dec, err)
	}
	g.country.Store("US")
	g.m.Endpoint(l.reg.TunnelKey, home)
	if dec, ok := f.Cut(); !ok || dec.Reason != policy.ReasonLocationNotAllowed {
		t.Errorf("what was opened there: cut %v, %+v", ok, dec)
	}
	if n := len(g.records(audit.KindLocation)); n != before {
		t.Errorf("%d records of moves for none", n-before)
	}
}
