package session_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// appText is an app file.
func appText(name, protocol, host, upstream, more string) string {
	return "name: " + name + "\nprotocol: " + protocol + "\nhosts: [" + host + "]\nupstream: " + upstream + "\n" + more + "access:\n  - groups: [sales]\n"
}

func isLocked(m *session.Manager, app string) bool {
	_, ok := m.LockedDown(&policy.Input{App: policy.AppRef{Name: app}})
	return ok
}

// One who may write the policy does not lift a lockdown by it: it holds for
// whatever bears the app's hosts or leads to where it is. What has nothing to
// do with it stays open, and every publish goes through.
func TestLockdownFollowsItsApp(t *testing.T) {
	const at = "https://crm.internal:8443"
	crm := appText("crm", "http", "crm.test", at, "")
	other := appText("other", "http", "other.test", "https://other.internal", "")
	renamed := appText("crm2", "http", "crm.test", at, "")
	for name, c := range map[string]struct {
		before  []string   // published when the lockdown comes; crm and other if nil
		then    [][]string // published one after the other
		restart int        // at which of them, from 1, the gateway is started anew; 0: none
		locked  string     // after the last
		open    string
	}{
		"the name":                         {nil, [][]string{{renamed, other}}, 0, "crm2", "other"},
		"the name, gone for a while":       {nil, [][]string{{other}, {renamed, other}}, 0, "crm2", "other"},
		"name and upstream":                {nil, [][]string{{appText("crm2", "http", "crm.test", "https://else.internal", ""), other}}, 0, "crm2", "other"},
		"name and host":                    {nil, [][]string{{appText("crm2", "http", "new.test", at, ""), other}}, 0, "crm2", "other"},
		"the upstream spelt otherwise":     {nil, [][]string{{appText("crm2", "http", "new.test", "http://CRM.Internal:8443", ""), other}}, 0, "crm2", "other"},
		"a tunnel to where it is":          {nil, [][]string{{appText("crm2", "tcp", "new.test", "crm.internal", "ports: [22, 8443]\n"), other}}, 0, "crm2", "other"},
		"another port there":               {nil, [][]string{{appText("crm2", "tcp", "new.test", "crm.internal", "ports: [22]\n"), crm, other}}, 0, "crm", "crm2 other"},
		"a second door":                    {nil, [][]string{{crm, appText("door", "http", "new.test", at, ""), other}}, 0, "crm door", "other"},
		"its host given to another app":    {nil, [][]string{{appText("other", "http", "other.test, crm.test", "https://other.internal", "")}}, 0, "other", ""},
		"given and taken back":             {nil, [][]string{{appText("other", "http", "other.test, crm.test", "https://other.internal", "")}, {crm, other}}, 0, "crm", "other"},
		"moved, then renamed":              {nil, [][]string{{appText("crm", "http", "moved.test", "https://moved.internal", ""), other}, {appText("crm2", "http", "new.test", "https://moved.internal", ""), other}}, 0, "crm2", "other"},
		"renamed across a restart":         {nil, [][]string{{renamed, other}}, 1, "crm2", "other"},
		"moved, then renamed in a restart": {nil, [][]string{{appText("crm", "http", "moved.test", "https://moved.internal", ""), other}, {appText("crm2", "http", "moved.test", "https://else.internal", ""), other}}, 2, "crm2", "other"},
		"nothing":                          {nil, [][]string{{crm, other, appText("more", "http", "more.test", "https://more.internal", "")}}, 0, "crm", "other more"},
		"behind an ingress that is shared": {
			[]string{crm, appText("other", "http", "other.test", at, "")},
			[][]string{{crm, appText("other", "http", "other.test", at, ""), appText("more", "http", "more.test", at, "")}},
			0, "crm", "other more",
		},
		"renamed behind it": {
			[]string{crm, appText("other", "http", "other.test", at, "")},
			[][]string{{renamed, appText("other", "http", "other.test", at, "")}},
			0, "crm2", "other",
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			if c.before == nil {
				c.before = []string{crm, other}
			}
			g.publish(c.before...)
			lock, _ := g.lockdown(store.ScopeApp, "crm")
			for i, apps := range c.then {
				if c.restart == i+1 {
					g.m = session.New(session.Config{Store: g.store, Audit: g.audit, Engine: g.engine, Table: g.table})
				}
				g.publish(apps...)
				if c.restart == i+1 {
					if err := g.m.RestoreLockdowns(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			for _, app := range strings.Fields(c.locked) {
				if !isLocked(g.m, app) {
					t.Errorf("%s is open", app)
				}
				if follows := slices.Contains(g.m.Following(lock.ID), app); follows != (app != "crm") {
					t.Errorf("listed as followed: %v", g.m.Following(lock.ID))
				}
			}
			for _, app := range strings.Fields(c.open) {
				if isLocked(g.m, app) {
					t.Errorf("%s is locked down", app)
				}
			}
			g.lift(lock.ID)
			if isLocked(g.m, "crm") || isLocked(g.m, "crm2") || isLocked(g.m, "other") {
				t.Error("something is locked down after it was lifted")
			}
		})
	}
}

// An app that takes over a host of a locked-down one is cut with the publish,
// and the log says why, once.
func TestLockdownThatFollowsCutsAndIsRecorded(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	taken := strings.Replace(desk, "ports:", "hosts: [crm.example.com]\nports:", 1)
	f := g.open(l, "desk")
	lock, cuts := g.lockdown(store.ScopeApp, "crm")
	if cuts != 0 {
		t.Fatalf("%d flows of another app were cut", cuts)
	}
	g.publish(taken)
	if dec, ok := f.Cut(); !ok || dec.Reason != policy.ReasonLockedDown {
		t.Errorf("what was open: %v %+v", ok, dec)
	}
	if dec, err := g.flow(l, "desk").Authorize(t.Context(), nil); err != nil || dec.Reason != policy.ReasonLockedDown || dec.Fact.Value != "desk" {
		t.Errorf("what is new: %+v %v", dec, err)
	}
	g.publish(taken, appText("other", "http", "other.test", "https://other.internal", ""))
	var follows []audit.Record
	for _, r := range g.records(audit.KindLockdown) {
		if r.Outcome == "follows" {
			follows = append(follows, r)
		}
	}
	if len(follows) != 1 || follows[0].Actor != "test" || follows[0].Revision == "" || follows[0].Detail["lockdown"] != lock.ID ||
		follows[0].Detail["value"] != "crm" || follows[0].Detail["app"] != "desk" || follows[0].Detail["by"] != "host crm.example.com" {
		t.Errorf("the records: %+v", follows)
	}
	g.publish(crm, desk)
	g.open(l, "desk")
}

// What is behind one address is opened one by one: lockdowns of two apps there
// are two, and one that came to hold for a new app is replaced by one that does
// not.
func TestLockdownsBehindOneAddress(t *testing.T) {
	const at = "https://ingress.internal"
	app := func(name string) string { return appText(name, "http", name+".test", at, "") }
	g := newGateway(t)
	g.publish(app("one"), app("two"))
	first, _ := g.lockdown(store.ScopeApp, "one")
	second, _ := g.lockdown(store.ScopeApp, "two")
	g.lift(first.ID)
	if isLocked(g.m, "one") || !isLocked(g.m, "two") {
		t.Error("after the first was lifted")
	}
	g.lift(second.ID)

	g.publish(app("one"))
	first, _ = g.lockdown(store.ScopeApp, "one")
	g.publish(app("one"), app("new"))
	if !isLocked(g.m, "new") {
		t.Error("a second door is open")
	}
	g.lockdown(store.ScopeApp, "one")
	g.lift(first.ID)
	if isLocked(g.m, "new") || !isLocked(g.m, "one") {
		t.Error("the new app does not open alone")
	}
}

// A lockdown that comes while its app is being renamed holds for both names.
func TestLockdownDuringARename(t *testing.T) {
	g := newGateway(t)
	crm2 := strings.Replace(crm, "name: crm\n", "name: crm2\n", 1)
	for range 30 {
		g.publish(crm, desk)
		var lock store.Lockdown
		var wg sync.WaitGroup
		wg.Go(func() { lock, _ = g.lockdown(store.ScopeApp, "crm") })
		g.publish(crm2, desk)
		wg.Wait()
		if len(lock.Marks) == 0 { // the old name was gone when it came
			g.lift(lock.ID)
			continue
		}
		if !isLocked(g.m, "crm2") || isLocked(g.m, "desk") {
			t.Fatalf("locked down by %v: crm2 %v, desk %v", lock.Marks, isLocked(g.m, "crm2"), isLocked(g.m, "desk"))
		}
		g.lift(lock.ID)
	}
}

// A lockdown of before it was kept what its app is known by learns that from
// the policy, and keeps it.
func TestLockdownWithoutMarksLearnsThem(t *testing.T) {
	g := newGateway(t)
	if err := g.store.PutLockdown(t.Context(), store.Lockdown{ID: "lock-old", Scope: store.ScopeApp, Value: "crm", At: time.Unix(0, g.now.Load())}); err != nil {
		t.Fatal(err)
	}
	if err := g.m.RestoreLockdowns(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !isLocked(g.m, "crm") {
		t.Error("it is not in force")
	}
	want := []string{"host crm.example.com", "upstream 127.0.0.1:1"}
	if got, err := g.store.Lockdowns(t.Context()); err != nil || len(got) != 1 || !slices.Equal(got[0].Marks, want) {
		t.Errorf("stored %+v %v", got, err)
	}
	if got := g.m.Lockdowns(); len(got) != 1 || !slices.Equal(got[0].Marks, want) {
		t.Errorf("in force: %+v", got)
	}
}

// Where an app is does not depend on how it is spelt.
func TestWhatALockdownFollows(t *testing.T) {
	l := store.Lockdown{Scope: store.ScopeApp, Value: "crm", Marks: []string{"host crm.test", "upstream 10.0.0.1:443", "upstream crm.internal:80", "upstream [2001:db8::1]:443"}}
	web := []uint16{443, 80}
	for name, c := range map[string]struct {
		app  policy.App
		want string
	}{
		"itself":                {policy.App{Name: "crm", Protocol: "http", Hosts: []string{"crm.test"}, Upstream: "https://10.0.0.1", Ports: web}, ""},
		"a host":                {policy.App{Protocol: "http", Hosts: []string{"x.test", "crm.test"}, Upstream: "https://10.0.0.2", Ports: web}, "host crm.test"},
		"part of a host":        {policy.App{Protocol: "http", Hosts: []string{"a.crm.test"}, Upstream: "https://10.0.0.2", Ports: web}, ""},
		"the port of https":     {policy.App{Protocol: "http", Upstream: "https://10.0.0.1", Ports: web}, "upstream 10.0.0.1:443"},
		"the port of http":      {policy.App{Protocol: "http", Upstream: "http://10.0.0.1", Ports: web}, ""},
		"IPv4 as IPv6":          {policy.App{Protocol: "http", Upstream: "https://[::ffff:10.0.0.1]:0443", Ports: web}, "upstream 10.0.0.1:443"},
		"IPv6 at length":        {policy.App{Protocol: "tcp", Upstream: "[2001:DB8:0:0::1]:443", Ports: []uint16{7000}}, "upstream [2001:db8::1]:443"},
		"a name in capitals":    {policy.App{Protocol: "http", Upstream: "http://CRM.internal.", Ports: web}, "upstream crm.internal:80"},
		"one of several ports":  {policy.App{Protocol: "udp", Upstream: "crm.internal", Ports: []uint16{79, 80}}, "upstream crm.internal:80"},
		"none of several ports": {policy.App{Protocol: "udp", Upstream: "crm.internal", Ports: []uint16{79, 81}}, ""},
	} {
		if got := session.Follows(l, &c.app); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if got := session.Follows(store.Lockdown{Scope: store.ScopeDevice, Value: "crm", Marks: l.Marks}, &policy.App{Hosts: []string{"crm.test"}}); got != "" {
		t.Errorf("a lockdown of a device follows %s", got)
	}
}
