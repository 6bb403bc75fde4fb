package tunnel_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/tunnel"
	"github.com/portvakt/portvakt/internal/overlay"
)

// answerPatience is how long what is to come may take on a busy machine: two
// handshake messages that were lost, and some.
const answerPatience = 15 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	gatewayAddrs = [2]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:64::1")}
	app          = [2]netip.Addr{netip.MustParseAddr("100.64.1.30"), netip.MustParseAddr("fd00:64::1:30")}
	hidden       = [2]netip.Addr{netip.MustParseAddr("100.64.1.31"), netip.MustParseAddr("fd00:64::1:31")}
)

func inner(i int) [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(20 + i)}), netip.MustParseAddr(fmt.Sprintf("fd00:64::%d", 20+i))}
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func keyPair() (priv, pub [32]byte) {
	_, _ = rand.Read(priv[:])
	p, err := curve25519.X25519(priv[:], curve25519.Basepoint)
	if err != nil {
		panic(err)
	}
	return priv, [32]byte(p)
}

// place is what OnEndpoint was told.
type place struct {
	key [32]byte
	ep  netip.AddrPort
	at  time.Time
}

// ingress is a running gateway tunnel that echoes on every address the segment
// lets through, refuses TCP on port 7, hands the connections of port 8 to the
// test and leaves the answer on port 9 to it.
type ingress struct {
	*tunnel.Tunnel
	table   *segment.Table
	located chan place
	conns   chan net.Conn
	asked   chan tunnel.TCPRequest
	stop    func()
}

func start(t *testing.T, listen string) *ingress {
	t.Helper()
	priv, _ := keyPair()
	return startAs(t, listen, priv)
}

// startAs starts an ingress with a key of before, as a restarted gateway does.
func startAs(t *testing.T, listen string, priv [32]byte) *ingress {
	t.Helper()
	return startMode(t, tunnel.Userspace, listen, priv)
}

func startMode(t *testing.T, mode tunnel.Mode, listen string, priv [32]byte) *ingress {
	t.Helper()
	return startConfig(t, tunnel.Config{PrivateKey: priv, Listen: listen, Mode: mode}, nil)
}

