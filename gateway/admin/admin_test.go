package admin_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/gateway/admin"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/people"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const crm = `
name: crm
protocol: http
hosts: [crm.example.com]
upstream: http://crm.internal:80
access:
  - groups: [sales]
    posture: {host_firewall: pass}
    countries: [SE]
    methods: [GET]
    hours: {from: "06:00", to: "20:00", zone: UTC}
`

// gw is a running socket with real rooms behind it. Only the tunnel is not
// there.
type gw struct {
	*admin.Client
	t        *testing.T
	dir      string
	socket   string
	store    *store.Store
	audit    *audit.Log
	sessions *session.Manager
	engine   *policy.Engine
	elapsed  atomic.Int64 // of the sessions' clock

	nonces map[string]string // of each device's next report
}

// now is a Monday.
var now = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

func newGateway(t *testing.T) *gw {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	g := &gw{t: t, dir: dir, socket: filepath.Join(dir, "admin.sock"), nonces: map[string]string{}}
	clock := func() time.Time { return now }
	ca, err := certs.OpenCA(certs.CAConfig{Dir: filepath.Join(dir, "ca"), Now: clock})
	g.must(err)
	g.store, err = store.Open(t.Context(), store.Options{
		Path: filepath.Join(dir, "data", "gateway.db"), IPv4: netip.MustParsePrefix("100.96.0.0/16"),
		IPv6: netip.MustParsePrefix("fd70:7674:766b::/64"), SealKey: [32]byte{1}, Now: clock,
	})
	g.must(err)
	keys, err := people.Open(filepath.Join(dir, "people"))
	g.must(err)
	g.audit, err = audit.Open(audit.Options{Dir: filepath.Join(dir, "audit"), People: keys, Now: clock})
	g.must(err)
	g.engine = policy.NewEngine(policy.EngineOptions{Now: clock, Timeout: 5 * time.Second})
	locate := func(a netip.Addr) policy.Location {
		return policy.Location{Address: a.String(), Country: map[string]string{"192.0.2.7": "SE", "203.0.113.9": "BR"}[a.String()]}
	}
	own := g.store.GatewayAddresses()
	g.sessions = session.New(session.Config{
		Engine: g.engine, Store: g.store, Audit: g.audit, Table: segment.NewTable(own), Gateway: own, ControlPort: 80, Locate: locate,
		AddPeer:    func(session.Connection) error { return nil },
		RemovePeer: func([32]byte) error { return nil }, Now: clock, Elapsed: func() time.Duration { return time.Duration(g.elapsed.Load()) },
	})
	apps := filepath.Join(dir, "apps")
	g.must(os.Mkdir(apps, 0o700))
	g.must(os.WriteFile(filepath.Join(apps, "crm.yaml"), []byte(crm), 0o600))
	rev, err := policy.Load(apps, policy.LoadOptions{})
	g.must(err)
	g.must(g.sessions.Publish(t.Context(), rev, "test"))
	var bundle bytes.Buffer
	g.must(rev.WriteBundle(&bundle))
	g.must(os.WriteFile(filepath.Join(dir, rev.ID()+".tar.gz"), bundle.Bytes(), 0o600))

	srv := admin.New(admin.Config{
		Socket: g.socket, URL: "https://gateway.example.com", CA: ca, Store: g.store, Audit: g.audit, Sessions: g.sessions,
		Engine: g.engine, Locate: locate, Bundles: dir, Now: clock,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 2)
	go func() { done <- srv.Run(ctx) }()
	go func() { done <- g.audit.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, <-done, g.store.CheckConsistency(context.Background()), g.audit.Close(), g.store.Close()); err != nil {
			t.Error(err)
		}
	})
	g.Client = admin.NewClient(g.socket)
	for range 500 {
		if c, err := net.Dial("unix", g.socket); err == nil {
			g.must(c.Close())
			return g
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the socket never answered")
	return nil
}

func (g *gw) must(err error) {
	g.t.Helper()
	if err != nil {
		g.t.Fatal(err)
	}
}

// connect enrols and connects a device whose firewall is on, from Sweden.
func (g *gw) connect(name string) store.Device {
	g.t.Helper()
	id := [32]byte([]byte(fmt.Sprintf("%-32s", name)))
	g.must(g.store.CreateInvite(g.t.Context(), store.Invite{SecretHash: id, CreatedBy: "test", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}))
	d, err := g.store.RedeemInvite(g.t.Context(), store.Redeem{
		SecretHash: id, Now: now,
		Device: store.Device{ID: "dev-" + name, Name: name, OS: "linux", KeyTier: "software", KeyHash: id, PublicKey: id[:]},
	})
	g.must(err)
	r := store.Registration{DeviceID: d.ID, TunnelKey: id, TokenHash: id, BootID: "boot", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	_, err = g.store.PutRegistration(g.t.Context(), r)
	g.must(err)
	g.must(g.sessions.Connect(session.Connection{Device: d, Registration: r, Nonce: "n"}))
	g.sessions.Endpoint(id, netip.MustParseAddrPort("192.0.2.7:4000"))
	g.nonces[d.ID], err = g.sessions.Posture(d.ID, "n", "boot", map[string]policy.Signal{wire.SignalHostFirewall: {State: wire.SignalPass, Value: "ufw: on"}})
	g.must(err)
	return d
}

func (g *gw) login(device, name string, groups ...string) store.Session {
	g.t.Helper()
	s, err := g.sessions.Login(g.t.Context(), store.Session{
		DeviceID: device, OSUser: "1000:anna", StartedAt: now, LastSeen: now, ExpiresAt: now.Add(12 * time.Hour),
		Subject: policy.Subject{Issuer: "https://idp", ID: "sub-" + device, Name: name, Groups: groups, AuthenticatedAt: now},
	})
	g.must(err)
	return s
}

// records are those that an administrator caused.
func (g *gw) records() (out []audit.Record) {
	g.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); g.audit.Pending() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	g.must(audit.Scan(g.audit.Path(), func(line []byte, r *audit.Record) bool {
		if _, err := g.audit.Reveal(line, r); err != nil {
			g.t.Error(err)
		}
		r.Person = ""
		if strings.HasPrefix(r.Actor, "os:") {
			out = append(out, *r)
		}
		return true
	}))
	return out
}

func TestSocketIsPrivateAndNamesItsCaller(t *testing.T) {
	g := newGateway(t)
	st, err := os.Stat(g.socket)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v %v", st.Mode(), err)
	}
	d := g.connect("anna")
	s := g.login(d.ID, "Anna Berg", "sales")
	ctx := t.Context()
	_, err = g.Invite(ctx, admin.Invite{Name: "x"})
	g.must(err)
	_, err = g.Sessions(ctx, false)
	g.must(err)
	_, err = g.Why(ctx, admin.Why{App: "crm", Subject: "Anna Berg"})
	g.must(err)
	g.must(g.AuditTail(ctx, io.Discard, 1, false, false))
	_, err = g.RevokeSession(ctx, s.ID, admin.Revoke{Reason: "shift moved"})
	g.must(err)
	_, err = g.RevokeDevice(ctx, d.ID, admin.Revoke{Reason: "lost"})
	g.must(err)

	me, err := user.Current()
	g.must(err)
	actor := "os:" + me.Uid + ":" + me.Username
	var kinds []string
	for _, r := range g.records() {
		kinds = append(kinds, string(r.Kind))
		if r.Actor != actor {
			t.Errorf("%s: actor %q, want %q", r.Kind, r.Actor, actor)
		}
	}
	if got := strings.Join(kinds, " "); got != "invite admin why admin session_end revoke" {
		t.Errorf("recorded: %s", got)
	}
}

