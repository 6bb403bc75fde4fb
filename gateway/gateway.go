// Package gateway is the company's side of Portvakt as a library: [Config] and
// [Run]. It wires its rooms together and has no logic of its own; who looks for
// behaviour finds it in the package that owns the state.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/gateway/admin"
	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/notary"
	"github.com/portvakt/portvakt/gateway/audit/sink"
	"github.com/portvakt/portvakt/gateway/control"
	"github.com/portvakt/portvakt/gateway/dns"
	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/gateway/location"
	"github.com/portvakt/portvakt/gateway/media"
	"github.com/portvakt/portvakt/gateway/proxy"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/gateway/tunnel"
	"github.com/portvakt/portvakt/internal/transport"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// LoadPolicy compiles the policy a configuration names, without activating it,
// and looks at the files its apps name.
func LoadPolicy(cfg *Config) (*policy.Revision, error) {
	rev, err := policy.Load(cfg.Policy.Directory, cfg.policyOptions())
	if err != nil {
		return nil, err
	}
	return rev, cfg.checkApps(rev)
}

// Policy files decide who gets in, so who may write them is checked each time;
// and a rule about a claim that no login brings would never refuse.
func (c *Config) policyOptions() policy.LoadOptions {
	return policy.LoadOptions{CheckOwner: true, CheckClaims: true, KeptClaims: c.Identity.KeepClaims}
}

// gateway holds the rooms of one running gateway.
type gateway struct {
	cfg  *Config
	log  *slog.Logger
	dirs dirs

	ca       *certs.CA
	public   *certs.Public
	signer   *assertion.Signer
	store    *store.Store
	audit    *audit.Log
	notary   *notary.Notary
	sinks    []*sink.Sink
	witness  *notary.Witness // nil: there is none
	engine   *policy.Engine
	places   *location.DB
	sessions *session.Manager
	tunnel   *tunnel.Tunnel
	proxy    *proxy.Proxy
	media    *media.Relay
	api      *control.API
	admin    *admin.Server
	identity *identity.Provider
	table    *segment.Table
	inner    *conns // control connections out of the tunnel

	policyState lastError
}

// Run runs a gateway until ctx is done. It returns nil when it was told to
// stop, and the first error when it could not start or had to give up: a
// decision log that cannot be synced is such an error, because nothing may be
// allowed without it.
func Run(ctx context.Context, cfg *Config, log *slog.Logger) (err error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g := &gateway{cfg: cfg, log: log, inner: newConns()}
	unlock, err := g.openData(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.closeData(), unlock()) }()
	if err := g.build(); err != nil {
		return err
	}
	if err := g.audit.Append(&audit.Record{Kind: audit.KindStart}); err != nil {
		return fmt.Errorf("recording the start: %w", err)
	}
	defer g.audit.Note(audit.Record{Kind: audit.KindStop})
	return g.run(ctx)
}

