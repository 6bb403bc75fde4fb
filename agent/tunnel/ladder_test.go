package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/agent/tunnel"
	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/pathsize"
	"github.com/portvakt/portvakt/internal/transport"
)

// valve is a UDP relay that can be shut, and one that lets nothing come back.
type valve struct {
	addr       string
	back       *net.UDPConn
	shut, mute atomic.Bool
	passed     atomic.Int64
	longest    atomic.Int64 // bytes of a datagram that passes; 0 is any
}

func (v *valve) fits(n int) bool { m := v.longest.Load(); return m == 0 || int64(n) <= m }

func newValve(t *testing.T, to uint16) *valve {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	back, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(to)})
	if err != nil {
		t.Fatal(err)
	}
	v := &valve{addr: front.LocalAddr().String(), back: back}
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
			if !v.shut.Load() && v.fits(n) {
				v.passed.Add(1)
				_, _ = back.Write(b[:n])
			}
		}
	})
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, err := back.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if c := client.Load(); err == nil && c != nil && !v.shut.Load() && !v.mute.Load() && v.fits(n) {
				_, _ = front.WriteToUDPAddrPort(b[:n], *c)
			}
		}
	})
	t.Cleanup(func() {
		_ = front.Close()
		_ = back.Close()
		wg.Wait()
	})
	return v
}

// mixed is a gateway with UDP behind a valve and WebSockets, and a tunnel to it
// that runs.
type mixed struct {
	*tunnel.Tunnel
	valve    *valve
	outside  atomic.Pointer[transport.Gateway]
	refuse   atomic.Bool // WebSockets
	attempts atomic.Int64
	restart  func() // kills the gateway and starts it again; it calls
}

