package session_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const crm = `
name: crm
title: CRM
protocol: http
hosts: [crm.example.com]
upstream: http://127.0.0.1:1
access:
  - groups: [sales]
    posture: {host_firewall: pass}
    countries: [SE]
`

const desk = `
name: desk
title: Desk
protocol: tcp
upstream: desk.example.com:7000
ports: [7000]
access:
  - groups: [sales]
    posture: {host_firewall: pass}
`

// gw is a Manager with real rooms around it and a clock of its own.
type gw struct {
	t        testing.TB
	m        *session.Manager
	store    *store.Store
	audit    *audit.Log
	auditDir string
	table    *segment.Table
	engine   *policy.Engine
	dir      string // of the policy

	now     atomic.Int64 // unix nanoseconds
	elapsed atomic.Int64
	country atomic.Value

	mu    sync.Mutex
	peers map[[32]byte]bool

	beforeAdd func()                        // runs before the tunnel learns of a peer
	locating  func()                        // runs in every look-up of an address
	recording atomic.Pointer[func()]        // runs once, before the next record that is waited for
	hanging   atomic.Pointer[chan struct{}] // no record that is waited for goes further until it is closed
	removing  func(key [32]byte)
	over      func(inner [2]netip.Addr, session string)
	left      []string // devices that are connected no more; guarded by mu
}

// appending says whether the caller is the log's Append: others look at its
// clock too, at any time.
func appending() bool {
	var pcs [16]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, "audit.(*Log).Append") {
			return true
		}
		if !more {
			return false
		}
	}
}

func newGateway(t testing.TB) *gw {
	t.Helper()
	g := &gw{t: t, dir: t.TempDir(), auditDir: filepath.Join(t.TempDir(), "audit"), peers: map[[32]byte]bool{}}
	g.now.Store(time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC).UnixNano())
	g.country.Store("SE")
	clock := func() time.Time { return time.Unix(0, g.now.Load()).UTC() }
	var err error
	g.store, err = store.Open(t.Context(), store.Options{
		Path: filepath.Join(t.TempDir(), "data", "gateway.db"), IPv4: netip.MustParsePrefix("100.96.0.0/16"),
		IPv6: netip.MustParsePrefix("fd70:7674:766b::/64"), SealKey: [32]byte{1}, Now: clock,
	})
	if err != nil {
		t.Fatal(err)
	}
	g.audit, err = audit.Open(audit.Options{Dir: g.auditDir, Now: func() time.Time {
		if f := g.recording.Load(); f != nil && appending() && g.recording.CompareAndSwap(f, nil) {
			(*f)()
		}
		if answer := g.hanging.Load(); answer != nil && appending() {
			<-*answer
		}
		return clock()
	}})
	if err != nil {
		t.Fatal(err)
	}
	own := g.store.GatewayAddresses()
	g.table = segment.NewTable(own)
	g.engine = policy.NewEngine(policy.EngineOptions{Now: clock, Timeout: 5 * time.Second})
	g.m = session.New(session.Config{
		Engine: g.engine, Store: g.store, Audit: g.audit, Table: g.table, Gateway: own, ControlPort: 80,
		Locate: func(a netip.Addr) policy.Location {
			if g.locating != nil {
				g.locating()
			}
			return policy.Location{Address: a.String(), Country: g.country.Load().(string)}
		},
		AddPeer: func(c session.Connection) error {
			if g.beforeAdd != nil {
				g.beforeAdd()
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			g.peers[c.Registration.TunnelKey] = true
			return nil
		},
		RemovePeer: func(key [32]byte) error {
			if g.removing != nil {
				g.removing(key)
			}
			g.mu.Lock()
			defer g.mu.Unlock()
			delete(g.peers, key)
			return nil
		},
		SessionOver: func(inner [2]netip.Addr, session string) {
			if g.over != nil {
				g.over(inner, session)
			}
		},
		Left: func(device string) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.left = append(g.left, device)
		},
		Now: clock, Elapsed: func() time.Duration { return time.Duration(g.elapsed.Load()) }, MaxFlows: 50,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.audit.Run(ctx) }()
	drains := make(chan struct{})
	m := g.m // a test may put another in its place
	go func() { defer close(drains); m.KeepDrains(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-drains
		if err := <-done; err != nil {
			t.Errorf("the audit log: %v", err)
		}
		if err := g.store.CheckConsistency(context.Background()); err != nil {
			t.Errorf("the store is inconsistent: %v", err)
		}
		if err := errors.Join(g.audit.Close(), g.store.Close()); err != nil {
			t.Error(err)
		}
	})
	g.publish(crm, desk)
	return g
}

