package segment_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/gateway/segment"
)

var (
	gateway = [2]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:64::1")}
	device  = [2]netip.Addr{netip.MustParseAddr("100.64.0.20"), netip.MustParseAddr("fd00:64::20")}
	other   = [2]netip.Addr{netip.MustParseAddr("100.64.0.21"), netip.MustParseAddr("fd00:64::21")}
	app     = [2]netip.Addr{netip.MustParseAddr("100.64.1.30"), netip.MustParseAddr("fd00:64::1:30")}
	hidden  = [2]netip.Addr{netip.MustParseAddr("100.64.1.31"), netip.MustParseAddr("fd00:64::1:31")}
)

func newTable() *segment.Table {
	t := segment.NewTable(gateway)
	var es []segment.Entry
	for i := range app {
		es = append(es,
			segment.Entry{Addr: app[i], Proto: segment.ProtoTCP, Port: 443},
			segment.Entry{Addr: app[i], Proto: segment.ProtoUDP, Port: 5004},
			segment.Entry{Addr: gateway[i], Proto: segment.ProtoTCP, Port: 80},
		)
	}
	t.Set(device, es)
	t.Set(other, nil)
	return t
}

// Flags of a TCP header.
const (
	fin, syn, rst, ack = 1, 2, 4, 16
)

func checksum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			w := uint32(b[i]) << 8
			if i+1 < len(b) {
				w |= uint32(b[i+1])
			}
			s += w
		}
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// ip wraps l4 in a correct IP header of the addresses' family.
func ip(src, dst netip.Addr, proto uint8, l4 []byte) []byte {
	if src.Is4() {
		h := make([]byte, 20)
		h[0], h[8], h[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(l4)))
		copy(h[12:], src.AsSlice())
		copy(h[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(h[10:], checksum(h))
		return append(h, l4...)
	}
	h := make([]byte, 40)
	h[0], h[6], h[7] = 0x60, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(len(l4)))
	s, d := src.As16(), dst.As16()
	copy(h[8:], s[:])
	copy(h[24:], d[:])
	return append(h, l4...)
}

func pseudo(src, dst []byte, proto uint8, n int) []byte {
	b := append(append([]byte{}, src...), dst...)
	return append(b, 0, proto, byte(n>>8), byte(n))
}

func tcp(src, dst netip.AddrPort, flags byte, seq, ackNo uint32, payload string) []byte {
	b := make([]byte, 20, 20+len(payload))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ackNo)
	b[12], b[13] = 5<<4, flags
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[16:], checksum(pseudo(src.Addr().AsSlice(), dst.Addr().AsSlice(), 6, len(b)), b))
	return ip(src.Addr(), dst.Addr(), 6, b)
}

func udp(src, dst netip.AddrPort, payload string) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	return ip(src.Addr(), dst.Addr(), 17, append(b, payload...))
}

// tooBig is the news that a packet, of which the beginning follows, did not fit.
func tooBig(src, dst netip.Addr, mtu int, packet []byte) []byte {
	b := make([]byte, 8)
	if src.Is4() {
		b[0], b[1] = 3, 4
		binary.BigEndian.PutUint16(b[6:], uint16(mtu))
		return ip(src, dst, 1, append(b, packet[:28]...))
	}
	b[0] = 2
	binary.BigEndian.PutUint32(b[4:], uint32(mtu))
	return ip(src, dst, 58, append(b, packet[:48]...))
}

