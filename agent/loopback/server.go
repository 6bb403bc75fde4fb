// Package loopback is how programs on the laptop reach the apps without a
// network interface of their own: an HTTP proxy and SOCKS5 on one loopback
// port, a PAC file that sends exactly the apps' names there, and one loopback
// port for every port of a TCP or UDP app.
//
// Every listener is open to all accounts of the machine, so each connection's
// owner is looked up (package peeruser) and refused unless
// [Config.UserAllowed] says yes. Nothing but the visible apps is carried.
package loopback

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/agent/peeruser"
	"github.com/portvakt/portvakt/internal/wire"
)

// Bounds. They are variables of the package only so that its tests need not
// wait; nothing else changes them.
var (
	headerTimeout = 10 * time.Second  // from accept to a whole SOCKS or HTTP request head
	idleTimeout   = 2 * time.Minute   // between the requests of one proxy connection
	halfOpenLimit = 2 * time.Minute   // silence allowed after one side has finished
	dialTimeout   = 15 * time.Second  // until the gateway answers
	udpIdle       = 120 * time.Second // without a datagram in either direction
	udpRecheck    = time.Second       // how old a UDP owner's check may be
	maxConns      = 1024              // accepted connections at a time, all listeners
	maxUDPFlows   = 256               // per UDP port of an app
	maxRelays     = 64                // SOCKS5 UDP associations at a time
	relayIdle     = 10 * time.Minute  // of an association without a datagram
)

// Config says where to listen, whom to serve and how to reach an app.
type Config struct {
	// ProxyAddr is the loopback address of the proxy, "127.0.0.1:PORT"; port 0
	// takes the one saved last, else a free one.
	ProxyAddr string
	// Dial opens a connection ("tcp") or flow ("udp") to an app's virtual
	// address through the tunnel.
	Dial func(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error)
	// ListenUDP opens a socket inside the tunnel that sends to and receives from
	// every UDP app; port 0 means any. Without it SOCKS5 UDP ASSOCIATE is
	// refused. Its sockets use *net.UDPAddr.
	ListenUDP func(ctx context.Context, v6 bool, port uint16) (net.PacketConn, error)
	// UserAllowed says whether that account may use the apps now. It is asked
	// for every connection, and again for the open ones on [Server.SetApps].
	UserAllowed func(uid uint32) bool
	// LoadPorts and SavePorts keep the ports that were given out, so that a
	// program configured with one still finds its app after a restart. Keys are
	// "proxy" and "APP/tcp/PORT". Either may be nil. They are called with the
	// server's lock held and must not call it back.
	LoadPorts func() (map[string]uint16, error)
	SavePorts func(map[string]uint16) error
	// AllowAnyLocalUser serves every account of the machine on platforms where
	// the owner of a connection cannot be looked up (all but Linux). It has no
	// effect on Linux. Without it, Run refuses to listen there.
	AllowAnyLocalUser bool
	// Log may be nil.
	Log *slog.Logger
}

// Mapping is one loopback port of an app.
type Mapping struct {
	Protocol string         // tcp or udp
	Port     uint16         // the app's own
	Local    netip.AddrPort // where programs connect
}

// Server owns the listeners. Its goroutines live within Run.
type Server struct {
	cfg    Config
	log    *slog.Logger
	ready  chan struct{}
	slots  chan struct{} // one per accepted connection
	relays chan struct{} // one per UDP association

	// routes is what requests are looked up in; replaced whole under mu.
	routes atomic.Pointer[routes]

	mu      sync.Mutex
	apps    []wire.App            // guarded by mu
	run     context.Context       // guarded by mu; nil outside Run
	work    sync.WaitGroup        // Add only under mu with run set, or from a goroutine it counts
	proxy   netip.AddrPort        // guarded by mu
	targets map[targetKey]*target // guarded by mu
	ports   map[string]uint16     // guarded by mu
	saved   map[string]uint16     // guarded by mu; what SavePorts got last
	peers   map[*peer]struct{}    // guarded by mu

	lastRefusal atomic.Int64 // unix nanoseconds; see logRefusal
}