// A socket in a directory that others may enter would be open to them for the
// moment between bind and chmod.
func TestOpenDirectoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	srv := admin.New(admin.Config{Socket: filepath.Join(dir, "admin.sock")})
	if err := srv.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("got %v", err)
	}
}

func TestInvite(t *testing.T) {
	g := newGateway(t)
	inv, err := g.Invite(t.Context(), admin.Invite{Name: "anna-laptop", Serial: "S1", Expires: 4 * time.Hour})
	g.must(err)
	code, err := wire.ParseCode(inv.Code)
	g.must(err)
	kept, err := g.store.Invite(t.Context(), code.SecretHash())
	if err != nil || kept.Name != "anna-laptop" || kept.Serial != "S1" || !kept.ExpiresAt.Equal(now.Add(4*time.Hour)) || !inv.ExpiresAt.Equal(kept.ExpiresAt) {
		t.Errorf("kept %+v, %v", kept, err)
	}
	for _, e := range []time.Duration{-time.Second, 31 * 24 * time.Hour} {
		var we *wire.Error
		if _, err := g.Invite(t.Context(), admin.Invite{Expires: e}); !errors.As(err, &we) || we.Code != "bad_request" {
			t.Errorf("a code for %s: %v", e, err)
		}
	}
	// The log never holds what would enrol a device.
	data, err := os.ReadFile(g.audit.Path())
	if err != nil || bytes.Contains(data, []byte(code.SecretText())) {
		t.Errorf("the code is in the log (%v)", err)
	}
}