func echo(src, dst netip.Addr) []byte {
	if src.Is4() {
		return ip(src, dst, 1, []byte{8, 0, 0, 0, 0, 1, 0, 1})
	}
	return ip(src, dst, 58, []byte{128, 0, 0, 0, 0, 1, 0, 1})
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func with(b []byte, change func([]byte)) []byte {
	change(b)
	return b
}

func TestFilter(t *testing.T) {
	type result struct {
		Verdict segment.Verdict
		Cause   string
	}
	pass, closedTCP, closedUDP := result{segment.Pass, "none"}, result{segment.Reset, "closed"}, result{segment.Drop, "closed"}
	drop := func(cause string) result { return result{segment.Drop, cause} }

	type testCase struct {
		name   string
		packet []byte
		want   result
	}
	var cases []testCase
	for i, family := range []string{"4", "6"} {
		from := at(device[i], 40000)
		cases = append(cases, []testCase{
			{"allowed tcp", tcp(from, at(app[i], 443), syn, 1, 0, ""), pass},
			{"allowed tcp data", tcp(from, at(app[i], 443), ack, 1, 7, "hello"), pass},
			{"allowed udp", udp(from, at(app[i], 5004), "x"), pass},
			{"empty udp", udp(from, at(app[i], 5004), ""), pass},
			{"control", tcp(from, at(gateway[i], 80), syn, 1, 0, ""), pass},
			{"echo to the gateway", echo(device[i], gateway[i]), pass},
			{"a flow's smaller path", tooBig(device[i], app[i], 1300, tcp(at(app[i], 443), from, ack, 1, 1, "")), pass},
			{"a path below the least", tooBig(device[i], app[i], 1279, tcp(at(app[i], 443), from, ack, 1, 1, "")), drop("icmp")},
			{"the smaller path of a closed port", tooBig(device[i], app[i], 1300, tcp(at(app[i], 444), from, ack, 1, 1, "")), drop("icmp")},
			{"of a hidden app", tooBig(device[i], hidden[i], 1300, tcp(at(hidden[i], 443), from, ack, 1, 1, "")), drop("icmp")},
			{"of another device's flow", tooBig(device[i], app[i], 1300, tcp(at(app[i], 443), at(other[i], 40000), ack, 1, 1, "")), drop("icmp")},
			{"of a flow with another app", tooBig(device[i], gateway[i], 1300, tcp(at(app[i], 443), from, ack, 1, 1, "")), drop("icmp")},
			{"of datagrams", tooBig(device[i], app[i], 1300, udp(at(app[i], 5004), from, "01234567")), drop("icmp")},
			{"echo to an app", echo(device[i], app[i]), drop("icmp")},
			{"echo to a device", echo(device[i], other[i]), drop("icmp")},
			{"closed port", tcp(from, at(app[i], 444), syn, 1, 0, ""), closedTCP},
			{"gateway's closed port", tcp(from, at(gateway[i], 22), syn, 1, 0, ""), closedTCP},
			{"hidden app", tcp(from, at(hidden[i], 443), syn, 1, 0, ""), closedTCP},
			{"tcp on a udp port", tcp(from, at(app[i], 5004), syn, 1, 0, ""), closedTCP},
			{"udp on a tcp port", udp(from, at(app[i], 443), "x"), closedUDP},
			{"hidden app udp", udp(from, at(hidden[i], 5004), "x"), closedUDP},
			{"other device tcp", tcp(from, at(other[i], 443), syn, 1, 0, ""), result{segment.Reset, "other_device"}},
			{"other device udp", udp(from, at(other[i], 5004), "x"), drop("other_device")},
			{"itself", tcp(from, at(device[i], 443), syn, 1, 0, ""), result{segment.Reset, "other_device"}},
			{"device of an empty segment", tcp(at(other[i], 1), at(app[i], 443), syn, 1, 0, ""), closedTCP},
			{"spoofed source", tcp(at(hidden[i], 40000), at(app[i], 443), syn, 1, 0, ""), drop("source")},
			{"gateway as source", tcp(at(gateway[i], 40000), at(app[i], 443), syn, 1, 0, ""), drop("source")},
			{"port 0", tcp(from, at(app[i], 0), syn, 1, 0, ""), drop("malformed")},
			{"from port 0", tcp(at(device[i], 0), at(app[i], 443), syn, 1, 0, ""), drop("malformed")},
			{"sctp", ip(device[i], app[i], 132, make([]byte, 20)), drop("protocol")},
			{"short tcp", ip(device[i], app[i], 6, make([]byte, 19)), drop("malformed")},
			{"tcp offset past the end", with(tcp(from, at(app[i], 443), syn, 1, 0, ""), func(b []byte) { b[len(b)-8] = 6 << 4 }), drop("malformed")},
			{"tcp offset too small", with(tcp(from, at(app[i], 443), syn, 1, 0, ""), func(b []byte) { b[len(b)-8] = 4 << 4 }), drop("malformed")},
			{"short udp", ip(device[i], app[i], 17, make([]byte, 7)), drop("malformed")},
			{"udp length", with(udp(from, at(app[i], 5004), "x"), func(b []byte) { b[len(b)-4]++ }), drop("malformed")},
			{"trailing byte", append(udp(from, at(app[i], 5004), "x"), 0), drop("malformed")},
			{"cut short", udp(from, at(app[i], 5004), "xyz")[:28], drop("malformed")},
		}...)
		for j := len(cases) - 30; j < len(cases); j++ {
			cases[j].name += " v" + family
		}
	}
	from4, from6 := at(device[0], 40000), at(device[1], 40000)
	syn4 := func() []byte { return tcp(from4, at(app[0], 443), syn, 1, 0, "") }
	mapped := netip.AddrFrom16(device[0].As16())
	cases = append(cases, []testCase{
		{"empty", nil, drop("malformed")},
		{"one byte", []byte{0x45}, drop("malformed")},
		{"version 0", with(syn4(), func(b []byte) { b[0] = 0x05 }), drop("malformed")},
		{"version 15", with(syn4(), func(b []byte) { b[0] = 0xf5 }), drop("malformed")},
		{"ihl 4", with(syn4(), func(b []byte) { b[0] = 0x44 }), drop("malformed")},
		{"options", with(syn4(), func(b []byte) { b[0] = 0x46 }), drop("options")},
		{"first fragment", with(syn4(), func(b []byte) { b[6] = 0x20 }), drop("fragment")},
		{"last fragment", with(syn4(), func(b []byte) { b[7] = 1 }), drop("fragment")},
		{"df", with(syn4(), func(b []byte) { b[6] = 0x40 }), pass},
		{"group 4", udp(from4, at(netip.MustParseAddr("224.0.0.251"), 5353), ""), drop("multicast")},
		{"broadcast", udp(from4, at(netip.MustParseAddr("255.255.255.255"), 67), ""), drop("multicast")},
		{"loopback 4", tcp(from4, at(netip.MustParseAddr("127.0.0.1"), 80), syn, 0, 0, ""), drop("multicast")},
		{"metadata", tcp(from4, at(netip.MustParseAddr("169.254.169.254"), 80), syn, 0, 0, ""), drop("multicast")},
		{"unspecified 4", tcp(from4, at(netip.MustParseAddr("0.0.0.0"), 80), syn, 0, 0, ""), drop("multicast")},
		{"igmp", ip(device[0], app[0], 2, make([]byte, 8)), drop("protocol")},
		{"echo reply", ip(device[0], gateway[0], 1, make([]byte, 8)), drop("icmp")},
		{"redirect", ip(device[0], gateway[0], 1, []byte{5, 0, 0, 0, 0, 0, 0, 0}), drop("icmp")},
		{"icmp in ipv6", ip(device[1], gateway[1], 1, []byte{8, 0, 0, 0, 0, 0, 0, 0}), drop("icmp")},
		{"mapped source", tcp(at(mapped, 1), at(app[1], 443), syn, 0, 0, ""), drop("source")},
		{"mapped destination", tcp(from6, at(netip.AddrFrom16(app[0].As16()), 443), syn, 0, 0, ""), drop("multicast")},
		{"group 6", udp(from6, at(netip.MustParseAddr("ff02::fb"), 5353), ""), drop("multicast")},
		{"loopback 6", tcp(from6, at(netip.IPv6Loopback(), 80), syn, 0, 0, ""), drop("multicast")},
		{"link-local", tcp(from6, at(netip.MustParseAddr("fe80::1"), 80), syn, 0, 0, ""), drop("multicast")},
		{"router advertisement", ip(device[1], gateway[1], 58, append([]byte{134}, make([]byte, 15)...)), drop("icmp")},
		{"hop-by-hop", ip(device[1], app[1], 0, make([]byte, 28)), drop("options")},
		{"routing header", ip(device[1], app[1], 43, make([]byte, 28)), drop("options")},
		{"fragment header", ip(device[1], app[1], 44, make([]byte, 28)), drop("fragment")},
		{"destination options", ip(device[1], app[1], 60, make([]byte, 28)), drop("options")},
		{"unknown next header", ip(device[1], app[1], 200, make([]byte, 28)), drop("protocol")},
		{"short ipv6", make([]byte, 39), drop("malformed")},
	}...)
	table := newTable()
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			v, c := table.Filter(tc.packet)
			if diff := cmp.Diff(tc.want, result{v, c.String()}); diff != "" {
				t.Errorf("Filter (-want +got):\n%s", diff)
			}
		})
	}
	var total uint64
	for _, n := range table.Counts() {
		total += n
	}
	var refused uint64
	for _, tc := range cases {
		if tc.want != pass {
			refused++
		}
	}
	if total != refused {
		t.Errorf("Counts add up to %d, want %d", total, refused)
	}
}

