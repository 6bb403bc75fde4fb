package agent

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/agent/enroll"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/tunnel"
	"github.com/portvakt/portvakt/internal/transport"
	"github.com/portvakt/portvakt/internal/wire"
)

// link is one registration and its tunnel.
type link struct {
	connect  *wire.ConnectResponse
	endpoint string
	tun      *pipe
	client   *control.Client
	nonce    string // owned by the reporter

	again chan struct{} // capacity 1: the gateway was restarted under this link

	seen    bool      // guarded by agent.mu: a State of this link was applied
	expires time.Time // guarded by agent.mu: of the registration
	sentAt  time.Time // guarded by agent.mu: of the last report taken
}

// pipe is the tunnel as a link uses it.
type pipe struct {
	dialTCP    func(context.Context, netip.AddrPort) (net.Conn, error)
	dialUDP    func(netip.AddrPort) (net.Conn, error)
	listenUDP  func(v6 bool, port uint16) (net.PacketConn, error)
	setAllowed func([]netip.Addr) error
	setCalls   func([]netip.AddrPort)
	status     func() tunnel.Status
	run        func(context.Context) error
	close      func() error
	redial     func()
	gone       <-chan struct{} // closed when the interface below is gone; may be nil
}

type openArgs struct {
	ctx      context.Context
	agent    *agent
	connect  *wire.ConnectResponse
	key      [32]byte
	endpoint string
}

func openTunnel(o openArgs) (*pipe, error) {
	cfg := tunnel.Config{Connect: o.connect, PrivateKey: o.key, Endpoint: o.endpoint, UDPGSOOff: o.agent.cfg.UDPGSOOff, WebSocket: o.agent.webSocket, Heartbeat: wire.EventHeartbeat, Log: o.agent.cfg.Log}
	var gone <-chan struct{}
	if n := o.agent.network; n != nil {
		var err error
		if cfg.TUN, gone, err = n.prepare(o.ctx, o.connect); err != nil {
			return nil, err
		}
	}
	t, err := tunnel.Open(cfg)
	if err != nil {
		return nil, err
	}
	return &pipe{
		dialTCP: t.DialTCP, dialUDP: t.DialUDP, listenUDP: t.ListenUDP, setAllowed: t.SetAllowed, setCalls: t.SetCalls,
		status: t.Status, run: t.Run, close: t.Close, redial: t.Redial, gone: gone,
	}, nil
}

// saveEvery is how often a certificate that could not be saved is tried again.
const saveEvery = 5 * time.Minute

var (
	errResumed   = errors.New("the laptop slept or its clock was set")
	errNoGateway = errors.New("the gateway named no address of its own inside the tunnel; tell your IT support")
)

func isResumed(err error) bool { return errors.Is(err, errResumed) }

// noHandshake marks a link whose tunnel never came up.
type noHandshake struct{ err error }

func (e *noHandshake) Error() string { return "the tunnel did not come up: " + e.err.Error() }
func (e *noHandshake) Unwrap() error { return e.err }

// refusedConnect marks a refusal of the public port, which does not go away by
// hurrying.
type refusedConnect struct{ err error }

func (e *refusedConnect) Error() string { return e.err.Error() }
func (e *refusedConnect) Unwrap() error { return e.err }

// connect makes one link and keeps it until something ends it. resumed says
// that the laptop just woke: the gateway then hears how it is before anything
// else happens.
func (a *agent) connect(ctx context.Context, resumed bool) error {
	// A wake-up from before this link is answered by this link.
	select {
	case <-a.resumed:
		resumed = true
	default:
	}
	a.save()
	if err := a.renewIfDue(ctx); err != nil {
		return &refusedConnect{err}
	}
	private, public := tunnel.Generate()
	answer, via, err := a.register(ctx, public)
	if err != nil {
		return &refusedConnect{err}
	}
	if len(answer.Gateway.Addresses) == 0 {
		return errNoGateway
	}
	l := &link{connect: answer, nonce: answer.PostureNonce, expires: answer.ExpiresAt, again: make(chan struct{}, 1)}
	if l.endpoint, err = a.endpoint(ctx, answer, via); err != nil {
		return err
	}
	if l.tun, err = a.cfg.openTunnel(openArgs{ctx: ctx, agent: a, connect: answer, key: private, endpoint: l.endpoint}); err != nil {
		return fmt.Errorf("opening the tunnel: %w", err)
	}
	defer l.tun.close()
	if err := l.tun.setAllowed(allowed(answer, nil)); err != nil {
		return fmt.Errorf("setting the tunnel's addresses: %w", err)
	}
	l.client = control.NewClient(control.ClientConfig{
		Dial: l.tun.dialTCP, Gateway: answer.Gateway.Addresses[0], Token: answer.ControlToken, Language: a.cfg.Language, Silence: a.cfg.silence,
	})
	defer l.client.Close()
	return a.live(ctx, l, resumed)
}

