package media

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
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

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("modernc.org/libc.(*TLS).Close"))
}

const patience = 5 * time.Second

// world is a gateway without its tunnel: real policy, sessions, store and log.
// Packets are given to Take and come back over back.
type world struct {
	t       testing.TB
	relay   *Relay
	store   *store.Store
	manager *session.Manager
	log     *audit.Log
	stop    func()        // ends Run and waits for it
	back    chan datagram // what is injected, in order; packets that do not read fail the test
	ahead   atomic.Int64  // how far the relay's clock is ahead of the sessions'
	stepped atomic.Int64  // how far the wall clock was set forward
	elapsed atomic.Int64  // how much more has elapsed than time went by
	devices atomic.Uint32
}

// newWorld starts one. apps are YAML documents.
func newWorld(t testing.TB, apps []string, opts ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, back: make(chan datagram, 4096)}
	dir, begun := t.TempDir(), time.Now()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.store, err = store.Open(ctx, store.Options{
		Path: filepath.Join(dir, "db", "p.db"), IPv4: netip.MustParsePrefix("100.64.0.0/16"), IPv6: netip.MustParsePrefix("fd00:64::/64"), SealKey: [32]byte{9},
	})
	must(err)
	w.log, err = audit.Open(audit.Options{Dir: filepath.Join(dir, "audit")})
	must(err)
	w.manager = session.New(session.Config{
		Engine: policy.NewEngine(policy.EngineOptions{Timeout: patience}), Store: w.store, Audit: w.log,
		Table: segment.NewTable(w.store.GatewayAddresses()), Gateway: w.store.GatewayAddresses(), ControlPort: 80,
		Locate:     func(netip.Addr) policy.Location { return policy.Location{} },
		AddPeer:    func(session.Connection) error { return nil },
		RemovePeer: func([32]byte) error { return nil },
		Now:        func() time.Time { return time.Now().Add(time.Duration(w.stepped.Load())) },
		Elapsed:    func() time.Duration { return time.Since(begun) + time.Duration(w.elapsed.Load()) },
	})
	w.publish(apps...)
	cfg := Config{
		Sessions: w.manager, AppByAddr: w.manager.AppByAddr, MTU: 1280, Inject: w.inject, Gateway: w.store.GatewayAddresses(),
		Forbidden: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")},
		Timeouts:  Timeouts{Sweep: 5 * time.Millisecond, Drain: time.Millisecond},
		Elapsed:   func() time.Duration { return w.manager.Elapsed() + time.Duration(w.ahead.Load()) },
	}
	for _, o := range opts {
		o(&cfg)
	}
	w.relay, err = New(cfg)
	must(err)
	run, cancel := context.WithCancel(ctx)
	logging, stopLog := context.WithCancel(ctx)
	var relay, log sync.WaitGroup
	relay.Go(func() {
		if err := w.relay.Run(run); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	log.Go(func() { _ = w.log.Run(logging) })
	w.stop = sync.OnceFunc(func() { cancel(); relay.Wait() })
	t.Cleanup(func() {
		w.stop()
		stopLog()
		log.Wait()
		_ = w.log.Close()
		_ = w.store.Close()
	})
	w.eventually("the relay runs", w.relay.running.Load)
	return w
}

func (w *world) inject(packets [][]byte) int {
	for _, p := range packets {
		var d datagram
		if c := parse(p, &d); c != passed {
			w.t.Errorf("injected %x: %s", p, causeNames[c])
			continue
		}
		d.payload = bytes.Clone(p) // the whole packet: a test may look at its head
		select {
		case w.back <- d:
		default:
			w.t.Error("more is injected than the test reads")
		}
	}
	return len(packets)
}

func (w *world) publish(apps ...string) {
	w.t.Helper()
	dir := w.t.TempDir()
	for i, a := range apps {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.yaml", i)), []byte(a), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	rev, err := policy.Load(dir, policy.LoadOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.manager.Publish(context.Background(), rev, "test"); err != nil {
		w.t.Fatal(err)
	}
}

// laptop is a connected device with a person of the group sales logged in.
type laptop struct {
	w       *world
	device  store.Device
	session store.Session
}

func (w *world) laptop() *laptop {
	w.t.Helper()
	n := byte(w.devices.Add(1))
	ctx, now := context.Background(), time.Now()
	l := &laptop{w: w}
	if err := w.store.CreateInvite(ctx, store.Invite{SecretHash: [32]byte{1, n}, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}); err != nil {
		w.t.Fatal(err)
	}
	var err error
	l.device, err = w.store.RedeemInvite(ctx, store.Redeem{SecretHash: [32]byte{1, n}, Now: now, Device: store.Device{
		ID: fmt.Sprintf("dev-%d", n), Name: "laptop", OS: "linux", Arch: "amd64", KeyTier: "software", KeyHash: [32]byte{2, n},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	reg := store.Registration{DeviceID: l.device.ID, TunnelKey: [32]byte{3, n}, TokenHash: [32]byte{4, n}, BootID: "boot", CreatedAt: now, ExpiresAt: now.Add(12 * time.Hour)}
	if _, err := w.store.PutRegistration(ctx, reg); err != nil {
		w.t.Fatal(err)
	}
	if err := w.manager.Connect(session.Connection{Device: l.device, Registration: reg, Nonce: "n"}); err != nil {
		w.t.Fatal(err)
	}
	l.login()
	return l
}

func (l *laptop) login() {
	l.w.t.Helper()
	var err error
	subject := policy.Subject{Issuer: "https://idp", ID: l.device.ID, Name: "Åsa", Groups: []string{"sales"}, AuthenticatedAt: time.Now()}
	l.session, err = l.w.manager.Login(context.Background(), store.Session{
		DeviceID: l.device.ID, OSUser: "1000:asa", Subject: subject, StartedAt: time.Now(), ExpiresAt: time.Now().Add(8 * time.Hour), LastSeen: time.Now(),
	})
	if err != nil {
		l.w.t.Fatal(err)
	}
}

// revoke ends the session and returns when that is in force.
func (l *laptop) revoke() {
	l.w.t.Helper()
	end := store.End{SessionID: l.session.ID, Reason: "test", By: "test", At: time.Now()}
	if err := l.w.manager.EndSession(context.Background(), end, policy.ReasonSessionRevoked); err != nil {
		l.w.t.Fatal(err)
	}
}

// at is the address of an app in the family of the laptop's i-th address.
func (w *world) at(app string, i int, port uint16) netip.AddrPort {
	a := w.manager.AppAddresses(app)[i]
	if !a.IsValid() {
		w.t.Fatalf("no app %s", app)
	}
	return netip.AddrPortFrom(a, port)
}

// send hands the relay a datagram of the laptop's port to an app.
func (l *laptop) send(port uint16, app netip.AddrPort, payload string) {
	l.w.t.Helper()
	i := 0
	if app.Addr().Is6() {
		i = 1
	}
	l.w.relay.Take([][]byte{packet(netip.AddrPortFrom(l.device.Addresses[i], port), app, []byte(payload))})
}

// next is the next packet into the tunnel and its payload.
func (w *world) next() (d datagram, text string) {
	w.t.Helper()
	select {
	case d = <-w.back:
	case <-time.After(patience):
		w.t.Fatal("nothing comes back")
	}
	n := ip4Len
	if d.dst.Addr().Is6() {
		n = ip6Len
	}
	return d, string(d.payload[n+udpLen:])
}

// ask sends and returns what came back, from the app to the port.
func (l *laptop) ask(port uint16, app netip.AddrPort, payload string) string {
	l.w.t.Helper()
	l.send(port, app, payload)
	d, text := l.w.next()
	if d.src != app || d.dst.Port() != port {
		l.w.t.Errorf("from %v to %v, want from %v to port %d", d.src, d.dst, app, port)
	}
	return text
}

// silence fails the test when something comes back.
func (w *world) silence(what string) {
	w.t.Helper()
	select {
	case d := <-w.back:
		w.t.Errorf("%s: %v got %x", what, d.dst, d.payload)
	case <-time.After(50 * time.Millisecond):
	}
}

func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("it does not come about that %s; %+v %v", what, w.relay.Stats(), w.relay.Dropped())
		}
	}
}

// pass moves the relay's clock and waits until it was looked at.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	w.ahead.Add(int64(d))
	w.swept()
}