func (g *gw) publish(apps ...string) {
	g.t.Helper()
	old, err := filepath.Glob(filepath.Join(g.dir, "*.yaml"))
	if err != nil {
		g.t.Fatal(err)
	}
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			g.t.Fatal(err)
		}
	}
	for i, a := range apps {
		if err := os.WriteFile(filepath.Join(g.dir, string(rune('a'+i))+".yaml"), []byte(a), 0o600); err != nil {
			g.t.Fatal(err)
		}
	}
	rev, err := policy.Load(g.dir, policy.LoadOptions{})
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.m.Publish(g.t.Context(), rev, "test"); err != nil {
		g.t.Fatal(err)
	}
}

// laptop is a connected device.
type laptop struct {
	store.Device
	reg   store.Registration
	nonce string
}

func (g *gw) connect(name string) *laptop {
	g.t.Helper()
	var secret, key [32]byte
	rand.Read(secret[:])
	rand.Read(key[:])
	now := time.Unix(0, g.now.Load())
	inv := store.Invite{SecretHash: secret, CreatedBy: "test", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}
	if err := g.store.CreateInvite(g.t.Context(), inv); err != nil {
		g.t.Fatal(err)
	}
	d, err := g.store.RedeemInvite(g.t.Context(), store.Redeem{
		SecretHash: secret, Now: now,
		Device: store.Device{ID: "dev-" + name, Name: name, OS: "linux", Arch: "amd64", KeyTier: "software", KeyHash: key, PublicKey: key[:]},
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return g.reconnect(d)
}

func (g *gw) reconnect(d store.Device) *laptop {
	g.t.Helper()
	l := &laptop{Device: d, nonce: "n-first"}
	now := time.Unix(0, g.now.Load())
	l.reg = store.Registration{DeviceID: d.ID, TokenHash: sha256.Sum256([]byte("token")), BootID: "boot", CreatedAt: now, ExpiresAt: now.Add(12 * time.Hour)}
	rand.Read(l.reg.TunnelKey[:])
	resumed, err := g.store.PutRegistration(g.t.Context(), l.reg)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.m.Connect(session.Connection{Device: d, Registration: l.reg, Session: resumed, Nonce: l.nonce, Remote: "192.0.2.10"}); err != nil {
		g.t.Fatal(err)
	}
	g.m.Endpoint(l.reg.TunnelKey, netip.MustParseAddrPort("192.0.2.10:4000"))
	return l
}

func (g *gw) login(l *laptop, groups ...string) store.Session {
	g.t.Helper()
	now := time.Unix(0, g.now.Load())
	s, err := g.m.Login(g.t.Context(), store.Session{
		DeviceID: l.ID, OSUser: "1000:anna", Subject: policy.Subject{Issuer: "https://idp", ID: l.Name, Name: l.Name, Groups: groups, AuthenticatedAt: now},
		StartedAt: now, LastSeen: now, ExpiresAt: now.Add(12 * time.Hour),
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

func (g *gw) report(l *laptop, firewall string) {
	g.t.Helper()
	next, err := g.m.Posture(l.ID, l.nonce, "boot", map[string]policy.Signal{"host_firewall": {State: firewall}})
	if err != nil {
		g.t.Fatal(err)
	}
	l.nonce = next
}

func (g *gw) app(name string) *policy.App {
	g.t.Helper()
	for _, a := range g.engine.Active().Apps() {
		if a.Name == name {
			return &a
		}
	}
	g.t.Fatalf("no app %s", name)
	return nil
}

func (g *gw) flow(l *laptop, app string) *session.Flow {
	g.t.Helper()
	f, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[0], 4000), App: g.app(app), Action: policy.ActionFlow, Port: 7000})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { f.End(session.Result{Outcome: "done"}) })
	return f
}

func (g *gw) open(l *laptop, app string) *session.Flow {
	g.t.Helper()
	f := g.flow(l, app)
	dec, err := f.Authorize(g.t.Context(), nil)
	if err != nil || !dec.Allow {
		g.t.Fatalf("opening %s: %v %v", app, dec, err)
	}
	return f
}

// settle waits until what began to drain is recorded.
func (g *gw) settle() {
	g.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); g.m.Awaited() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			g.t.Fatal("drains stay unrecorded")
		}
	}
}

