package tunnel_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"
)

// One socket speaks with every allowed address from one port, of either
// family, and with no other.
func TestListenUDP(t *testing.T) {
	tun, r := open(t)
	if err := tun.SetAllowed(app); err != nil {
		t.Fatal(err)
	}
	for i, v6 := range []bool{false, true} {
		c, err := tun.ListenUDP(v6, 40000)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := c.LocalAddr().(*net.UDPAddr).AddrPort(); got != netip.AddrPortFrom(own[i], 40000) {
			t.Errorf("the socket is at %v", got)
		}
		if again, err := tun.ListenUDP(v6, 40000); err == nil {
			again.Close()
			t.Error("a taken port was given out again")
		}
		for _, to := range []netip.AddrPort{at(app[i], 4000), at(app[i], 4001), at(gatewayAddrs[i], 4000)} {
			if _, err := c.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(to)); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			buf := make([]byte, 100)
			n, from, err := c.ReadFrom(buf)
			if err != nil || string(buf[:n]) != "hello" || from.(*net.UDPAddr).AddrPort() != to {
				t.Errorf("%v answered %q from %v, %v", to, buf[:n], from, err)
			}
		}
		before := r.data.Load()
		if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(at(elsewhere, 4000))); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("to an address that is not allowed: %v", err)
		}
		if err := tun.SetAllowed(nil); err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(at(app[i], 4000))); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("to an address that was withdrawn: %v", err)
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if _, _, err := c.ReadFrom(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("reading what does not come: %v", err)
		}
		if got := r.data.Load(); got != before {
			t.Errorf("%d datagrams left for addresses that are not allowed", got-before)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, _, err := c.ReadFrom(make([]byte, 10)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading a closed socket: %v", err)
		}
		if err := tun.SetAllowed(app); err != nil {
			t.Fatal(err)
		}
	}
	if err := tun.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := tun.ListenUDP(false, 0); !errors.Is(err, net.ErrClosed) {
		t.Errorf("listening in a closed tunnel: %v", err)
	}
}
