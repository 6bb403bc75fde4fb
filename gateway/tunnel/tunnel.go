// Package tunnel is the gateway's WireGuard ingress: who gets a peer, where peers
// are, and what of their packets gets to the stack behind.
//
//	transport.Gateway -- ingress -- transport.Pace -- WireGuard -- egress -- filter -- stack, or the owner's UDP
//	                       |                                          |
//	                       +-- gate: initiations                      +-- packets for devices that sleep,
//	                       |   (limiter, opener, replay)              |   places of devices that moved
//	                       +-- watcher: places                        |
//	                       +-- registry: registrations and peers -----+
//
// Who may be a peer is the caller's business; this package holds registered keys
// only as long as it is told to. A datagram of any other key is not answered.
// WireGuard has a peer only for keys in use: one is made when a registered
// device's handshake initiation arrives, or a packet to it leaves, and goes when
// it is idle and nothing holds it.
//
// Locks: Tunnel.mu serialises changes of WireGuard's peers and is never taken on
// a goroutine that carries packets; the registry's is held for moments, after it.
package tunnel

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/transport"
)

// ErrClosed is returned by everything after Run has ended.
var ErrClosed = errors.New("tunnel is closed")

// Config of a Tunnel.
type Config struct {
	// PrivateKey is the gateway's WireGuard key.
	PrivateKey [32]byte
	// Listen is the UDP address, host:port with a numeric host. An empty or
	// unspecified host listens on every address of both families; port 0 takes
	// any free one.
	Listen string
	// UDPGSOOff: see transport.UDPOptions.GSOOff.
	UDPGSOOff bool
	// Addresses are the gateway's own inner addresses, IPv4 and IPv6.
	Addresses [2]netip.Addr
	// MTU of the inside, in bytes; 0 means overlay.DefaultMTU.
	MTU int
	// Table judges every packet that comes out of the tunnel.
	Table *segment.Table
	// Mode says whose TCP/IP stack the tunnel ends in; "" is Userspace.
	Mode Mode
	// TCP takes the connections the table lets through (see overlay.Options).
	// Without it every connection is refused.
	TCP func(TCPRequest)
	// UDP is given the UDP packets the table lets through, those of one peer that
	// came together; it answers by Inject. It runs on that peer's receiving
	// goroutine, must not block and must not keep the packets.
	UDP func(packets [][]byte)
	// OnEndpoint is told which outer address a peer uses once its first
	// handshake is complete, and again whenever it changes: within about 10 ms
	// of the peer's first packet from there, a second at the latest. It is called
	// from one goroutine and must not block. The key may have been removed
	// meanwhile.
	OnEndpoint func(key [32]byte, endpoint netip.AddrPort)
	// OnMove is told of a new place before the first packet from there is let in,
	// on the goroutine that carries it or just before OnEndpoint, which follows;
	// of two places of one key it is told in the order they were seen. It must be
	// done in a moment, and must not wait for a peer to be removed. May be nil.
	OnMove func(key [32]byte, endpoint netip.AddrPort)
	// Held tells whether something needs a key's peer though it is idle. It is
	// asked once a second for idle peers only. May be nil.
	Held func(key [32]byte) bool
	// Awake says whether what is queued may leave (see session.Manager.Awake):
	// while it does not, data is dropped at the socket. It must not block. May be nil.
	Awake func() bool
	// Keep stores what must outlive the process: a handshake initiation that
	// was accepted once must not be after a restart. It is called from one
	// goroutine, at most ten times a second, besides when a registration's first
	// handshake is complete, and when Run ends. May be nil.
	Keep func(context.Context, []Kept) error
	// IdleAfter is how long after its last handshake message an unheld peer is
	// removed; 0 means 190 s, when none of its keys is good any more.
	IdleAfter time.Duration
	// Log is optional.
	Log *slog.Logger
}

// Peer is a registered tunnel key.
type Peer struct {
	Key          [32]byte // WireGuard public key
	PresharedKey [32]byte
	Addresses    [2]netip.Addr // the device's inner addresses; an invalid one is left out
	// From is where the device connected from, if that is known: under a flood
	// of initiations those from there are heard first.
	From netip.Addr
	// Endpoint, Handshake and Initiation are as [Config.Keep] was given them. If
	// the handshake's session can still be in use, the device is called at once.
	Endpoint   netip.AddrPort
	Handshake  time.Time
	Initiation []byte
}

// Kept is what must outlive the process about a key.
type Kept struct {
	Key        [32]byte
	Endpoint   netip.AddrPort // proven, by UDP; not valid before the first handshake, nor while it uses a WebSocket
	Handshake  time.Time      // when it was complete; zero before the first
	Initiation []byte         // the newest accepted, which no older one may follow; nil: the one before
}

