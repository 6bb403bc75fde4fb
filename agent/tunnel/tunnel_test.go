package tunnel_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/agent/tunnel"
	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	gatewayAddrs = []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:64::1")}
	own          = []netip.Addr{netip.MustParseAddr("100.64.0.20"), netip.MustParseAddr("fd00:64::20")}
	app          = []netip.Addr{netip.MustParseAddr("100.64.1.30"), netip.MustParseAddr("fd00:64::1:30")}
	elsewhere    = netip.MustParseAddr("100.64.1.31")
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func b64(k [32]byte) string { return base64.StdEncoding.EncodeToString(k[:]) }

// gateway is a bare WireGuard with a stack of its own that echoes on every
// address, and refuses TCP on port 1.
func gateway(t *testing.T, priv, peer, psk [32]byte) (port uint16) {
	t.Helper()
	st, err := overlay.New(overlay.Options{
		Addresses: gatewayAddrs, Gateway: true,
		TCP: func(r *overlay.TCPRequest) {
			if r.Local().Port() == 1 {
				r.Reset()
				return
			}
			if c, err := r.Accept(context.Background()); err == nil {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		},
		Filter: func(p []byte) (overlay.Action, []byte) {
			if back := turned(p); back != nil {
				return overlay.Taken, back
			}
			return overlay.Pass, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	bind := conn.NewDefaultBind()
	dev := device.NewDevice(st.Device(), bind, device.NewLogger(device.LogLevelSilent, ""))
	conf := fmt.Sprintf("private_key=%x\npublic_key=%x\npreshared_key=%x\n", priv, peer, psk)
	for _, a := range own {
		conf += fmt.Sprintf("allowed_ip=%v/%d\n", a, a.BitLen())
	}
	if err := errors.Join(dev.IpcSet(conf), dev.Up()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = st.Close()
		dev.Close()
	})
	got, err := dev.IpcGet()
	if err != nil {
		t.Fatal(err)
	}
	var p int
	for line := range lines(got) {
		if _, err := fmt.Sscanf(line, "listen_port=%d", &p); err == nil {
			break
		}
	}
	return uint16(p)
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

func lines(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		start := 0
		for i := range s {
			if s[i] == '\n' {
				if !yield(s[start:i]) {
					return
				}
				start = i + 1
			}
		}
	}
}

// relay is a UDP relay on loopback that counts what the agent sends. A type of
// WireGuard's is the first byte: 4 carries data, and one of 32 bytes nothing.
type relay struct {
	addr string
	data atomic.Int64
}

func newRelay(t *testing.T, to uint16) *relay {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(to)})
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{addr: front.LocalAddr().String()}
	var client atomic.Pointer[netip.AddrPort]
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, src, err := front.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			client.Store(&src)
			if b[0] == 4 && n > 32 {
				r.data.Add(1)
			}
			_, _ = back.Write(b[:n])
		}
	})
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, err := back.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if c := client.Load(); err == nil && c != nil {
				_, _ = front.WriteToUDPAddrPort(b[:n], *c)
			}
		}
	})
	t.Cleanup(func() {
		_ = front.Close()
		_ = back.Close()
		wg.Wait()
	})
	return r
}

// open opens a tunnel to a gateway through a relay.
func open(t *testing.T) (*tunnel.Tunnel, *relay) {
	t.Helper()
	gwPriv, gwPub := tunnel.Generate()
	priv, pub := tunnel.Generate()
	psk, _ := tunnel.Generate()
	r := newRelay(t, gateway(t, gwPriv, pub, psk))
	tun, err := tunnel.Open(tunnel.Config{Connect: answer(gwPub, psk), PrivateKey: priv, Endpoint: r.addr})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tun.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return tun, r
}

func answer(gwPub, psk [32]byte) *wire.ConnectResponse {
	return &wire.ConnectResponse{
		Addresses: own, PresharedKey: b64(psk), MTU: 1280,
		Gateway: wire.GatewayTunnel{TunnelKey: b64(gwPub), Addresses: gatewayAddrs},
	}
}

