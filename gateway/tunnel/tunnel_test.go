package tunnel_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/tunnel"
)

func TestTransfersBothWays(t *testing.T) {
	for name, listen := range map[string]string{"one address": "127.0.0.1:0", "all addresses": ":0"} {
		t.Run(name, func(t *testing.T) {
			in := start(t, listen)
			c := newClient()
			in.admit(t, c, 0)
			c.connect(t, in, in.addr(), 0)
			data := make([]byte, transfer)
			_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
			for i, a := range app {
				data := data[:len(data)>>(2*i)]
				nc := c.mustDial(t, at(a, 443))
				go func() {
					_, _ = nc.Write(data)
					_ = nc.(interface{ CloseWrite() error }).CloseWrite()
				}()
				begun := time.Now()
				got, err := io.ReadAll(nc)
				if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
					t.Errorf("echo through %v: %d bytes, %v", a, len(got), err)
				}
				t.Logf("%v: %d MiB there and back in %v", a, len(data)>>20, time.Since(begun).Round(time.Millisecond))
				_ = nc.Close()
			}
		})
	}
}

func TestWhatIsNotAllowedLooksClosed(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	a, b := newClient(), newClient()
	in.admit(t, a, 0)
	in.admit(t, b, 1)
	a.connect(t, in, in.addr(), 0)
	b.connect(t, in, in.addr(), 1)
	roundTrip(t, a.mustDial(t, at(app[0], 443)))
	roundTrip(t, b.mustDial(t, at(app[0], 443)))

	for i := range app {
		for name, dst := range map[string]netip.AddrPort{
			"refused by its owner": at(app[i], 7),
			"closed port":          at(app[i], 444),
			"hidden app":           at(hidden[i], 443),
			"gateway's port":       at(gatewayAddrs[i], 22),
			"other device":         at(inner(1)[i], 443),
			"other device's 80":    at(inner(1)[i], 80),
		} {
			if _, err := a.dial(t, dst); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s %v: %v, want ECONNREFUSED", name, dst, err)
			}
		}
		for name, dst := range map[string]netip.AddrPort{"closed port": at(app[i], 9), "other device": at(inner(1)[i], 5004), "hidden app": at(hidden[i], 5004)} {
			u, err := a.stack.DialUDP(dst)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = u.Write([]byte("anyone?"))
			_ = u.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			if n, err := u.Read(make([]byte, 10)); err == nil || !isTimeout(err) {
				t.Errorf("UDP to %s is answered: %d bytes, %v", name, n, err)
			}
			_ = u.Close()
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// syn4 is a TCP SYN or, with proto 1, an echo request.
func packet4(proto byte, src, dst netip.AddrPort) []byte {
	b := make([]byte, 40)
	b[0], b[3], b[8], b[9] = 0x45, 40, 64, proto
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], sum(b[:20]))
	if proto == 1 {
		b[20] = 8
		binary.BigEndian.PutUint16(b[22:], sum(b[20:]))
		return b
	}
	binary.BigEndian.PutUint16(b[20:], src.Port())
	binary.BigEndian.PutUint16(b[22:], dst.Port())
	b[32], b[33] = 5<<4, 2
	pseudo := append(append([]byte{}, b[12:20]...), 0, 6, 0, 20)
	binary.BigEndian.PutUint16(b[36:], sum(append(pseudo, b[20:]...)))
	return b
}

func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

