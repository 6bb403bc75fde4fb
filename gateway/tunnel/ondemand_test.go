package tunnel_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/tunnel"
)

// live is whether WireGuard has a peer for a key.
func (in *ingress) live(key [32]byte) bool {
	for _, p := range in.Peers() {
		if p.Key == key {
			return p.Live
		}
	}
	return false
}

func (in *ingress) eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(answerPatience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v; %v", what, answerPatience, in.Refused())
		}
	}
}

// A peer exists from the first handshake until it is idle and nothing holds it,
// and comes back with a packet from either side.
func TestPeerOnDemand(t *testing.T) {
	var held atomic.Bool
	held.Store(true)
	in := startWith(t, func(c *tunnel.Config) {
		c.IdleAfter = 500 * time.Millisecond
		c.Held = func([32]byte) bool { return held.Load() }
	})
	c := newClient()
	in.admit(t, c, 0)
	if in.live(c.pub) || in.Handshakes().Registered != 1 {
		t.Fatal("a registration has a peer before anybody called")
	}
	c.connect(t, in, in.addr(), 0)
	nc := c.mustDial(t, at(app[0], 8))
	g := <-in.conns
	if !in.live(c.pub) {
		t.Fatal("no peer though packets flow")
	}
	located(t, in, c.pub)
	time.Sleep(2 * time.Second)
	if !in.live(c.pub) {
		t.Fatal("the peer went though it was held")
	}
	held.Store(false)
	in.eventually(t, "the idle peer goes", func() bool { return !in.live(c.pub) })
	in.eventually(t, "it is counted", func() bool { return in.Handshakes().Removed == 1 })

	// A packet from the gateway brings it back: it calls the device.
	held.Store(true)
	begun := time.Now()
	if _, err := g.Write([]byte("are you there")); err != nil {
		t.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(answerPatience))
	b := make([]byte, 13)
	if _, err := io.ReadFull(nc, b); err != nil || string(b) != "are you there" {
		t.Fatalf("%q, %v", b, err)
	}
	t.Logf("a packet to a dormant device took %v", time.Since(begun).Round(10*time.Microsecond))
	if took := time.Since(begun); took > 5*time.Second { // WireGuard's next try
		t.Errorf("it took %v: no message may be lost on the way", took)
	}
	if !in.live(c.pub) || in.Handshakes().Woken != 1 {
		t.Errorf("no peer was made for the packet: %+v", in.Handshakes())
	}

	// And so does one from the device: it has a session WireGuard knows nothing
	// of any more, and begins anew.
	held.Store(false)
	in.eventually(t, "the idle peer goes again", func() bool { return !in.live(c.pub) })
	held.Store(true)
	c.stop()
	again := newClient()
	again.priv, again.pub, again.psk = c.priv, c.pub, c.psk
	again.connect(t, in, in.addr(), 0)
	roundTrip(t, again.mustDial(t, at(app[0], 443)))
}

// A packet to a device nobody knows the place of, and more than may wait, are
// counted and lost; those of others are not.
func TestHeldPacketsAreBounded(t *testing.T) {
	in := startWith(t, nil)
	c := newClient()
	in.admit(t, c, 0)
	for range 100 {
		in.Inject([][]byte{packet4(1, at(gatewayAddrs[0], 0), at(inner(0)[0], 0))})
	}
	in.eventually(t, "packets for an unknown place are dropped", func() bool {
		n := in.Refused()
		return n["held_no_address"]+n["held_full"] > 0
	})
	if in.live(c.pub) {
		t.Error("a peer was made for nowhere")
	}
	c.connect(t, in, in.addr(), 0)
	roundTrip(t, c.mustDial(t, at(app[0], 443)))
}

// tap is a relay that keeps the initiations that pass.
type tap struct {
	*relay
	mu          sync.Mutex
	initiations [][]byte
}

func newTap(t *testing.T, in *ingress) *tap {
	tp := &tap{}
	tp.relay = newRelay(t, in)
	seen := func(b []byte) {
		if len(b) == 148 && b[0] == 1 {
			tp.mu.Lock()
			tp.initiations = append(tp.initiations, append([]byte(nil), b...))
			tp.mu.Unlock()
		}
	}
	tp.seen.Store(&seen)
	return tp
}

func (tp *tap) all() [][]byte {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return append([][]byte(nil), tp.initiations...)
}