// live runs everything a link consists of. The first part that ends ends it.
func (a *agent) live(ctx context.Context, l *link, resumed bool) error {
	g, ctx := errgroup.WithContext(ctx)
	ended := func(err error) error {
		if err == nil && ctx.Err() == nil {
			err = errors.New("the tunnel stopped")
		}
		return err
	}
	g.Go(func() error { return ended(l.tun.run(ctx)) })
	g.Go(func() error {
		if resumed {
			a.reportFirst(ctx, l)
		}
		a.setLink(l)
		inner, ctx := errgroup.WithContext(ctx)
		inner.Go(func() error { return a.follow(ctx, l) })
		inner.Go(func() error { return a.report(ctx, l) })
		inner.Go(func() error { return a.keepRegistration(ctx, l) })
		inner.Go(func() error { return a.keepCertificate(ctx) })
		inner.Go(func() error {
			select {
			case <-a.resumed:
				return errResumed
			case <-l.tun.gone:
				return errHelperGone
			case <-ctx.Done():
				return nil
			}
		})
		err := inner.Wait()
		if err != nil && l.tun.status().LastHandshake.IsZero() {
			err = &noHandshake{err}
		}
		return err
	})
	err := g.Wait()
	// A login's State may be applied right now; it must not come after the end.
	a.applying.Lock()
	defer a.applying.Unlock()
	a.setLink(nil)
	if a.network != nil {
		a.network.unlinked()
	}
	return err
}

// webSocket opens the way around a network that blocks UDP. It runs beside the
// link's certificate goroutine.
func (a *agent) webSocket(ctx, life context.Context) (*transport.Stream, error) {
	public, err := enroll.Public(a.enrollConfig(), a.current.Load())
	if err != nil {
		return nil, err
	}
	defer public.Close()
	s, err := public.Tunnel(ctx, life)
	if err != nil {
		return nil, errors.New(control.Diagnose(err).Message)
	}
	return s, nil
}

// register hands a fresh tunnel key in.
func (a *agent) register(ctx context.Context, key [32]byte) (*wire.ConnectResponse, *control.Public, error) {
	req := wire.ConnectRequest{
		TunnelKey: base64.StdEncoding.EncodeToString(key[:]), BootID: a.cfg.BootID, AgentVersion: a.cfg.Version,
	}
	for renewed := false; ; renewed = true {
		public, err := enroll.Public(a.enrollConfig(), a.cred)
		if err != nil {
			return nil, nil, err
		}
		answer, err := public.Connect(ctx, req)
		public.Close()
		if err == nil {
			return answer, public, nil
		}
		var e *wire.Error
		if renewed || !errors.As(err, &e) || e.Code != "certificate_expired" {
			return nil, nil, err
		}
		// This laptop's clock is behind: only the gateway saw the end.
		if err := a.renew(ctx); err != nil {
			return nil, nil, err
		}
	}
}

func (a *agent) renew(ctx context.Context) error {
	cred, err := enroll.Renew(ctx, a.enrollConfig(), a.cred)
	if err != nil {
		return err
	}
	a.cred, a.received = cred, a.cfg.Now()
	a.setIdentity(cred)
	a.cfg.Log.Info("renewed the device certificate", "until", cred.Device.NotAfter)
	a.unsaved = true
	a.save()
	return nil
}

// save puts the certificate at hand on the disk if it is not there yet. Nothing
// but the next start needs it there, and that can renew an expired one.
func (a *agent) save() {
	if !a.unsaved {
		return
	}
	if err := a.cfg.State.SaveCertificate(a.cred); err != nil {
		a.cfg.Log.Warn("the new device certificate is in use, but only in memory; saving it is tried again", "err", err)
		return
	}
	a.unsaved = false
}

// renewIn returns how long the certificate at hand may wait for its renewal.
// The dates in it are of the gateway's clock. A laptop whose clock is ahead
// would take every new certificate for an old one, so that one which this run
// was given is as old as the time since; of the two clocks only the wall's
// counts sleep, and only the monotonic one cannot be set back.
func (a *agent) renewIn() time.Duration {
	now := a.cfg.Now()
	if a.received.IsZero() {
		return enroll.RenewAt(a.cred.Device).Sub(now)
	}
	age := max(now.Sub(a.received), now.Round(0).Sub(a.received.Round(0)))
	return max(enroll.RenewAfter(a.cred.Device), time.Minute) - age
}

