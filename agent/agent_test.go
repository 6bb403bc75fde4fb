package agent_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/agent"
	"github.com/portvakt/portvakt/agent/enroll"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/state"
	"github.com/portvakt/portvakt/agent/twin"
	"github.com/portvakt/portvakt/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// laptop is an enrolled laptop with a running agent.
type laptop struct {
	t      *testing.T
	g      *twin.Gateway
	cfg    agent.Config
	api    *localapi.Client
	sleep  func()
	cancel context.CancelFunc
	done   chan error

	mu      sync.Mutex
	allowed []netip.Addr     // guarded by mu
	told    []netip.AddrPort // guarded by mu
	shift   time.Duration    // guarded by mu; of all clocks
	wrong   time.Duration    // guarded by mu; of the laptop's alone
}

func (l *laptop) now() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Add(l.shift)
}

func (l *laptop) clock() time.Time {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	return now.Add(l.wrong)
}

func (l *laptop) later(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shift += d
}

func newLaptop(t *testing.T) *laptop {
	t.Helper()
	l := &laptop{t: t}
	l.g = twin.New(t, l.now)
	base, err := os.MkdirTemp("", "pv") // short: a Unix socket goes in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	d, err := state.Open(filepath.Join(base, "s"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := enroll.Enroll(t.Context(), enroll.Config{State: d, Info: enroll.LocalInfo(), Now: l.now}, l.g.URL, l.g.Code().String()); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(base, "root")
	if err := os.MkdirAll(filepath.Join(root, "etc", "ufw"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.cfg = agent.Config{State: d, Version: "test", ProxyAddr: "127.0.0.1:0", PostureRoot: root, BootID: "boot-1", Now: l.clock}
	l.api = localapi.NewClient(d.Socket())
	l.g.SetState(func(s *wire.State) { s.DeviceID = "dev-1" })
	l.sleep = agent.Twin(&l.cfg, l.g.Dial, func(a []netip.Addr) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.allowed = slices.Clone(a)
	}, func(a []netip.AddrPort) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.told = slices.Clone(a)
	})
	return l
}

func (l *laptop) start() {
	l.t.Helper()
	ctx, cancel := context.WithCancel(l.t.Context())
	l.cancel, l.done = cancel, make(chan error, 1)
	go func() { l.done <- agent.Run(ctx, l.cfg) }()
	l.t.Cleanup(l.stop)
}

func (l *laptop) stop() {
	l.cancel()
	if l.done == nil {
		return
	}
	select {
	case err := <-l.done:
		l.done = nil
		if err != nil {
			l.t.Errorf("the agent ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		l.t.Fatal("the agent does not stop")
	}
}

// until waits for a status that is as wanted.
func (l *laptop) until(what string, ok func(*localapi.Status) bool) *localapi.Status {
	l.t.Helper()
	var st *localapi.Status
	var err error
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if st, err = l.api.Status(l.t.Context()); err == nil && ok(st) {
			return st
		}
	}
	l.t.Fatalf("%s does not happen; last: %+v, %v", what, st, err)
	return nil
}

func is(state string) func(*localapi.Status) bool {
	return func(st *localapi.Status) bool { return st.State == state }
}

func (l *laptop) seen(what string, ok func(reports []wire.Report, connects []wire.ConnectRequest, renewals int) bool) {
	l.t.Helper()
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if r, c, n, _ := l.g.Seen(); ok(r, c, n) {
			return
		}
	}
	r, c, n, _ := l.g.Seen()
	l.t.Fatalf("%s does not happen; %d reports, %d connects, %d renewals", what, len(r), len(c), n)
}

var (
	crm  = netip.MustParseAddr("100.64.1.1")
	desk = netip.MustParseAddr("100.64.1.2")
	gw   = []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")}
)

