package tunnel

import (
	"encoding/binary"
	"net/netip"
	"os"
	"testing"

	"golang.zx2c4.com/wireguard/tun"
)

// wire is a TUN whose packets a test plays.
type wireTUN struct {
	tun.Device
	in  [][]byte // what Read returns
	out [][]byte // what Write got
}

func (w *wireTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if len(w.in) == 0 {
		return 0, os.ErrClosed
	}
	sizes[0] = copy(bufs[0][offset:], w.in[0])
	w.in = w.in[1:]
	return 1, nil
}

func (w *wireTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		w.out = append(w.out, b[offset:])
	}
	return len(bufs), nil
}

var (
	guardOwn = []netip.Addr{netip.MustParseAddr("100.96.0.9"), netip.MustParseAddr("fd70::9")}
	guardApp = []netip.Addr{netip.MustParseAddr("100.96.1.1"), netip.MustParseAddr("fd70::1:1")}
)

func packet(src, dst netip.Addr, proto byte, payload []byte) []byte {
	var p []byte
	if src.Is4() {
		p = make([]byte, 20, 20+len(payload))
		p[0], p[8], p[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
		copy(p[12:], src.AsSlice())
		copy(p[16:], dst.AsSlice())
	} else {
		p = make([]byte, 40, 40+len(payload))
		p[0], p[6], p[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(p[4:], uint16(len(payload)))
		copy(p[8:], src.AsSlice())
		copy(p[24:], dst.AsSlice())
	}
	return append(p, payload...)
}

func tcpPart(flags byte) []byte {
	b := make([]byte, 20)
	b[12], b[13] = 0x50, flags
	return b
}

func udpPart(src, dst uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	return append(b, 0, 8, 0, 0)
}

func icmpPart(kind byte) []byte { return append([]byte{kind}, make([]byte, 7)...) }

// Nothing but answers comes in through the interface, in either family.
func TestGuard(t *testing.T) {
	const syn, ack, rst = 0x02, 0x10, 0x04
	for i, own := range guardOwn {
		app := guardApp[i]
		w := &wireTUN{in: [][]byte{packet(own, app, 17, udpPart(40000, 53))}}
		g := newGuard(w, guardOwn)
		sizes := make([]int, 1)
		if n, err := g.Read([][]byte{make([]byte, 2000)}, sizes, 16); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		echo, reply, big := byte(8), byte(0), byte(3)
		icmp := byte(1)
		if own.Is6() {
			echo, reply, big, icmp = 128, 129, 2, 58
		}
		fragment := packet(app, own, 17, udpPart(53, 40000))
		long := packet(app, own, 6, tcpPart(ack))
		if own.Is4() {
			fragment[6] = 0x20
			binary.BigEndian.PutUint16(long[2:], 41)
		} else {
			fragment[6] = 44
			binary.BigEndian.PutUint16(long[4:], 21)
		}
		for name, c := range map[string]struct {
			p    []byte
			want bool
		}{
			"answer of a TCP connection":      {packet(app, own, 6, tcpPart(syn|ack)), true},
			"data of a TCP connection":        {packet(app, own, 6, tcpPart(ack)), true},
			"reset":                           {packet(app, own, 6, tcpPart(rst|ack)), true},
			"a TCP connection from outside":   {packet(app, own, 6, tcpPart(syn)), false},
			"the same with odd flags":         {packet(app, own, 6, tcpPart(syn|0xc0)), false},
			"a cut TCP header":                {packet(app, own, 6, tcpPart(ack)[:13]), false},
			"to a port that asked":            {packet(app, own, 17, udpPart(53, 40000)), true},
			"to a port that did not":          {packet(app, own, 17, udpPart(53, 5353)), false},
			"a cut UDP header":                {packet(app, own, 17, udpPart(53, 40000)[:7]), false},
			"an echo request":                 {packet(app, own, icmp, icmpPart(echo)), false},
			"an echo reply":                   {packet(app, own, icmp, icmpPart(reply)), true},
			"too big":                         {packet(app, own, icmp, icmpPart(big)), true},
			"a router's advertisement":        {packet(app, own, 58, icmpPart(134)), false},
			"to somebody else":                {packet(app, app, 6, tcpPart(ack)), false},
			"another protocol":                {packet(app, own, 47, make([]byte, 40)), false},
			"a fragment":                      {fragment, false},
			"longer than it is":               {long, false},
			"nothing":                         {nil, false},
			"the family's first byte":         {[]byte{0x45}, false},
			"another version":                 {append([]byte{0x70}, make([]byte, 60)...), false},
			"the other family's ICMP":         {packet(app, own, 59-icmp, icmpPart(3)), false},
			"a header length below the least": {append([]byte{0x44}, packet(app, own, 6, tcpPart(ack))[1:]...), false},
		} {
			w.out = nil
			before := g.refused.Load()
			buf := append(make([]byte, 16), c.p...)
			if n, err := g.Write([][]byte{buf}, 16); n != 1 || err != nil {
				t.Errorf("%s: %d %v", name, n, err)
			}
			if got := len(w.out) == 1; got != c.want || (g.refused.Load() == before) != c.want {
				t.Errorf("%v: %s passed: %t, refused %d", own, name, got, g.refused.Load()-before)
			}
		}
	}
}

// What is refused takes nothing else of its batch along, and nothing is
// reordered.
func TestGuardKeepsTheRest(t *testing.T) {
	own, app := guardOwn[0], guardApp[0]
	w := &wireTUN{}
	g := newGuard(w, guardOwn)
	var bufs [][]byte
	for i := range 6 {
		flags := byte(0x10)
		if i%2 == 1 {
			flags = 0x02
		}
		p := packet(app, own, 6, append(tcpPart(flags), byte(i)))
		bufs = append(bufs, append(make([]byte, 16), p...))
	}
	if n, err := g.Write(bufs, 16); n != 6 || err != nil {
		t.Fatal(n, err)
	}
	if len(w.out) != 3 {
		t.Fatalf("%d packets", len(w.out))
	}
	for i, p := range w.out {
		if p[len(p)-1] != byte(2*i) {
			t.Errorf("packet %d is number %d", i, p[len(p)-1])
		}
	}
}

// FuzzGuard: no packet makes the guard read past its end, and what passes is
// for us.
func FuzzGuard(f *testing.F) {
	for i, own := range guardOwn {
		f.Add(packet(guardApp[i], own, 6, tcpPart(0x10)))
		f.Add(packet(guardApp[i], own, 17, udpPart(53, 40000)))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		g := newGuard(&wireTUN{}, guardOwn)
		if g.wanted(p, 1) {
			h, ok := parse(p)
			if !ok || h.dst != guardOwn[0] && h.dst != guardOwn[1] {
				t.Errorf("%x passed", p)
			}
		}
	})
}

func BenchmarkGuardWrite(b *testing.B) {
	g := newGuard(&nowhere{}, guardOwn)
	p := append(make([]byte, 16), packet(guardApp[0], guardOwn[0], 6, append(tcpPart(0x10), make([]byte, 1200)...))...)
	bufs := make([][]byte, 64)
	for i := range bufs {
		bufs[i] = p
	}
	b.ReportAllocs()
	for b.Loop() {
		_, _ = g.Write(bufs, 16)
	}
}

type nowhere struct{ tun.Device }

func (nowhere) Write(bufs [][]byte, _ int) (int, error) { return len(bufs), nil }
