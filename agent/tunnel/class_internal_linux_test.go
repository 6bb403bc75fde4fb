package tunnel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/transport"
)

var (
	classOwn  = []netip.Addr{netip.MustParseAddr("100.64.0.20"), netip.MustParseAddr("fd00:64::20")}
	classCall = []netip.Addr{netip.MustParseAddr("100.64.1.30"), netip.MustParseAddr("fd00:64::1:30")}
	classOff  = []netip.Addr{netip.MustParseAddr("100.64.1.31"), netip.MustParseAddr("fd00:64::1:31")}
)

// rtp is a datagram with 20 ms of G.711.
var rtp = "\x80\x00\x00\x01\x00\x00\x00\x00\x09\x09\x09\x09" + strings.Repeat("x", 160)

// inner is a whole packet of one protocol to an app's port 5004.
func inner(from, to netip.Addr, proto byte, port uint16, payload string) []byte {
	l4 := []byte{byte(port >> 8), byte(port), 5004 >> 8, 5004 & 0xff}
	if proto == 17 {
		l4 = append(l4, byte((8+len(payload))>>8), byte(8+len(payload)), 0, 0)
	} else {
		l4 = append(l4, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0)
	}
	l4 = append(l4, payload...)
	var p []byte
	if from.Is4() {
		p = make([]byte, 20)
		p[0], p[8], p[9] = 0x45, 64, proto
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(l4)))
		copy(p[12:], from.AsSlice())
		copy(p[16:], to.AsSlice())
	} else {
		p = make([]byte, 40)
		p[0], p[6], p[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(p[4:], uint16(len(l4)))
		copy(p[8:], from.AsSlice())
		copy(p[24:], to.AsSlice())
	}
	return append(p, l4...)
}

// said is the packet with expedited forwarding and ECN of its program's own.
func said(p []byte) []byte {
	if p[0]>>4 == 4 {
		p[1] = 46<<2 | 1
	} else {
		p[0], p[1] = 0x60|46>>2, 46<<6&0xff|1<<4
	}
	return p
}

// batches is a TUN that hands out batches, and notes classes as the userspace
// stack does: once there was voice.
type batches struct {
	tun.Device
	in    [][][]byte
	marks bool
}

func (b *batches) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	batch := b.in[0]
	b.in = b.in[1:]
	for i, p := range batch {
		sizes[i] = copy(bufs[i][offset:], p)
		if b.marks {
			transport.Mark(bufs[i], transport.ClassOf(p))
		}
	}
	return len(batch), nil
}

// classesOf reads batches through a fit, always with the same buffers, and
// returns the class of each packet by its place in them.
func classesOf(t *testing.T, apps []netip.AddrPort, marks bool, in ...[][]byte) (all []byte) {
	t.Helper()
	f, err := newFit(&batches{in: in, marks: marks}, classOwn, []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:64::1")}, 1420)
	if err != nil {
		t.Fatal(err)
	}
	f.question = func(bool) {}
	(&Tunnel{fit: f}).SetCalls(apps)
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, device.MaxMessageSize)
	}
	for _, batch := range in {
		n, err := f.Read(bufs, sizes, 16)
		if n != len(batch) || err != nil {
			t.Fatalf("%d packets of %d: %v", n, len(batch), err)
		}
		for i := range n {
			all = append(all, bufs[i][len(bufs[i])-1])
		}
	}
	return all
}

// What is a call's, of an app whose calls are told, is marked; nothing else is,
// whatever its program says, in either family, nor what comes in its buffer next.
func TestClasses(t *testing.T) {
	for i, own := range classOwn {
		call, off := classCall[i], classOff[i]
		apps := []netip.AddrPort{netip.AddrPortFrom(call, 5004)}
		datagram := func(to netip.Addr, payload string) []byte { return inner(own, to, 17, 4000, payload) }
		bulk := inner(own, call, 6, 4000, strings.Repeat("x", 1100))
		fragment := datagram(call, rtp)
		if own.Is4() {
			fragment[6] = 0x20
		} else {
			fragment[6] = 44
		}
		other := datagram(call, rtp)
		other[len(other)-len(rtp)-5]++ // the app's next port
		for name, c := range map[string]struct {
			apps []netip.AddrPort
			in   [][][]byte
			want []byte
		}{
			"a call":                 {apps, [][][]byte{{datagram(call, rtp), datagram(call, rtp)}, {datagram(call, rtp)}}, []byte{0, 1, 1}},
			"among bulk":             {apps, [][][]byte{{bulk, datagram(call, rtp), bulk}, {datagram(call, rtp), bulk, datagram(call, rtp), bulk}, {bulk, bulk, bulk}}, []byte{0, 0, 0, 1, 0, 1, 0, 0, 0, 0}},
			"two ports, one a call":  {apps, [][][]byte{{datagram(call, rtp), inner(own, call, 17, 4001, rtp), datagram(call, rtp), inner(own, call, 17, 4001, "text")}}, []byte{0, 0, 1, 0}},
			"video":                  {apps, [][][]byte{{datagram(call, rtp), datagram(call, rtp)}, {datagram(call, rtp+strings.Repeat("x", 500)), datagram(call, rtp)}}, []byte{0, 1, 0, 0}},
			"no call":                {apps, [][][]byte{{datagram(call, "hello, who is it?"), datagram(call, "hello, who is it?")}}, []byte{0, 0}},
			"its program says so":    {apps, [][][]byte{{said(datagram(call, "hello")), datagram(call, "hello")}}, []byte{1, 0}},
			"off":                    {apps, [][][]byte{{datagram(off, rtp), datagram(off, rtp), said(datagram(off, rtp))}}, []byte{0, 0, 0}},
			"all off":                {nil, [][][]byte{{datagram(call, rtp), datagram(call, rtp), said(datagram(call, rtp))}}, []byte{0, 0, 0}},
			"another port":           {apps, [][][]byte{{other, other, other}}, []byte{0, 0, 0}},
			"TCP that says so":       {apps, [][][]byte{{said(slices.Clone(bulk)), bulk}}, []byte{0, 0}},
			"fragments":              {apps, [][][]byte{{said(fragment), fragment}}, []byte{0, 0}},
			"what is cut short":      {apps, [][][]byte{{said(datagram(call, ""))[:20+i*20+7], {0x45}}}, []byte{0, 0}},
			"an empty one in a call": {apps, [][][]byte{{datagram(call, rtp), datagram(call, rtp), datagram(call, "")}}, []byte{0, 1, 1}},
		} {
			for _, marks := range []bool{false, true} {
				if got := classesOf(t, c.apps, marks, c.in...); !slices.Equal(got, c.want) {
					t.Errorf("%v, %s: classes %v, want %v", own, name, got, c.want)
				}
			}
		}
	}
}

