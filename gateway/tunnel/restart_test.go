package tunnel_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/tunnel"
)

// What brings a device back within 2 s of a restart is that the gateway calls,
// by what it was given to keep: the device itself, a stock WireGuard, finds out
// after 15 s. Whoever begins the handshake says which it was.
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
	case <-time.After(14 * time.Second):
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