func (g *gw) records(kind audit.Kind) (out []audit.Record) {
	g.t.Helper()
	g.settle()
	for deadline := time.Now().Add(5 * time.Second); g.audit.Pending() > 0 && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	err := audit.Scan(g.audit.Path(), func(_ []byte, r *audit.Record) bool {
		if r.Kind == kind {
			out = append(out, *r)
		}
		return true
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

func (g *gw) ready(name string) *laptop {
	l := g.connect(name)
	g.login(l, "sales")
	g.report(l, "pass")
	return l
}

// Every change of a fact cuts what no longer holds, and nothing else.
func TestChangeCuts(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*gw, *laptop, store.Session)
		want   policy.Reason
	}{
		"firewall goes off": {func(g *gw, l *laptop, _ store.Session) { g.report(l, "fail") }, policy.ReasonPostureFailed},
		"signal unknown":    {func(g *gw, l *laptop, _ store.Session) { g.report(l, "unknown") }, policy.ReasonPostureUnknown},
		"logout": {func(g *gw, _ *laptop, s store.Session) {
			if err := g.m.EndSession(context.Background(), store.End{SessionID: s.ID, Reason: "logout", By: "subject", At: time.Unix(0, g.now.Load())}, policy.ReasonLoginRequired); err != nil {
				g.t.Fatal(err)
			}
		}, policy.ReasonLoginRequired},
		"session revoked": {func(g *gw, _ *laptop, s store.Session) {
			if err := g.m.EndSession(context.Background(), store.End{SessionID: s.ID, Reason: "x", By: "os:0:root", At: time.Unix(0, g.now.Load())}, policy.ReasonSessionRevoked); err != nil {
				g.t.Fatal(err)
			}
		}, policy.ReasonSessionRevoked},
		"device revoked": {func(g *gw, l *laptop, _ store.Session) {
			g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
		}, policy.ReasonDeviceRevoked},
		"group loses the app": {func(g *gw, _ *laptop, _ store.Session) {
			g.publish(crm, `
name: desk
title: Desk
protocol: tcp
upstream: desk.example.com:7000
ports: [7000]
access:
  - groups: [support]
`)
		}, policy.ReasonGroupNotAllowed},
		"app removed": {func(g *gw, _ *laptop, _ store.Session) { g.publish(crm) }, policy.ReasonUnknownApp},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			l, other := g.connect("anna"), g.ready("other")
			s := g.login(l, "sales")
			g.report(l, "pass")
			f, bystander := g.open(l, "desk"), g.open(other, "desk")
			ran := make(chan struct{})
			f.OnCut(func() { close(ran) })
			if err := f.Check(); err != nil {
				t.Fatal(err)
			}
			c.change(g, l, s)
			select {
			case <-ran:
			case <-time.After(5 * time.Second):
				t.Fatal("the flow was not cut")
			}
			if err := f.Check(); !errors.Is(err, session.ErrCut) {
				t.Errorf("Check after the cut: %v", err)
			}
			dec, ok := f.Cut()
			if !ok || dec.Reason != c.want || dec.Allow {
				t.Errorf("cut with %+v, want %s", dec, c.want)
			}
			cuts := slices.DeleteFunc(g.records(audit.KindFlowCut), func(r audit.Record) bool { return r.Flow != f.ID() })
			if len(cuts) != 1 || cuts[0].Reason != string(c.want) || cuts[0].Subject != "https://idp#anna" {
				t.Errorf("the record of the cut: %+v", cuts)
			}
			if global := name == "group loses the app" || name == "app removed"; (bystander.Check() == nil) == global {
				t.Errorf("the other laptop's flow: %v", bystander.Check())
			}
			if name == "device revoked" {
				if g.peers[l.reg.TunnelKey] {
					t.Error("the revoked device's peer is still there")
				}
				if _, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[0], 1), App: g.app("desk")}); err == nil {
					t.Error("a revoked device began a flow")
				}
			}
		})
	}
}