// What is remembered of flows is bounded, and forgotten with them.
func TestClassesForget(t *testing.T) {
	f := testFit(1420)
	(&Tunnel{fit: f}).SetCalls([]netip.AddrPort{netip.AddrPortFrom(classCall[0], 5004)})
	c := &f.classes
	buf := make([]byte, device.MaxMessageSize)
	class := func(port int) byte {
		n := copy(buf, inner(classOwn[0], classCall[0], 17, uint16(port), rtp))
		c.mark([][]byte{buf}, []int{n}, 0)
		return buf[len(buf)-1]
	}
	for port := range 3 * maxCalls {
		class(port)
		if len(c.calls) > maxCalls {
			t.Fatalf("%d flows", len(c.calls))
		}
	}
	for i, want := range []byte{0, 1, 1} {
		if got := class(60000); got != want {
			t.Errorf("datagram %d has class %d", i, got)
		}
	}
	c.began = c.began.Add(-callIdle * time.Second / 2)
	if class(60000) != transport.ClassVoice {
		t.Error("forgotten too early")
	}
	c.began = c.began.Add(-(callIdle + 2) * time.Second)
	if class(60000) != transport.ClassNone {
		t.Error("the port's next user is taken for the call before")
	}
}

// A laptop that never had a call marked writes to no buffer's end: it is a page
// of memory each.
func TestClassesLeaveTheEndAlone(t *testing.T) {
	const untouched = 7
	f := testFit(1420)
	(&Tunnel{fit: f}).SetCalls([]netip.AddrPort{netip.AddrPortFrom(classCall[0], 5004)})
	c := &f.classes
	buf := make([]byte, device.MaxMessageSize)
	buf[len(buf)-1] = untouched
	n := copy(buf[16:], inner(classOwn[0], classCall[0], 17, 4000, "text"))
	c.mark([][]byte{buf}, []int{n}, 16)
	if buf[len(buf)-1] != untouched {
		t.Error("written")
	}
}

// FuzzDatagram: no packet is read past its end, and it leads where the guard
// reads that it does.
func FuzzDatagram(f *testing.F) {
	for i, own := range classOwn {
		f.Add(inner(own, classCall[i], 17, 4000, rtp))
		f.Add(said(inner(own, classCall[i], 6, 4000, "x")))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		flow, payload, ok := datagram(slices.Clip(p))
		if !ok {
			return
		}
		h, parsed := parse(p)
		if len(payload) > len(p)-28 || parsed && (h.proto != 17 || flow.to != placeOf(netip.AddrPortFrom(h.dst, binary.BigEndian.Uint16(h.rest[2:])))) {
			t.Errorf("%x reads %v", p, flow)
		}
	})
}

// endless is a TUN of which each Read brings a batch.
type endless struct {
	tun.Device
	p []byte
}

func (e *endless) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range bufs {
		sizes[i] = copy(bufs[i][offset:], e.p)
	}
	return len(bufs), nil
}

// BenchmarkRead is what is between the interface and WireGuard, for a packet that
// no call is, of TCP and of an app with off, and for a call's.
func BenchmarkRead(b *testing.B) {
	for name, p := range map[string][]byte{
		"tcp":  inner(classOwn[0], classCall[0], 6, 4000, strings.Repeat("x", 1100)),
		"udp":  inner(classOwn[0], classOff[0], 17, 4000, rtp),
		"call": inner(classOwn[0], classCall[0], 17, 4000, rtp),
	} {
		f, err := newFit(newGuard(&endless{p: p}, classOwn), classOwn, []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:64::1")}, 1420)
		if err != nil {
			b.Fatal(err)
		}
		f.question = func(bool) {}
		f.segments.Store(1420)
		(&Tunnel{fit: f}).SetCalls([]netip.AddrPort{netip.AddrPortFrom(classCall[0], 5004)})
		bufs, sizes := make([][]byte, 128), make([]int, 128)
		for i := range bufs {
			bufs[i] = make([]byte, device.MaxMessageSize)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = f.Read(bufs, sizes, 16)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(bufs)), "ns/packet")
		})
	}
}