func apps(addrs ...netip.Addr) []wire.App {
	all := map[netip.Addr]wire.App{
		crm:  {Name: "crm", Protocol: "http", Hosts: []string{"crm.example"}, Addresses: []netip.Addr{crm}, Ports: []uint16{443, 80}},
		desk: {Name: "desk", Protocol: "tcp", Addresses: []netip.Addr{desk}, Ports: []uint16{22}, Allowed: true},
	}
	var out []wire.App
	for _, a := range addrs {
		out = append(out, all[a])
	}
	return out
}

func (l *laptop) carries(want ...netip.Addr) {
	l.t.Helper()
	var got []netip.Addr
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		l.mu.Lock()
		got = l.allowed
		l.mu.Unlock()
		if slices.Equal(got, want) {
			return
		}
	}
	l.t.Fatalf("the tunnel carries %v and not %v", got, want)
}

func TestFollowsTheGateway(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.start()
	st := l.until("connecting", func(s *localapi.Status) bool { return s.State == localapi.StateConnected && s.PostureSentAt != nil })
	if st.DeviceID != "dev-1" || st.Gateway != l.g.URL || st.Tunnel == nil || !strings.HasPrefix(st.Tunnel.Endpoint, "127.0.0.1:51820") || !st.Tunnel.PostQuantum || st.Proxy == nil {
		t.Errorf("status %+v", st)
	}
	l.carries(gw...)
	reports, connects, _, _ := l.g.Seen()
	if connects[0].BootID != "boot-1" || reports[0].BootID != "boot-1" || reports[0].DeviceID != "dev-1" || len(reports[0].Signals) != len(wire.Signals) {
		t.Errorf("connects %+v, reports %+v", connects, reports)
	}
	l.g.SetState(func(s *wire.State) { s.Apps = apps(crm, desk) })
	l.carries(append(slices.Clone(gw), crm, desk)...)
	l.until("two apps", func(*localapi.Status) bool {
		a, err := l.api.Apps(t.Context())
		return err == nil && len(a.Items) == 2 && len(a.Items[1].Local) == 1 && a.Items[1].Local[0].Port == 22
	})
	l.g.SetState(func(s *wire.State) { s.Apps = apps(crm) })
	l.carries(append(slices.Clone(gw), crm)...)
	if d, err := l.api.Why(t.Context(), "crm"); err != nil || d.Reason != "login_required" || d.App != "crm" {
		t.Errorf("why: %+v, %v", d, err)
	}
}

// Calls are told to the network where the gateway says so: to an app it calls
// off, to one that it says nothing of, as an older one does, and to one of
// another protocol they are not.
func TestCallsAreToldWhereTheGatewaySaysSo(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.start()
	set := func(dscp string, want ...string) {
		t.Helper()
		l.g.SetState(func(s *wire.State) {
			s.Apps = apps(crm, desk)
			s.Apps[0].DSCP = wire.DSCPAuto // an http app's means nothing
			s.Apps = append(s.Apps, wire.App{
				Name: "voice", Protocol: "udp", DSCP: dscp, Ports: []uint16{5004, 5006},
				Addresses: []netip.Addr{netip.MustParseAddr("100.64.1.9"), netip.MustParseAddr("fd00:64::1:9")},
			})
		})
		var all []netip.AddrPort
		for _, a := range want {
			all = append(all, netip.MustParseAddrPort(a))
		}
		var got []netip.AddrPort
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			l.mu.Lock()
			got = l.told
			l.mu.Unlock()
			if slices.Equal(got, all) {
				return
			}
		}
		t.Fatalf("with %q calls are told to %v and not %v", dscp, got, all)
	}
	both := []string{"100.64.1.9:5004", "100.64.1.9:5006", "[fd00:64::1:9]:5004", "[fd00:64::1:9]:5006"}
	for _, not := range []string{"off", "", "later"} {
		set("auto", both...)
		set(not)
	}
}