// Tunnel is a WireGuard interface. Its methods may be called from any
// goroutine. Peers may be added and removed before Run; they take effect when
// it has begun to listen.
type Tunnel struct {
	cfg    Config
	listen netip.AddrPort
	public [32]byte
	log    *slog.Logger
	ready  chan struct{}
	port   atomic.Uint32

	// outside is what datagrams come and go by.
	outside *transport.Gateway

	known    *registry
	gate     *gate
	watch    *watcher
	hails    hails
	bind     *ingress
	counters counters
	stack    atomic.Pointer[stack] // nil before Run
	withheld counter               // resets
	unheard  counter               // datagrams of devices under strain
	tally    atomic.Pointer[transport.Tally]

	// mu guards what follows and serialises changes of the device's peers. It
	// is never taken on a goroutine that carries packets.
	mu    sync.Mutex
	state state
	dev   *device.Device // while running
}

type state uint8

const (
	fresh state = iota
	running
	closed
)

// New checks cfg. It opens nothing.
func New(cfg Config) (*Tunnel, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	listen, err := parseListen(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("reading tunnel listen address: %w", err)
	}
	if cfg.TCP == nil {
		cfg.TCP = func(r TCPRequest) { r.Reset() }
	}
	if cfg.Table == nil {
		return nil, errors.New("making tunnel: a segment table is required")
	}
	if cfg.PrivateKey == ([32]byte{}) {
		return nil, errors.New("making tunnel: the private key is all zero")
	}
	public, err := curve25519.X25519(cfg.PrivateKey[:], curve25519.Basepoint)
	if err != nil {
		return nil, fmt.Errorf("deriving public key: %w", err)
	}
	t := &Tunnel{
		cfg:    cfg,
		listen: listen,
		public: [32]byte(public),
		log:    cfg.Log,
		ready:  make(chan struct{}),
		known:  newRegistry(),
		hails:  hails{wake: make(chan struct{}, 1)},
	}
	t.known.mtu = cmp.Or(cfg.MTU, overlay.DefaultMTU)
	if t.cfg.IdleAfter == 0 {
		t.cfg.IdleAfter = idleAfter
	}
	t.outside = transport.NewGateway(transport.UDPOptions{Listen: t.listen, Sticky: true, GSOOff: cfg.UDPGSOOff, Log: t.log})
	t.gate, t.watch = newGate(t), newWatcher(t)
	return t, nil
}

func parseListen(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is not host:port", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q has no numeric port", s)
	}
	addr := netip.IPv6Unspecified()
	if host != "" {
		if addr, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, fmt.Errorf("%q is not a numeric address", host)
		}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// Ready is closed when the tunnel listens.
func (t *Tunnel) Ready() <-chan struct{} { return t.ready }

// PublicKey is the gateway's WireGuard public key.
func (t *Tunnel) PublicKey() [32]byte { return t.public }

// Accept carries a device's datagrams over a WebSocket, see
// [transport.Gateway.Accept]. That it is the device is the caller's to check;
// what comes over it is believed as little as what comes by UDP.
func (t *Tunnel) Accept(w http.ResponseWriter, r *http.Request, device string) error {
	return t.outside.Accept(w, r, device)
}

// Hangup ends a device's WebSocket, if it has one.
func (t *Tunnel) Hangup(device string) { t.outside.Hangup(device) }

// Outside counts what came and went by UDP and by WebSockets.
func (t *Tunnel) Outside() (transport.Stats, transport.StreamStats) {
	return t.outside.Stats(), t.outside.StreamStats()
}

// Unopened counts transport messages that brought no packet, see
// [transport.Tally.Refused].
func (t *Tunnel) Unopened() (noSession, barren uint64) {
	if tally := t.tally.Load(); tally != nil {
		return tally.Refused()
	}
	return 0, 0
}

// Port is the UDP port listened on; 0 before Ready.
func (t *Tunnel) Port() uint16 { return uint16(t.port.Load()) }

// Run listens and carries packets until ctx is done, then resets what is open
// and closes everything. It returns an error if it cannot listen, if the
// device dies, or if Run was called before: a Tunnel runs once.
func (t *Tunnel) Run(ctx context.Context) error {
	return t.run(ctx, t.outside)
}

func (t *Tunnel) run(ctx context.Context, sockets conn.Bind) error {
	if err := t.start(sockets); err != nil {
		return err
	}
	t.log.Info("tunnel listens", "address", netip.AddrPortFrom(t.listen.Addr(), t.Port()))
	close(t.ready)
	var wg sync.WaitGroup
	workCtx, stopWork := context.WithCancel(ctx)
	defer stopWork()
	wg.Go(func() { t.watch.run(workCtx) })
	wg.Go(func() { t.gate.run(workCtx) })
	wg.Go(func() { t.hail(workCtx) })
	keepCtx, stopKeep := context.WithCancel(context.WithoutCancel(ctx))
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		t.keep(keepCtx)
	}()
	var err error
	select {
	case <-ctx.Done():
	case <-t.dev.Wait():
		err = errors.New("running tunnel: the WireGuard device closed by itself")
	}
	stopWork()
	wg.Wait()
	err = errors.Join(err, t.stop())
	stopKeep()
	<-kept
	return err
}