func TestRawPackets(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	a, b := newClient(), newClient()
	in.admit(t, a, 0)
	in.admit(t, b, 1)
	a.connectRaw(t, in, in.addr())
	b.connectRaw(t, in, in.addr())
	me, other := at(inner(0)[0], 40000), at(inner(1)[0], 40000)

	patience := answerPatience
	exchange := func(p []byte) []byte {
		a.raw.out <- p
		select {
		case got := <-a.raw.in:
			return got
		case <-time.After(patience):
			return nil
		}
	}
	silent := func(p []byte) []byte {
		patience = 100 * time.Millisecond
		defer func() { patience = answerPatience }()
		return exchange(p)
	}
	// The first packet takes the handshake along.
	if got := exchange(packet4(1, me, at(gatewayAddrs[0], 0))); got == nil || got[20] != 0 {
		t.Fatalf("echo to the gateway: %x", got)
	}
	if got := silent(packet4(1, me, at(app[0], 0))); got != nil {
		t.Errorf("echo to an app is answered: %x", got)
	}
	if got := exchange(packet4(6, me, at(app[0], 443))); got == nil || got[33] != 0x12 {
		t.Errorf("SYN to the app: %x, want SYN and ACK", got)
	}
	// Its half-open connection will repeat itself; refuse it.
	rst := packet4(6, me, at(app[0], 443))
	rst[33], rst[27] = 4, 1
	rst[36], rst[37] = 0, 0
	binary.BigEndian.PutUint16(rst[36:], sum(append(append(append([]byte{}, rst[12:20]...), 0, 6, 0, 20), rst[20:]...)))
	silent(rst)
	if got := exchange(packet4(6, me, at(hidden[0], 443))); got == nil || got[33] != 0x14 {
		t.Errorf("SYN to a hidden app: %x, want RST and ACK", got)
	}
	for name, p := range map[string][]byte{
		"another device's source":   packet4(6, other, at(app[0], 443)),
		"nobody's source":           packet4(6, at(hidden[0], 40000), at(app[0], 443)),
		"the gateway's source":      packet4(6, at(gatewayAddrs[0], 40000), at(app[0], 443)),
		"echo from another device":  packet4(1, other, at(gatewayAddrs[0], 0)),
		"echo to another device":    packet4(1, me, other),
		"a packet of another's own": packet4(6, other, me),
	} {
		if got := silent(p); got != nil {
			t.Errorf("%s is answered: %x", name, got)
		}
	}
	select {
	case got := <-b.raw.in:
		t.Errorf("the other device got a packet: %x", got)
	default:
	}
}

func TestUnknownKeyGetsSilence(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	r := newRelay(t, in)
	known, stranger := newClient(), newClient()
	in.admit(t, known, 0)
	stranger.connectRaw(t, in, r.addr)
	stranger.raw.out <- packet4(1, at(inner(0)[0], 0), at(gatewayAddrs[0], 0))
	time.Sleep(300 * time.Millisecond)
	if n := r.answered.Load(); n != 0 {
		t.Errorf("a stranger got %d datagrams", n)
	}
	stranger.stop()
	known.connectRaw(t, in, r.addr)
	known.raw.out <- packet4(1, at(inner(0)[0], 0), at(gatewayAddrs[0], 0))
	select {
	case <-known.raw.in:
	case <-time.After(answerPatience):
		t.Error("the same road does not work for a registered key")
	}
	if r.answered.Load() == 0 {
		t.Error("the relay does not count")
	}
}

func TestRemovePeer(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	r := newRelay(t, in)
	a, b := newClient(), newClient()
	in.admit(t, a, 0)
	in.admit(t, b, 1)
	a.connect(t, in, r.addr, 0)
	b.connect(t, in, in.addr(), 1)
	nc := a.mustDial(t, at(app[0], 443))
	roundTrip(t, nc)
	other := b.mustDial(t, at(app[0], 443))
	roundTrip(t, other)

	if err := in.RemovePeer(a.pub); err != nil {
		t.Fatal(err)
	}
	if peers := in.Peers(); len(peers) != 1 || peers[0].Key != b.pub {
		t.Errorf("peers after removal: %v", peers)
	}
	time.Sleep(50 * time.Millisecond)
	r.answered.Store(0)
	_ = nc.SetDeadline(time.Now().Add(300 * time.Millisecond))
	_, _ = nc.Write([]byte("hello"))
	if n, err := nc.Read(make([]byte, 5)); err == nil {
		t.Errorf("%d bytes after removal", n)
	}
	if n := r.answered.Load(); n != 0 {
		t.Errorf("a removed peer got %d datagrams", n)
	}
	roundTrip(t, other)
	if err := in.RemovePeer(a.pub); err != nil {
		t.Errorf("removing twice: %v", err)
	}
	// The device comes in again, as it does: with a new key.
	again := newClient()
	in.admit(t, again, 0)
	a.stop()
	again.connect(t, in, r.addr, 0)
	roundTrip(t, again.mustDial(t, at(app[0], 443)))
}

