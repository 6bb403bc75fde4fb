//go:build linux

package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	_ "net/http/pprof"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/proxy"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/gc"
	"github.com/portvakt/portvakt/policy"
)

// roles are what this program plays: it starts itself again as `proxy ROLE
// SETTING`.
var roles = map[string]func(ctx context.Context, arg string) error{wayOurs: playOurs, wayBare: playBare}

func read(arg string) (set setting, pair tls.Certificate, err error) {
	if err = json.Unmarshal([]byte(arg), &set); err != nil {
		return set, pair, err
	}
	pair, err = tls.LoadX509KeyPair(set.certificate())
	return set, pair, err
}

// playBare is what a request costs that nobody decides on.
func playBare(ctx context.Context, arg string) error {
	set, pair, err := read(arg)
	if err != nil {
		return err
	}
	target := &url.URL{Scheme: "http", Host: set.App}
	srv := &http.Server{
		Handler: &httputil.ReverseProxy{
			Rewrite:    func(pr *httputil.ProxyRequest) { pr.SetURL(target); pr.SetXForwarded() },
			Transport:  &http.Transport{MaxIdleConnsPerHost: 128, DisableCompression: true},
			BufferPool: &buffers{}, ErrorLog: log.New(io.Discard, "", 0),
		},
		ErrorLog: log.New(io.Discard, "", 0),
	}
	l, err := net.Listen("tcp", set.Listen)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	err = srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

type buffers struct{ p sync.Pool }

func (b *buffers) Get() []byte {
	if v, ok := b.p.Get().(*[]byte); ok {
		return *v
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(v []byte) { b.p.Put(&v) }

const appYAML = `name: %s
protocol: http
hosts: [%s]
durability: %s
upstream: http://%s
allow: [127.0.0.1/32]
access:
  - groups: [sales]
    methods: [GET, POST]
    paths: [/*]
`

// Names of the apps, one for each durability.
const (
	appKill   = "bench"
	appStrict = "bench-strict"
)

// inbound is a connection that came over loopback with the addresses that a
// tunnel would have proven.
type inbound struct {
	*net.TCPConn
	peer, local netip.AddrPort
}

func (i inbound) Peer() netip.AddrPort                     { return i.peer }
func (i inbound) Local() netip.AddrPort                    { return i.local }
func (i inbound) Accept(context.Context) (net.Conn, error) { return i.TCPConn, nil }
func (i inbound) Reset()                                   { _ = i.SetLinger(0); _ = i.Close() }

// gate is a gateway without its tunnel: real policy, sessions, store and log,
// and one device with a person logged in.
type gate struct {
	set     setting
	store   *store.Store
	log     *audit.Log
	manager *session.Manager
	proxy   *proxy.Proxy
	device  store.Device
}

func playOurs(ctx context.Context, arg string) (err error) {
	set, pair, err := read(arg)
	if err != nil {
		return err
	}
	gc.Pace()
	g := &gate{set: set}
	if err := g.open(ctx, pair); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.log.Close(), g.store.Close()) }()
	var parts sync.WaitGroup
	defer parts.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	run := []func(context.Context) error{g.proxy.Run, g.log.Run, g.control}
	for app, addr := range map[string]string{appKill: set.Listen, appStrict: set.Strict} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		defer context.AfterFunc(ctx, func() { _ = l.Close() })()
		run = append(run, func(ctx context.Context) error { return g.accept(ctx, l, app) })
	}
	failed := make(chan error, len(run))
	for _, part := range run {
		parts.Go(func() { failed <- part(ctx) })
	}
	err = <-failed
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (g *gate) open(ctx context.Context, pair tls.Certificate) (err error) {
	g.store, err = store.Open(ctx, store.Options{
		Path: filepath.Join(g.set.Dir, "db", "p.db"), IPv4: netip.MustParsePrefix("100.64.0.0/16"), IPv6: netip.MustParsePrefix("fd00:64::/64"), SealKey: [32]byte{9},
	})
	if err != nil {
		return err
	}
	if g.log, err = audit.Open(audit.Options{Dir: filepath.Join(g.set.Dir, "audit")}); err != nil {
		return err
	}
	g.manager = session.New(session.Config{
		Engine: policy.NewEngine(policy.EngineOptions{}), Store: g.store, Audit: g.log,
		Table: segment.NewTable(g.store.GatewayAddresses()), Gateway: g.store.GatewayAddresses(), ControlPort: 80,
		Locate:     func(netip.Addr) policy.Location { return policy.Location{} },
		AddPeer:    func(session.Connection) error { return nil },
		RemovePeer: func([32]byte) error { return nil },
	})
	apps := filepath.Join(g.set.Dir, "apps")
	if err := errors.Join(
		os.Mkdir(apps, 0o700),
		os.WriteFile(filepath.Join(apps, "kill.yaml"), fmt.Appendf(nil, appYAML, appKill, host, "kill", g.set.App), 0o600),
		os.WriteFile(filepath.Join(apps, "strict.yaml"), fmt.Appendf(nil, appYAML, appStrict, hostStrict, "strict", g.set.App), 0o600),
	); err != nil {
		return err
	}
	rev, err := policy.Load(apps, policy.LoadOptions{})
	if err != nil {
		return err
	}
	if err := g.manager.Publish(ctx, rev, "bench"); err != nil {
		return err
	}
	if err := g.login(ctx); err != nil {
		return err
	}
	signer, err := assertion.Open(assertion.Config{KeyFile: filepath.Join(g.set.Dir, "assert.pem"), Issuer: "https://gw.bench.test"})
	if err != nil {
		return err
	}
	g.proxy, err = proxy.New(proxy.Config{
		Session: g.manager, AppByAddr: g.manager.AppByAddr, Signer: signer,
		Certificate: func([]string) (*tls.Certificate, error) { return &pair, nil },
		Forbidden:   []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")},
		Timeouts:    proxy.Timeouts{Drain: time.Second},
	})
	return err
}

// login enrols a device, connects it and logs a person in.
func (g *gate) login(ctx context.Context) error {
	now := time.Now()
	if err := g.store.CreateInvite(ctx, store.Invite{SecretHash: [32]byte{1}, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}); err != nil {
		return err
	}
	var err error
	g.device, err = g.store.RedeemInvite(ctx, store.Redeem{SecretHash: [32]byte{1}, Now: now, Device: store.Device{
		ID: "dev-1", Name: "laptop", OS: "linux", Arch: "amd64", KeyTier: "software", KeyHash: [32]byte{2},
	}})
	if err != nil {
		return err
	}
	reg := store.Registration{DeviceID: g.device.ID, TunnelKey: [32]byte{3}, TokenHash: [32]byte{4}, BootID: "boot", CreatedAt: now, ExpiresAt: now.Add(12 * time.Hour)}
	if _, err := g.store.PutRegistration(ctx, reg); err != nil {
		return err
	}
	if err := g.manager.Connect(session.Connection{Device: g.device, Registration: reg, Nonce: "n"}); err != nil {
		return err
	}
	_, err = g.manager.Login(ctx, store.Session{
		DeviceID: g.device.ID, OSUser: "1000:asa", StartedAt: now, ExpiresAt: now.Add(8 * time.Hour), LastSeen: now,
		Subject: policy.Subject{Issuer: "https://idp.bench.test", ID: "u1", Name: "Asa", Email: "asa@bench.test", Groups: []string{"sales"}, AuthenticatedAt: now},
	})
	return err
}

// accept hands over connections as if they came out of the device's tunnel, to
// an app.
func (g *gate) accept(ctx context.Context, l net.Listener, app string) error {
	local := netip.AddrPortFrom(g.manager.AppAddresses(app)[0], 443)
	for port := uint16(20000); ; port++ {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		g.proxy.HandleTCP(inbound{c.(*net.TCPConn), netip.AddrPortFrom(g.device.Addresses[0], port), local})
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// control tells how long requests were with the proxy since it was asked last,
// and profiles.
func (g *gate) control(ctx context.Context) error {
	var last atomic.Pointer[proxy.Lags]
	last.Store(&proxy.Lags{})
	http.HandleFunc("GET /lags", func(w http.ResponseWriter, _ *http.Request) {
		now := g.proxy.Lags()
		s := now.Since(*last.Swap(&now))
		us := func(q float64) float64 { return float64(s.Quantile(q)) / 1e3 }
		_ = json.NewEncoder(w).Encode(lag{Count: now.Count, P50: us(0.5), P99: us(0.99)})
	})
	srv := &http.Server{Addr: g.set.Control}
	defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
	return srv.ListenAndServe()
}
