// Package agent is the laptop's side of Portvakt: it keeps a tunnel to the
// gateway up, reports the laptop's posture, shows the visible apps on the
// loopback and lets the person log in. Its parts live in the packages below;
// [Run] owns them and the order they come and go in.
package agent

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portvakt/portvakt/agent/enroll"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/loopback"
	"github.com/portvakt/portvakt/agent/posture"
	"github.com/portvakt/portvakt/agent/state"
	"github.com/portvakt/portvakt/internal/wire"
)

// DefaultProxyAddr is where the HTTP and SOCKS5 proxy listens when nothing
// else is said.
const DefaultProxyAddr = "127.0.0.1:9180"

const (
	firstBackoff = 200 * time.Millisecond
	maxBackoff   = 15 * time.Second
	// steady is how long a connection must last for the next one to be quick.
	steady = 10 * time.Second
	// refusedBackoff is for a device the gateway refuses: somebody has to act.
	refusedBackoff = 60 * time.Second
)

// Config is what an agent works with. State and Version are required.
type Config struct {
	State   *state.Dir
	Version string
	// Endpoint overrides the tunnel's UDP endpoint, host:port.
	Endpoint string
	// UDPGSOOff keeps datagrams apart on their way to the kernel, for one that
	// corrupts what it is given together.
	UDPGSOOff bool
	// TUN makes an interface of the operating system the inside of the tunnel
	// instead of a userspace stack. It may be nil. Linux only.
	TUN *TUN
	// ProxyAddr is the proxy's loopback address; empty means [DefaultProxyAddr].
	ProxyAddr string
	// PostureRoot is the root directory of the posture collectors; empty means "/".
	PostureRoot string
	// HelperSocket is where the privileged posture helper listens; may be empty.
	HelperSocket string
	// Socket is the path of the local API; empty means agent.sock in State.
	Socket string
	// BootID names this boot; empty asks the operating system.
	BootID string
	// AllowAnyLocalUser accepts connections of every account of the laptop on
	// platforms that cannot name the owner of one (all but Linux, where it has
	// no effect). Without it the agent refuses to run there.
	AllowAnyLocalUser bool
	// Language is what the gateway is asked to explain refusals in, as in
	// Accept-Language ("sv", "nl-BE, en;q=0.5"); empty is the gateway's choice.
	Language string
	// Notify is told of every change of the connection, the session and the
	// apps, by one goroutine at a time. It may be nil.
	Notify func(localapi.Status, []localapi.App)
	// Dial replaces the network of the public port in tests.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Now  func() time.Time // the laptop's clock; nil means time.Now
	Log  *slog.Logger     // nil discards

	// openTunnel replaces the tunnel in tests of this package.
	openTunnel func(openArgs) (*pipe, error)
	// silence and refused replace the waiting times in tests.
	silence, refused time.Duration
	changeEvery      time.Duration
}

// agent is one running agent.
type agent struct {
	cfg       Config
	own       uint32
	key       *ecdsa.PrivateKey // of the device; the same for the whole run
	collector *posture.Collector
	loopback  *loopback.Server
	network   *network // nil with a userspace stack

	// cred belongs to the connecting goroutine, and while a link is up to that
	// link's certificate goroutine.
	cred *state.Credentials
	// received is when this run was given cred, by its clock; zero for one that
	// was read from the disk. It belongs to whom cred does.
	received time.Time
	// unsaved says that cred is not on the disk. It belongs to whom cred does.
	unsaved bool

	// current is cred for everybody else.
	current atomic.Pointer[state.Credentials]

	resumed chan struct{} // capacity 1: the laptop slept
	changed chan struct{} // capacity 1: tell Notify
	moved   chan struct{} // capacity 1: a signal changed

	// applying orders the application of States. Taken before mu, never inside.
	applying sync.Mutex

	mu      sync.Mutex
	status  localapi.Status // guarded by mu; what is composed on reading is zero
	skew    time.Duration   // guarded by mu; how far the clock was ahead of the gateway's at the last State
	apps    []wire.App      // guarded by mu
	signals []wire.Signal   // guarded by mu; the last collected
	link    *link           // guarded by mu; nil while there is none
	linked  chan struct{}   // guarded by mu; closed and replaced when link changes
	login   *ongoing        // guarded by mu; the login under way
}

// Run keeps an enrolled laptop connected until ctx is done. It returns early
// only for what waiting does not mend: no enrolment, a second agent, a proxy
// address that is taken.
func Run(ctx context.Context, cfg Config) error {
	release, err := cfg.State.Lock()
	if err != nil {
		return err
	}
	defer release()
	a, err := newAgent(cfg)
	if err != nil {
		return err
	}
	socket := cfg.Socket
	if socket == "" {
		socket = cfg.State.Socket()
	}
	api := localapi.New(localapi.Config{
		Path: socket, OwnUID: a.own, Status: a.snapshot, Apps: a.snapshotApps, Why: a.why,
		Login: a.logIn, Logout: a.logOut, Log: a.cfg.Log,
	})
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return api.Run(ctx) })
	g.Go(func() error {
		err := a.loopback.Run(ctx)
		if errors.Is(err, syscall.EADDRINUSE) {
			return fmt.Errorf("%w: another program uses %s; stop it or choose another address with --proxy-addr", err, a.cfg.ProxyAddr)
		}
		return err
	})
	g.Go(func() error { return a.watchPosture(ctx) })
	g.Go(func() error { return a.watchClock(ctx) })
	g.Go(func() error { return a.notify(ctx, api.Ready(), a.loopback.Ready()) })
	g.Go(func() error { return a.keepConnected(ctx) })
	return g.Wait()
}

