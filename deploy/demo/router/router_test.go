package router_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/deploy/demo/router"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gateway answers every datagram with the address it came from.
func gateway(t *testing.T) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s %s", buf[:n], from), from)
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestMove(t *testing.T) {
	here, there := netip.MustParseAddr("127.10.0.1"), netip.MustParseAddr("127.66.0.1")
	if c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(here, 0))); err != nil {
		t.Skipf("this system has only one loopback address: %v", err)
	} else {
		c.Close()
	}
	r, err := router.Listen(router.Config{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Gateway: gateway(t), Address: here})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()

	var laptops []*net.UDPConn
	for range 2 {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(r.Addr()))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		laptops = append(laptops, c)
	}
	// ask sends from one of the laptop's sockets and returns the source that
	// the gateway saw.
	ask := func(i int) netip.AddrPort {
		t.Helper()
		if _, err := fmt.Fprintf(laptops[i], "socket-%d", i); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2048)
		_ = laptops[i].SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := laptops[i].Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		var who int
		var from string
		if _, err := fmt.Sscanf(string(buf[:n]), "socket-%d %s", &who, &from); err != nil || who != i {
			t.Fatalf("socket %d got %q: %v", i, buf[:n], err)
		}
		return netip.MustParseAddrPort(from)
	}

	a, b := ask(0), ask(1)
	if a.Addr() != here || b.Addr() != here || a.Port() == b.Port() {
		t.Fatalf("the gateway saw %s and %s, want two ports of %s", a, b, here)
	}
	if again := ask(0); again != a {
		t.Errorf("the mapping moved by itself: %s, then %s", a, again)
	}
	if err := r.Move(there); err != nil {
		t.Fatal(err)
	}
	if a, b := ask(0), ask(1); a.Addr() != there || b.Addr() != there {
		t.Errorf("after the move the gateway saw %s and %s, want %s", a, b, there)
	}
	if err := r.Move(netip.MustParseAddr("192.0.2.1")); err == nil {
		t.Error("moved to an address this machine does not have")
	}
	if a := ask(0); a.Addr() != there || r.Address() != there {
		t.Errorf("after a failed move the gateway saw %s, want %s", a, there)
	}

	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}
