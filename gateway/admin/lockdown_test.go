package admin_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/admin"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// What people type becomes what facts are compared with, or is refused.
func TestLockdownNames(t *testing.T) {
	g := newGateway(t)
	d := g.connect("anna")
	g.login(d.ID, "Anna Berg", "sales")
	ctx := t.Context()
	for name, c := range map[string]struct {
		scope, value, want, refused string
		locked                      bool
	}{
		"all":                   {"all", "", "", "", true},
		"all of something":      {"all", "crm", "", "has no value", false},
		"an app":                {"app", "crm", "crm", "", true},
		"no app":                {"app", "crm2", "", `no app "crm2"`, false},
		"an app without a name": {"app", "", "", "names it", false},
		"a person's name":       {"subject", "anna berg", "https://idp#sub-" + d.ID, "", true},
		"a person's key":        {"subject", "https://idp#sub-" + d.ID, "https://idp#sub-" + d.ID, "", true},
		"a stranger's key":      {"subject", "https://idp#other", "https://idp#other", "", false},
		"a stranger":            {"subject", "Bo Ek", "", "Nobody called", false},
		"a device's name":       {"device", "anna", d.ID, "", true},
		"a device's ID":         {"device", d.ID, d.ID, "", true},
		"no device":             {"device", "bo", "", `no device is called "bo"`, false},
		"an address":            {"site", "192.0.2.7", "192.0.2.7/32", "", true},
		"an address in IPv6":    {"site", "::ffff:192.0.2.7", "192.0.2.7/32", "", true},
		"an address in a net":   {"site", "192.0.2.9/24", "192.0.2.0/24", "", true},
		"a net in IPv6":         {"site", "::ffff:192.0.2.0/120", "192.0.2.0/24", "", true},
		"all of IPv4 in IPv6":   {"site", "::ffff:0:0/96", "0.0.0.0/0", "", true},
		"more than IPv4":        {"site", "::ffff:192.0.2.0/90", "", "write IPv4 addresses as IPv4", false},
		"around IPv4":           {"site", "::/64", "", "write IPv4 addresses as IPv4", false},
		"all of IPv6":           {"site", "::/0", "::/0", "", false},
		"no address":            {"site", "Malmo", "", "A site is", false},
		"no scope":              {"planet", "earth", "", "scope of a lockdown", false},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := g.Lockdown(ctx, admin.Lockdown{Scope: c.scope, Value: c.value, Reason: "drill"})
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Errorf("answered %+v %v, want %q", l, err, c.refused)
				}
				return
			}
			if err != nil || l.Value != c.want || l.ID == "" || l.Cuts == nil {
				t.Fatalf("%+v %v", l, err)
			}
			f, err := g.sessions.Begin(session.Begin{Peer: netip.AddrPortFrom(d.Addresses[0], 4000), App: &policy.App{Name: "crm", Protocol: "http"}, Action: policy.ActionRequest})
			g.must(err)
			defer f.End(session.Result{})
			dec, err := f.Authorize(ctx, &policy.Request{Method: "GET", Host: "crm.example.com", Path: "/"})
			if err != nil || (dec.Reason == policy.ReasonLockedDown) != c.locked {
				t.Errorf("%+v %v", dec, err)
			}
			why, err := g.Why(ctx, admin.Why{App: "crm", Device: d.ID})
			if err != nil || (why.Reason == string(policy.ReasonLockedDown)) != c.locked {
				t.Errorf("why: %+v %v", why, err)
			}
			if all, err := g.Lockdowns(ctx); err != nil || len(all.Items) != 1 || all.Items[0].ID != l.ID || all.Items[0].Reason != "drill" || !strings.HasPrefix(all.Items[0].By, "os:") {
				t.Errorf("listed %+v %v", all, err)
			}
			_, err = g.sessions.LiftLockdown(ctx, session.Lift{ID: l.ID, By: "test", At: now})
			g.must(err)
			if _, err = g.LiftLockdown(ctx, l.ID, admin.Revoke{}); err == nil {
				t.Error("lifted twice")
			}
		})
	}
}