func TestNothingIsInvitedWithoutARecord(t *testing.T) {
	g := newGateway(t)
	g.must(g.audit.Close())
	if inv, err := g.Invite(t.Context(), admin.Invite{}); err == nil || inv.Code != "" {
		t.Errorf("got %+v", inv)
	}
}

func TestDevicesAndSessions(t *testing.T) {
	g := newGateway(t)
	ctx := t.Context()
	d := g.connect("anna")
	s := g.login(d.ID, "Anna Berg", "sales")
	got, err := g.Device(ctx, d.ID)
	if err != nil || got.Status != "connected" || got.Session == nil || got.Session.ID != s.ID || got.Location.Country != "SE" || len(got.Posture) != 1 {
		t.Errorf("device: %+v %v", got, err)
	}
	active, err := g.Sessions(ctx, false)
	if err != nil || len(active.Items) != 1 || !active.Items[0].Active {
		t.Errorf("sessions: %+v %v", active, err)
	}
	ended, err := g.RevokeSession(ctx, s.ID, admin.Revoke{Reason: "shift moved"})
	if err != nil || ended.Active || ended.EndReason != "shift moved" || !strings.HasPrefix(ended.EndedBy, "os:") {
		t.Errorf("revoked session: %+v %v", ended, err)
	}
	if _, ok := g.sessions.SessionOf(d.ID); ok {
		t.Error("the session is still in force")
	}
	revoked, err := g.RevokeDevice(ctx, d.ID, admin.Revoke{Reason: "lost"})
	if err != nil || revoked.Status != "revoked" || revoked.Reason != "lost" {
		t.Errorf("revoked device: %+v %v", revoked, err)
	}
	if _, ok := g.sessions.Status(d.ID); ok {
		t.Error("the device is still connected")
	}
	// Again, without a reason: the first one stands.
	if again, err := g.RevokeDevice(ctx, d.ID, admin.Revoke{}); err != nil || again.Reason != "lost" {
		t.Errorf("revoked again: %+v %v", again, err)
	}
	var we *wire.Error
	_, err1 := g.Device(ctx, "dev-nobody")
	_, err2 := g.RevokeDevice(ctx, "dev-nobody", admin.Revoke{})
	_, err3 := g.Session(ctx, "s-nobody")
	_, err4 := g.RevokeSession(ctx, "s-nobody", admin.Revoke{})
	for i, err := range []error{err1, err2, err3, err4} {
		if !errors.As(err, &we) || we.Code != "not_found" {
			t.Errorf("%d: %v", i+1, err)
		}
	}
	for _, r := range g.records() {
		if r.Session == "s-nobody" || r.Device == "dev-nobody" {
			t.Errorf("what never was has an end on record: %+v", r)
		}
	}
	if items, err := g.Sessions(ctx, false); err != nil || items.Items == nil || len(items.Items) != 0 {
		t.Errorf("an empty list: %+v %v", items, err)
	}
}