func ctx(t *testing.T) context.Context {
	t.Helper()
	c, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	t.Cleanup(cancel)
	return c
}

func roundTrip(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 5)
	if _, err := io.WriteString(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Fatalf("echo %q, %v", b, err)
	}
	_ = c.SetDeadline(time.Time{})
}

func TestDial(t *testing.T) {
	tun, _ := open(t)
	if err := tun.SetAllowed(app); err != nil {
		t.Fatal(err)
	}
	for _, a := range append(app, gatewayAddrs...) {
		c, err := tun.DialTCP(ctx(t), at(a, 443))
		if err != nil {
			t.Fatalf("dialling %v: %v", a, err)
		}
		roundTrip(t, c)
		if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Error(err)
		}
		if rest, err := io.ReadAll(c); err != nil || len(rest) != 0 {
			t.Errorf("after CloseWrite: %q, %v", rest, err)
		}
		_ = c.Close()
		u, err := tun.DialUDP(at(a, 5004))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, u)
		_ = u.Close()
	}
	start := time.Now()
	if _, err := tun.DialTCP(ctx(t), at(app[0], 1)); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(start) > time.Second {
		t.Errorf("a refused connection after %v: %v", time.Since(start), err)
	}
	s := tun.Status()
	if s.LastHandshake.IsZero() || s.Rx == 0 || s.Tx == 0 || s.LocalPort == 0 || s.Endpoint == "" {
		t.Errorf("status %+v", s)
	}
}

func TestNothingElseLeavesADatagram(t *testing.T) {
	tun, r := open(t)
	if err := tun.SetAllowed(append([]netip.Addr{elsewhere}, app...)); err != nil {
		t.Fatal(err)
	}
	// A socket from when the address was allowed, and connections to it.
	u, err := tun.DialUDP(at(elsewhere, 5004))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, u)
	c, err := tun.DialTCP(ctx(t), at(elsewhere, 443))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c)
	stays, err := tun.DialTCP(ctx(t), at(app[0], 443))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, stays)

	if err := tun.SetAllowed(app); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // what was under way is through
	r.data.Store(0)
	for name, conn := range map[string]net.Conn{"UDP socket": u, "connection": c} {
		if _, err := conn.Write([]byte("x")); err == nil {
			t.Errorf("the %s of an address that is gone still takes bytes", name)
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("the %s of an address that is gone still gives bytes", name)
		}
	}
	for _, dst := range []netip.AddrPort{at(elsewhere, 443), at(netip.MustParseAddr("192.0.2.1"), 53), at(own[0], 80), at(netip.MustParseAddr("fd00:64::9"), 1), {}} {
		start := time.Now()
		if _, err := tun.DialTCP(ctx(t), dst); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("TCP to %v: %v, want ENETUNREACH", dst, err)
		}
		if _, err := tun.DialUDP(dst); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("UDP to %v: %v, want ENETUNREACH", dst, err)
		}
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Errorf("refusing %v took %v", dst, d)
		}
	}
	time.Sleep(200 * time.Millisecond)
	if n := r.data.Load(); n != 0 {
		t.Errorf("%d datagrams with data left", n)
	}
	roundTrip(t, stays)
	if r.data.Load() == 0 {
		t.Error("the relay does not count")
	}
}

