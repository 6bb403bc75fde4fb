package tunnel_test

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/portvakt/portvakt/gateway/tunnel"
)

// The owner knows where a device is before the first packet from there is let
// in, however often it moves.
func TestFirstPacketAfterARoamIsFromThere(t *testing.T) {
	var mu sync.Mutex
	var known, seen netip.AddrPort // known when the last packet was let in
	priv, _ := keyPair()
	in := startConfig(t, tunnel.Config{PrivateKey: priv, Listen: "127.0.0.1:0"}, func(cfg *tunnel.Config) {
		cfg.OnMove = func(_ [32]byte, ep netip.AddrPort) {
			mu.Lock()
			defer mu.Unlock()
			known = ep
		}
		echo := cfg.UDP
		cfg.UDP = func(packets [][]byte) {
			mu.Lock()
			seen = known
			mu.Unlock()
			echo(packets)
		}
	})
	r := newRelay(t, in)
	c := newClient()
	in.admit(t, c, 0)
	c.connect(t, in, r.addr, 0)
	here := r.move(t, net.IPv4(127, 0, 0, 1))
	u, err := c.stack.DialUDP(at(app[0], 5004))
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	expect := func(move int) {
		t.Helper()
		roundTrip(t, u)
		mu.Lock()
		defer mu.Unlock()
		if seen != here {
			t.Fatalf("move %d: a packet from %v is let in as one from %v", move, here, seen)
		}
	}
	expect(0)
	for i := range 50 {
		here = r.move(t, net.IPv4(127, 0, 0, byte(2+i%2)))
		expect(i + 1)
		expect(i + 1)
	}
}