func TestReportsAtOnceOnChangeAndPastASpentNonce(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.start()
	l.seen("the first report", func(r []wire.Report, _ []wire.ConnectRequest, _ int) bool { return len(r) > 0 })
	l.g.SpendNonce() // the agent does not know
	// The firewall: its file says no more than "unknown" before.
	conf := filepath.Join(l.cfg.PostureRoot, "etc", "ufw", "ufw.conf")
	if err := os.WriteFile(conf, []byte("ENABLED=no\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	l.seen("a report of the change", func(r []wire.Report, _ []wire.ConnectRequest, _ int) bool {
		return len(r) > 1 && !cmp.Equal(r[0].Signals, r[len(r)-1].Signals, cmpopts.IgnoreFields(wire.Signal{}, "AgeSeconds"))
	})
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	if r, _, _, _ := l.g.Seen(); r[0].Nonce == r[len(r)-1].Nonce {
		t.Error("a nonce served twice")
	}
}

func TestRevoked(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.start()
	l.g.SetState(func(s *wire.State) { s.Apps = apps(desk) })
	l.until("an app", func(*localapi.Status) bool {
		a, err := l.api.Apps(t.Context())
		return err == nil && len(a.Items) == 1 && len(a.Items[0].Local) == 1
	})
	a, err := l.api.Apps(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.g.Revoke(&wire.Denial{Decision: "d-9", Reason: "device_revoked", Message: "This laptop is no longer allowed to connect.", Fact: &wire.Fact{Name: "device", Value: "revoked"}})
	st := l.until("revocation", is(localapi.StateRevoked))
	if st.Denial == nil || st.Denial.Decision != "d-9" || st.Tunnel != nil || st.Session != nil {
		t.Errorf("status %+v", st)
	}
	if c, err := net.Dial("tcp", a.Items[0].Local[0].Local); err == nil {
		c.Close()
		t.Error("the app's port still listens")
	}
	if d, err := l.api.Why(t.Context(), "desk"); err != nil || d.Reason != "device_revoked" {
		t.Errorf("why: %+v, %v", d, err)
	}
	time.Sleep(500 * time.Millisecond) // some refused tries
	if st := l.until("revoked still", is(localapi.StateRevoked)); st.Denial == nil || st.Denial.Decision != "d-9" || st.RetryAt == nil {
		t.Errorf("status %+v", st)
	}
	l.g.Refuse(wire.PathConnect, nil)
	l.g.Refuse(wire.PathRenew, nil)
	if st := l.until("being let in again", is(localapi.StateConnected)); st.Denial != nil {
		t.Errorf("status %+v", st)
	}
}

func TestReconnects(t *testing.T) {
	for name, breakIt := range map[string]func(l *laptop){
		"silence": func(l *laptop) { l.g.Mute(true) },
		"registration gone": func(l *laptop) {
			l.g.DropTokens()
			l.g.Mute(true)
			time.AfterFunc(time.Second, func() { l.g.Mute(false) })
		},
		"sleep": func(l *laptop) { l.sleep() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLaptop(t)
			l.start()
			l.until("connecting", is(localapi.StateConnected))
			l.seen("the first report", func(r []wire.Report, _ []wire.ConnectRequest, _ int) bool { return len(r) > 0 })
			before, _, _, _ := l.g.Seen()
			breakIt(l)
			l.seen("connecting again and reporting", func(r []wire.Report, c []wire.ConnectRequest, _ int) bool {
				return len(c) > 1 && len(r) > len(before)
			})
			l.g.Mute(false)
			l.until("connected again", is(localapi.StateConnected))
			_, c, _, _ := l.g.Seen()
			if c[0].TunnelKey == c[1].TunnelKey || c[0].BootID != c[1].BootID {
				t.Errorf("a new key of the same boot is wanted: %+v", c)
			}
		})
	}
}