// New returns a server that listens on nothing yet.
func New(cfg Config) *Server {
	s := &Server{
		cfg: cfg, log: cfg.Log, ready: make(chan struct{}), slots: make(chan struct{}, maxConns), relays: make(chan struct{}, maxRelays),
		targets: map[targetKey]*target{}, ports: map[string]uint16{}, peers: map[*peer]struct{}{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.routes.Store(&routes{})
	return s
}

// Ready is closed when Run listens.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addresses returns where the proxy listens and the loopback ports of the TCP
// and UDP apps by app name, ordered by protocol and port. A port that could not
// be opened is left out. Before Ready both are zero.
func (s *Server) Addresses() (proxy netip.AddrPort, apps map[string][]Mapping) {
	s.mu.Lock()
	defer s.mu.Unlock()
	apps = map[string][]Mapping{}
	for k, t := range s.targets {
		if t.local.IsValid() {
			apps[k.app] = append(apps[k.app], Mapping{Protocol: k.protocol, Port: k.port, Local: t.local})
		}
	}
	for _, m := range apps {
		slices.SortFunc(m, func(a, b Mapping) int {
			if a.Protocol != b.Protocol {
				return int(a.Protocol[0]) - int(b.Protocol[0])
			}
			return int(a.Port) - int(b.Port)
		})
	}
	return s.proxy, apps
}

// Run listens until ctx is cancelled, then closes every listener and
// connection and returns nil once all are gone. It fails when the proxy's
// address cannot be used.
func (s *Server) Run(ctx context.Context) error {
	if s.cfg.Dial == nil || s.cfg.UserAllowed == nil {
		return errors.New("starting the loopback listeners: Dial and UserAllowed must be set")
	}
	if !peeruser.Supported && !s.cfg.AllowAnyLocalUser {
		return fmt.Errorf("starting the loopback listeners: %w; every account of this machine could use the apps (set AllowAnyLocalUser to accept that)", peeruser.ErrNotSupported)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := s.start(ctx)
	if err != nil {
		return err
	}
	web := newProxyHTTP(s, ctx)
	defer web.close()
	failed := make(chan error, 1)
	s.work.Go(func() { failed <- s.accept(ctx, l, func(p *peer) { s.servePreface(p, web) }) })
	close(s.ready)

	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
	}
	s.stop()
	cancel()
	l.Close()
	web.close()
	s.work.Wait()
	return err
}

// start opens the proxy's listener and the apps' ports.
func (s *Server) start(ctx context.Context) (net.Listener, error) {
	want, err := netip.ParseAddrPort(s.cfg.ProxyAddr)
	if err != nil || !want.Addr().IsLoopback() {
		return nil, fmt.Errorf("starting the loopback listeners: proxy address %q is not a loopback address with a port", s.cfg.ProxyAddr)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run != nil {
		return nil, errors.New("starting the loopback listeners: already running")
	}
	if s.cfg.LoadPorts != nil {
		saved, err := s.cfg.LoadPorts()
		if err != nil {
			s.log.Warn("loopback ports are chosen anew", "err", err)
		}
		maps.Copy(s.ports, saved)
		s.saved = maps.Clone(saved)
	}
	var l net.Listener
	if saved := s.ports["proxy"]; want.Port() == 0 && saved != 0 {
		l, _ = net.Listen("tcp", netip.AddrPortFrom(want.Addr(), saved).String())
	}
	if l == nil {
		if l, err = net.Listen("tcp", want.String()); err != nil {
			return nil, fmt.Errorf("listening for the proxy: %w", err)
		}
	}
	s.proxy = l.Addr().(*net.TCPAddr).AddrPort()
	s.run = ctx
	if want.Port() == 0 {
		s.ports["proxy"] = s.proxy.Port()
	}
	s.reconcile()
	return l, nil
}

// stop closes the apps' ports; from here SetApps only remembers.
func (s *Server) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.run = nil
	s.proxy = netip.AddrPort{}
	s.routes.Store(&routes{})
	for k, t := range s.targets {
		t.close()
		delete(s.targets, k)
	}
}

// SetApps replaces the visible apps. When it returns, a port of an app that is
// gone is closed and its connections are cut, and ports of new apps listen.
// Connections of an app that stayed as it was go on, if UserAllowed still says
// so. Call it after a login or logout, too.
func (s *Server) SetApps(apps []wire.App) {
	s.mu.Lock()
	s.apps = slices.Clone(apps)
	if s.run != nil {
		s.reconcile()
	}
	s.mu.Unlock()
	s.usersChanged()
}

// usersChanged asks UserAllowed about every open connection and cuts those it
// no longer allows.
func (s *Server) usersChanged() {
	s.mu.Lock()
	open := slices.Collect(maps.Keys(s.peers))
	var udp []*target
	for _, t := range s.targets {
		if t.udp != nil {
			udp = append(udp, t)
		}
	}
	s.mu.Unlock()
	for _, p := range open {
		if !s.allowed(p.uid) {
			p.cancel()
		}
	}
	for _, t := range udp {
		t.udp.dropDisallowed()
	}
}

func (s *Server) allowed(uid uint32) bool { return !peeruser.Supported || s.cfg.UserAllowed(uid) }

// reconcile brings targets, listeners and routes in line with the apps. The
// caller holds mu and run is set.
func (s *Server) reconcile() {
	wanted := map[targetKey]*target{}
	next := newRoutes()
	for _, a := range s.apps {
		r, keys := routeFor(a)
		if r == nil {
			s.log.Warn("app has no usable address", "app", a.Name)
			continue
		}
		for _, k := range keys {
			t := s.targets[k]
			if wanted[k] != nil {
				continue // a port listed twice
			}
			if t == nil {
				t = &target{key: k, addr: r.addrs[0]}
				t.ctx, t.cancel = context.WithCancel(s.run)
			}
			wanted[k] = t
			next.add(r, t, s.log)
		}
	}
	s.routes.Store(next)
	for k, t := range s.targets {
		if wanted[k] == nil {
			t.close()
		}
	}
	s.targets = wanted
	for _, k := range slices.SortedFunc(maps.Keys(wanted), targetKey.compare) {
		s.open(wanted[k])
	}
	s.save()
}

// save hands the ports out for keeping. The caller holds mu.
func (s *Server) save() {
	if len(s.ports) > 1024 { // names of apps long gone
		keep := map[string]uint16{"proxy": s.ports["proxy"]}
		for k := range s.targets {
			keep[k.portName()] = s.ports[k.portName()]
		}
		s.ports = keep
	}
	if s.cfg.SavePorts == nil || maps.Equal(s.ports, s.saved) {
		return
	}
	s.saved = maps.Clone(s.ports)
	if err := s.cfg.SavePorts(maps.Clone(s.ports)); err != nil {
		s.log.Warn("loopback ports may change at the next start", "err", err)
	}
}

// open gives a TCP or UDP target its loopback port, unless it has one: the port
// it had last, else the app's own number, else any. The caller holds mu.
func (s *Server) open(t *target) {
	if t.key.protocol == "http" || t.local.IsValid() {
		return
	}
	var tries []uint16
	if p := s.ports[t.key.portName()]; p != 0 {
		tries = append(tries, p)
	}
	if t.key.port >= 1024 {
		tries = append(tries, t.key.port)
	}
	var err error
	for _, p := range append(tries, 0) {
		if err = s.listen(t, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), p)); err == nil {
			s.ports[t.key.portName()] = t.local.Port()
			return
		}
	}
	s.log.Error("no loopback port for an app", "app", t.key.app, "err", err)
}

func (s *Server) listen(t *target, at netip.AddrPort) error {
	if t.key.protocol == "udp" {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		t.udp = newUDPPort(s, t, c)
		t.local, t.listener = c.LocalAddr().(*net.UDPAddr).AddrPort(), c
		s.work.Go(t.udp.run)
		return nil
	}
	l, err := net.Listen("tcp4", at.String())
	if err != nil {
		return err
	}
	t.local, t.listener = l.Addr().(*net.TCPAddr).AddrPort(), l
	s.work.Go(func() {
		if err := s.accept(t.ctx, l, func(p *peer) { s.serveTCP(p, t) }); err != nil {
			s.log.Error("a loopback port stopped", "app", t.key.app, "err", err)
		}
	})
	return nil
}
