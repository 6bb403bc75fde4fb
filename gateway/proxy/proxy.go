// Package proxy is the policy enforcement point for everything that leaves a
// tunnel for an app by TCP: HTTP exchanges, WebSockets and TCP connections; UDP
// is package media's. Each is read in one way only, registered as a Flow, decided,
// recorded, and only then forwarded; every chunk afterwards asks the Flow
// whether it may still pass.
//
// The app is given by the virtual address a packet was sent to, never by a
// name the client chose.
package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/http1"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// TCPInbound is a TCP connection that a device asks for and nobody has
// answered yet.
type TCPInbound interface {
	Peer() netip.AddrPort  // the device's inner address
	Local() netip.AddrPort // the app's virtual address
	// Accept answers the handshake and waits for its end, or for that of ctx. The
	// connection may have a Reset method that aborts it with an RST and discards
	// what is queued.
	Accept(ctx context.Context) (net.Conn, error)
	// Reset refuses the connection with an RST.
	Reset()
}

// Config is what a Proxy needs. Session, AppByAddr, Certificate and Signer are
// required.
type Config struct {
	Session *session.Manager
	// AppByAddr returns the app of a virtual address in the active revision,
	// nil for an address of none.
	AppByAddr func(netip.Addr) *policy.App
	// Certificate returns a server certificate of the internal CA for names.
	Certificate func(names []string) (*tls.Certificate, error)
	Signer      *assertion.Signer
	// Decided says whether every open Flow was decided since the gateway last
	// stood still (see session.Manager.Decided, which is asked without it).
	Decided func() bool
	// Device returns the address that an inner address counts with, the same for
	// all of one device. Without it each counts by itself.
	Device func(netip.Addr) netip.Addr
	// Forbidden are the gateway's own prefixes (overlay pools, public
	// addresses). No app is dialled there unless it allows the prefix itself.
	Forbidden []netip.Prefix
	Timeouts  Timeouts
	Limits    Limits
	Log       *slog.Logger
}

// Timeouts bound how long the proxy waits. A zero field means its default.
type Timeouts struct {
	Handshake      time.Duration // of TCP with a device, and then of TLS; 10 s
	ReadHeader     time.Duration // of one request; 10 s
	Idle           time.Duration // a device's connection between requests; 2 min
	Dial           time.Duration // TCP and TLS with an app; 5 s
	ResponseHeader time.Duration // of an app, after the request was sent; 60 s
	Read           time.Duration // until something more of a body comes, from a device or an app; 1 min
	Write          time.Duration // until a device or an app takes something of what it is sent; 1 min
	WriteTCP       time.Duration // the same on connections of tcp apps; 15 min
	Ping           time.Duration // to a device that says nothing on a WebSocket; 30 s
	Drain          time.Duration // what is open when Run's context ends; 5 s
	UpstreamIdle   time.Duration // a connection to an app between requests; 90 s
	LeaveAlone     time.Duration // an app after Limits.FailedDials; 2 s
}

// Limits bound what one device, or all of them, can make the proxy hold. A
// zero field means its default.
type Limits struct {
	HeaderBytes         int   // request line and headers; 64 KiB
	ResponseHeaderBytes int64 // of an app; 256 KiB
	Message             int64 // of a WebSocket, from either side, as it is on the wire; 16 MiB
	Streams             int   // concurrent HTTP/2 streams of one connection; 250
	Pending             int   // connections that are not decided yet, beside one of each device; 1,024
	DevicePending       int   // those of one device; 128
	Deciding            int   // of these, how many are being decided at a time; 4
	DeviceConns         int   // open HTTP connections of one device; 256
	FailedDials         int   // connections to an app in a row until it is left alone; 5
}