// send sends datagrams from a new address and returns how many came back.
func send(t *testing.T, to string, ip string, datagrams ...[]byte) int {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}
	c, err := d.Dial("udp4", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, b := range datagrams {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	n := 0
	for b := make([]byte, 2000); ; n++ {
		if _, err := c.Read(b); err != nil {
			return n
		}
	}
}

// Recorded initiations yield nothing: while the peer is live, when it is gone,
// when the key was registered again and when the gateway was restarted.
func TestReplayYieldsNothing(t *testing.T) {
	priv, _ := keyPair()
	var mu sync.Mutex
	kept := map[[32]byte]tunnel.Kept{}
	keep := func(_ context.Context, ks []tunnel.Kept) error {
		mu.Lock()
		defer mu.Unlock()
		for _, k := range ks {
			if k.Initiation == nil {
				k.Initiation = kept[k.Key].Initiation
			}
			kept[k.Key] = k
		}
		return nil
	}
	config := func(c *tunnel.Config) {
		c.PrivateKey, c.Keep, c.IdleAfter = priv, keep, 300*time.Millisecond
	}
	in := startWith(t, config)
	tp := newTap(t, in)
	c := newClient()
	in.admit(t, c, 0)
	c.connect(t, in, tp.addr, 0)
	roundTrip(t, c.mustDial(t, at(app[0], 443)))
	there := located(t, in, c.pub)
	recorded := tp.all()
	if len(recorded) == 0 {
		t.Fatal("nothing was recorded")
	}
	nothing := func(when string) {
		t.Helper()
		before := in.Refused()
		if n := send(t, in.addr(), "127.0.0.9", recorded...); n != 0 {
			t.Errorf("%s: %d datagrams for replayed initiations", when, n)
		}
		after := in.Refused()
		if after["replayed"]+after["repeated"] == before["replayed"]+before["repeated"] {
			t.Errorf("%s: not counted: %v", when, after)
		}
		for _, p := range in.Peers() {
			if p.Endpoint != there {
				t.Errorf("%s: the device is at %v now", when, p.Endpoint)
			}
		}
	}
	nothing("live")
	roundTrip(t, c.mustDial(t, at(app[0], 443)))
	c.stop()
	in.eventually(t, "the idle peer goes", func() bool { return !in.live(c.pub) })
	nothing("dormant")
	if in.live(c.pub) {
		t.Error("a replay made a peer")
	}
	if err := in.RemovePeer(c.pub); err != nil {
		t.Fatal(err)
	}
	if n := send(t, in.addr(), "127.0.0.9", recorded...); n != 0 {
		t.Errorf("%d datagrams for an unregistered key", n)
	}
	in.admit(t, c, 0)
	if n := send(t, in.addr(), "127.0.0.8", recorded...); n != 0 {
		t.Errorf("%d datagrams for a key that was registered again", n)
	}
	in.stop()

	mu.Lock()
	k, ok := kept[c.pub]
	mu.Unlock()
	if !ok || len(k.Initiation) != 148 || k.Endpoint != there || k.Handshake.IsZero() {
		t.Fatalf("kept %v %+v", ok, k)
	}
	in = startWith(t, config)
	in.table.Set(inner(0), []segment.Entry{{Addr: app[0], Proto: segment.ProtoTCP, Port: 443}})
	p := tunnel.Peer{Key: c.pub, PresharedKey: c.psk, Addresses: inner(0), Endpoint: k.Endpoint, Initiation: k.Initiation}
	if err := in.AddPeer(p); err != nil {
		t.Fatal(err)
	}
	nothing("after a restart")
	if in.live(c.pub) {
		t.Error("a replay made a peer after a restart")
	}
	// The device itself comes in.
	again := newClient()
	again.priv, again.pub, again.psk = c.priv, c.pub, c.psk
	again.connect(t, in, in.addr(), 0)
	roundTrip(t, again.mustDial(t, at(app[0], 443)))
}

// A peer that the gateway called has shown WireGuard no time stamp: a recorded
// initiation from where the device is must be opened all the same.
func TestReplayFromTheDevicesPlace(t *testing.T) {
	priv, _ := keyPair()
	c := newClient()
	var mu sync.Mutex
	var kept tunnel.Kept
	in := startWith(t, func(c *tunnel.Config) {
		c.PrivateKey = priv
		c.Keep = func(_ context.Context, ks []tunnel.Kept) error {
			mu.Lock()
			defer mu.Unlock()
			if ks[0].Initiation == nil {
				ks[0].Initiation = kept.Initiation
			}
			kept = ks[0]
			return nil
		}
	})
	tp := newTap(t, in)
	in.admit(t, c, 0)
	c.connect(t, in, tp.addr, 0)
	roundTrip(t, c.mustDial(t, at(app[0], 443)))
	there := located(t, in, c.pub)
	first, listen := tp.all()[0], in.addr()
	in.stop()

	in = startWith(t, func(c *tunnel.Config) { c.PrivateKey, c.Listen = priv, listen })
	p := tunnel.Peer{Key: c.pub, PresharedKey: c.psk, Addresses: inner(0), Endpoint: there, Handshake: kept.Handshake, Initiation: kept.Initiation}
	if err := in.AddPeer(p); err != nil {
		t.Fatal(err)
	}
	if got := located(t, in, c.pub); got != there {
		t.Fatalf("called at %v, is at %v", got, there)
	}
	passed := in.Handshakes().Passed
	tp.relay.mu.Lock()
	_, _ = tp.back.Write(first)
	tp.relay.mu.Unlock()
	in.eventually(t, "the replay is seen for what it is", func() bool { return in.Refused()["replayed"] == 1 })
	if in.Handshakes().Passed != passed {
		t.Error("it went on unopened")
	}
}

// A place is believed when a packet from there was decrypted, never before.
func TestSpoofedPacketsMoveNobody(t *testing.T) {
	in := startWith(t, nil)
	var mu sync.Mutex
	var transport [][]byte
	r := newRelay(t, in)
	seen := func(b []byte) {
		if b[0] == 4 {
			mu.Lock()
			transport = append(transport, append([]byte(nil), b...))
			mu.Unlock()
		}
	}
	r.seen.Store(&seen)
	c := newClient()
	in.admit(t, c, 0)
	c.connect(t, in, r.addr, 0)
	nc := c.mustDial(t, at(app[0], 443))
	roundTrip(t, nc)
	there := located(t, in, c.pub)
	mu.Lock()
	recorded := append([][]byte(nil), transport...)
	mu.Unlock()
	for _, b := range recorded {
		forged := append([]byte(nil), b...)
		forged[8]++ // a counter not used yet, and a wrong tag
		forged[12] = 1
		if n := send(t, in.addr(), "127.0.0.7", b, forged); n != 0 {
			t.Errorf("%d datagrams for a replayed or forged packet", n)
		}
	}
	roundTrip(t, nc)
	time.Sleep(50 * time.Millisecond)
	for len(in.located) > 0 {
		if p := <-in.located; p.ep != there {
			t.Errorf("a forged packet moved the device to %v", p.ep)
		}
	}
	if p := in.Peers()[0]; p.Endpoint != there {
		t.Errorf("the device is at %v, want %v", p.Endpoint, there)
	}
}

// Junk of all lengths gets no answer and is counted.
func TestJunkIsSilent(t *testing.T) {
	in := startWith(t, nil)
	c := newClient()
	in.admit(t, c, 0)
	var junk [][]byte
	for _, n := range []int{1, 3, 4, 31, 32, 64, 91, 92, 93, 147, 148, 149, 1400} {
		for k := range byte(6) {
			b := make([]byte, n)
			b[0] = k
			junk = append(junk, b)
		}
	}
	if n := send(t, in.addr(), "127.0.0.6", junk...); n != 0 {
		t.Errorf("%d datagrams for junk", n)
	}
	got := in.Refused()
	for _, cause := range []string{"malformed", "bad_mac1", "unasked"} {
		if got[cause] == 0 {
			t.Errorf("nothing counted as %s: %v", cause, got)
		}
	}
	c.connect(t, in, in.addr(), 0)
	roundTrip(t, c.mustDial(t, at(app[0], 443)))
}

// Many devices that were here before a restart are called, the first at once.
func TestRestartCallsMany(t *testing.T) {
	priv, _ := keyPair()
	const n = 40
	in := startWith(t, func(c *tunnel.Config) { c.PrivateKey = priv })
	listen := in.addr()
	var clients []*client
	places := map[[32]byte]netip.AddrPort{}
	for i := range n {
		c := newClient()
		in.admit(t, c, i)
		c.connectRaw(t, in, listen)
		c.raw.out <- packet4(1, at(inner(i)[0], 0), at(gatewayAddrs[0], 0))
		clients = append(clients, c)
	}
	for len(places) < n {
		select {
		case p := <-in.located:
			places[p.key] = p.ep
		case <-time.After(answerPatience):
			t.Fatalf("%d of %d located; %v %+v", len(places), n, in.Refused(), in.Handshakes())
		}
	}
	in.stop()
	in = startWith(t, func(c *tunnel.Config) { c.PrivateKey, c.Listen = priv, listen })
	begun := time.Now()
	for i, c := range clients {
		p := tunnel.Peer{Key: c.pub, PresharedKey: c.psk, Addresses: inner(i), Endpoint: places[c.pub], Handshake: begun.Add(-time.Minute)}
		if i == n-1 {
			p.Handshake = begun.Add(-time.Hour) // its session is over
		}
		if err := in.AddPeer(p); err != nil {
			t.Fatal(err)
		}
	}
	in.eventually(t, "all are back", func() bool { return len(in.located) == n-1 })
	t.Logf("%d devices back %v after the restart", n-1, time.Since(begun).Round(time.Millisecond))
	if h := in.Handshakes(); h.Hailed != n-1 || h.Live != n-1 {
		t.Errorf("%+v", h)
	}
}

func startWith(t *testing.T, change func(*tunnel.Config)) *ingress {
	t.Helper()
	priv, _ := keyPair()
	return startConfig(t, tunnel.Config{PrivateKey: priv, Listen: "127.0.0.1:0"}, change)
}