func newAgent(cfg Config) (*agent, error) {
	cred, err := cfg.State.Load()
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.ProxyAddr == "" {
		cfg.ProxyAddr = DefaultProxyAddr
	}
	if cfg.BootID == "" {
		if cfg.BootID, err = bootID(); err != nil {
			return nil, fmt.Errorf("naming this boot: %w", err)
		}
	}
	if cfg.openTunnel == nil {
		cfg.openTunnel = openTunnel
	}
	if cfg.refused == 0 {
		cfg.refused = refusedBackoff
	}
	if cfg.changeEvery == 0 {
		cfg.changeEvery = time.Second
	}
	cfg.Log = cfg.Log.With("device", cred.Identity.DeviceID)
	a := &agent{
		cfg: cfg, own: uint32(os.Geteuid()), cred: cred, key: cred.Key,
		collector: posture.New(posture.Config{Root: cfg.PostureRoot, HelperSocket: cfg.HelperSocket, Now: cfg.Now, Log: cfg.Log}),
		resumed:   make(chan struct{}, 1),
		changed:   make(chan struct{}, 1),
		moved:     make(chan struct{}, 1),
		linked:    make(chan struct{}),
		status:    localapi.Status{State: localapi.StateConnecting, Since: cfg.Now(), Mode: localapi.ModeUserspace},
	}
	if cfg.TUN != nil {
		a.network = newNetwork(*cfg.TUN, a.own, cfg.Log)
		a.status.Mode = localapi.ModeTUN
	}
	a.setIdentity(cred)
	a.loopback = a.newLoopback()
	return a, nil
}

// keepConnected makes one link after the other.
func (a *agent) keepConnected(ctx context.Context) error {
	if a.network != nil {
		defer a.network.close()
	}
	resumed := false
	for attempt := 0; ctx.Err() == nil; attempt++ {
		began := time.Now()
		err := a.connect(ctx, resumed)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steady {
			attempt = 0
		}
		wait := backoff(attempt)
		if until := a.settle(err, wait); until > 0 {
			wait = until
		}
		resumed = isResumed(err)
		if resumed {
			attempt, wait = 0, firstBackoff
		}
		a.retryAt(wait)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-a.resumed:
			attempt, resumed = -1, true
		}
		timer.Stop()
	}
	return nil
}

// backoff grows from firstBackoff to maxBackoff, each half by chance, so that
// a gateway that restarts is not met by all its agents at once.
func backoff(attempt int) time.Duration {
	d := maxBackoff
	if attempt < 10 {
		d = min(d, firstBackoff<<max(attempt, 0))
	}
	return d/2 + rand.N(d/2+1)
}

// notify tells the owner about changes once everything listens.
func (a *agent) notify(ctx context.Context, ready ...<-chan struct{}) error {
	for _, r := range ready {
		select {
		case <-r:
		case <-ctx.Done():
			return nil
		}
	}
	a.mark()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.changed:
			if a.cfg.Notify != nil {
				a.cfg.Notify(a.snapshot(), a.snapshotApps())
			}
		}
	}
}

func (a *agent) mark() { poke(a.changed) }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// userAllowed says who may use the loopback proxies: the OS user who logged
// in, or who finishes what is open after the login has ended; and while there
// is neither, the agent's own, who then sees only refusals.
func (a *agent) userAllowed(uid uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.status.Session == nil && a.status.Finish == nil {
		return uid == a.own
	}
	of, ok := localapi.UserOf(a.status.Session, a.status.Finish)
	return ok && uid == of
}

// dial opens a connection through the tunnel for the loopback proxies. While
// there is no link it waits a moment for the next one: a reconnect is shorter
// than a person's patience.
func (a *agent) dial(ctx context.Context, network string, addr netip.AddrPort) (net.Conn, error) {
	l, err := a.waitLink(ctx, 3*time.Second)
	if err != nil {
		return nil, err
	}
	var c net.Conn
	if network == "udp" {
		c, err = l.tun.dialUDP(addr)
	} else {
		c, err = l.tun.dialTCP(ctx, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("dialling %s through the tunnel: %w", addr, err)
	}
	return c, nil
}

// listenUDP opens a socket inside the tunnel for the loopback proxies.
func (a *agent) listenUDP(ctx context.Context, v6 bool, port uint16) (net.PacketConn, error) {
	l, err := a.waitLink(ctx, time.Second)
	if err != nil {
		return nil, err
	}
	return l.tun.listenUDP(v6, port)
}

func (a *agent) enrollConfig() enroll.Config {
	own := a.cfg.ProxyAddr
	if proxy, _ := a.loopback.Addresses(); proxy.IsValid() {
		own = proxy.String()
	}
	return enroll.Config{State: a.cfg.State, OwnProxy: own, Language: a.cfg.Language, Dial: a.cfg.Dial, Now: a.cfg.Now}
}
