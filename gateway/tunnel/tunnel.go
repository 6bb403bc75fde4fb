// Package tunnel is the gateway's WireGuard ingress: the UDP socket, the
// peers, and the userspace stack their packets end in, behind the segment
// filter.
//
// Who may be a peer is the caller's business; this package holds registered
// keys only as long as it is told to. A datagram of any other key is not
// answered.
package tunnel

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/curve25519"
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
	// TCP and UDP take what the table lets through (see overlay.Options).
	// Without TCP every connection is refused.
	TCP func(TCPRequest)
	UDP func(*overlay.UDPFlow)
	// OnEndpoint is told which outer address a peer uses once its first
	// handshake is complete, and again whenever it changes: within about 50 ms
	// of the peer's first packet from there, a second at the latest (longer
	// with very many peers, see pollShare). It is called from one goroutine
	// and must not block. The key may have been removed meanwhile.
	OnEndpoint func(key [32]byte, endpoint netip.AddrPort)
	// Log is optional.
	Log *slog.Logger
}

// Peer is a registered tunnel key.
type Peer struct {
	Key          [32]byte // WireGuard public key
	PresharedKey [32]byte
	Addresses    [2]netip.Addr // the device's inner addresses; an invalid one is left out
	// Endpoint, if valid, is where the device was last, before a restart. A
	// handshake with it begins at once: a stock WireGuard would find out by
	// itself only after 15 s of silence (its keepalive and rekey time-outs).
	Endpoint netip.AddrPort
}

// PeerInfo is the state of a peer's tunnel.
type PeerInfo struct {
	Key           [32]byte
	Endpoint      netip.AddrPort // not valid before the first handshake
	LastHandshake int64          // Unix time in nanoseconds; 0 is never
	Rx, Tx        uint64         // bytes, WireGuard's own included
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
	watch  *watcher

	// mu guards what follows and serialises changes of the device's peers. It
	// is never taken on a goroutine that carries packets.
	mu      sync.Mutex
	state   state
	dev     *device.Device // while running
	stack   stack          // while running
	peers   map[[32]byte]Peer
	holders map[netip.Addr][32]byte // inner address -> key of the peer that has it
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
		cfg:     cfg,
		listen:  listen,
		public:  [32]byte(public),
		log:     cfg.Log,
		ready:   make(chan struct{}),
		peers:   make(map[[32]byte]Peer),
		holders: make(map[netip.Addr][32]byte),
	}
	t.watch = newWatcher(t)
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

// Port is the UDP port listened on; 0 before Ready.
func (t *Tunnel) Port() uint16 { return uint16(t.port.Load()) }

// Run listens and carries packets until ctx is done, then resets what is open
// and closes everything. It returns an error if it cannot listen, if the
// device dies, or if Run was called before: a Tunnel runs once.
func (t *Tunnel) Run(ctx context.Context) error {
	if err := t.start(); err != nil {
		return err
	}
	t.log.Info("tunnel listens", "address", netip.AddrPortFrom(t.listen.Addr(), t.Port()))
	close(t.ready)
	var wg sync.WaitGroup
	watchCtx, stopWatch := context.WithCancel(ctx)
	wg.Go(func() { t.watch.run(watchCtx) })
	var err error
	select {
	case <-ctx.Done():
	case <-t.dev.Wait():
		err = errors.New("running tunnel: the WireGuard device closed by itself")
	}
	stopWatch()
	wg.Wait()
	return errors.Join(err, t.stop())
}

func (t *Tunnel) start() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state != fresh {
		return errors.New("running tunnel: it was run before")
	}
	st, err := t.newStack()
	if err != nil {
		return fmt.Errorf("running tunnel: %w", err)
	}
	b := &bind{
		Bind: transport.NewUDP(transport.UDPOptions{Listen: t.listen, Sticky: true, GSOOff: t.cfg.UDPGSOOff, Log: t.log}),
		seen: t.watch.seen,
	}
	dev := device.NewDevice(st.Device(), b, logger(t.log))
	fail := func(err error) error {
		t.state = closed
		_ = st.Close()
		dev.Close()
		return fmt.Errorf("running tunnel: %w", err)
	}
	var conf strings.Builder
	confKey(&conf, "private_key", t.cfg.PrivateKey)
	for _, p := range t.peers {
		confPeer(&conf, p)
	}
	if err := dev.IpcSet(conf.String()); err != nil {
		return fail(fmt.Errorf("configuring device: %w", err))
	}
	if err := dev.Up(); err != nil {
		return fail(fmt.Errorf("listening on %s: %w", t.cfg.Listen, err))
	}
	for _, p := range t.peers {
		if err := hailed(dev, p); err != nil {
			return fail(err)
		}
	}
	t.dev, t.stack, t.state = dev, st, running
	t.port.Store(uint32(b.port.Load()))
	return nil
}

func (t *Tunnel) stop() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.state = closed
	// The stack first: its resets still find a tunnel.
	err := t.stack.Close()
	t.dev.Close()
	return err
}

