package gateway

import (
	"net"
	"net/netip"
	"testing"
)

// One device cannot hold the control API's memory: its connections are
// bounded, others' are not its concern, and a closed one frees its place once.
func TestControlConnectionsOfADeviceAreBounded(t *testing.T) {
	c := newConns()
	a, b := netip.MustParseAddr("100.96.0.16"), netip.MustParseAddr("100.96.0.17")
	var first net.Conn
	for i := range connsPerPeer {
		release, ok := c.admit(a)
		if !ok {
			t.Fatalf("connection %d was refused", i)
		}
		if i == 0 {
			one, two := net.Pipe()
			defer two.Close()
			first = &admitted{one, release}
		}
	}
	if _, ok := c.admit(a); ok {
		t.Error("one device holds more than its share")
	}
	if _, ok := c.admit(b); !ok {
		t.Error("another device is refused for it")
	}
	for range 2 {
		_ = first.Close()
	}
	if _, ok := c.admit(a); !ok {
		t.Error("a closed connection keeps its place")
	}
	if _, ok := c.admit(a); ok {
		t.Error("a connection that was closed twice freed two places")
	}
}