func startConfig(t testing.TB, cfg tunnel.Config, change func(*tunnel.Config)) *ingress {
	t.Helper()
	in := &ingress{table: segment.NewTable(gatewayAddrs), located: make(chan place, 5000), conns: make(chan net.Conn, 10), asked: make(chan tunnel.TCPRequest, 1000)}
	cfg.Addresses, cfg.Table = gatewayAddrs, in.table
	cfg.TCP = func(r tunnel.TCPRequest) {
		if r.Local().Port() == 7 {
			r.Reset()
			return
		}
		if r.Local().Port() == 9 {
			in.asked <- r
			return
		}
		c, err := r.Accept(context.Background())
		if err != nil {
			return
		}
		if r.Local().Port() == 8 {
			in.conns <- c
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}
	cfg.UDP = func(packets [][]byte) {
		for _, p := range packets {
			if back := turned(p); back == nil || in.Inject([][]byte{back}) != 1 {
				t.Errorf("the stack did not take %x", p)
			}
		}
	}
	cfg.OnMove = func([32]byte, netip.AddrPort) {}
	cfg.OnEndpoint = func(key [32]byte, ep netip.AddrPort) { in.located <- place{key, ep, time.Now()} }
	if change != nil {
		change(&cfg)
	}
	var err error
	in.Tunnel, err = tunnel.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- in.Run(ctx) }()
	select {
	case <-in.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	in.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(in.stop)
	return in
}

// turned is the packet that sends a datagram back, nil if it is none. Its
// checksums stay right: they do not see the order.
func turned(p []byte) []byte {
	b := bytes.Clone(p)
	at, n, ports := 12, 4, 20
	switch {
	case p[0]>>4 == 4 && p[9] == 17:
	case p[0]>>4 == 6 && p[6] == 17:
		at, n, ports = 8, 16, 40
	default:
		return nil
	}
	copy(b[at:], p[at+n:at+2*n])
	copy(b[at+n:], p[at:at+n])
	copy(b[ports:], p[ports+2:ports+4])
	copy(b[ports+2:], p[ports:ports+2])
	return b
}

func (in *ingress) addr() string { return fmt.Sprintf("127.0.0.1:%d", in.Port()) }

// admit registers a client's key with the inner addresses of i and lets it
// reach the app and the control address.
func (in *ingress) admit(t *testing.T, c *client, i int) {
	t.Helper()
	var es []segment.Entry
	for f := range app {
		for _, port := range []uint16{443, 7, 8, 9} {
			es = append(es, segment.Entry{Addr: app[f], Proto: segment.ProtoTCP, Port: port})
		}
		es = append(es, segment.Entry{Addr: app[f], Proto: segment.ProtoUDP, Port: 5004},
			segment.Entry{Addr: gatewayAddrs[f], Proto: segment.ProtoTCP, Port: 80})
	}
	in.table.Set(inner(i), es)
	if err := in.AddPeer(tunnel.Peer{Key: c.pub, PresharedKey: c.psk, Addresses: inner(i)}); err != nil {
		t.Fatal(err)
	}
}

// located waits until the owner was told where a key is.
func located(t *testing.T, in *ingress, key [32]byte) netip.AddrPort {
	t.Helper()
	for {
		select {
		case got := <-in.located:
			if got.key == key {
				return got.ep
			}
		case <-time.After(answerPatience):
			t.Fatal("the client was never located")
		}
	}
}

// client is a stock WireGuard with all addresses allowed: what a device may
// not do has to be stopped by the gateway, not by its agent.
type client struct {
	priv, pub, psk [32]byte
	dev            *device.Device
	stack          *overlay.Stack // nil for a raw client
	raw            *rawTUN        // nil for one with a stack
	stop           func()
}

func newClient() *client {
	c := &client{}
	c.priv, c.pub = keyPair()
	_, _ = rand.Read(c.psk[:])
	return c
}

// connect brings the client up with a stack of its own.
func (c *client) connect(t *testing.T, in *ingress, endpoint string, i int) *client {
	t.Helper()
	addrs := inner(i)
	st, err := overlay.New(overlay.Options{Addresses: addrs[:]})
	if err != nil {
		t.Fatal(err)
	}
	c.stack = st
	c.up(t, in, st.Device(), endpoint)
	return c
}

// connectRaw brings the client up with packets of the test's making.
func (c *client) connectRaw(t *testing.T, in *ingress, endpoint string) *client {
	t.Helper()
	c.raw = &rawTUN{out: make(chan []byte, 100), in: make(chan []byte, 1000), done: make(chan struct{}), events: make(chan tun.Event)}
	c.up(t, in, c.raw, endpoint)
	return c
}

func (c *client) up(t *testing.T, in *ingress, dev tun.Device, endpoint string) {
	t.Helper()
	err := c.bring(in, dev, endpoint)
	t.Cleanup(c.stop)
	if err != nil {
		t.Fatal(err)
	}
}

// bring is up for who calls stop.
func (c *client) bring(in *ingress, dev tun.Device, endpoint string) error {
	c.dev = device.NewDevice(dev, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	c.stop = sync.OnceFunc(func() {
		if c.stack != nil {
			_ = c.stack.Close()
		}
		c.dev.Close()
	})
	return errors.Join(c.dev.IpcSet(fmt.Sprintf("private_key=%x\n", c.priv)+c.gateway(in, endpoint)), c.dev.Up())
}

// gateway is the configuration of the client's one peer.
func (c *client) gateway(in *ingress, endpoint string) string {
	return fmt.Sprintf("public_key=%x\npreshared_key=%x\nendpoint=%s\nallowed_ip=0.0.0.0/0\nallowed_ip=::/0\n", in.PublicKey(), c.psk, endpoint)
}

func (c *client) dial(t *testing.T, dst netip.AddrPort) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), answerPatience)
	defer cancel()
	return c.stack.DialTCP(ctx, dst)
}