func TestClosedLooksTheSame(t *testing.T) {
	table := newTable()
	from := at(device[0], 40000)
	answer := func(dst netip.AddrPort) []byte {
		p := tcp(from, dst, syn, 12345, 0, "")
		if v, _ := table.Filter(p); v != segment.Reset {
			t.Fatalf("%v: verdict %v, want Reset", dst, v)
		}
		r := segment.ResetFor(p)
		// What differs by nature: the address it comes from and the sums over it.
		copy(r[12:16], []byte{0, 0, 0, 0})
		copy(r[10:12], []byte{0, 0})
		copy(r[20:22], []byte{0, 0})
		copy(r[36:38], []byte{0, 0})
		return r
	}
	want := answer(at(app[0], 444))
	for name, dst := range map[string]netip.AddrPort{
		"hidden app": at(hidden[0], 443), "unknown address": at(netip.MustParseAddr("100.64.9.9"), 443),
		"other device": at(other[0], 443), "gateway": at(gateway[0], 22), "outside the pool": at(netip.MustParseAddr("192.0.2.1"), 443),
	} {
		if diff := cmp.Diff(want, answer(dst)); diff != "" {
			t.Errorf("%s answers unlike a closed port (-want +got):\n%s", name, diff)
		}
	}
}

func TestSetAndDelete(t *testing.T) {
	table := segment.NewTable(gateway)
	allow := func(i int) []segment.Entry {
		return []segment.Entry{{Addr: app[i], Proto: segment.ProtoTCP, Port: 443}}
	}
	verdict := func(i int) segment.Verdict {
		v, _ := table.Filter(tcp(at(device[i], 9), at(app[i], 443), syn, 0, 0, ""))
		return v
	}
	steps := []struct {
		name string
		do   func()
		want [2]segment.Verdict
	}{
		{"nothing yet", func() {}, [2]segment.Verdict{segment.Drop, segment.Drop}},
		{"v4 allowed", func() { table.Set(device, allow(0)) }, [2]segment.Verdict{segment.Pass, segment.Reset}},
		{"v6 allowed", func() { table.Set(device, allow(1)) }, [2]segment.Verdict{segment.Reset, segment.Pass}},
		{"another device", func() { table.Set(other, allow(0)) }, [2]segment.Verdict{segment.Reset, segment.Pass}},
		{"v4 alone", func() { table.Set([2]netip.Addr{device[0]}, allow(0)) }, [2]segment.Verdict{segment.Pass, segment.Drop}},
		{"both again", func() { table.Set(device, allow(1)) }, [2]segment.Verdict{segment.Reset, segment.Pass}},
		{"deleted", func() { table.Delete(device) }, [2]segment.Verdict{segment.Drop, segment.Drop}},
		{"deleted twice", func() { table.Delete(device) }, [2]segment.Verdict{segment.Drop, segment.Drop}},
	}
	for _, s := range steps {
		s.do()
		if got := [2]segment.Verdict{verdict(0), verdict(1)}; s.name != "v4 alone" && got != s.want || got[0] != s.want[0] {
			t.Errorf("%s: verdicts %v, want %v", s.name, got, s.want)
		}
	}
}