func TestWhy(t *testing.T) {
	g := newGateway(t)
	g.login(g.connect("anna").ID, "Anna Berg", "sales")
	g.login(g.connect("anna2").ID, "Anna Two", "sales")
	g.login(g.connect("twin1").ID, "Same Name", "sales")
	g.login(g.connect("twin2").ID, "Same Name", "sales")
	waiting := g.connect("waiting")
	night := time.Date(2026, 11, 23, 23, 0, 0, 0, time.UTC)
	anna := func(w admin.Why) admin.Why {
		w.App, w.Subject = "crm", "anna berg"
		return w
	}
	for name, c := range map[string]struct {
		ask  admin.Why
		want string
	}{
		"as things are":       {anna(admin.Why{}), "allowed"},
		"by issuer and sub":   {admin.Why{App: "crm", Subject: "https://idp#sub-dev-anna"}, "allowed"},
		"other groups":        {anna(admin.Why{Groups: []string{"support"}}), "group_not_allowed"},
		"no groups":           {anna(admin.Why{Groups: []string{}}), "group_not_allowed"},
		"firewall off":        {anna(admin.Why{Signals: map[string]string{"host_firewall": "fail"}}), "posture_failed"},
		"elsewhere":           {anna(admin.Why{From: "203.0.113.9"}), "location_not_allowed"},
		"nowhere known":       {anna(admin.Why{From: "198.51.100.1"}), "location_unknown"},
		"at night":            {anna(admin.Why{At: &night}), "outside_hours"},
		"another method":      {anna(admin.Why{Method: "post"}), "method_not_allowed"},
		"no such app":         {admin.Why{App: "nope", Subject: "Anna Berg"}, "unknown_app"},
		"before login":        {admin.Why{App: "crm", Device: waiting.ID}, "login_required"},
		"a stranger":          {admin.Why{App: "crm", Subject: "nobody"}, "login_required"},
		"a stranger supposed": {admin.Why{App: "crm", Subject: "nobody", Groups: []string{"sales"}, Signals: map[string]string{"host_firewall": "pass"}, From: "192.0.2.7"}, "allowed"},
	} {
		b, err := g.Why(t.Context(), c.ask)
		if err != nil || b.Reason != c.want || b.Allow != (c.want == "allowed") {
			t.Errorf("%s: %s (%v) %v, want %s", name, b.Reason, b.Allow, err, c.want)
		}
	}
	// Before login the device's facts stand beside the answer.
	b, err := g.Why(t.Context(), admin.Why{App: "crm", Device: waiting.ID})
	if err != nil || b.Input.Posture.Signals["host_firewall"].State != "pass" || b.Input.Location.Country != "SE" || !strings.Contains(b.Basis, waiting.ID) {
		t.Errorf("before login: %+v %v", b, err)
	}
	for name, w := range map[string]admin.Why{
		"two people":  {App: "crm", Subject: "same name"},
		"bad signal":  anna(admin.Why{Signals: map[string]string{"mood": "pass"}}),
		"bad state":   anna(admin.Why{Signals: map[string]string{"host_firewall": "on"}}),
		"bad address": anna(admin.Why{From: "here"}),
		"nobody":      {App: "crm"},
	} {
		var we *wire.Error
		if _, err := g.Why(t.Context(), w); !errors.As(err, &we) || we.Code != "bad_request" {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := g.Why(t.Context(), admin.Why{App: "crm", Device: "dev-nobody"}); err == nil {
		t.Error("a device that does not exist has facts")
	}
}

func TestAudit(t *testing.T) {
	g := newGateway(t)
	ctx := t.Context()
	yes, no := true, false
	input := json.RawMessage(`{"action":"request"}`)
	for _, r := range []audit.Record{
		{Kind: audit.KindDecision, Decision: "d-1", Allow: &yes, Reason: "allowed", Input: input},
		{Kind: audit.KindDecision, Decision: "d-2", Allow: &no, Reason: "misdirected"},
	} {
		g.must(g.audit.Append(&r))
	}
	tail := func(n int, denied bool) (ids []string) {
		t.Helper()
		var b bytes.Buffer
		g.must(g.AuditTail(ctx, &b, n, false, denied))
		for line := range strings.Lines(b.String()) {
			var r audit.Record
			g.must(json.Unmarshal([]byte(line), &r))
			ids = append(ids, r.Decision)
		}
		return ids
	}
	if got := tail(0, true); len(got) != 1 || got[0] != "d-2" {
		t.Errorf("denied: %v", got)
	}
	if got := tail(1, false); len(got) != 1 {
		t.Errorf("the last one: %v", got)
	}
	var b bytes.Buffer
	if err := g.AuditShow(ctx, &b, "d-1", true); err != nil || b.String() != string(input)+"\n" {
		t.Errorf("input: %q %v", b.String(), err)
	}
	if err := g.AuditShow(ctx, io.Discard, "d-2", true); err == nil || !strings.Contains(err.Error(), "no input") {
		t.Errorf("a record without input: %v", err)
	}
	if err := g.AuditShow(ctx, io.Discard, "d-3", false); err == nil || !strings.Contains(err.Error(), "d-3") {
		t.Errorf("no such record: %v", err)
	}

	// Follow shows what comes, and only what was asked for.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := g.AuditTail(ctx, w, 1, true, true)
		done <- errors.Join(err, w.Close())
	}()
	dec := json.NewDecoder(r)
	next := func() (rec audit.Record) {
		t.Helper()
		g.must(dec.Decode(&rec))
		return rec
	}
	if rec := next(); rec.Decision != "d-2" {
		t.Errorf("first %+v", rec)
	}
	g.must(g.audit.Append(&audit.Record{Kind: audit.KindDecision, Decision: "d-4", Allow: &yes}))
	g.must(g.audit.Append(&audit.Record{Kind: audit.KindDecision, Decision: "d-5", Allow: &no}))
	if rec := next(); rec.Decision != "d-5" {
		t.Errorf("then %+v", rec)
	}
	cancel()
	g.must(r.Close())
	if err := <-done; err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

func TestBundle(t *testing.T) {
	g := newGateway(t)
	var b bytes.Buffer
	rev, err := g.Bundle(t.Context(), &b, "")
	if err != nil || !strings.HasPrefix(rev, "sha256-") || b.Len() == 0 {
		t.Errorf("the active one: %s %v", rev, err)
	}
	if again, err := g.Bundle(t.Context(), io.Discard, rev); err != nil || again != rev {
		t.Errorf("by name: %s %v", again, err)
	}
	for _, name := range []string{"sha256-unknown", "../audit/audit", "a/b"} {
		if _, err := g.Bundle(t.Context(), io.Discard, name); err == nil {
			t.Errorf("%s is a revision", name)
		}
	}
}

func TestApps(t *testing.T) {
	g := newGateway(t)
	apps, err := g.Apps(t.Context())
	if err != nil || len(apps.Items) != 1 || apps.Items[0].Name != "crm" || len(apps.Items[0].Addresses) != 2 || apps.Items[0].Visibility != "explain" || apps.Items[0].Durability != "kill" {
		t.Errorf("apps: %+v %v", apps, err)
	}
}

func TestFlows(t *testing.T) {
	g := newGateway(t)
	g.must(os.WriteFile(filepath.Join(g.dir, "apps", "crm.yaml"), []byte(crm+"on_loss: {drain: 15m}\n"), 0o600))
	rev, err := policy.Load(filepath.Join(g.dir, "apps"), policy.LoadOptions{})
	g.must(err)
	g.must(g.sessions.Publish(t.Context(), rev, "test"))
	apps, err := g.Apps(t.Context())
	g.must(err)
	if apps.Items[0].OnLoss != "drain 15m" {
		t.Errorf("%+v", apps.Items)
	}
	open := func(d store.Device) *session.Flow {
		f, err := g.sessions.Begin(session.Begin{Peer: netip.AddrPortFrom(d.Addresses[0], 4000), App: &rev.Apps()[0], Action: policy.ActionRequest})
		g.must(err)
		dec, err := f.Authorize(t.Context(), &policy.Request{Method: "GET", Host: "crm.example.com", Path: "/"})
		g.must(err)
		if !dec.Allow {
			t.Fatalf("%+v", dec)
		}
		t.Cleanup(func() { f.End(session.Result{}) })
		return f
	}
	anna, bert := g.connect("anna"), g.connect("bert")
	g.login(anna.ID, "Anna Berg", "sales")
	g.login(bert.ID, "Bert", "sales")
	f, other := open(anna), open(bert)
	// What is allowed no more because nothing is heard of the firewall drains.
	_, err = g.sessions.Posture(anna.ID, g.nonces[anna.ID], "boot", map[string]policy.Signal{wire.SignalHostFirewall: {State: wire.SignalUnknown}})
	g.must(err)
	for _, c := range []struct {
		only admin.FlowFilter
		want []*session.Flow
	}{
		{admin.FlowFilter{}, []*session.Flow{f, other}},
		{admin.FlowFilter{Draining: true}, []*session.Flow{f}},
		{admin.FlowFilter{Device: "bert"}, []*session.Flow{other}},
		{admin.FlowFilter{Device: anna.ID, App: "crm"}, []*session.Flow{f}},
		{admin.FlowFilter{App: "no such"}, nil},
	} {
		all, err := g.Flows(t.Context(), c.only)
		g.must(err)
		got := map[string]admin.Flow{}
		for _, x := range all.Items {
			got[x.ID] = x
		}
		if len(got) != len(c.want) {
			t.Errorf("%+v: %+v", c.only, all.Items)
		}
		for _, w := range c.want {
			x := got[w.ID()]
			if draining := w == f; x.App != "crm" || x.Name == "" || (x.State == "draining") != draining || (x.DrainUntil != nil) != draining ||
				draining && (!x.DrainUntil.Equal(now.Add(15*time.Minute)) || x.Reason != "posture_unknown") {
				t.Errorf("%+v: %+v", c.only, x)
			}
		}
	}
	if _, err := g.Flows(t.Context(), admin.FlowFilter{Device: "nobody's"}); err == nil {
		t.Error("a device that is not there has no flows")
	}
}

func TestBadCalls(t *testing.T) {
	g := newGateway(t)
	hc := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", g.socket)
	}}}
	defer hc.CloseIdleConnections()
	for body, path := range map[string]string{
		`{"nam":"x"}`: "/v1/invites",
		`{`:           "/v1/why",
		`{"x":1}`:     "/v1/devices/dev-1/revoke",
		``:            "/v1/sessions/s-1/revoke",
	} {
		resp, err := hc.Post("http://gateway"+path, "application/json", strings.NewReader(body))
		g.must(err)
		g.must(resp.Body.Close())
		if resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s %s: %s", path, body, resp.Status)
		}
	}
	nobody := admin.NewClient(filepath.Join(g.dir, "none.sock"))
	if _, err := nobody.Devices(t.Context()); err == nil || !strings.Contains(err.Error(), "no gateway is running here") {
		t.Errorf("nobody there: %v", err)
	}
}