func (t *Tunnel) start(sockets conn.Bind) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != fresh {
		return errors.New("running tunnel: it was run before")
	}
	st, err := t.newStack()
	if err != nil {
		return fmt.Errorf("running tunnel: %w", err)
	}
	t.stack.Store(&st)
	t.bind = newIngress(t, sockets)
	inside, outside, tally := transport.Pace(&egress{Device: st.Device(), t: t}, t.bind)
	t.tally.Store(tally)
	dev := device.NewDevice(inside, outside, logger(t.log))
	fail := func(err error) error {
		t.state = closed
		_ = st.Close()
		dev.Close()
		return fmt.Errorf("running tunnel: %w", err)
	}
	var conf strings.Builder
	confKey(&conf, "private_key", t.cfg.PrivateKey)
	if err := dev.IpcSet(conf.String()); err != nil {
		return fail(fmt.Errorf("configuring device: %w", err))
	}
	if err := dev.Up(); err != nil {
		return fail(fmt.Errorf("listening on %s: %w", t.cfg.Listen, err))
	}
	t.dev, t.state = dev, running
	t.port.Store(t.bind.port.Load())
	return nil
}

func (t *Tunnel) stop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = closed
	// The stack first: its resets still find a tunnel.
	err := (*t.stack.Load()).Close()
	t.dev.Close()
	return err
}

// AddPeer lets the holder of a key in. The same key again replaces its
// preshared key and addresses. An inner address belongs to one key: a peer that
// had one of these before is removed, as a device's new registration takes the
// place of its old one.
func (t *Tunnel) AddPeer(p Peer) error {
	if p.Key == ([32]byte{}) || p.Key == t.public {
		return errors.New("adding peer: the key cannot be a device's")
	}
	n := 0
	for _, a := range p.Addresses {
		if !a.IsValid() {
			continue
		}
		n++
		if a.Is4In6() || a == t.cfg.Addresses[0] || a == t.cfg.Addresses[1] {
			return fmt.Errorf("adding peer: %v cannot be a device's address", a)
		}
	}
	if n == 0 {
		return errors.New("adding peer: it has no inner address")
	}
	// Its first initiation is to find this done.
	shared, ok := t.gate.opener.shared(&p.Key)
	if !ok {
		return errors.New("adding peer: the key cannot be a device's: nothing can be exchanged with it")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == closed {
		return fmt.Errorf("adding peer: %w", ErrClosed)
	}
	for _, r := range t.known.holders(&p) {
		t.removeLocked(r)
	}
	r := t.known.put(&p, shared)
	if t.known.awake(r) {
		var conf strings.Builder
		confPeer(&conf, r)
		if err := t.dev.IpcSet(conf.String()); err != nil {
			// Half a peer must not stay.
			t.removeLocked(r)
			return fmt.Errorf("adding peer: %w", err)
		}
	}
	if p.Endpoint.IsValid() && time.Since(p.Handshake) < recently {
		t.hails.add(r)
	}
	return nil
}

// RemovePeer makes a key unknown: when it returns, no packet of its tunnel
// enters or leaves. Removing an unknown key is no error.
func (t *Tunnel) RemovePeer(key [32]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == closed {
		return nil
	}
	if r := t.known.get(key); r != nil {
		t.removeLocked(r)
	}
	return nil
}

func (t *Tunnel) removeLocked(r *registration) {
	t.lowerLocked(r)
	t.known.drop(r)
}

// Withheld counts the resets that refused packets were not answered with, since
// their device had been sent too many.
func (t *Tunnel) Withheld() uint64 { return t.withheld.Load() }

// Stats returns the stack's packet counters; zero unless Run runs.
func (t *Tunnel) Stats() overlay.Stats {
	if st := t.stack.Load(); st != nil {
		return (*st).Stats()
	}
	return overlay.Stats{}
}

// Inject sends whole IP packets to devices past the stack and returns how many
// it took; none unless Run runs. It copies them and never blocks.
func (t *Tunnel) Inject(packets [][]byte) (accepted int) {
	if st := t.stack.Load(); st != nil {
		return (*st).Inject(packets)
	}
	return 0
}

func confKey(w *strings.Builder, name string, key [32]byte) {
	w.WriteString(name + "=" + hex.EncodeToString(key[:]) + "\n")
}

// confPeer describes a registration's peer. Callers hold the tunnel's mu.
func confPeer(w *strings.Builder, r *registration) {
	confKey(w, "public_key", r.key)
	confKey(w, "preshared_key", r.psk)
	w.WriteString("replace_allowed_ips=true\n")
	for _, a := range r.addresses {
		if a.IsValid() {
			// A device's own address and nothing around it: /32 or /128.
			w.WriteString("allowed_ip=" + netip.PrefixFrom(a, a.BitLen()).String() + "\n")
		}
	}
}

// logger gives the device's own messages to log, at debug: they name peers'
// outer addresses and come with every handshake.
func logger(log *slog.Logger) *device.Logger {
	ctx := context.Background()
	write := func(format string, args ...any) {
		if log.Enabled(ctx, slog.LevelDebug) {
			log.Debug("wireguard: " + fmt.Sprintf(format, args...))
		}
	}
	return &device.Logger{Verbosef: write, Errorf: write}
}