func TestEntriesThatMatchNothing(t *testing.T) {
	table := segment.NewTable(gateway)
	table.Set(device, []segment.Entry{
		{Addr: app[0], Proto: segment.ProtoTCP, Port: 443},
		{Addr: app[0], Proto: segment.ProtoTCP, Port: 443}, // twice is once
		{Addr: netip.AddrFrom16(hidden[0].As16()), Proto: segment.ProtoTCP, Port: 443},
		{Addr: app[1], Proto: segment.ProtoUDP},
		{},
	})
	if v, _ := table.Filter(tcp(at(device[0], 9), at(app[0], 443), syn, 0, 0, "")); v != segment.Pass {
		t.Errorf("what is in the segment: verdict %v, want Pass", v)
	}
	for _, dst := range []netip.AddrPort{at(app[0], 80), at(app[0], 0), at(hidden[0], 443), at(hidden[0], 0)} {
		if v, _ := table.Filter(tcp(at(device[0], 9), dst, syn, 0, 0, "")); v == segment.Pass {
			t.Errorf("%v passed", dst)
		}
	}
	for _, dst := range []netip.AddrPort{at(app[1], 0), at(app[1], 5004), at(netip.AddrFrom16(hidden[0].As16()), 443)} {
		if v, _ := table.Filter(udp(at(device[1], 9), dst, "x")); v == segment.Pass {
			t.Errorf("%v passed", dst)
		}
	}
}