// Whoever is told "Anna's laptop was stolen" has the name, not the ID. A name
// of several, or of a revoked one alone, names nothing.
func TestDevicesByName(t *testing.T) {
	g := newGateway(t)
	ctx := t.Context()
	d := g.connect("anna")
	if got, err := g.Device(ctx, "anna"); err != nil || got.ID != d.ID {
		t.Errorf("by name: %+v %v", got, err)
	}
	g.must(g.store.CreateInvite(ctx, store.Invite{SecretHash: [32]byte{7}, Name: "anna", CreatedBy: "test", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}))
	twin, err := g.store.RedeemInvite(ctx, store.Redeem{SecretHash: [32]byte{7}, Now: now, Device: store.Device{ID: "dev-twin", KeyHash: [32]byte{7}}})
	g.must(err)
	var we *wire.Error
	if _, err := g.RevokeDevice(ctx, "anna", admin.Revoke{}); !errors.As(err, &we) || we.Code != "ambiguous" {
		t.Errorf("a name of two: %v", err)
	}
	if _, err := g.RevokeDevice(ctx, twin.ID, admin.Revoke{}); err != nil {
		t.Error(err)
	}
	if got, err := g.RevokeDevice(ctx, "anna", admin.Revoke{Reason: "stolen"}); err != nil || got.ID != d.ID || got.Status != "revoked" {
		t.Errorf("the one that is left: %+v %v", got, err)
	}
	if _, err := g.Device(ctx, "anna"); !errors.As(err, &we) || we.Code != "not_found" {
		t.Errorf("a name of revoked ones: %v", err)
	}
}
