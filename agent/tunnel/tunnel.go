// Package tunnel is the agent's end of the tunnel: one WireGuard peer, the
// gateway, and an inside with the device's inner addresses: a userspace stack to
// dial from, or an interface of the operating system (TUN mode, Linux). Keys
// live in memory only.
//
// What the tunnel carries is exactly the gateway and the addresses it was last
// told with SetAllowed, as /32 and /128. A dial to anything else fails at once,
// and a packet to anything else leaves no datagram.
package tunnel

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/transport"
	"github.com/portvakt/portvakt/internal/wire"
)

// Keepalive keeps the way back from the gateway open through NATs.
const Keepalive = 25 * time.Second

// Config of a Tunnel.
type Config struct {
	// Connect is the gateway's answer to connect.
	Connect *wire.ConnectResponse
	// PrivateKey belongs to the tunnel key connect was called with.
	PrivateKey [32]byte
	// Endpoint is the gateway's UDP address, host:port; a name is resolved.
	Endpoint string
	// UDPGSOOff: see transport.UDPOptions.GSOOff.
	UDPGSOOff bool
	// WebSocket opens another way to the gateway, for networks that block UDP.
	// ctx bounds the opening, life the Stream. It is asked for by Run. Nil is
	// UDP only.
	WebSocket func(ctx, life context.Context) (*transport.Stream, error)
	// Heartbeat is how often the gateway says something inside by itself, once it
	// said anything, so that silence tells that UDP is blocked. 0 if it need not.
	Heartbeat time.Duration
	// TUN makes the inside of the tunnel an interface of the operating system
	// instead of a userspace stack. Linux only.
	TUN *TUN
	// Log is optional.
	Log *slog.Logger
}

// TUN is an interface that somebody with the privilege to made and owns. The
// routes into it are theirs too.
type TUN struct {
	// FD is a descriptor of it; the tunnel closes it.
	FD int
	// Routes makes the routes into the interface exactly those to addrs. It is
	// called before an address leaves AllowedIPs and after one came in, so that
	// no packet is routed to where the tunnel would drop it.
	Routes func(addrs []netip.Addr) error
}

// network is the inside of the tunnel: a userspace stack or the kernel's.
type network interface {
	DialTCP(context.Context, netip.AddrPort) (net.Conn, error)
	DialUDP(netip.AddrPort) (net.Conn, error)
	ListenUDP(netip.AddrPort) (net.PacketConn, error)
	Close() error
}

// Tunnel is an open tunnel. Its methods may be called from any goroutine.
type Tunnel struct {
	log     *slog.Logger
	ladder  *ladder
	fit     *fit
	dev     *device.Device
	net     network
	routes  func([]netip.Addr) error // nil with a userspace stack
	peerKey [32]byte                 // the gateway's
	peer    string                   // and in hex
	gateway []netip.Addr
	own     []netip.Addr

	toGateway, toApps dials

	// mu guards what follows and serialises changes of the device.
	mu      sync.Mutex
	closed  bool
	allowed map[netip.Addr]struct{} // gateway's addresses included
	conns   map[netip.Addr]map[*tracked]struct{}
}

// Generate makes a tunnel key pair for one connect.
func Generate() (priv, pub [32]byte) {
	_, _ = rand.Read(priv[:]) // never fails: it crashes the program instead
	// RFC 7748 section 5.
	priv[0] &= 248
	priv[31] = priv[31]&127 | 64
	p, err := curve25519.X25519(priv[:], curve25519.Basepoint)
	if err != nil {
		panic("tunnel: the base point has low order: " + err.Error())
	}
	return priv, [32]byte(p)
}

// Open brings a tunnel up and sends the first handshake. Whether the gateway
// answers is seen in Status. The tunnel runs until Close.
func Open(cfg Config) (*Tunnel, error) {
	t, err := open(cfg)
	if err != nil {
		return nil, fmt.Errorf("opening tunnel: %w", err)
	}
	return t, nil
}

func open(cfg Config) (*Tunnel, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	inside, dev, err := openInside(cfg)
	if err != nil {
		return nil, err
	}
	t, err := start(cfg, inside, dev)
	if err != nil {
		return nil, errors.Join(err, inside.Close(), dev.Close())
	}
	return t, nil
}

// openInside makes the inside of the tunnel and its end towards WireGuard. It
// takes the TUN's descriptor over, whatever it returns.
func openInside(cfg Config) (network, tun.Device, error) {
	if cfg.TUN != nil {
		return openKernel(cfg)
	}
	if cfg.Connect == nil {
		return nil, nil, errConnect
	}
	st, err := overlay.New(overlay.Options{Addresses: cfg.Connect.Addresses, MTU: cfg.Connect.MTU})
	if err != nil {
		return nil, nil, err
	}
	return st, st.Device(), nil
}