// A gateway that was restarted finds the laptop with the same tunnel: nothing is
// handed in anew, what it forgot is told, and what it says is believed although
// its epochs are lower.
func TestARestartedGatewayFindsTheSameTunnel(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	agent.Patient(&l.cfg)
	l.start()
	for range 5 {
		l.g.SetState(func(s *wire.State) { s.Apps = apps(crm) })
	}
	l.carries(append(slices.Clone(gw), crm)...)
	l.seen("the first report", func(r []wire.Report, _ []wire.ConnectRequest, _ int) bool { return len(r) > 0 })
	before, _, _, _ := l.g.Seen()
	l.g.Restart(func(s *wire.State) { s.Apps = apps(desk) })
	l.carries(append(slices.Clone(gw), desk)...)
	l.seen("a report to the new gateway", func(r []wire.Report, c []wire.ConnectRequest, _ int) bool {
		if len(c) != 1 {
			t.Fatalf("%d connects", len(c))
		}
		return len(r) > len(before)
	})
	// One reset soon after another is no restart: that takes the long way.
	l.seen("connecting anew", func(_ []wire.Report, c []wire.ConnectRequest, _ int) bool {
		l.g.Restart(func(*wire.State) {})
		return len(c) > 1
	})
	l.until("connected again", is(localapi.StateConnected))
}

func TestRenewsAnExpiredCertificateFirst(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.later(5 * 24 * time.Hour)
	l.start()
	st := l.until("connecting", is(localapi.StateConnected))
	if _, _, n, _ := l.g.Seen(); n != 1 || !st.CertificateExpiresAt.After(l.now()) {
		t.Errorf("%d renewals, certificate until %v", n, st.CertificateExpiresAt)
	}
}

// A new certificate is an old one to a clock that is ahead. That must not be a
// reason to fetch another.
func TestAClockAheadRenewsOnce(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.wrong = 20 * time.Hour
	l.start()
	l.until("connecting", is(localapi.StateConnected))
	l.sleep()
	l.seen("connecting again", func(_ []wire.Report, c []wire.ConnectRequest, _ int) bool { return len(c) > 1 })
	l.until("connected again", is(localapi.StateConnected))
	time.Sleep(200 * time.Millisecond) // it would renew some 50 times meanwhile
	if _, _, n, _ := l.g.Seen(); n != 1 {
		t.Errorf("%d renewals", n)
	}
	// Two thirds of the new one's life later it is due, whatever the clock says.
	l.later(17 * time.Hour)
	l.sleep()
	l.seen("a second renewal", func(_ []wire.Report, _ []wire.ConnectRequest, n int) bool { return n == 2 })
}

// Only the gateway knows whether a certificate has expired: one whose renewal
// it puts off is used.
func TestConnectsWhileRenewalsArePutOff(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.wrong = 30 * time.Hour
	l.g.Refuse(wire.PathRenew, &wire.Error{Code: "too_many_renewals", Message: "Too often.", Retry: true})
	l.start()
	l.until("connecting", is(localapi.StateConnected))
}

// A certificate that cannot be saved is used all the same, and saved later.
func TestAFullDiskKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.later(25 * time.Hour)
	// A directory in the place of the file cannot be replaced by one, also by root.
	pem := l.cfg.State.File(state.FileDevice)
	var once sync.Once
	l.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		once.Do(func() {
			if err := errors.Join(os.Rename(pem, pem+".old"), os.Mkdir(pem, 0o700)); err != nil {
				t.Error(err)
			}
		})
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	l.start()
	st := l.until("connecting", is(localapi.StateConnected))
	if _, _, n, _ := l.g.Seen(); n != 1 || !st.CertificateExpiresAt.After(l.now()) {
		t.Errorf("%d renewals, certificate until %v", n, st.CertificateExpiresAt)
	}
	if _, err := l.cfg.State.Load(); err == nil {
		t.Fatal("the certificate could be saved")
	}
	if err := os.Remove(pem); err != nil {
		t.Fatal(err)
	}
	l.sleep()
	l.seen("connecting again", func(_ []wire.Report, c []wire.ConnectRequest, _ int) bool { return len(c) > 1 })
	cred, err := l.cfg.State.Load()
	if err != nil || !cred.Device.NotAfter.Equal(*st.CertificateExpiresAt) {
		t.Errorf("what was saved in the end: %+v, %v", cred, err)
	}
	if _, _, n, _ := l.g.Seen(); n != 1 {
		t.Errorf("%d renewals", n)
	}
}