// TestManyDevices compares a table that grows, shrinks and grows again with a
// plain map.
func TestManyDevices(t *testing.T) {
	table := segment.NewTable(gateway)
	rnd := rand.New(rand.NewPCG(1, 2))
	const devices, apps = 3000, 5
	may := map[int]int{}
	dev := func(i int) [2]netip.Addr {
		return [2]netip.Addr{netip.AddrFrom4([4]byte{100, 70, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:70::%x", i+1))}
	}
	dst := func(a, f int) netip.Addr {
		return [2]netip.Addr{netip.AddrFrom4([4]byte{100, 64, 2, byte(a + 1)}), netip.MustParseAddr(fmt.Sprintf("fd00:64::2:%x", a+1))}[f]
	}
	for range 20000 {
		i, a := rnd.IntN(devices), rnd.IntN(apps+1)
		if a == apps {
			table.Delete(dev(i))
			delete(may, i)
			continue
		}
		table.Set(dev(i), []segment.Entry{{Addr: dst(a, 0), Proto: segment.ProtoTCP, Port: 443}, {Addr: dst(a, 1), Proto: segment.ProtoTCP, Port: 443}})
		may[i] = a
	}
	for i := range devices {
		for a := range apps {
			want := segment.Drop
			if allowed, ok := may[i]; ok {
				want = segment.Reset
				if allowed == a {
					want = segment.Pass
				}
			}
			for f := range 2 {
				if v, c := table.Filter(tcp(at(dev(i)[f], 9), at(dst(a, f), 443), syn, 0, 0, "")); v != want {
					t.Fatalf("device %d, app %d, family %d: verdict %v (%v), want %v", i, a, f, v, c, want)
				}
			}
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	table := newTable()
	packet := tcp(at(device[0], 9), at(app[0], 443), syn, 0, 0, "")
	seg := []segment.Entry{{Addr: app[0], Proto: segment.ProtoTCP, Port: 443}}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 2000 {
				if v, _ := table.Filter(packet); v == segment.Reset {
					t.Error("a device between Delete and Set looked like one that may nothing")
					return
				}
			}
		})
	}
	for range 500 {
		table.Delete(device)
		table.Set(device, seg)
	}
	wg.Wait()
	if v, _ := table.Filter(packet); v != segment.Pass {
		t.Errorf("verdict %v after the last Set, want Pass", v)
	}
}

func TestResetFor(t *testing.T) {
	for i, family := range []string{"v4", "v6"} {
		src, dst := at(device[i], 40000), at(app[i], 443)
		cases := []struct {
			name     string
			packet   []byte
			flags    byte
			seq, ack uint32
			none     bool
		}{
			{name: "syn", packet: tcp(src, dst, syn, 1000, 0, ""), flags: rst | ack, ack: 1001},
			{name: "syn wraps", packet: tcp(src, dst, syn, 0xffffffff, 0, ""), flags: rst | ack, ack: 0},
			{name: "syn with data", packet: tcp(src, dst, syn, 1000, 0, "abc"), flags: rst | ack, ack: 1004},
			{name: "fin without ack", packet: tcp(src, dst, fin, 1000, 0, "abc"), flags: rst | ack, ack: 1004},
			{name: "no flags", packet: tcp(src, dst, 0, 1000, 0, "abc"), flags: rst | ack, ack: 1003},
			{name: "data", packet: tcp(src, dst, ack, 1000, 77, "abc"), flags: rst, seq: 77},
			{name: "syn ack", packet: tcp(src, dst, syn|ack, 1000, 77, ""), flags: rst, seq: 77},
			{name: "rst", packet: tcp(src, dst, rst, 1000, 0, ""), none: true},
			{name: "rst ack", packet: tcp(src, dst, rst|ack, 1000, 1, ""), none: true},
			{name: "udp", packet: udp(src, dst, "x"), none: true},
			{name: "bad sum", packet: with(tcp(src, dst, syn, 1, 0, ""), func(b []byte) { b[len(b)-1] ^= 1 }), none: true},
			{name: "cut", packet: tcp(src, dst, syn, 1, 0, "")[:30], none: true},
		}
		for _, tc := range cases {
			t.Run(tc.name+" "+family, func(t *testing.T) {
				r := segment.ResetFor(tc.packet)
				if tc.none {
					if r != nil {
						t.Fatalf("got a reset %x", r)
					}
					return
				}
				want := tcp(dst, src, tc.flags, tc.seq, tc.ack, "")
				if i == 0 { // DF
					want[6], want[10], want[11] = 0x40, 0, 0
					binary.BigEndian.PutUint16(want[10:], checksum(want[:20]))
				}
				if diff := cmp.Diff(want, r); diff != "" {
					t.Errorf("ResetFor (-want +got):\n%s", diff)
				}
			})
		}
	}
	frag := with(tcp(at(device[0], 9), at(app[0], 443), syn, 1, 0, ""), func(b []byte) { b[6] = 0x20 })
	if r := segment.ResetFor(frag); r != nil {
		t.Errorf("a fragment got the reset %x", r)
	}
}

func BenchmarkFilter(b *testing.B) {
	table := segment.NewTable(gateway)
	packets := make([][]byte, 0, 20000)
	for i := range 10000 {
		dev := [2]netip.Addr{netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:65::%x", i+1))}
		var es []segment.Entry
		for a := range 30 {
			es = append(es, segment.Entry{Addr: netip.AddrFrom4([4]byte{100, 64, 2, byte(a + 1)}), Proto: segment.ProtoTCP, Port: 443},
				segment.Entry{Addr: netip.MustParseAddr(fmt.Sprintf("fd00:64::2:%x", a+1)), Proto: segment.ProtoTCP, Port: 443})
		}
		table.Set(dev, es)
		a := i%30 + 1
		packets = append(packets,
			tcp(at(dev[0], 40000), at(netip.AddrFrom4([4]byte{100, 64, 2, byte(a)}), 443), ack, 1, 1, "data"),
			tcp(at(dev[1], 40000), at(netip.MustParseAddr(fmt.Sprintf("fd00:64::2:%x", a)), 443), ack, 1, 1, "data"))
	}
	b.Run("one device", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			if v, c := table.Filter(packets[0]); v != segment.Pass {
				b.Fatal(v, c)
			}
		}
	})
	b.Run("all devices in turn", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			if v, c := table.Filter(packets[i%len(packets)]); v != segment.Pass {
				b.Fatal(v, c)
			}
		}
	})
	b.Run("change of one device", func(b *testing.B) {
		dev := [2]netip.Addr{netip.MustParseAddr("100.65.0.7"), netip.MustParseAddr("fd00:65::8")}
		some := [2][]segment.Entry{nil, {{Addr: app[0], Proto: segment.ProtoTCP, Port: 443}}}
		for i := range b.N {
			table.Set(dev, some[i%2])
		}
	})
	b.Run("publish to all 10,000", func(b *testing.B) {
		var lists [2][]segment.Entry
		for k := range lists {
			for a := range 30 {
				lists[k] = append(lists[k], segment.Entry{Addr: netip.AddrFrom4([4]byte{100, 64, byte(2 + k), byte(a + 1)}), Proto: segment.ProtoTCP, Port: 443},
					segment.Entry{Addr: netip.MustParseAddr(fmt.Sprintf("fd00:64::%x:%x", 2+k, a+1)), Proto: segment.ProtoTCP, Port: 443})
			}
		}
		devices := make([][2]netip.Addr, 10000)
		for i := range devices {
			devices[i] = [2]netip.Addr{netip.AddrFrom4([4]byte{100, 65, byte(i >> 8), byte(i)}), netip.MustParseAddr(fmt.Sprintf("fd00:65::%x", i+1))}
		}
		for n := range b.N {
			for i := range devices {
				table.Set(devices[i], lists[(n+i)%2])
			}
		}
	})
	b.Run("a device comes and goes", func(b *testing.B) {
		for range b.N {
			table.Set(device, nil)
			table.Delete(device)
		}
	})
}
