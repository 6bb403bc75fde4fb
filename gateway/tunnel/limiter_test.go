package tunnel

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/segment"
)

func tableForTest() *segment.Table {
	return segment.NewTable([2]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")})
}

func TestLimiterBounds(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		src    func(i int) string
		proven bool
		want   int // failures until it is spent
		other  string
	}{
		"one IPv4 address":   {func(int) string { return "192.0.2.1" }, false, int(unprovenNarrow.burst), "198.51.100.1"},
		"one /24":            {func(i int) string { return fmt.Sprintf("192.0.2.%d", i%200) }, false, int(unprovenWide.burst), "198.51.100.1"},
		"one /64":            {func(i int) string { return fmt.Sprintf("2001:db8::%x", i+1) }, false, int(unprovenNarrow.burst), "2001:db8:9::1"},
		"one /48":            {func(i int) string { return fmt.Sprintf("2001:db8:0:%x::1", i%200) }, false, int(unprovenWide.burst), "2001:db8:9::1"},
		"a proven address":   {func(int) string { return "192.0.2.1" }, true, int(provenNarrow.burst), "198.51.100.1"},
		"proven, one by /24": {func(i int) string { return fmt.Sprintf("192.0.2.%d", i%200) }, true, int(provenWide.burst), "198.51.100.1"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLimiter()
			n := 0
			for ; n < 10_000; n++ {
				a := netip.MustParseAddr(c.src(n))
				if l.sourceSpent(a, c.proven, now) {
					break
				}
				l.failed(a, c.proven, now)
			}
			if n != c.want {
				t.Errorf("spent after %d failures, want %d", n, c.want)
			}
			last := netip.MustParseAddr(c.src(0))
			if l.sourceSpent(netip.MustParseAddr(c.other), c.proven, now) {
				t.Error("another source is spent too")
			}
			if l.sourceSpent(last, !c.proven, now) {
				t.Error("the other class is spent too")
			}
			if l.sourceSpent(last, c.proven, now.Add(time.Second)) {
				t.Error("still spent a second later")
			}
		})
	}
}

func TestLimiterBoundsEveryone(t *testing.T) {
	now := time.Now()
	l := newLimiter()
	n := 0
	for ; n < 100_000 && !l.allSpent(false, now); n++ {
		l.failed(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), false, now)
	}
	if n != int(unprovenAll.burst) {
		t.Errorf("spent after %d failures, want %v", n, unprovenAll.burst)
	}
	if l.allSpent(true, now) {
		t.Error("strangers spend what is there for proven sources")
	}
	if l.allSpent(false, now.Add(2*time.Second)) {
		t.Error("still spent two seconds later")
	}
}

func TestRefusedIsRemembered(t *testing.T) {
	r := &refused{seed: maphash.MakeSeed()}
	var a, b datagram
	a[ephemeralAt], b[ephemeralAt] = 1, 2
	r.add(&a)
	if !r.has(&a) || r.has(&b) || r.has(&datagram{}) {
		t.Error("it remembers something else")
	}
	// Another index, another mac: the same exchange.
	a[4], a[mac2At] = 9, 9
	if !r.has(&a) {
		t.Error("it was changed where nothing is decided")
	}
}

func TestFirstAddress(t *testing.T) {
	four, six, other := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd00::2"), netip.MustParseAddr("100.64.0.3")
	r := &registration{addresses: [2]netip.Addr{four, six}}
	g := &registry{byAddress: map[netip.Addr]*registration{four: r, six: r}}
	for in, want := range map[netip.Addr]netip.Addr{four: four, six: four, other: other} {
		if got := g.first(in); got != want {
			t.Errorf("%v counts with %v, want %v", in, got, want)
		}
	}
}