// swept waits until the relay has looked at its clock.
func (w *world) swept() {
	w.t.Helper()
	for range 2 { // the sweep under way may have read the clock before
		before := w.relay.clock.Load()
		w.eventually("a sweep", func() bool { return w.relay.clock.Load() > before })
	}
}

func (w *world) dropped(c cause) uint64 { return w.relay.Dropped()[causeNames[c]] }

func (w *world) records(kind audit.Kind, n int) (out []audit.Record) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%d records of %s", n, kind), func() bool {
		out = nil
		err := audit.Scan(w.log.Path(), func(_ []byte, r *audit.Record) bool {
			if r.Kind == kind {
				out = append(out, *r)
			}
			return true
		})
		return err == nil && len(out) >= n
	})
	return out
}

// app is an app on loopback that answers each datagram with f of it; with f
// nil it answers with the address it was asked from.
type app struct {
	*net.UDPConn
	seen atomic.Int64
}

func newApp(t testing.TB, network, address string, f func(b []byte, from netip.AddrPort) []byte) *app {
	t.Helper()
	addr, err := net.ResolveUDPAddr(network, address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenUDP(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	a := &app{UDPConn: c}
	if f == nil {
		f = func(_ []byte, from netip.AddrPort) []byte { return []byte(from.String()) }
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			a.seen.Add(1)
			if b := f(buf[:n], from); b != nil {
				_, _ = c.WriteToUDPAddrPort(b, from)
			}
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return a
}

func echo(b []byte, _ netip.AddrPort) []byte { return b }

func (a *app) port() uint16 { return a.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// yaml is the catalogue's file of an app.
func yaml(name, upstream string, ports ...string) string {
	if len(ports) == 0 {
		ports = []string{"5004"}
	}
	return fmt.Sprintf("name: %s\nprotocol: udp\nports: [%s]\nupstream: %q\nallow: [127.0.0.0/8, \"::1/128\"]\naccess: [{groups: [sales]}]\n",
		name, strings.Join(ports, ", "), upstream)
}

func (a *app) yaml(name string) string { return yaml(name, a.LocalAddr().String()) }