var errConnect = errors.New("no answer to connect")

// start brings WireGuard up over inside, which it takes over if it succeeds.
func start(cfg Config, inside network, dev tun.Device) (*Tunnel, error) {
	c := cfg.Connect
	if c == nil {
		return nil, errConnect
	}
	peer, err := key(c.Gateway.TunnelKey)
	if err != nil {
		return nil, fmt.Errorf("reading gateway key: %w", err)
	}
	psk, err := key(c.PresharedKey)
	if err != nil {
		return nil, fmt.Errorf("reading preshared key: %w", err)
	}
	if len(c.Addresses) == 0 || len(c.Gateway.Addresses) == 0 {
		return nil, errors.New("the gateway gave no inner addresses")
	}
	endpoint, err := resolve(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	road, err := newRoad(endpoint, transport.UDPOptions{GSOOff: cfg.UDPGSOOff, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	pathFit, err := newFit(dev, c.Addresses, c.Gateway.Addresses, cmp.Or(c.MTU, overlay.DefaultMTU))
	if err != nil {
		return nil, err
	}
	pathFit.udp = func() bool { return road.stream.Load() == nil }
	pathFit.push = func(to netip.AddrPort) error {
		u, err := inside.DialUDP(to)
		if err != nil {
			return err
		}
		_, err = u.Write([]byte{0})
		return errors.Join(err, u.Close())
	}
	pathFit.question = road.question
	paced, outside, _ := transport.Pace(pathFit, road)
	t := &Tunnel{
		log:     cfg.Log,
		fit:     pathFit,
		ladder:  newLadder(road, cfg.WebSocket, cfg.Log),
		dev:     device.NewDevice(paced, outside, logger(cfg.Log)),
		net:     inside,
		peerKey: peer,
		peer:    hex.EncodeToString(peer[:]),
		gateway: slices.Clone(c.Gateway.Addresses),
		own:     slices.Clone(c.Addresses),
		allowed: make(map[netip.Addr]struct{}),
		conns:   make(map[netip.Addr]map[*tracked]struct{}),
	}
	t.ladder.heartbeat, t.ladder.hail, t.ladder.ask, t.ladder.greet = cfg.Heartbeat, t.hail, pathFit.call, t.greet
	if cfg.TUN != nil {
		t.routes = cfg.TUN.Routes
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, "private_key=%x\npublic_key=%s\npreshared_key=%x\nendpoint=%s\nreplace_allowed_ips=true\n",
		cfg.PrivateKey, t.peer, psk, endpoint)
	for _, a := range t.gateway {
		fmt.Fprintf(&conf, "allowed_ip=%s\n", host(a))
		t.allowed[a] = struct{}{}
	}
	fmt.Fprintf(&conf, "persistent_keepalive_interval=%d\n", int(Keepalive.Seconds()))
	if err = t.dev.IpcSet(conf.String()); err == nil {
		err = t.dev.Up()
	}
	if err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

// Run moves the tunnel to a WebSocket while UDP is blocked, until ctx is done or
// the tunnel dies, and closes it.
func (t *Tunnel) Run(ctx context.Context) error {
	var climbing sync.WaitGroup
	defer climbing.Wait()
	climb, stop := context.WithCancel(ctx)
	defer stop()
	climbing.Go(func() { t.fit.run(climb) })
	climbing.Go(func() { t.watchHandshakes(climb) })
	if t.ladder.dial != nil {
		climbing.Go(func() { t.ladder.run(climb) })
	}
	select {
	case <-ctx.Done():
		return t.Close()
	case <-t.dev.Wait():
	}
	t.mu.Lock()
	wanted := t.closed
	t.mu.Unlock()
	if err := t.Close(); err != nil || wanted {
		return err
	}
	return errors.New("running tunnel: the WireGuard device closed by itself")
}

// hail sends the gateway a keepalive now, by a way that is new: turning them on
// sends one.
func (t *Tunnel) hail() {
	t.fit.moved()
	conf := "public_key=" + t.peer + "\nupdate_only=true\npersistent_keepalive_interval="
	on := strconv.Itoa(int(Keepalive.Seconds()))
	if err := errors.Join(t.dev.IpcSet(conf+"0\n"), t.dev.IpcSet(conf+on+"\n")); err != nil {
		t.log.Warn("sending a keepalive", "err", err)
	}
}

// SetAllowed makes the tunnel carry exactly the gateway's own addresses and
// addrs. Connections to addresses that are no longer among them are broken off:
// no answer could reach them any more. An address of this device's own is
// refused.
func (t *Tunnel) SetAllowed(addrs []netip.Addr) error {
	want := make(map[netip.Addr]struct{}, len(addrs)+len(t.gateway))
	for _, a := range slices.Concat(t.gateway, addrs) {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || slices.Contains(t.own, a) {
			return fmt.Errorf("setting allowed addresses: %v cannot be an app's", a)
		}
		want[a] = struct{}{}
	}
	gone, err := t.setAllowed(want)
	for _, c := range gone {
		c.Reset()
	}
	return err
}

func (t *Tunnel) setAllowed(want map[netip.Addr]struct{}) (gone []*tracked, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, fmt.Errorf("setting allowed addresses: %w", net.ErrClosed)
	}
	// Only the difference is set: replacing all would drop the packets of
	// flows that stay, for a moment.
	var conf strings.Builder
	fmt.Fprintf(&conf, "public_key=%s\nupdate_only=true\n", t.peer)
	head := conf.Len()
	for a := range t.allowed {
		if _, ok := want[a]; !ok {
			fmt.Fprintf(&conf, "allowed_ip=-%s\n", host(a))
		}
	}
	for a := range want {
		if _, ok := t.allowed[a]; !ok {
			fmt.Fprintf(&conf, "allowed_ip=%s\n", host(a))
		}
	}
	if conf.Len() == head {
		return nil, nil
	}
	if err := t.carry(want, conf.String()); err != nil {
		return nil, fmt.Errorf("setting allowed addresses: %w", err)
	}
	for a := range t.allowed {
		if _, ok := want[a]; !ok {
			for c := range t.conns[a] {
				gone = append(gone, c)
			}
		}
	}
	t.allowed = want
	return gone, nil
}

// carry applies conf, which takes AllowedIPs from t.allowed to want, with the
// routes in step. The caller holds mu.
func (t *Tunnel) carry(want map[netip.Addr]struct{}, conf string) error {
	if t.routes == nil {
		return t.dev.IpcSet(conf)
	}
	var stay []netip.Addr
	for a := range t.allowed {
		if _, ok := want[a]; ok {
			stay = append(stay, a)
		}
	}
	if err := t.routes(stay); err != nil {
		return err
	}
	if err := t.dev.IpcSet(conf); err != nil {
		return err
	}
	return t.routes(slices.Collect(maps.Keys(want)))
}

// DialTCP connects through the tunnel. An address outside the allowed set
// fails at once with syscall.ENETUNREACH, a refusal of the gateway's with
// syscall.ECONNREFUSED.
func (t *Tunnel) DialTCP(ctx context.Context, dst netip.AddrPort) (net.Conn, error) {
	if err := t.reachable("tcp", dst); err != nil {
		return nil, err
	}
	c, err := t.dialling(dst).dial(ctx, func(ctx context.Context) (net.Conn, error) { return t.net.DialTCP(ctx, dst) })
	if err != nil {
		return nil, err
	}
	return t.track("tcp", dst, c)
}

// DialUDP returns a socket connected to dst; nothing is sent by it. An address
// outside the allowed set fails with syscall.ENETUNREACH.
func (t *Tunnel) DialUDP(dst netip.AddrPort) (net.Conn, error) {
	if err := t.reachable("udp", dst); err != nil {
		return nil, err
	}
	c, err := t.net.DialUDP(dst)
	if err != nil {
		return nil, err
	}
	return t.track("udp", dst, c)
}

// ListenUDP returns a socket on the device's own IPv4 or IPv6 address. It sends
// to the allowed addresses; to another it fails with syscall.ENETUNREACH. Port
// 0 takes a free one; a taken one fails.
func (t *Tunnel) ListenUDP(v6 bool, port uint16) (net.PacketConn, error) {
	for _, a := range t.own {
		if a.Is6() != v6 {
			continue
		}
		c, err := t.net.ListenUDP(netip.AddrPortFrom(a, port))
		if err != nil {
			return nil, err
		}
		return &fenced{c, t}, nil
	}
	return nil, &net.OpError{Op: "listen", Net: "udp", Err: syscall.ENETUNREACH}
}

// Close breaks every connection off and forgets the keys. It may be called
// more than once.
func (t *Tunnel) Close() error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	err := t.net.Close()
	t.dev.Close()
	return err
}

func (t *Tunnel) reachable(network string, dst netip.AddrPort) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var err error
	if t.closed {
		err = net.ErrClosed
	} else if _, ok := t.allowed[dst.Addr().Unmap()]; !ok {
		err = syscall.ENETUNREACH
	}
	if err == nil {
		return nil
	}
	var addr net.Addr = net.TCPAddrFromAddrPort(dst)
	if network == "udp" {
		addr = net.UDPAddrFromAddrPort(dst)
	}
	return &net.OpError{Op: "dial", Net: network, Addr: addr, Err: err}
}