func newMixed(t *testing.T, shut bool, faster time.Duration) *mixed {
	t.Helper()
	gwPriv, gwPub := tunnel.Generate()
	priv, pub := tunnel.Generate()
	psk, _ := tunnel.Generate()
	m := &mixed{}
	conf := fmt.Sprintf("private_key=%x\npublic_key=%x\npreshared_key=%x\n", gwPriv, pub, psk)
	for _, a := range own {
		conf += fmt.Sprintf("allowed_ip=%v/%d\n", a, a.BitLen())
	}
	port, stop := m.boot(t, 0, conf)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if m.refuse.Load() || m.outside.Load().Accept(w, r, "dev") != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	m.valve = newValve(t, port)
	m.valve.shut.Store(shut)
	m.restart = func() {
		stop()
		_, stop = m.boot(t, port, conf+fmt.Sprintf("endpoint=%v\npersistent_keepalive_interval=25\n", m.valve.back.LocalAddr()))
	}
	var err error
	m.Tunnel, err = tunnel.Open(tunnel.Config{
		Connect: answer(gwPub, psk), PrivateKey: priv, Endpoint: m.valve.addr, Heartbeat: 5 * time.Second,
		WebSocket: func(ctx, life context.Context) (*transport.Stream, error) {
			m.attempts.Add(1)
			c, res, err := websocket.Dial(ctx, srv.URL, nil)
			if err != nil {
				return nil, errors.New("refused")
			}
			key, err := transport.ParseProbeKey(res.Header.Get(transport.ProbeHeader))
			return transport.NewStream(life, c, netip.AddrPort{}, key), err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	tunnel.Hasten(m.Tunnel, faster)
	run, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(run) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		stop()
		srv.Close()
	})
	return m
}

// boot starts a gateway whose TCP echoes. stop kills it.
func (m *mixed) boot(t *testing.T, port uint16, conf string) (_ uint16, stop func()) {
	t.Helper()
	inside := &noting{}
	st, err := overlay.New(overlay.Options{
		Addresses: gatewayAddrs, Gateway: true, Filter: inside.filter,
		TCP: func(r *overlay.TCPRequest) {
			if c, err := r.Accept(context.Background()); err == nil {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	inside.Device = st.Device()
	outside := transport.NewGateway(transport.UDPOptions{Listen: netip.AddrPortFrom(netip.IPv6Unspecified(), port), Sticky: true})
	dev := device.NewDevice(inside, outside, device.NewLogger(device.LogLevelSilent, ""))
	if err := errors.Join(dev.IpcSet(conf), dev.Up()); err != nil {
		t.Fatal(err)
	}
	m.outside.Store(outside)
	got, _ := dev.IpcGet()
	for line := range strings.Lines(got) {
		_, _ = fmt.Sscanf(line, "listen_port=%d", &port)
	}
	return port, func() {
		dev.Close()
		_ = st.Close()
	}
}

// noting cuts what goes to the device to the size that the device says, as the
// gateway does.
type noting struct {
	tun.Device
	cutter pathsize.Cutter
	size   atomic.Int32
}

func (d *noting) filter(p []byte) (overlay.Action, []byte) {
	if _, size, ok := pathsize.Noted(p, gatewayAddrs[0]); ok {
		d.size.Store(int32(size))
	}
	return overlay.Pass, nil
}

func (d *noting) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return d.cutter.Read(d.Device.Read, bufs, sizes, offset, d.size.Load() > 0, func([]byte) int { return int(d.size.Load()) })
}

// becomes waits until the tunnel has a transport.
func (m *mixed) becomes(t *testing.T, want string, within time.Duration) {
	t.Helper()
	begun := time.Now()
	for m.Status().Transport != want {
		if time.Since(begun) > within {
			t.Fatalf("still on %s after %v: %s", m.Status().Transport, within, m.Status().TransportReason)
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Logf("on %s after %v: %q", want, time.Since(begun).Round(time.Millisecond), m.Status().TransportReason)
}

// chat counts the echoes of a connection, and their longest time.
type chat struct{ echoes, worst atomic.Int64 }

func (c *chat) longest() time.Duration { return time.Duration(c.worst.Swap(0)) }

// goesOn waits for echoes.
func (c *chat) goesOn(t *testing.T, within time.Duration) {
	t.Helper()
	for end, n := time.Now().Add(within), c.echoes.Load()+3; c.echoes.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Error("the connection inside stands still")
			return
		}
	}
	c.longest()
}

// chatter keeps a connection inside the tunnel busy, and fails when an echo is
// not what was sent.
func chatter(t *testing.T, c net.Conn) *chat {
	t.Helper()
	talk := new(chat)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		b, got := make([]byte, 1000), make([]byte, 1000)
		for i := 0; ctx.Err() == nil; i++ {
			b[0] = byte(i)
			begun := time.Now()
			_ = c.SetDeadline(begun.Add(20 * time.Second))
			_, err := c.Write(b)
			if err == nil {
				_, err = io.ReadFull(c, got)
			}
			if err != nil || !bytes.Equal(b, got) {
				if ctx.Err() == nil {
					t.Errorf("the connection inside broke: %v", err)
				}
				return
			}
			talk.worst.Store(max(talk.worst.Load(), int64(time.Since(begun))))
			talk.echoes.Add(1)
			time.Sleep(5 * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = c.Close()
		wg.Wait()
	})
	return talk
}

func TestBlockedUDPIsGoneAroundWithin3s(t *testing.T) {
	t.Parallel()
	m := newMixed(t, true, 1) // as patient as it is
	begun := time.Now()
	c, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("works after %v", took)
	}
	roundTrip(t, c)
	s := m.Status()
	if s.Transport != tunnel.TransportWebSocket || !strings.Contains(s.TransportReason, m.valve.addr) || s.LastHandshake.IsZero() {
		t.Errorf("status %+v", s)
	}
	_ = c.Close()
}

// TestTransportChangesUnderAConnection blocks and unblocks UDP, twice.
func TestTransportChangesUnderAConnection(t *testing.T) {
	t.Parallel()
	m := newMixed(t, false, 10)
	c, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	talk := chatter(t, c)
	for range 2 {
		m.becomes(t, tunnel.TransportUDP, 10*time.Second)
		m.valve.shut.Store(true)
		m.becomes(t, tunnel.TransportWebSocket, 10*time.Second)
		talk.goesOn(t, 10*time.Second) // whichever end lost something repeats it when its TCP thinks fit
		m.valve.shut.Store(false)
		m.becomes(t, tunnel.TransportUDP, 10*time.Second)
		before := m.valve.passed.Load()
		time.Sleep(300 * time.Millisecond)
		if m.valve.passed.Load()-before < 10 {
			t.Error("nothing goes by UDP")
		}
		if d := talk.longest(); d > 2*time.Second { // loose: a busy machine
			t.Errorf("an echo took %v while UDP came back", d)
		}
	}
	if reason := m.Status().TransportReason; reason != "" {
		t.Errorf("reason %q on UDP", reason)
	}
}

// A network that lets UDP out and nothing in has no use for it.
func TestOneWayUDPIsNoWay(t *testing.T) {
	t.Parallel()
	m := newMixed(t, false, 10)
	c, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	talk := chatter(t, c)
	m.valve.mute.Store(true)
	m.becomes(t, tunnel.TransportWebSocket, 10*time.Second)
	talk.goesOn(t, 10*time.Second)
	time.Sleep(1500 * time.Millisecond)
	if s := m.Status(); s.Transport != tunnel.TransportWebSocket {
		t.Errorf("went back: %+v", s)
	}
	if d := talk.longest(); d > 500*time.Millisecond {
		t.Errorf("probing held an echo up for %v", d)
	}
}

// Without a WebSocket it stays with UDP, says so, tries seldom, and works when
// UDP does.
func TestNoWayAtAll(t *testing.T) {
	t.Parallel()
	m := newMixed(t, false, 10)
	m.refuse.Store(true)
	c, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	chatter(t, c)
	m.valve.shut.Store(true)
	for end := time.Now().Add(10 * time.Second); !strings.Contains(m.Status().TransportReason, "refused"); {
		if time.Now().After(end) {
			t.Fatalf("status %+v", m.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(time.Second)
	if n := m.attempts.Load(); n > 8 {
		t.Errorf("%d attempts in a second of a tenth", n)
	}
	m.valve.shut.Store(false)
	if _, err := m.DialTCP(ctx(t), at(gatewayAddrs[1], 80)); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); m.Status().TransportReason != ""; {
		if time.Now().After(end) {
			t.Fatalf("status %+v", m.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A WebSocket that ends while UDP is blocked is replaced.
func TestLostWebSocketIsReplaced(t *testing.T) {
	t.Parallel()
	m := newMixed(t, true, 10)
	c, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	chatter(t, c)
	m.becomes(t, tunnel.TransportWebSocket, 10*time.Second)
	before := m.attempts.Load()
	tunnel.EndWebSocket(m.Tunnel)
	for end := time.Now().Add(3 * time.Second); m.attempts.Load() == before; {
		if time.Now().After(end) {
			t.Fatal("no other one is opened")
		}
		time.Sleep(5 * time.Millisecond)
	}
	m.becomes(t, tunnel.TransportWebSocket, 10*time.Second)
	fresh, err := m.DialTCP(ctx(t), at(gatewayAddrs[1], 80))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, fresh)
	_ = fresh.Close()
}