// The WebSocket goes to the public port, and does not need the UDP endpoint's name.
func TestAnUnknownEndpointKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.cfg.Endpoint = "no-such-endpoint.invalid:51820"
	l.start()
	st := l.until("connecting", is(localapi.StateConnected))
	if st.Tunnel == nil || st.Tunnel.Endpoint != "0.0.0.0:51820" {
		t.Errorf("tunnel %+v", st.Tunnel)
	}
}

func TestTroubleIsNamed(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	var mu sync.Mutex
	fault := error(&net.OpError{Op: "dial", Err: &net.DNSError{Name: "gateway.example", Err: "no such host", IsNotFound: true}})
	l.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		err := fault
		mu.Unlock()
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	l.start()
	st := l.until("trouble", is(localapi.StateWaiting))
	if st.Trouble.Code != "dns" || !strings.Contains(st.Trouble.Message, "gateway.example") || st.RetryAt == nil {
		t.Errorf("trouble %+v", st.Trouble)
	}
	if _, err := l.api.Login(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "gateway.example") {
		t.Errorf("login meanwhile: %v", err)
	}
	mu.Lock()
	fault = nil
	mu.Unlock()
	l.until("connecting", is(localapi.StateConnected))
	l.mu.Lock()
	l.wrong = -30 * 24 * time.Hour
	l.mu.Unlock()
	l.sleep()
	if st := l.until("trouble with the clock", is(localapi.StateWaiting)); st.Trouble.Code != "clock" {
		t.Errorf("trouble %+v", st.Trouble)
	}
}

func TestLoginAndLogout(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.start()
	l.until("connecting", is(localapi.StateConnected))
	s, err := l.api.Login(t.Context(), func(e localapi.LoginEvent) error {
		u, err := url.Parse(e.URL)
		if err != nil {
			return err
		}
		if want := fmt.Sprintf("%d:", os.Geteuid()); !strings.HasPrefix(u.Query().Get("user"), want) {
			t.Errorf("the gateway was told of OS user %q", u.Query().Get("user"))
		}
		go func() { // the browser
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			res, err := c.Get(u.Query().Get("redirect_uri") + "?state=s1&code=c1")
			if err != nil {
				t.Error(err)
				return
			}
			res.Body.Close()
			if res.StatusCode != 200 {
				t.Errorf("the page says %d", res.StatusCode)
			}
		}()
		return nil
	})
	if err != nil || s.Name != "Anna" {
		t.Fatalf("%+v, %v", s, err)
	}
	if _, _, _, c := l.g.Seen(); len(c) != 1 || c[0].Code != "c1" || c[0].State != "s1" {
		t.Errorf("the gateway was given %+v", c)
	}
	if st := l.until("a session", func(st *localapi.Status) bool { return st.Session != nil }); !st.InUse {
		t.Errorf("status %+v", st)
	}
	st, err := l.api.Logout(t.Context())
	if err != nil || st.Session != nil {
		t.Errorf("%+v, %v", st, err)
	}
}

// A login lasts as long as the gateway means, whatever the laptop's clock says.
func TestAClockAheadDoesNotEndALogin(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.wrong = 59 * time.Second // the page is good for a minute
	l.start()
	l.until("connecting", is(localapi.StateConnected))
	ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
	defer cancel()
	_, err := l.api.Login(ctx, func(localapi.LoginEvent) error { return nil })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the login ended by itself: %v", err)
	}
}

