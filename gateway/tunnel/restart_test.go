package tunnel_test

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/tunnel"
)

// What brings a device back within 2 s of a restart is that the gateway calls,
// by what it was given to keep. The device, a stock WireGuard without keepalives,
// says nothing meanwhile, and would not notice before 15 s if it did: however
// long this takes here, whoever begins the handshake says which it was. What it
// takes is BenchmarkRestart's.
func TestRestartIsTheGatewaysCall(t *testing.T) {
	priv, _ := keyPair()
	var mu sync.Mutex
	kept := map[[32]byte]tunnel.Kept{}
	in := startConfig(t, tunnel.Config{PrivateKey: priv, Listen: "127.0.0.1:0"}, func(cfg *tunnel.Config) {
		cfg.Keep = func(_ context.Context, all []tunnel.Kept) error {
			mu.Lock()
			defer mu.Unlock()
			for _, k := range all {
				if k.Initiation == nil {
					k.Initiation = kept[k.Key].Initiation
				}
				kept[k.Key] = k
			}
			return nil
		}
	})
	listen := in.addr()
	r := newRelay(t, in)
	c := newClient()
	in.admit(t, c, 1)
	c.connect(t, in, r.addr, 1)
	conn := c.mustDial(t, at(app[0], 443))
	roundTrip(t, conn)
	// As a kill leaves it: what was kept while it ran, not what it says at its end.
	var last tunnel.Kept
	in.eventually(t, "place, handshake and initiation are kept", func() bool {
		mu.Lock()
		defer mu.Unlock()
		last = kept[c.pub]
		return last.Endpoint.IsValid() && !last.Handshake.IsZero() && len(last.Initiation) > 0
	})

	type message struct {
		kind     byte
		gateways bool
	}
	var messages []message
	note := func(gateways bool) *func([]byte) {
		f := func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			if b[0] != 4 {
				messages = append(messages, message{b[0], gateways})
			}
		}
		return &f
	}
	in.stop()
	r.seen.Store(note(false))
	r.came.Store(note(true))
	again := startAs(t, listen, priv)
	again.table.Set(inner(1), []segment.Entry{{Addr: app[0], Proto: segment.ProtoTCP, Port: 443}})
	p := tunnel.Peer{Key: c.pub, PresharedKey: c.psk, Addresses: inner(1), Endpoint: last.Endpoint, Handshake: last.Handshake, Initiation: last.Initiation}
	if err := again.AddPeer(p); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-again.located:
		if got.ep != last.Endpoint || got.key != c.pub {
			t.Errorf("located %v, was %v", got, last.Endpoint)
		}
	case <-time.After(time.Minute):
		t.Fatal("no handshake after the restart")
	}
	roundTrip(t, c.mustDial(t, at(app[0], 443)))
	mu.Lock()
	defer mu.Unlock()
	if len(messages) != 2 || messages[0] != (message{1, true}) || messages[1] != (message{2, false}) {
		t.Errorf("handshake messages since (kind, of the gateway): %v; want its initiation and the device's answer", messages)
	}
	if n := again.Handshakes().Hailed; n != 1 {
		t.Errorf("%d were called", n)
	}
}

// BenchmarkRestart is how long a stock device that has a call is without a
// gateway that starts again, from when the tunnel is made until a datagram came
// back: when it is the only one to be called, and when it is the last of 1,000.
func BenchmarkRestart(b *testing.B) {
	nowhere, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer nowhere.Close()
	const others = 999
	peers := make([]tunnel.Peer, others)
	for i := range peers {
		high, low := byte(i>>8), byte(i)
		p := &peers[i]
		_, p.Key = keyPair()
		p.Addresses = [2]netip.Addr{netip.AddrFrom4([4]byte{100, 70, high, low}), netip.AddrFrom16([16]byte{0xfd, 14: high, 15: low})}
		p.Endpoint = nowhere.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	var one, last time.Duration
	for b.Loop() {
		one += restarted(b, nil)
		last += restarted(b, peers)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(one.Seconds()/float64(b.N), "one-s")
	b.ReportMetric(last.Seconds()/float64(b.N), "last-s")
}

// restarted takes the gateway from a device and gives it back to it and others.
func restarted(b *testing.B, others []tunnel.Peer) (away time.Duration) {
	priv, _ := keyPair()
	kept := make(chan tunnel.Kept, 100)
	cfg := tunnel.Config{PrivateKey: priv, Listen: "127.0.0.1:0"}
	in := startConfig(b, cfg, func(cfg *tunnel.Config) {
		cfg.Keep = func(_ context.Context, all []tunnel.Kept) error {
			for _, k := range all {
				kept <- k
			}
			return nil
		}
	})
	cfg.Listen = in.addr()
	c := newClient()
	p := tunnel.Peer{Key: c.pub, PresharedKey: c.psk, Addresses: inner(1)}
	voice := []segment.Entry{{Addr: app[0], Proto: segment.ProtoUDP, Port: 5004}}
	datagram := udp4(at(inner(1)[0], 4000), at(app[0], 5004))
	in.table.Set(inner(1), voice)
	c.raw = &rawTUN{out: make(chan []byte, 100), in: make(chan []byte, 1000), done: make(chan struct{}), events: make(chan tun.Event)}
	err := errors.Join(in.AddPeer(p), c.bring(in, c.raw, in.addr()))
	defer c.stop()
	if err != nil || c.exchange(datagram, 10*time.Second) == nil {
		b.Fatalf("no call: %v", err)
	}
	for !p.Endpoint.IsValid() || p.Handshake.IsZero() || p.Initiation == nil {
		k := <-kept
		p.Endpoint, p.Handshake = k.Endpoint, k.Handshake
		if k.Initiation != nil {
			p.Initiation = k.Initiation
		}
	}
	in.stop()
	begun := time.Now()
	again := startConfig(b, cfg, nil)
	defer again.stop()
	again.table.Set(inner(1), voice)
	for _, o := range others {
		o.Handshake = p.Handshake
		if err := again.AddPeer(o); err != nil {
			b.Fatal(err)
		}
	}
	if err := again.AddPeer(p); err != nil {
		b.Fatal(err)
	}
	for c.exchange(datagram, 20*time.Millisecond) == nil {
		if time.Since(begun) > 30*time.Second {
			b.Fatal("the device does not come back")
		}
	}
	return time.Since(begun)
}