// renewIfDue fails only when there is no valid certificate to go on with.
func (a *agent) renewIfDue(ctx context.Context) error {
	if a.renewIn() > 0 {
		return nil
	}
	now := a.cfg.Now()
	err := a.renew(ctx)
	var busy *wire.Error
	if err == nil || now.After(a.cred.Device.NotAfter) && !(errors.As(err, &busy) && busy.Retry) {
		return err
	}
	if _, revoked := asRevoked(err, now); revoked {
		return err
	}
	// The gateway, whose clock it is, says whether this one has expired.
	a.cfg.Log.Warn("renewing the device certificate ahead of its end", "err", err)
	return nil
}

// keepCertificate renews the certificate while the link is up. The link stays:
// nothing inside the tunnel depends on the certificate, and a call would not
// survive a new one.
func (a *agent) keepCertificate(ctx context.Context) error {
	for {
		wait := min(max(a.renewIn(), 0), time.Hour)
		if a.unsaved {
			wait = min(wait, saveEvery)
		}
		if !sleep(ctx, wait) {
			return nil
		}
		a.save()
		if a.renewIn() > 0 {
			continue
		}
		if err := a.renew(ctx); err != nil {
			if _, revoked := asRevoked(err, a.cfg.Now()); revoked {
				return err
			}
			a.cfg.Log.Warn("renewing the device certificate", "err", err)
			if !sleep(ctx, 5*time.Minute) {
				return nil
			}
		}
	}
}

func (a *agent) keepRegistration(ctx context.Context, l *link) error {
	wait := wire.RenewRegistrationEvery
	for sleep(ctx, wait) {
		res, err := l.client.Registration(ctx)
		switch {
		case err == nil:
			a.mu.Lock()
			l.expires = res.ExpiresAt
			a.mu.Unlock()
			wait = wire.RenewRegistrationEvery
		case gone(err):
			return fmt.Errorf("renewing the registration: %w", err)
		default:
			a.cfg.Log.Warn("renewing the registration", "err", err)
			wait = time.Minute
		}
	}
	return nil
}

// gone says whether the gateway does not know the registration any more.
func gone(err error) bool {
	var s *control.StatusError
	return errors.As(err, &s) && s.Status == 401
}

func (a *agent) hasState(l *link) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return l.seen
}

// endpoint finds the tunnel's UDP address as ip:port.
func (a *agent) endpoint(ctx context.Context, answer *wire.ConnectResponse, via *control.Public) (string, error) {
	text := a.cfg.Endpoint
	if text == "" {
		if len(answer.Gateway.Endpoints) == 0 {
			return "", errors.New("the gateway named no endpoint for the tunnel; tell your IT support, or name one with --endpoint")
		}
		text = answer.Gateway.Endpoints[0]
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", fmt.Errorf("reading the tunnel's endpoint %q: %w", text, err)
	}
	known := via.Remote().Addr()
	if host == "" {
		// Where TLS just got through is the better of a name's addresses.
		if known.IsValid() {
			return net.JoinHostPort(known.String(), port), nil
		}
		host = via.Host()
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return net.JoinHostPort(ip.String(), port), nil
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		// Behind a proxy that alone knows names, or where this one is not known:
		// there is no UDP to try, and the WebSocket does not need the name.
		a.cfg.Log.Warn("the tunnel's endpoint cannot be resolved; only a WebSocket is tried", "err", err)
		return net.JoinHostPort(netip.IPv4Unspecified().String(), port), nil
	}
	best := addrs[0].Unmap()
	for _, addr := range addrs {
		if addr = addr.Unmap(); known.IsValid() && addr.Is4() == known.Is4() {
			best = addr
			break
		}
	}
	return net.JoinHostPort(best.String(), port), nil
}

// sleep waits and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// snapshot composes the status.
func (a *agent) snapshot() localapi.Status {
	proxy, _ := a.loopback.Addresses()
	a.mu.Lock()
	st, l := a.status, a.link
	st.Posture = a.signals
	var expires, sentAt time.Time
	if l != nil {
		expires, sentAt = l.expires, l.sentAt
	}
	a.mu.Unlock()
	if proxy.IsValid() {
		st.Proxy = &localapi.Proxy{Address: proxy.String(), PAC: pacURL(proxy)}
	}
	if l == nil {
		return st
	}
	if a.network != nil {
		st.DNS = a.network.state()
	}
	t := l.tun.status()
	st.Tunnel = &localapi.Tunnel{
		Endpoint: l.endpoint, Addresses: l.connect.Addresses, Gateway: l.connect.Gateway.Addresses,
		MTU: t.MTU, Transport: t.Transport, TransportReason: t.TransportReason, RxBytes: t.Rx, TxBytes: t.Tx, PostQuantum: l.connect.PostQuantum, ExpiresAt: expires,
	}
	if !t.LastHandshake.IsZero() {
		st.Tunnel.LastHandshake = &t.LastHandshake
	}
	if !sentAt.IsZero() {
		st.PostureSentAt = &sentAt
	}
	return st
}