// A change that comes while a flow is being decided is never missed: whatever
// the order, either the opening sees it or the change cuts the flow.
func TestChangeDuringOpeningIsNeverMissed(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	for range 200 {
		g.report(l, "pass")
		f := g.flow(l, "desk")
		var dec policy.Decision
		var wg sync.WaitGroup
		wg.Go(func() {
			var err error
			if dec, err = f.Authorize(context.Background(), nil); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() { g.report(l, "fail") })
		wg.Wait()
		if dec.Allow && f.Check() == nil {
			t.Fatal("an allowed flow outlived the change that refuses it")
		}
		f.End(session.Result{})
	}
}

func TestMovedLocationIsDecidedAgain(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[1], 4000), App: g.app("crm"), Action: policy.ActionRequest})
	if err != nil {
		t.Fatal(err)
	}
	defer f.End(session.Result{})
	if dec, err := f.Authorize(t.Context(), &policy.Request{Method: "GET", Host: "crm.example.com", Path: "/"}); err != nil || !dec.Allow {
		t.Fatalf("%+v %v", dec, err)
	}
	g.country.Store("US")
	g.m.Endpoint(l.reg.TunnelKey, netip.MustParseAddrPort("198.51.100.7:4000"))
	if dec, ok := f.Cut(); !ok || dec.Reason != policy.ReasonLocationNotAllowed {
		t.Errorf("cut: %v %+v", ok, dec)
	}
	recs := g.records(audit.KindLocation)
	if last := recs[len(recs)-1]; last.Detail["country"] != "US" || last.Detail["before"] != "SE" || last.Remote != "198.51.100.7" {
		t.Errorf("the record of the move: %+v", last)
	}
}

// The same, at the one moment when only the comparison of epochs can see it: the
// flow was decided and is not open yet.
func TestChangeBetweenDecisionAndOpening(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.flow(l, "desk")
	change := func() { g.report(l, "fail") }
	g.recording.Store(&change)
	dec, err := f.Authorize(t.Context(), nil)
	if err != nil || dec.Allow || dec.Reason != policy.ReasonPostureFailed {
		t.Errorf("allowed on facts that no longer held: %+v %v", dec, err)
	}
}

func TestUnrecordedIsNotAllowed(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.flow(l, "desk")
	if err := g.audit.Close(); err != nil {
		t.Fatal(err)
	}
	dec, err := f.Authorize(t.Context(), nil)
	if err == nil || dec.Allow || dec.Reason != policy.ReasonAuditUnavailable {
		t.Errorf("with a closed log: %+v %v", dec, err)
	}
	// What takes away goes on.
	g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
	if f.Context().Err() == nil {
		t.Error("the flow was not cut without a log")
	}
}

// A process or machine that stood still lets no byte through on the old lease.
func TestLapsedLeaseIsDecidedAgain(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.open(l, "desk")
	g.elapsed.Add(int64(29 * time.Second))
	if err := f.Check(); err != nil {
		t.Fatalf("within the lease: %v", err)
	}
	g.elapsed.Add(int64(2 * time.Second))
	if err := f.Check(); err != nil {
		t.Fatalf("a lapsed lease whose facts still hold goes on: %v", err)
	}
	// Asleep for an hour: the posture report is old by then.
	g.elapsed.Add(int64(time.Hour))
	g.now.Add(int64(time.Hour))
	if err := f.Check(); !errors.Is(err, session.ErrCut) {
		t.Fatalf("after an hour without a report: %v", err)
	}
	if dec, _ := f.Cut(); dec.Reason != policy.ReasonPostureStale {
		t.Errorf("cut with %s", dec.Reason)
	}
}

