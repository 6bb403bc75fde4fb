package hosttun

import (
	"net/netip"
	"testing"

	"github.com/portvakt/portvakt/internal/halfopen"
)

// Both addresses of a device count together where the owner says so, and each
// by itself where not.
func TestHalfOpenLimitOfADevice(t *testing.T) {
	other := netip.MustParseAddr("100.96.9.9")
	for name, c := range map[string]struct {
		source func(netip.Addr) netip.Addr
		want   int
	}{
		"each":     {nil, 4},
		"together": {func(netip.Addr) netip.Addr { return laptop }, 2},
	} {
		t.Run(name, func(t *testing.T) {
			o := passing(func(*TCPRequest) {}) // who asks waits
			s := &Stack{opts: o}
			s.dev = &device{stack: s}
			s.pending.table = halfopen.New(2, c.source)
			defer s.pending.resetAll()
			for port := range uint16(3) {
				for _, a := range []netip.Addr{laptop, other} {
					p := segment(at(a, 40000+port), at(app, 443), flagSYN, 1, 0)
					s.admitTCP(p, p[header4:])
				}
			}
			s.pending.mu.Lock()
			n := len(s.pending.byTuple)
			s.pending.mu.Unlock()
			if n != c.want {
				t.Errorf("%d wait, want %d", n, c.want)
			}
			if refused := int(s.Stats().Crowded); refused != 6-c.want {
				t.Errorf("%d refused, want %d", refused, 6-c.want)
			}
		})
	}
}