func TestASecondLoginTakesThePlaceOfTheFirst(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.start()
	l.until("connecting", is(localapi.StateConnected))
	first, opened := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := l.api.Login(t.Context(), func(localapi.LoginEvent) error { close(opened); return nil })
		first <- err
	}()
	<-opened
	ctx, cancel := context.WithCancel(t.Context())
	_, err := l.api.Login(ctx, func(localapi.LoginEvent) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("second: %v", err)
	}
	select {
	case err := <-first:
		if err == nil || !strings.Contains(err.Error(), "another login") {
			t.Errorf("first: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the first login goes on")
	}
}

func TestWhatStopsTheStart(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.start()
	l.until("connecting", is(localapi.StateConnected))
	if err := agent.Run(t.Context(), l.cfg); !errors.Is(err, state.ErrLocked) {
		t.Errorf("a second agent: %v", err)
	}
	l.stop()
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l.cfg.ProxyAddr = taken.Addr().String()
	if err := agent.Run(t.Context(), l.cfg); err == nil || !strings.Contains(err.Error(), "--proxy-addr") {
		t.Errorf("the proxy's port is taken: %v", err)
	}
	empty, err := state.Open(filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l.cfg.State = empty
	if err := agent.Run(t.Context(), l.cfg); !errors.Is(err, state.ErrNotEnrolled) {
		t.Errorf("not enrolled: %v", err)
	}
}

func TestPortsStayOverARestart(t *testing.T) {
	t.Parallel()
	l := newLaptop(t)
	l.g.SetState(func(s *wire.State) { s.Apps = apps(desk) })
	var first *localapi.Apps
	for range 2 {
		l.start()
		var got *localapi.Apps
		l.until("a port", func(*localapi.Status) bool {
			a, err := l.api.Apps(t.Context())
			got = a
			return err == nil && len(a.Items) == 1 && len(a.Items[0].Local) == 1
		})
		if first == nil {
			first = got
		} else if diff := cmp.Diff(first, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		l.stop()
	}
}

func TestSlept(t *testing.T) {
	for _, tc := range []struct {
		monotonic, wall time.Duration
		want            bool
	}{
		{time.Second, time.Second, false},
		{3 * time.Second, 3 * time.Second, false}, // a busy laptop
		{time.Second, time.Hour, true},            // Linux: the monotonic clock sleeps too
		{time.Hour, time.Hour, true},              // others: it does not
		{time.Second, -time.Hour, true},           // the clock was set
		{time.Second, 1100 * time.Millisecond, false},
	} {
		if got := agent.Slept(tc.monotonic, tc.wall); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	for attempt, most := range map[int]time.Duration{-1: 200, 0: 200, 1: 400, 3: 1600, 6: 12800, 9: 15000, 1000: 15000} {
		most *= time.Millisecond
		for range 100 {
			if d := agent.Backoff(attempt); d < most/2 || d > most {
				t.Errorf("attempt %d: %v", attempt, d)
			}
		}
	}
}

// Who finishes a call after their login has ended keeps the tunnel to
// themselves; a new login takes it.
func TestWhoFinishesACallKeepsTheTunnel(t *testing.T) {
	session, finish := &wire.Session{OSUser: "1001:bert"}, &wire.Finish{OSUser: "1000:anna"}
	for _, c := range []struct {
		session *wire.Session
		finish  *wire.Finish
		want    uint32
		ok      bool
	}{
		{nil, finish, 1000, true},
		{session, finish, 1001, true},
		{session, nil, 1001, true},
		{nil, nil, 0, false},
		{nil, &wire.Finish{}, 0, false}, // a gateway that does not say whose: nobody's
	} {
		if uid, ok := localapi.UserOf(c.session, c.finish); ok != c.ok || ok && uid != c.want {
			t.Errorf("%+v %+v: %d %v", c.session, c.finish, uid, ok)
		}
	}
}
