package proxy

import (
	"net"
	"net/netip"
	"testing"
)

// Both addresses of a device share its bound, and one of them is reset without
// the other.
func TestConnectionsAreBoundedByDevice(t *testing.T) {
	of := func(i int) netip.AddrPort { return netip.AddrPortFrom(deviceAddr(i), 40000) }
	table := conns{
		device:    func(a netip.Addr) netip.Addr { return deviceAddr(int(a.As4()[3]) % 100) },
		perDevice: 3, of: map[netip.Addr]int{}, open: map[netip.Addr]map[*conn]struct{}{},
	}
	closed := 0
	add := func(i int) *conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		return table.add(ours, of(i), of(9), func() { closed++ })
	}
	first := add(1)
	if first == nil || add(101) == nil || add(101) == nil {
		t.Fatal("refused within the bound")
	}
	if !table.full(of(1)) || !table.full(of(101)) || add(1) != nil || add(101) != nil {
		t.Error("two addresses have more than one device's share")
	}
	if table.full(of(2)) || add(2) == nil {
		t.Error("another device is refused")
	}
	first.Close()
	first.Close()
	if closed != 1 {
		t.Errorf("its end was told %d times", closed)
	}
	if c := add(101); c == nil || add(1) != nil {
		t.Error("a place that was given back is another's, or two")
	}
	table.resetDevice(deviceAddr(101))
	if len(table.open[deviceAddr(101)]) != 0 || len(table.open[deviceAddr(2)]) != 1 || table.of[deviceAddr(1)] != 0 {
		t.Errorf("left after a reset: %v, %v", table.open, table.of)
	}
}

func TestNameOf(t *testing.T) {
	for serverName, want := range map[string]string{"": "", "CRM.test": "crm.test", "127.0.0.1": "", "100.64.1.30": "", "fd00::1": "", "1.2.3": "1.2.3"} {
		if got := nameOf(serverName); got != want {
			t.Errorf("%q: %q, want %q", serverName, got, want)
		}
	}
}