func setDefault[T int | int64 | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

func (t *Timeouts) defaults() {
	setDefault(&t.Handshake, 10*time.Second)
	setDefault(&t.ReadHeader, 10*time.Second)
	setDefault(&t.Idle, 2*time.Minute)
	setDefault(&t.Dial, 5*time.Second)
	setDefault(&t.ResponseHeader, time.Minute)
	setDefault(&t.Read, time.Minute)
	setDefault(&t.Write, time.Minute)
	setDefault(&t.WriteTCP, 15*time.Minute)
	setDefault(&t.Ping, 30*time.Second)
	setDefault(&t.Drain, 5*time.Second)
	setDefault(&t.UpstreamIdle, 90*time.Second)
	setDefault(&t.LeaveAlone, leaveAlone)
}

func (l *Limits) defaults() {
	setDefault(&l.HeaderBytes, 64<<10)
	setDefault(&l.ResponseHeaderBytes, 256<<10)
	setDefault(&l.Message, 16<<20)
	setDefault(&l.Streams, 250)
	setDefault(&l.Pending, 1024)
	setDefault(&l.DevicePending, 128)
	setDefault(&l.Deciding, 4)
	setDefault(&l.DeviceConns, 256)
	setDefault(&l.FailedDials, tripAfter)
}

// Proxy enforces policy between tunnels and apps. Its methods are safe for
// concurrent use.
type Proxy struct {
	cfg       Config
	log       *slog.Logger
	forward   *httputil.ReverseProxy
	upstreams upstreams
	tls       *tls.Config

	secure, plain *http1.Server // HTTP/1.1 on ports 443 and 80
	multiplexed   *listener     // of HTTP/2

	// mu guards running, ctx, turns and the start of work counted in wg, so that
	// none begins after Run waits for it.
	mu      sync.Mutex
	running bool
	ctx     context.Context
	turns   turns
	wg      sync.WaitGroup

	conns conns
	waits waits

	dropped atomic.Uint64
	lags    lags
}

// New returns a Proxy that refuses everything until Run.
func New(cfg Config) (*Proxy, error) {
	if cfg.Session == nil || cfg.AppByAddr == nil || cfg.Certificate == nil || cfg.Signer == nil {
		return nil, errors.New("proxy: Session, AppByAddr, Certificate and Signer are required")
	}
	cfg.Timeouts.defaults()
	cfg.Limits.defaults()
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Decided == nil {
		cfg.Decided = cfg.Session.Decided
	}
	if cfg.Device == nil {
		cfg.Device = func(a netip.Addr) netip.Addr { return a }
	}
	p := &Proxy{
		cfg: cfg, log: cfg.Log,
		multiplexed: newListener(),
		turns:       turns{limits: cfg.Limits, of: map[netip.Addr]*queue{}},
		conns:       conns{device: cfg.Device, perDevice: cfg.Limits.DeviceConns, within: cfg.Timeouts.Write, of: map[netip.Addr]int{}, open: map[netip.Addr]map[*conn]struct{}{}},
	}
	p.upstreams, p.waits.within = newUpstreams(cfg), cfg.Timeouts.Read
	p.forward = p.newForward()
	p.secure, p.plain = p.server1(p.serveHTTP), p.server1(p.redirect)
	p.tls = &tls.Config{
		MinVersion:     tls.VersionTLS12,
		CipherSuites:   forwardSecret,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: p.certificate,
	}
	return p, nil
}

// forwardSecret are the cipher suites of TLS 1.2 that HTTP/2 may be spoken with
// (RFC 9113, appendix A): with another, a connection that asked for it would end.
var forwardSecret = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

// certificate serves the app that the connection was sent to, whatever name
// the client asks for: the checks of that name and of Host come later and say why
// they refuse.
func (p *Proxy) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	c, ok := hello.Conn.(*conn)
	if !ok {
		return nil, errors.New("proxy: a handshake on a connection that is not the proxy's")
	}
	app := p.cfg.AppByAddr(c.local.Addr())
	if app == nil {
		return nil, errors.New("proxy: the app is gone")
	}
	return p.cfg.Certificate(app.Hosts)
}

// Run serves what HandleTCP takes until ctx ends. Then nothing new
// is taken, what is open may end within Timeouts.Drain, and the rest is reset.
// It returns when nothing of the Proxy is left running.
func (p *Proxy) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	two := p.server2(inner)
	// httputil.ReverseProxy aborts an answer that breaks off only where it sees
	// that a server is there to catch it.
	inner = context.WithValue(inner, http.ServerContextKey, two)

	served := make(chan error, 1)
	go func() { served <- two.Serve(p.multiplexed) }()
	p.mu.Lock()
	p.running, p.ctx = true, inner
	p.mu.Unlock()

	var fault error
	ended := false
	select {
	case <-ctx.Done():
	case fault = <-served:
		ended = true
	}
	p.mu.Lock()
	p.running = false
	waiting := p.turns.clear()
	p.mu.Unlock()
	for _, w := range waiting {
		w.refuse()
	}
	drain, stop := context.WithTimeout(inner, p.cfg.Timeouts.Drain)
	defer stop()
	p.secure.Drain()
	p.plain.Drain()
	var down sync.WaitGroup
	down.Go(func() {
		if two.Shutdown(drain) != nil {
			_ = two.Close()
		}
	})
	flows := make(chan struct{})
	go func() { p.wg.Wait(); close(flows) }()
	select {
	case <-flows:
	case <-drain.Done():
	}
	down.Wait()
	cancel()
	p.conns.resetAll()
	<-flows
	if !ended {
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			fault = err
		}
	}
	p.upstreams.closeIdle()
	return fault
}