// build makes the rooms that open nothing.
func (g *gateway) build() (err error) {
	cfg := g.cfg
	certificates := cfg.publicCertificates()
	certificates.CA, certificates.Log = g.ca, g.log
	if g.public, err = certs.NewPublic(certificates); err != nil {
		return err
	}
	if g.identity, err = identity.New(cfg.identityProvider(g.log)); err != nil {
		return err
	}
	g.engine = policy.NewEngine(policy.EngineOptions{Log: g.log})
	own := g.store.GatewayAddresses()
	g.table = segment.NewTable(own)
	if g.places, err = location.Open(location.Config{Path: cfg.Location.Database, Log: g.log, OnChange: func() { g.sessions.Relocate() }}); err != nil {
		return err
	}
	key, err := g.dirs.tunnelKey()
	if err != nil {
		return err
	}
	g.tunnel, err = tunnel.New(tunnel.Config{
		PrivateKey: key, Listen: cfg.Tunnel.Listen, Addresses: own, MTU: cfg.Tunnel.MTU, Table: g.table,
		Mode: tunnel.Mode(cfg.Tunnel.Mode),
		TCP:  g.handleTCP, UDP: func(packets [][]byte) { g.media.Take(packets) },
		UDPGSOOff: cfg.Tunnel.UDPGSO == "off",
		// Where a key is by then may be elsewhere than where it was seen.
		OnEndpoint: func(key [32]byte, _ netip.AddrPort) { g.sessions.Endpoint(key, netip.AddrPort{}) },
		OnMove:     func(key [32]byte, ep netip.AddrPort) { g.sessions.Moved(key, ep) },
		Held:       func(key [32]byte) bool { return g.sessions.Held(key) },
		Awake:      func() bool { return g.sessions.Awake() },
		Keep:       g.keepTunnels,
		Log:        g.log,
	})
	if err != nil {
		return err
	}
	g.sessions = session.New(session.Config{
		Engine: g.engine, Store: g.store, Audit: g.audit, Table: g.table, Gateway: own, ControlPort: wire.ControlPort,
		Locate: g.places.Lookup, PostureMaxAge: time.Duration(cfg.Posture.MaxAge), MaxFlows: cfg.Session.DeviceFlows, Log: g.log,
		AddPeer:    g.addPeer,
		RemovePeer: func(key [32]byte) error { return g.tunnel.RemovePeer(key) },
		Left:       func(device string) { g.tunnel.Hangup(device) },
		Gone: func(inner [2]netip.Addr) {
			for _, a := range inner {
				g.proxy.Drop(a)
			}
		},
		SessionOver: func(inner [2]netip.Addr, session string) {
			for _, a := range inner {
				g.proxy.Forget(a, session)
			}
		},
	})
	g.proxy, err = proxy.New(proxy.Config{
		Session: g.sessions, AppByAddr: g.sessions.AppByAddr, Signer: g.signer, Log: g.log,
		Certificate: func(names []string) (*tls.Certificate, error) { return g.ca.ServerCertificate(names, nil) },
		Device:      g.tunnel.FirstAddress, Forbidden: cfg.forbidden(), Timeouts: cfg.Proxy.timeouts(), Limits: cfg.Proxy.limits(),
	})
	if err != nil {
		return err
	}
	names := dns.New(dns.Config{Resolve: g.sessions.Resolve})
	g.media, err = media.New(media.Config{
		Sessions: g.sessions, AppByAddr: g.sessions.AppByAddr, Inject: g.tunnel.Inject, MTU: cfg.Tunnel.MTU,
		Gateway: own, DNS: names.Answer, Device: g.tunnel.FirstAddress, Forbidden: cfg.forbidden(), Log: g.log,
		Timeouts: cfg.Media.timeouts(), Limits: cfg.Media.limits(),
	})
	if err != nil {
		return err
	}
	g.api = control.New(control.Config{
		CA: g.ca, Store: g.store, Audit: g.audit, Sessions: g.sessions, Identity: g.identity, MTU: cfg.Tunnel.MTU,
		Tunnel:      wire.GatewayTunnel{TunnelKey: keyText(g.tunnel.PublicKey()), Endpoints: cfg.Tunnel.Endpoints, Addresses: own[:]},
		DNSSuffixes: g.dnsSuffixes, RedirectPorts: cfg.Identity.RedirectPorts,
		SessionLifetime: time.Duration(cfg.Session.Lifetime), JWKS: g.signer.JWKS(), WebSocket: g.tunnel.Accept, Log: g.log,
	})
	g.admin = admin.New(admin.Config{
		Socket: cfg.SocketPath(), Group: cfg.Admin.Group, URL: cfg.Public.URL, CA: g.ca, Store: g.store, Audit: g.audit, Sessions: g.sessions,
		Engine: g.engine, Locate: g.places.Lookup, Bundles: g.dirs.bundles(), Log: g.log,
	})
	return nil
}

// run starts what listens. What takes decisions runs before what asks for them,
// and the policy is read before the first device can come in.
func (g *gateway) run(ctx context.Context) error {
	var lc net.ListenConfig
	public, err := lc.Listen(ctx, "tcp", g.cfg.Public.Listen)
	if err != nil {
		return fmt.Errorf("opening public.listen: %w", err)
	}
	defer public.Close() // a start that fails has no server yet that would
	health, err := lc.Listen(ctx, "tcp", g.cfg.Health.Listen)
	if err != nil {
		return fmt.Errorf("opening health.listen: %w", err)
	}
	defer health.Close()
	// It stops in two phases. Told to stop, it takes nothing new, while what is
	// open may end by itself: the proxies drain, and what they stand on (base)
	// goes on until they are done. After a fault there is nothing to wait for.
	told := ctx
	grp, ctx := errgroup.WithContext(ctx)
	base, stopBase := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBase()
	var draining sync.WaitGroup
	draining.Add(2)
	grp.Go(func() error {
		<-ctx.Done()
		if told.Err() != nil {
			draining.Wait()
		}
		stopBase()
		return nil
	})
	grp.Go(func() error { return g.audit.Run(base) })
	grp.Go(func() error { return g.notary.Run(base) })
	if g.witness != nil {
		grp.Go(func() error { return g.witness.Run(base) })
	}
	grp.Go(func() error { return g.retain(base) })
	for _, s := range g.sinks {
		grp.Go(func() error { return s.Run(base) })
	}
	grp.Go(func() error { return g.sessions.Run(base) })
	grp.Go(func() error { return g.places.Run(base) })
	grp.Go(func() error { return g.identity.Run(base) })
	grp.Go(func() error { return g.public.Run(base) })
	grp.Go(func() error { defer draining.Done(); return g.proxy.Run(ctx) })
	grp.Go(func() error { defer draining.Done(); return g.media.Run(ctx) })
	grp.Go(func() error { return g.tunnel.Run(base) })
	policyRead := make(chan struct{})
	grp.Go(func() error { return g.followPolicy(ctx, policyRead) })
	grp.Go(func() error {
		for _, ready := range []<-chan struct{}{policyRead, g.tunnel.Ready()} {
			select {
			case <-ctx.Done():
				return nil
			case <-ready:
			}
		}
		if err := g.restore(ctx); err != nil {
			return err
		}
		grp.Go(func() error { return g.admin.Run(base) }) // who revokes must not have to wait
		grp.Go(func() error {
			srv := httpServer(g.api.Public(), g.log)
			g.cfg.Public.Timeouts.apply(srv)
			srv.TLSConfig, srv.ConnContext = g.public.TLSConfig(), transport.ConnContext
			return serve(ctx, srv, func() error { return srv.ServeTLS(public, "", "") })
		})
		grp.Go(func() error {
			// An agent whose event stream ends gives its tunnel up.
			srv := httpServer(g.api.Tunnel(), g.log)
			return serve(base, srv, func() error { return srv.Serve(g.inner) })
		})
		grp.Go(func() error {
			srv := httpServer(g.healthHandler(), g.log)
			return serve(ctx, srv, func() error { return srv.Serve(health) })
		})
		g.log.Info("the gateway is up", "remote", public.Addr().String())
		return nil
	})
	return grp.Wait()
}