func TestSegmentFollowsPolicy(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	addr := g.m.AppAddresses("desk")
	packet := func(dst netip.Addr, port uint16) segment.Verdict {
		v, _ := g.table.Filter(syn(l.Addresses[0], dst, port))
		return v
	}
	web := g.m.AppAddresses("crm")[0]
	steps := []struct {
		name      string
		do        func()
		desk, crm segment.Verdict
	}{
		{"before login: hidden is closed, explained answers", func() {}, segment.Reset, segment.Pass},
		{"logged in, no report", func() { g.login(l, "sales") }, segment.Reset, segment.Pass},
		{"healthy", func() { g.report(l, "pass") }, segment.Pass, segment.Pass},
		{"firewall off", func() { g.report(l, "fail") }, segment.Reset, segment.Pass},
		{"on again", func() { g.report(l, "pass") }, segment.Pass, segment.Pass},
		{"app gone", func() { g.publish(crm) }, segment.Reset, segment.Pass},
	}
	for _, s := range steps {
		s.do()
		if got := packet(addr[0], 7000); got != s.desk {
			t.Errorf("%s: desk is %v, want %v", s.name, got, s.desk)
		}
		if got := packet(web, 443); got != s.crm {
			t.Errorf("%s: crm is %v, want %v", s.name, got, s.crm)
		}
		if got := packet(web, 8080); got != segment.Reset {
			t.Errorf("%s: a closed port is %v", s.name, got)
		}
	}
}

// syn is an IPv4 TCP SYN without options; checksums are the stack's business.
func syn(src, dst netip.Addr, port uint16) []byte {
	p := make([]byte, 40)
	p[0], p[3], p[8], p[9] = 0x45, 40, 64, 6
	copy(p[12:], src.AsSlice())
	copy(p[16:], dst.AsSlice())
	p[20], p[21] = 0x10, 0x00
	p[22], p[23] = byte(port>>8), byte(port)
	p[32], p[33] = 0x50, 0x02
	return p
}

// A hidden app and one that does not exist are told apart by nothing.
func TestHiddenIsAsIfItWereNot(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	g.login(l, "support")
	hidden, err := g.m.WhyDevice(l.ID, "desk")
	if err != nil {
		t.Fatal(err)
	}
	none, err := g.m.WhyDevice(l.ID, "nosuch")
	if err != nil {
		t.Fatal(err)
	}
	hidden.ID, none.ID, hidden.App, none.App = "", "", "", ""
	if hidden != none {
		t.Errorf("hidden %+v, unknown %+v", hidden, none)
	}
	st, err := g.m.State(l.ID, "en")
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Apps) != 1 || st.Apps[0].Name != "crm" || st.Apps[0].Allowed || st.Apps[0].Denial.Reason != "group_not_allowed" {
		t.Errorf("visible apps: %+v", st.Apps)
	}
}

func TestReportNonces(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	signals := map[string]policy.Signal{"host_firewall": {State: "pass"}}
	next, err := g.m.Posture(l.ID, "n-first", "boot", signals)
	if !errors.Is(err, session.ErrNonce) || next == "" {
		t.Errorf("a replayed nonce: %q %v", next, err)
	}
	if _, err := g.m.Posture(l.ID, l.nonce, "boot", signals); !errors.Is(err, session.ErrNonce) {
		t.Errorf("the nonce from before the refusal still works: %v", err)
	}
	after, err := g.m.Posture(l.ID, next, "another boot", signals)
	if err == nil {
		t.Error("a report of another boot was taken")
	}
	if _, err := g.m.Posture(l.ID, after, "boot", signals); err != nil {
		t.Errorf("the nonce given with the refusal: %v", err)
	}
}