// server1 speaks HTTP/1.1.
func (p *Proxy) server1(h http1.Handler) *http1.Server {
	return &http1.Server{
		Handler:     h,
		HeadBytes:   p.cfg.Limits.HeaderBytes,
		HeadTimeout: p.cfg.Timeouts.ReadHeader,
		IdleTimeout: p.cfg.Timeouts.Idle,
		Panicked: func(v any, stack []byte) {
			p.log.Error("serving a request panicked", "err", fmt.Sprint(v), "stack", string(stack))
		},
	}
}

// server2 speaks HTTP/2.
func (p *Proxy) server2(ctx context.Context) *http.Server {
	var two http.Protocols
	two.SetUnencryptedHTTP2(true)
	srv := &http.Server{
		Handler:                      p.counting(func(w http.ResponseWriter, r *http.Request) { p.serveHTTP(w, r, nil) }),
		Protocols:                    &two, // it sees no [tls.Conn]: handshakes are done before
		HTTP2:                        &http.HTTP2Config{MaxConcurrentStreams: p.cfg.Limits.Streams},
		ReadHeaderTimeout:            p.cfg.Timeouts.ReadHeader,
		IdleTimeout:                  p.cfg.Timeouts.Idle,
		MaxHeaderBytes:               p.cfg.Limits.HeaderBytes,
		DisableGeneralOptionsHandler: true,
		ErrorLog:                     log.New(debugWriter{p.log}, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			f, _ := c.(*framing)
			return context.WithValue(context.WithValue(ctx, connKey{}, ownConn(c)), framingKey{}, f)
		},
	}
	srv.BaseContext = func(net.Listener) context.Context { // Serve has made ready for HTTP/2
		tellScheme(srv)
		return ctx
	}
	return srv
}

// debugWriter carries net/http's own remarks, which are about clients, at a
// level where they do not drown the log.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(b []byte) (int, error) {
	w.log.Debug("serving a device", "err", string(b))
	return len(b), nil
}

// counting makes Run wait for a handler of HTTP/2, and lets none begin once it
// stops. A device has to take what the handler answers.
func (p *Proxy) counting(h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		if !p.running {
			p.mu.Unlock()
			panic(http.ErrAbortHandler)
		}
		p.wg.Add(1)
		p.mu.Unlock()
		defer p.wg.Done()
		s := newStream(w, p.cfg.Timeouts.Write)
		s.framing, _ = r.Context().Value(framingKey{}).(*framing)
		defer s.stop()
		h(s, r)
		s.end()
	})
}

// Drop resets every connection a device has open. Flows that the session
// manager cuts end by themselves; this ends idle connections too, the device's
// and those that apps hold for it.
func (p *Proxy) Drop(inner netip.Addr) {
	p.conns.resetDevice(inner.Unmap())
	p.upstreams.drop(inner.Unmap(), "")
}

// Forget closes what idles towards apps for a Session that is over.
func (p *Proxy) Forget(inner netip.Addr, session string) { p.upstreams.drop(inner.Unmap(), session) }

// HandleTCP takes over a TCP connection. It never blocks: what cannot be
// served is reset.
func (p *Proxy) HandleTCP(in TCPInbound) {
	app := p.cfg.AppByAddr(in.Local().Addr())
	if app == nil {
		in.Reset()
		return
	}
	serve := p.serveTCP
	if app.Protocol == "http" {
		serve = p.acceptHTTP
	}
	p.start(in.Peer().Addr().Unmap(), func(ctx context.Context, t *turn) { serve(ctx, in, app, t) }, in.Reset)
}