func (c *client) mustDial(t *testing.T, dst netip.AddrPort) net.Conn {
	t.Helper()
	nc, err := c.dial(t, dst)
	if err != nil {
		t.Fatalf("dialling %v: %v", dst, err)
	}
	return nc
}

func roundTrip(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(answerPatience))
	b := make([]byte, 5)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Fatalf("echo %q, %v", b, err)
	}
	_ = c.SetDeadline(time.Time{})
}

// rawTUN is a tun.Device of whole packets in channels.
type rawTUN struct {
	out, in chan []byte // to the tunnel, from it
	done    chan struct{}
	events  chan tun.Event
	once    sync.Once
}

func (*rawTUN) File() *os.File             { return nil }
func (*rawTUN) MTU() (int, error)          { return 1280, nil }
func (*rawTUN) Name() (string, error)      { return "raw", nil }
func (r *rawTUN) Events() <-chan tun.Event { return r.events }
func (*rawTUN) BatchSize() int             { return 1 }

func (r *rawTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-r.out:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	case <-r.done:
		return 0, os.ErrClosed
	}
}

func (r *rawTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case r.in <- append([]byte(nil), b[offset:]...):
		default:
		}
	}
	return len(bufs), nil
}

func (r *rawTUN) Close() error {
	r.once.Do(func() {
		close(r.done)
		close(r.events)
	})
	return nil
}

// relay is a UDP relay on loopback. move gives it a new address towards the
// gateway, as a NAT or another network does.
type relay struct {
	addr     string
	gateway  *net.UDPAddr
	front    *net.UDPConn
	client   atomic.Pointer[netip.AddrPort]
	answered atomic.Int64                      // datagrams that came back
	unsent   atomic.Int64                      // datagrams to the gateway that could not be sent
	seen     atomic.Pointer[func([]byte)]      // told of every datagram to the gateway
	came     atomic.Pointer[func([]byte)]      // and of every one from it
	pass     atomic.Pointer[func([]byte) bool] // says whether one from it arrives

	mu   sync.Mutex
	back io.ReadWriteCloser // a datagram a call
	wg   sync.WaitGroup
}

func newRelay(t *testing.T, in *ingress) *relay {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: front.LocalAddr().String(), front: front, gateway: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(in.Port())}}
	r.move(t, net.IPv4(127, 0, 0, 1))
	r.wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, src, err := front.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			r.client.Store(&src)
			if seen := r.seen.Load(); seen != nil {
				(*seen)(b[:n])
			}
			r.mu.Lock()
			if _, err := r.back.Write(b[:n]); err != nil {
				r.unsent.Add(1)
			}
			r.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = front.Close()
		r.mu.Lock()
		_ = r.back.Close()
		r.mu.Unlock()
		r.wg.Wait()
	})
	return r
}

// move changes the relay's outer address and returns it.
func (r *relay) move(t *testing.T, ip net.IP) netip.AddrPort {
	t.Helper()
	now, err := r.moveTo(ip)
	if err != nil {
		t.Fatal(err)
	}
	return now
}

func (r *relay) moveTo(ip net.IP) (netip.AddrPort, error) {
	back, err := net.DialUDP("udp4", &net.UDPAddr{IP: ip}, r.gateway)
	if err != nil {
		return netip.AddrPort{}, err
	}
	r.change(back)
	return back.LocalAddr().(*net.UDPAddr).AddrPort(), nil
}

// change makes the relay reach the gateway by another road.
func (r *relay) change(back io.ReadWriteCloser) {
	r.mu.Lock()
	old := r.back
	r.back = back
	r.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	r.wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, err := back.Read(b)
			if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
				return // closed
			}
			r.answered.Add(1)
			if came := r.came.Load(); err == nil && came != nil {
				(*came)(b[:n])
			}
			if pass := r.pass.Load(); err == nil && pass != nil && !(*pass)(b[:n]) {
				continue
			}
			if c := r.client.Load(); err == nil && c != nil {
				_, _ = r.front.WriteToUDPAddrPort(b[:n], *c)
			}
		}
	})
}