func TestNewKeyTakesTheAddressesOver(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	old, fresh := newClient(), newClient()
	in.admit(t, old, 0)
	old.connect(t, in, in.addr(), 0)
	nc := old.mustDial(t, at(app[0], 443))
	roundTrip(t, nc)
	in.admit(t, fresh, 0)
	fresh.connect(t, in, in.addr(), 0)
	roundTrip(t, fresh.mustDial(t, at(app[0], 443)))
	_ = nc.SetDeadline(time.Now().Add(200 * time.Millisecond))
	_, _ = nc.Write([]byte("hello"))
	if n, err := nc.Read(make([]byte, 5)); err == nil {
		t.Errorf("the old key still gets %d bytes", n)
	}
	located(t, in, fresh.pub)
	peers := in.Peers()
	if len(peers) != 1 || peers[0].Key != fresh.pub {
		t.Fatalf("peers: %v", peers)
	}
	if p := peers[0]; !p.Live || time.Since(p.LastHandshake) > time.Minute || !p.Endpoint.IsValid() {
		t.Errorf("state of the peer: %+v", p)
	}
}

func TestOnEndpoint(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	r := newRelay(t, in)
	c := newClient()
	in.admit(t, c, 0)
	c.connect(t, in, r.addr, 0)
	first := r.move(t, net.IPv4(127, 0, 0, 1))
	u, err := c.stack.DialUDP(at(app[0], 5004))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	expect := func(what string, want netip.AddrPort, since time.Time) {
		t.Helper()
		select {
		case got := <-in.located:
			if got.key != c.pub || got.ep != want {
				t.Errorf("%s: told %v, want %v", what, got.ep, want)
			}
			t.Logf("%s: told after %v", what, got.at.Sub(since).Round(time.Millisecond))
		case <-time.After(answerPatience):
			t.Errorf("%s: not told", what)
		}
	}
	begun := time.Now()
	roundTrip(t, u)
	expect("first seen", first, begun)
	for what, ip := range map[string]net.IP{"another port": net.IPv4(127, 0, 0, 1), "another address": net.IPv4(127, 0, 0, 2)} {
		next := r.move(t, ip)
		begun = time.Now()
		roundTrip(t, u)
		expect(what, next, begun)
	}
	// A stranger's datagrams change nothing.
	s, err := net.Dial("udp4", in.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 100 {
		_, _ = s.Write(make([]byte, 148))
	}
	roundTrip(t, u)
	time.Sleep(100 * time.Millisecond)
	if len(in.located) != 0 {
		t.Errorf("told %v though nobody moved", <-in.located)
	}
}

func TestResetReachesTheClient(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	c := newClient()
	in.admit(t, c, 0)
	c.connect(t, in, in.addr(), 0)
	for i := range app {
		nc := c.mustDial(t, at(app[i], 8))
		g := <-in.conns
		if _, err := g.Write([]byte("before")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(nc, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		g.(interface{ Reset() }).Reset()
		_ = nc.SetReadDeadline(time.Now().Add(answerPatience))
		if n, err := nc.Read(make([]byte, 100)); !errors.Is(err, syscall.ECONNRESET) || n != 0 {
			t.Errorf("after the reset: %d bytes, %v", n, err)
		}
		t.Logf("reset seen after %v", time.Since(begun).Round(10*time.Microsecond))
	}
}

func TestLifecycle(t *testing.T) {
	priv, _ := keyPair()
	cfg := func() tunnel.Config {
		return tunnel.Config{PrivateKey: priv, Listen: "127.0.0.1:0", Addresses: gatewayAddrs, Table: segment.NewTable(gatewayAddrs)}
	}
	for name, change := range map[string]func(*tunnel.Config){
		"no port":   func(c *tunnel.Config) { c.Listen = "127.0.0.1" },
		"a name":    func(c *tunnel.Config) { c.Listen = "localhost:51820" },
		"bad port":  func(c *tunnel.Config) { c.Listen = ":65536" },
		"no table":  func(c *tunnel.Config) { c.Table = nil },
		"no key":    func(c *tunnel.Config) { c.PrivateKey = [32]byte{} },
		"empty all": func(c *tunnel.Config) { *c = tunnel.Config{} },
	} {
		c := cfg()
		change(&c)
		if _, err := tunnel.New(c); err == nil {
			t.Errorf("%s was taken", name)
		}
	}

	taken, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	c := cfg()
	c.Listen = taken.LocalAddr().String()
	busy, err := tunnel.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := busy.Run(t.Context()); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("running on a taken port: %v", err)
	}

	tun, err := tunnel.New(cfg())
	if err != nil {
		t.Fatal(err)
	}
	// A peer of before Run is let in.
	cl := newClient()
	if err := tun.AddPeer(tunnel.Peer{Key: cl.pub, PresharedKey: cl.psk, Addresses: inner(0)}); err != nil {
		t.Fatal(err)
	}
	for name, p := range map[string]tunnel.Peer{
		"no key":            {Addresses: inner(1)},
		"the gateway's key": {Key: tun.PublicKey(), Addresses: inner(1)},
		"no address":        {Key: cl.psk},
		"gateway's address": {Key: cl.psk, Addresses: gatewayAddrs},
		"mapped address":    {Key: cl.psk, Addresses: [2]netip.Addr{netip.AddrFrom16(app[0].As16())}},
	} {
		if err := tun.AddPeer(p); err == nil {
			t.Errorf("a peer with %s was taken", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- tun.Run(ctx) }()
	<-tun.Ready()
	if peers := tun.Peers(); len(peers) != 1 || peers[0].Key != cl.pub || peers[0].Live {
		t.Errorf("peers: %v", peers)
	}
	if err := tun.Run(ctx); err == nil {
		t.Error("ran twice")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if err := tun.AddPeer(tunnel.Peer{Key: cl.psk, Addresses: inner(1)}); !errors.Is(err, tunnel.ErrClosed) {
		t.Errorf("adding after Run: %v", err)
	}
	if err := tun.RemovePeer(cl.pub); err != nil {
		t.Errorf("removing after Run: %v", err)
	}
}

// TestStopWhilePacketsFlow ends the gateway's tunnel, and adds and removes
// peers, under traffic.
func TestStopWhilePacketsFlow(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	var clients []*client
	for i := range 3 {
		c := newClient()
		in.admit(t, c, i)
		c.connect(t, in, in.addr(), i)
		clients = append(clients, c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			for ctx.Err() == nil {
				nc, err := c.stack.DialTCP(ctx, at(app[i%2], 443))
				if err != nil {
					continue
				}
				_ = nc.SetDeadline(time.Now().Add(300 * time.Millisecond))
				_, _ = nc.Write(make([]byte, 64<<10))
				_, _ = io.CopyN(io.Discard, nc, 32<<10)
				_ = nc.Close()
			}
		})
	}
	for range 10 {
		if err := in.RemovePeer(clients[0].pub); err != nil {
			t.Error(err)
		}
		in.admit(t, clients[0], 0)
		time.Sleep(20 * time.Millisecond)
	}
	in.stop()
	cancel()
	wg.Wait()
}

// The device is closed from every side at once while peers are made and
// removed: nothing waits for what waits for it.
func TestCloseWhilePeersAreMade(t *testing.T) {
	for range 5 {
		in := startWith(t, func(c *tunnel.Config) { c.IdleAfter = time.Millisecond })
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 8 {
			d := tunnel.NewInitiator(in.PublicKey())
			p := tunnel.Peer{Key: d.Public, PresharedKey: d.PSK, Addresses: inner(i)}
			c, err := net.Dial("udp4", in.addr())
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer c.Close()
				for n := uint32(1); ctx.Err() == nil; n++ {
					if err := in.AddPeer(p); err != nil && !errors.Is(err, tunnel.ErrClosed) {
						t.Error(err)
					}
					_, _ = c.Write(d.Initiate(n, time.Now()))
					in.Inject([][]byte{packet4(1, at(gatewayAddrs[0], 0), at(p.Addresses[0], 0))})
					time.Sleep(time.Millisecond)
					if n%3 == 0 {
						_ = in.RemovePeer(p.Key)
					}
				}
			})
		}
		time.Sleep(60 * time.Millisecond)
		stopped := make(chan struct{})
		go func() { in.stop(); close(stopped) }()
		select {
		case <-stopped:
		case <-time.After(10 * time.Second):
			t.Fatal("the tunnel does not close")
		}
		cancel()
		wg.Wait()
	}
}