// A new tunnel key takes the session along and ends what the old key had open.
func TestReconnectKeepsTheSession(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.open(l, "desk")
	again := g.reconnect(l.Device)
	if f.Check() == nil {
		t.Error("a flow outlived its tunnel key")
	}
	if g.peers[l.reg.TunnelKey] || !g.peers[again.reg.TunnelKey] {
		t.Error("the peers are not exactly the new key")
	}
	if s, ok := g.m.SessionOf(l.ID); !ok || s.Subject.ID != "anna" {
		t.Errorf("the session is gone: %+v", s)
	}
	if recs := g.records(audit.KindResume); len(recs) != 1 || recs[0].Remote != "192.0.2.10" || recs[0].Subject != "https://idp#anna" {
		t.Errorf("the record that the session was taken along: %+v", recs)
	}
	if dec, _ := g.m.WhyDevice(l.ID, "crm"); dec.Reason != policy.ReasonPostureStale {
		t.Errorf("before the first report of the new connection: %s", dec.Reason)
	}
	g.report(again, "pass")
	g.open(again, "desk")
}

func TestFlowsAreBounded(t *testing.T) {
	g := newGateway(t)
	l, other := g.ready("anna"), g.ready("other")
	for range 50 {
		g.flow(l, "desk")
	}
	_, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[0], 1), App: g.app("desk")})
	var r *session.Refused
	if !errors.As(err, &r) || r.Decision.Reason != policy.ReasonTooManyFlows || r.Decision.ID == "" || r.Decision.Time.IsZero() {
		t.Errorf("the 51st flow: %v", err)
	}
	if recs := g.records(audit.KindDecision); len(recs) != 1 || recs[0].Decision != r.Decision.ID || recs[0].Device != l.ID {
		t.Errorf("its record: %+v", recs)
	}
	g.open(other, "desk")
}

// One laptop's refusals fill neither the log nor another laptop's bound, also
// when it connects anew; what has no record each is counted.
func TestRefusalsAreBounded(t *testing.T) {
	g := newGateway(t)
	l, other := g.connect("anna"), g.connect("other")
	g.login(l, "support")
	g.login(other, "support")
	refuse := func(l *laptop) {
		t.Helper()
		f := g.flow(l, "desk")
		if dec, err := f.Authorize(t.Context(), nil); err != nil || dec.Allow {
			t.Fatalf("%+v %v", dec, err)
		}
		f.End(session.Result{})
	}
	for i := range 700 {
		if i == 300 {
			l = g.reconnect(l.Device)
		}
		refuse(l)
	}
	refuse(other)
	of := func(id string) int {
		return len(slices.DeleteFunc(g.records(audit.KindFlowOpen), func(r audit.Record) bool { return r.Device != id }))
	}
	if got := of(l.ID); got != 500 {
		t.Errorf("%d of 700 refusals at once were recorded", got)
	}
	if got := of(other.ID); got != 1 {
		t.Errorf("%d of the other laptop's", got)
	}
	g.now.Add(int64(5 * time.Second)) // a fold is written at most that long after it began
	var folded []audit.Record
	for deadline := time.Now().Add(5 * time.Second); len(folded) == 0 && time.Now().Before(deadline); {
		folded = g.records(audit.KindFolded)
	}
	if len(folded) != 1 || folded[0].Detail["count"] != "200" || folded[0].Device != l.ID || folded[0].App != "desk" || folded[0].Reason == "" {
		t.Errorf("folded: %+v", folded)
	}
}