// handleTCP sends what arrives at the gateway's own address to the control API
// and everything else to the proxy.
func (g *gateway) handleTCP(r tunnel.TCPRequest) {
	own := g.store.GatewayAddresses()
	if a := r.Local().Addr().Unmap(); a == own[0] || a == own[1] {
		if r.Local().Port() != wire.ControlPort {
			r.Reset()
			return
		}
		g.inner.accept(r)
		return
	}
	g.proxy.HandleTCP(r)
}

// addPeer gives the tunnel what is known of a connection's key.
func (g *gateway) addPeer(c session.Connection) error {
	r := c.Registration
	from, _ := netip.ParseAddr(c.Remote) // empty after a restart
	return g.tunnel.AddPeer(tunnel.Peer{
		Key: r.TunnelKey, PresharedKey: r.PresharedKey, Addresses: c.Device.Addresses, From: from,
		Endpoint: r.Tunnel.Endpoint, Handshake: r.Tunnel.HandshakeAt, Initiation: r.Tunnel.Initiation,
	})
}

// keepTunnels stores what the tunnel has to know after a restart.
func (g *gateway) keepTunnels(ctx context.Context, kept []tunnel.Kept) error {
	tunnels := make(map[[32]byte]store.Tunnel, len(kept))
	for _, k := range kept {
		tunnels[k.Key] = store.Tunnel{Endpoint: k.Endpoint, HandshakeAt: k.Handshake, Initiation: k.Initiation}
	}
	return g.store.KeepTunnels(ctx, tunnels)
}

// restore puts the registrations and sessions of before a restart in force, the
// lockdowns first.
func (g *gateway) restore(ctx context.Context) error {
	if err := g.sessions.RestoreLockdowns(ctx); err != nil {
		return err
	}
	now := time.Now()
	regs, err := g.store.Registrations(ctx)
	if err != nil {
		return fmt.Errorf("reading registrations: %w", err)
	}
	for _, r := range regs {
		if !now.Before(r.ExpiresAt) {
			continue
		}
		d, err := g.store.Device(ctx, r.DeviceID)
		if err != nil {
			return fmt.Errorf("reading a registered device: %w", err)
		}
		active, err := g.store.Sessions(ctx, store.SessionFilter{Active: true, DeviceID: r.DeviceID})
		if err != nil {
			return fmt.Errorf("reading sessions: %w", err)
		}
		c := session.Connection{Device: d, Registration: r}
		if len(active) > 0 {
			c.Session = &active[0]
		}
		// One device's registration must not keep everyone else out: it connects
		// anew.
		if err := g.sessions.Connect(c); err != nil && ctx.Err() == nil {
			g.log.Error("restoring a connection; the device must connect anew", "device", r.DeviceID, "err", err)
			if err := g.store.DeleteRegistration(ctx, r.TunnelKey); err != nil {
				return fmt.Errorf("forgetting a registration: %w", err)
			}
		}
	}
	return nil
}

// forbidden are the tunnel's pools: no app may live in one unless it names it.
// The machine's own addresses are the proxy's to look at, at every dial.
func (c *Config) forbidden() []netip.Prefix {
	var out []netip.Prefix
	for _, s := range []string{c.Tunnel.IPv4, c.Tunnel.IPv6} {
		if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func httpServer(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serve runs a server until ctx is done, then gives what is under way a moment.
func serve(ctx context.Context, srv *http.Server, run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if srv.Shutdown(stop) != nil {
		_ = srv.Close() // event streams never end by themselves
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