// filter runs for every packet on its peer's receiving goroutine.
func (t *Tunnel) filter(packet []byte) (overlay.Action, []byte) {
	switch v, _ := t.cfg.Table.Filter(packet); v {
	case segment.Pass:
		return overlay.Pass, nil
	case segment.Reset:
		return overlay.Drop, segment.ResetFor(packet)
	default:
		return overlay.Drop, nil
	}
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
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.state == closed {
		return fmt.Errorf("adding peer: %w", ErrClosed)
	}
	for _, a := range p.Addresses {
		if holder, ok := t.holders[a]; ok && holder != p.Key {
			if err := t.removeLocked(holder); err != nil {
				return fmt.Errorf("adding peer: %w", err)
			}
		}
	}
	if t.dev != nil {
		var conf strings.Builder
		confPeer(&conf, p)
		if err := t.dev.IpcSet(conf.String()); err != nil {
			// Half a peer must not stay.
			return errors.Join(fmt.Errorf("adding peer: %w", err), t.removeLocked(p.Key))
		}
		if err := hailed(t.dev, p); err != nil {
			return errors.Join(fmt.Errorf("adding peer: %w", err), t.removeLocked(p.Key))
		}
	}
	t.forgetLocked(p.Key)
	t.peers[p.Key] = p
	for _, a := range p.Addresses {
		if a.IsValid() {
			t.holders[a] = p.Key
		}
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
	return t.removeLocked(key)
}

func (t *Tunnel) removeLocked(key [32]byte) error {
	t.forgetLocked(key)
	t.watch.forgetLocked(key)
	if t.dev == nil {
		return nil
	}
	var conf strings.Builder
	confKey(&conf, "public_key", key)
	conf.WriteString("remove=true\n")
	if err := t.dev.IpcSet(conf.String()); err != nil {
		return fmt.Errorf("removing peer: %w", err)
	}
	return nil
}

// forgetLocked takes a key out of the tables. Callers hold mu.
func (t *Tunnel) forgetLocked(key [32]byte) {
	for _, a := range t.peers[key].Addresses {
		if t.holders[a] == key {
			delete(t.holders, a)
		}
	}
	delete(t.peers, key)
}

// Peers is the state of all peers, in no order. It is empty unless Run runs.
func (t *Tunnel) Peers() ([]PeerInfo, error) {
	dev := t.device()
	if dev == nil {
		return nil, nil
	}
	conf, err := dev.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("reading peers: %w", err)
	}
	return parsePeers(conf), nil
}

// Stats returns the stack's packet counters; zero unless Run runs.
func (t *Tunnel) Stats() overlay.Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stack == nil {
		return overlay.Stats{}
	}
	return t.stack.Stats()
}

// device is the running device or nil. It stays usable, empty, once closed.
func (t *Tunnel) device() *device.Device {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dev
}

func confKey(w *strings.Builder, name string, key [32]byte) {
	w.WriteString(name + "=" + hex.EncodeToString(key[:]) + "\n")
}

func confPeer(w *strings.Builder, p Peer) {
	confKey(w, "public_key", p.Key)
	confKey(w, "preshared_key", p.PresharedKey)
	w.WriteString("replace_allowed_ips=true\n")
	for _, a := range p.Addresses {
		if a.IsValid() {
			// A device's own address and nothing around it: /32 or /128.
			w.WriteString("allowed_ip=" + netip.PrefixFrom(a, a.BitLen()).String() + "\n")
		}
	}
	if p.Endpoint.IsValid() {
		// Turning keepalives on sends one, and that begins a handshake.
		w.WriteString("endpoint=" + p.Endpoint.String() + "\npersistent_keepalive_interval=25\n")
	}
}

// hailed turns the keepalives of confPeer off again: the one is under way, and
// a laptop that is not there any more must not be called for ever.
func hailed(dev *device.Device, p Peer) error {
	if !p.Endpoint.IsValid() {
		return nil
	}
	var conf strings.Builder
	confKey(&conf, "public_key", p.Key)
	conf.WriteString("update_only=true\npersistent_keepalive_interval=0\n")
	if err := dev.IpcSet(conf.String()); err != nil {
		return fmt.Errorf("hailing a peer: %w", err)
	}
	return nil
}

// parsePeers reads WireGuard's configuration protocol.
func parsePeers(conf string) []PeerInfo {
	var peers []PeerInfo
	var sec, nsec int64
	for line := range strings.Lines(conf) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if key == "public_key" {
			var p PeerInfo
			if n, err := hex.Decode(p.Key[:], []byte(value)); err != nil || n != len(p.Key) {
				continue
			}
			peers = append(peers, p)
			continue
		}
		if len(peers) == 0 {
			continue
		}
		p := &peers[len(peers)-1]
		switch key {
		case "endpoint":
			if ep, err := netip.ParseAddrPort(value); err == nil {
				p.Endpoint = netip.AddrPortFrom(ep.Addr().Unmap(), ep.Port())
			}
		case "last_handshake_time_sec":
			sec, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, _ = strconv.ParseInt(value, 10, 64)
			p.LastHandshake = sec*1e9 + nsec
		case "rx_bytes":
			p.Rx, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			p.Tx, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return peers
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
