package tunnel

import (
	"fmt"
	"hash/maphash"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/portvakt/portvakt/gateway/segment"
)

func tableForTest() *segment.Table {
	return segment.NewTable([2]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")})
}

func TestLimiterBounds(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		src   func(i int) string
		of    standing
		want  int // failures until it is spent
		other string
	}{
		"one IPv4 address":   {func(int) string { return "192.0.2.1" }, stranger, int(strangerNarrow.burst), "198.51.100.1"},
		"one /24":            {func(i int) string { return fmt.Sprintf("192.0.2.%d", i%200) }, stranger, int(strangerWide.burst), "198.51.100.1"},
		"one /64":            {func(i int) string { return fmt.Sprintf("2001:db8::%x", i+1) }, stranger, int(strangerNarrow.burst), "2001:db8:9::1"},
		"one /48":            {func(i int) string { return fmt.Sprintf("2001:db8:0:%x::1", i%200) }, stranger, int(strangerWide.burst), "2001:db8:9::1"},
		"an expected one":    {func(int) string { return "192.0.2.1" }, expected, int(expectedNarrow.burst), "192.0.2.2"},
		"a proven address":   {func(int) string { return "192.0.2.1" }, proven, int(provenNarrow.burst), "198.51.100.1"},
		"proven, one by /24": {func(i int) string { return fmt.Sprintf("192.0.2.%d", i%200) }, proven, int(provenWide.burst), "198.51.100.1"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLimiter()
			n := 0
			for ; n < 10_000; n++ {
				a := netip.MustParseAddr(c.src(n))
				if l.sourceSpent(a, c.of, now) {
					break
				}
				l.failed(a, c.of, now)
			}
			if n != c.want {
				t.Errorf("spent after %d failures, want %d", n, c.want)
			}
			last := netip.MustParseAddr(c.src(0))
			if l.sourceSpent(netip.MustParseAddr(c.other), c.of, now) {
				t.Error("another source is spent too")
			}
			if l.sourceSpent(last, (c.of+2)%3, now) || l.sourceSpent(last, (c.of+1)%3, now) {
				t.Error("another class is spent too")
			}
			if l.sourceSpent(last, c.of, now.Add(time.Second)) {
				t.Error("still spent a second later")
			}
		})
	}
}

func TestLimiterBoundsEveryone(t *testing.T) {
	now := time.Now()
	l := newLimiter()
	n := 0
	for ; n < 100_000 && !l.allSpent(stranger, now); n++ {
		l.failed(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), stranger, now)
	}
	if n != int(strangerAll.burst) {
		t.Errorf("spent after %d failures, want %v", n, strangerAll.burst)
	}
	if l.allSpent(proven, now) {
		t.Error("strangers spend what is there for proven sources")
	}
	if l.allSpent(stranger, now.Add(2*time.Second)) {
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

// Neighbours whose initiations fail take nothing from a device that is expected
// where it calls from, and one that never was has to prove its address.
func TestNeighboursOfAnExpectedDevice(t *testing.T) {
	for name, c := range map[string]struct {
		device    string
		neighbour func(i int) netip.Addr
	}{
		"the same /48": {"2001:db8:1:1::7", func(i int) netip.Addr {
			return netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%x::1", 2+i%1000))
		}},
		"the same /24": {"192.0.2.7", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(8 + i%200)}) }},
	} {
		t.Run(name, func(t *testing.T) {
			tun, err := New(Config{
				PrivateKey: [32]byte{1}, Listen: "127.0.0.1:0", Table: tableForTest(),
				Addresses: [2]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")},
			})
			if err != nil {
				t.Fatal(err)
			}
			at := netip.MustParseAddr(c.device)
			i := NewInitiator(tun.public)
			if err := tun.AddPeer(Peer{Key: i.Public, Addresses: [2]netip.Addr{netip.MustParseAddr("100.64.0.9")}, From: at}); err != nil {
				t.Fatal(err)
			}
			for n := range 1000 {
				tun.gate.limiter.failed(c.neighbour(n), stranger, time.Now())
			}
			admit := func(from netip.Addr) {
				d := datagram(i.Initiate(1, time.Now()))
				if tun.gate.admit(&d, &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(from, 4000)}) != nil {
					t.Error("WireGuard has it unopened")
				}
			}
			admit(at)
			if known, cookies := len(tun.gate.known), len(tun.gate.cookies); known != 1 || cookies != 0 {
				t.Errorf("expected: %d are to be opened, %d to get a cookie", known, cookies)
			}
			for range 300 { // in its own name
				tun.gate.limiter.failed(at, stranger, time.Now())
			}
			admit(at)
			if known, cookies := len(tun.gate.known), len(tun.gate.cookies); known != 1 || cookies != 1 {
				t.Errorf("its address spent: %d are to be opened, %d to get a cookie", known, cookies)
			}
			admit(c.neighbour(0))
			if known, cookies := len(tun.gate.known), len(tun.gate.cookies); known != 1 || cookies != 2 {
				t.Errorf("a neighbour: %d are to be opened, %d to get a cookie", known, cookies)
			}
		})
	}
}