func TestSetAllowedIsExact(t *testing.T) {
	tun, _ := open(t)
	sets := [][]netip.Addr{app, {elsewhere}, {elsewhere, app[0]}, nil, app, app, {app[0], app[0], gatewayAddrs[0]}}
	for _, set := range sets {
		if err := tun.SetAllowed(set); err != nil {
			t.Fatal(err)
		}
		want := map[string]bool{"100.64.0.1/32": true, "fd00:64::1/128": true}
		for _, a := range set {
			want[netip.PrefixFrom(a, a.BitLen()).String()] = true
		}
		got := tunnel.AllowedIPs(tun)
		for _, g := range got {
			if !want[g] {
				t.Errorf("for %v WireGuard allows %v", set, got)
			}
		}
		if len(got) != len(want) {
			t.Errorf("for %v WireGuard allows %v", set, got)
		}
	}
	for _, bad := range []netip.Addr{{}, own[0], netip.IPv4Unspecified(), netip.IPv6Unspecified(), netip.AddrFrom16(app[0].As16()), netip.MustParseAddr("fe80::1%eth0")} {
		before := fmt.Sprint(tunnel.AllowedIPs(tun))
		if err := tun.SetAllowed([]netip.Addr{elsewhere, bad}); err == nil {
			t.Errorf("%v was taken", bad)
		}
		if after := fmt.Sprint(tunnel.AllowedIPs(tun)); after != before {
			t.Errorf("a refused set changed %v to %v", before, after)
		}
	}
}

func TestOpenRefusesBadAnswers(t *testing.T) {
	_, pub := tunnel.Generate()
	for name, change := range map[string]func(*tunnel.Config){
		"no answer":        func(c *tunnel.Config) { c.Connect = nil },
		"gateway key":      func(c *tunnel.Config) { c.Connect.Gateway.TunnelKey = "c2hvcnQ=" },
		"preshared key":    func(c *tunnel.Config) { c.Connect.PresharedKey = "not base64" },
		"no addresses":     func(c *tunnel.Config) { c.Connect.Addresses = nil },
		"no gateway":       func(c *tunnel.Config) { c.Connect.Gateway.Addresses = nil },
		"invalid address":  func(c *tunnel.Config) { c.Connect.Addresses = []netip.Addr{{}} },
		"tiny MTU":         func(c *tunnel.Config) { c.Connect.MTU = 100 },
		"endpoint":         func(c *tunnel.Config) { c.Endpoint = "nowhere" },
		"endpoint without": func(c *tunnel.Config) { c.Endpoint = "" },
		"no port":          func(c *tunnel.Config) { c.Endpoint = "127.0.0.1" },
		"port 0":           func(c *tunnel.Config) { c.Endpoint = "127.0.0.1:0" },
		"port of letters":  func(c *tunnel.Config) { c.Endpoint = "127.0.0.1:x" },
		"half an address":  func(c *tunnel.Config) { c.Endpoint = "[::1:5" },
		"unknown name":     func(c *tunnel.Config) { c.Endpoint = "name.invalid:5" },
	} {
		cfg := tunnel.Config{Connect: answer(pub, [32]byte{}), PrivateKey: [32]byte{1}, Endpoint: "127.0.0.1:9"}
		change(&cfg)
		if tun, err := tunnel.Open(cfg); err == nil {
			_ = tun.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

func TestRunAndClose(t *testing.T) {
	tun, _ := open(t)
	c, err := tun.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	runCtx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tun.Run(runCtx) }()
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives its tunnel")
	}
	if _, err := tun.DialTCP(ctx(t), at(gatewayAddrs[0], 80)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dialling a closed tunnel: %v", err)
	}
	if err := tun.SetAllowed(app); !errors.Is(err, net.ErrClosed) {
		t.Errorf("SetAllowed on a closed tunnel: %v", err)
	}
	if s := tun.Status(); s != (tunnel.Status{}) {
		t.Errorf("status of a closed tunnel: %+v", s)
	}
}

// TestGenerateIsWireGuards checks the pair against WireGuard's own arithmetic:
// a device given the private key ignores its own public key as a peer.
func TestGenerateIsWireGuards(t *testing.T) {
	priv, pub := tunnel.Generate()
	if again, _ := tunnel.Generate(); again == priv {
		t.Fatal("the same key twice")
	}
	st, err := overlay.New(overlay.Options{Addresses: own})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	dev := device.NewDevice(st.Device(), conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
	defer dev.Close()
	if err := dev.IpcSet(fmt.Sprintf("private_key=%x\npublic_key=%x\n", priv, pub)); err != nil {
		t.Fatal(err)
	}
	if dev.LookupPeer(pub) != nil {
		t.Error("WireGuard takes the public key for another's")
	}
}
