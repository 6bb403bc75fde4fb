package session_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/policy"
)

// A device resolves what it may know of, at the gateway's own address, and a
// name stops to resolve with the app's visibility.
func TestResolveFollowsVisibility(t *testing.T) {
	g := newGateway(t)
	named := strings.Replace(desk, "name: desk\n", "name: desk\nhosts: [desk.example.com]\n", 1)
	g.publish(crm, named)
	l := g.connect("anna")
	inner := l.Addresses
	check := func(when, host string, want bool) {
		t.Helper()
		for _, from := range inner {
			addrs, ok := g.m.Resolve(from, host)
			app, _, _ := strings.Cut(host, ".")
			if ok != want || ok && addrs != g.m.AppAddresses(app) || !ok && addrs != ([2]netip.Addr{}) {
				t.Errorf("%s, %s for %s: %v, %v", when, host, from, addrs, ok)
			}
		}
	}
	check("before login", "crm.example.com", true)
	check("before login", "desk.example.com", false)
	g.login(l, "sales")
	g.report(l, "pass")
	check("logged in", "crm.example.com", true)
	check("logged in", "desk.example.com", true)
	check("logged in", "hr.example.com", false)
	check("logged in", "", false)
	g.publish(named)
	check("without the app", "crm.example.com", false)
	if _, ok := g.m.Resolve(netip.MustParseAddr("100.70.1.1"), "desk.example.com"); ok {
		t.Error("an address of no device resolves")
	}
	for _, own := range g.store.GatewayAddresses() {
		p := syn(inner[0], own, 53)
		if own.Is6() {
			continue // syn makes IPv4 only
		}
		p[9] = segment.ProtoUDP
		p = append(p[:20:20], 0, 99, 0, 53, 0, 8, 0, 0)
		p[3] = byte(len(p))
		if v, cause := g.table.Filter(p); v != segment.Pass {
			t.Errorf("a question to %s: %v, %v", own, v, cause)
		}
	}
	g.m.Remove(l.ID, policy.Decision{})
	check("gone", "desk.example.com", false)
}