// Who comes by a WebSocket and who comes by UDP from the same address and port
// are two.
func TestPlacesAreApart(t *testing.T) {
	g := newRegistry()
	addr := netip.MustParseAddrPort("192.0.2.1:4000")
	by := []place{{addr: addr}, {addr, "a"}, {addr, "b"}}
	var regs []*registration
	for i, at := range by {
		r := g.put(&Peer{Key: [32]byte{byte(i + 1)}, Addresses: [2]netip.Addr{netip.AddrFrom4([4]byte{100, 64, 0, byte(i + 2)})}}, [32]byte{})
		g.wake(r, nil, time.Now())
		g.answered(r, uint32(i+1), time.Now())
		g.settle(r, r.peer, at, time.Now())
		regs = append(regs, r)
	}
	for i, at := range by {
		if r, _ := g.at(at); r != regs[i] {
			t.Errorf("%+v is another one's", at)
		}
		if g.heard(uint32(i+1), at) != nil {
			t.Errorf("%+v is doubted where it is", at)
		}
		if r := g.heard(uint32(i+1), by[(i+1)%3]); r != regs[i] {
			t.Errorf("a message of %+v from %+v is taken for its own", at, by[(i+1)%3])
		}
	}
	for _, r := range regs {
		g.drop(r)
	}
	if len(g.byPlace) != 0 || len(g.expected) != 0 || g.unsure.Load() != 0 {
		t.Errorf("%d places, %d expected, %d unsure are left", len(g.byPlace), len(g.expected), g.unsure.Load())
	}
}

// Packets that were under way when a message came from elsewhere do not hide
// that one's packet: each is looked at until one from there is let in.
func TestOddPlaceIsLookedFor(t *testing.T) {
	g := newRegistry()
	inner := netip.MustParseAddr("100.64.0.2")
	here, there := place{addr: netip.MustParseAddrPort("192.0.2.1:4000")}, place{addr: netip.MustParseAddrPort("192.0.2.2:4000")}
	r := g.put(&Peer{Key: [32]byte{1}, Addresses: [2]netip.Addr{inner}}, [32]byte{})
	g.wake(r, nil, time.Now())
	g.answered(r, 1, time.Now())
	g.settle(r, r.peer, here, time.Now())
	if r, _ := g.arrived(inner); r != nil {
		t.Error("looked for though nobody moved")
	}
	g.heard(1, there)
	first := r.peer.odd.Load()
	for range 3 {
		if _, p := g.arrived(inner); p != r.peer {
			t.Fatal("not looked for before it was let in")
		}
	}
	// Whoever looks for the first place has not seen the second.
	g.heard(1, place{addr: netip.MustParseAddrPort("192.0.2.3:4000")})
	g.sure(r.peer, first)
	if _, p := g.arrived(inner); p != r.peer {
		t.Error("a second place was forgotten with the first")
	}
	g.sure(r.peer, r.peer.odd.Load())
	if _, p := g.arrived(inner); p != nil || g.unsure.Load() != 0 {
		t.Errorf("still looked for, %d unsure", g.unsure.Load())
	}
	// What was never the peer's is forgotten in the second sweep.
	g.heard(1, there)
	w := newWatcher(&Tunnel{known: g})
	w.fade(r)
	if _, p := g.arrived(inner); p != r.peer {
		t.Error("forgotten in the first sweep")
	}
	w.fade(r)
	if _, p := g.arrived(inner); p != nil || g.unsure.Load() != 0 {
		t.Errorf("looked for after two sweeps, %d unsure", g.unsure.Load())
	}
}