func TestWatchSeesTheLatestAndTheEnd(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	w, err := g.m.Watch(l.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	<-w.C
	g.login(l, "sales")
	<-w.C
	if st, err := g.m.State(l.ID, "en"); err != nil || st.Session == nil {
		t.Errorf("state after login: %+v %v", st, err)
	}
	go g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
	for {
		<-w.C
		if dec, gone := w.Gone(); gone {
			if dec.Reason != policy.ReasonDeviceRevoked {
				t.Errorf("gone with %s", dec.Reason)
			}
			return
		}
	}
}

func TestExpiredSessionIsSaid(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	now := time.Unix(0, g.now.Load())
	_, err := g.m.Login(t.Context(), store.Session{
		DeviceID: l.ID, OSUser: "1000:anna", Subject: policy.Subject{Issuer: "https://idp", ID: "anna", Groups: []string{"sales"}, AuthenticatedAt: now},
		StartedAt: now, LastSeen: now, ExpiresAt: now.Add(time.Minute),
	})
	if err != nil {
		t.Fatal(err)
	}
	g.report(l, "pass")
	f := g.open(l, "desk")
	g.now.Add(int64(61 * time.Second))
	g.report(l, "pass")
	g.elapsed.Add(int64(31 * time.Second))
	if f.Check() == nil {
		t.Error("a flow outlived its session")
	}
	if dec, _ := f.Cut(); dec.Reason != policy.ReasonSessionExpired {
		t.Errorf("cut with %s", dec.Reason)
	}
	if recs := g.records(audit.KindSessionEnd); len(recs) != 1 || recs[0].Outcome != store.EndExpired || recs[0].Subject != "https://idp#anna" {
		t.Errorf("the record: %+v", recs)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := g.m.Run(ended); err != nil { // stores what waits, last of all
		t.Error(err)
	}
	if all, err := g.store.Sessions(t.Context(), store.SessionFilter{Open: true}); err != nil || len(all) != 0 {
		t.Errorf("still open in the store: %+v %v", all, err)
	}
}

// Run acts on the edges of time without being asked.
func TestRunEndsWhatTimeEnds(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	f := g.open(l, "desk")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.m.Run(ctx) }()
	g.now.Add(int64(91 * time.Second))
	g.elapsed.Add(int64(91 * time.Second))
	select {
	case <-f.Context().Done():
	case <-time.After(5 * time.Second):
		t.Error("an old posture report kept a flow open")
	}
	g.now.Add(int64(12 * time.Hour))
	for deadline := time.Now().Add(5 * time.Second); ; {
		if _, err := g.m.State(l.ID, "en"); errors.Is(err, session.ErrUnknownDevice) {
			break
		}
		if time.Now().After(deadline) {
			t.Error("an ended registration is still connected")
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A device is held while a Flow or an event stream is open, and found by the
// key that is in force.
func TestHeld(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	key := l.reg.TunnelKey
	if g.m.Held(key) || g.m.Held([32]byte{9}) {
		t.Error("held though nothing is open")
	}
	w, err := g.m.Watch(l.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !g.m.Held(key) {
		t.Error("an event stream does not hold")
	}
	w.Close()
	if g.m.Held(key) {
		t.Error("held after the event stream")
	}
	g.m.Remove(l.ID, policy.Decision{})
	if g.m.Held(key) {
		t.Error("a removed device is held")
	}
}

// A device that moves while the location database is replaced stays where it
// moved to.
func TestRelocateDoesNotBringAnOldPlaceBack(t *testing.T) {
	g := newGateway(t)
	l := g.connect("mover")
	moved := make(chan struct{})
	var first atomic.Bool
	g.locating = func() {
		if !first.CompareAndSwap(false, true) {
			return
		}
		go func() {
			defer close(moved)
			g.m.Endpoint(l.reg.TunnelKey, netip.MustParseAddrPort("198.51.100.7:4000"))
		}()
		select {
		case <-moved:
		case <-time.After(50 * time.Millisecond): // it waits for this look-up, as it should
		}
	}
	g.m.Relocate()
	<-moved
	st, _ := g.m.Status(l.ID)
	if st.Location.Address != "198.51.100.7" {
		t.Errorf("the device is at %s, want where it moved to", st.Location.Address)
	}
}

// A device that connects anew while its old registration is being cleared away
// keeps the new one, in force and in the store.
func TestAnEndedRegistrationTakesNoNewerOneAlong(t *testing.T) {
	g := newGateway(t)
	pair := [2]*laptop{g.connect("anna"), g.connect("berta")}
	var first atomic.Bool
	again := make(chan *laptop, 1)
	g.removing = func(key [32]byte) {
		if !first.CompareAndSwap(false, true) {
			return
		}
		for _, l := range pair {
			if l.reg.TunnelKey != key {
				again <- g.reconnect(l.Device)
			}
		}
	}
	g.now.Add(int64(12 * time.Hour))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- g.m.Run(ctx) }()
	l := <-again
	time.Sleep(1500 * time.Millisecond) // one more round
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, ok := g.m.Status(l.ID); !ok {
		t.Error("the new connection was taken along")
	}
	regs, err := g.store.Registrations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(regs) != 1 || regs[0].TunnelKey != l.reg.TunnelKey {
		t.Errorf("stored: %+v", regs)
	}
}
