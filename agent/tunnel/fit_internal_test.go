package tunnel

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/ipsum"
)

// syn is a SYN with options, by either family.
func syn(v6 bool, flags byte, options ...byte) []byte {
	for len(options)%4 != 0 {
		options = append(options, 0)
	}
	h := make([]byte, 20, 60)
	h[12], h[13] = byte(5+len(options)/4)<<4, flags
	h = append(h, options...)
	var p []byte
	if v6 {
		p = make([]byte, 40)
		p[0], p[6], p[7] = 0x60, 6, 64
		binary.BigEndian.PutUint16(p[4:], uint16(len(h)))
		p[23], p[39] = 1, 2
	} else {
		p = make([]byte, 20)
		p[0], p[8], p[9] = 0x45, 64, 6
		binary.BigEndian.PutUint16(p[2:], uint16(20+len(h)))
		p[15], p[19] = 1, 2
	}
	ip := len(p)
	p = append(p, h...)
	binary.BigEndian.PutUint16(p[ip+16:], ipsum.Of(pseudo(p, ip), p[ip:]))
	return p
}

func pseudo(p []byte, ip int) uint64 {
	if ip == 40 {
		return ipsum.Add(6+uint64(len(p)-ip), p[8:40])
	}
	return ipsum.Add(6+uint64(len(p)-ip), p[12:20])
}

func testFit(mtu int32) *fit {
	f, err := newFit(nil, []netip.Addr{netip.MustParseAddr("100.64.0.20")}, []netip.Addr{netip.MustParseAddr("100.64.0.1")}, 1420)
	if err != nil {
		panic(err)
	}
	f.segments.Store(mtu)
	return f
}

func TestClampsWhatASYNOffers(t *testing.T) {
	for name, c := range map[string]struct {
		packet []byte
		at     int // of the option's value in the packet; 0: nothing may change
		want   uint16
	}{
		"IPv4":                  {syn(false, 2, 2, 4, 0x05, 0x78), 42, 1160},
		"IPv4 SYN and ACK":      {syn(false, 0x12, 2, 4, 0x05, 0x78), 42, 1160},
		"IPv6":                  {syn(true, 2, 2, 4, 0x05, 0x64), 62, 1140},
		"after other options":   {syn(false, 2, 4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 0x05, 0x78), 54, 1160},
		"across two words":      {syn(false, 2, 1, 2, 4, 0x05, 0x78), 43, 1160},
		"across, IPv6":          {syn(true, 2, 1, 1, 1, 2, 4, 0x05, 0x78), 65, 1140},
		"small already":         {syn(false, 2, 2, 4, 0x02, 0x18), 0, 0},
		"no option":             {syn(false, 2), 0, 0},
		"no SYN":                {syn(false, 0x10, 2, 4, 0x05, 0x78), 0, 0},
		"after the end":         {syn(false, 2, 0, 0, 0, 0, 2, 4, 0x05, 0x78), 0, 0},
		"an option of length 0": {syn(false, 2, 3, 0, 2, 4, 0x05, 0x78), 0, 0},
		"an option too long":    {syn(false, 2, 3, 40, 2, 4, 0x05, 0x78), 0, 0},
	} {
		before := bytes.Clone(c.packet)
		testFit(1200).clamp(c.packet)
		if c.at == 0 {
			if !bytes.Equal(before, c.packet) {
				t.Errorf("%s: changed to %x", name, c.packet)
			}
			continue
		}
		ip := 20
		if c.packet[0]>>4 == 6 {
			ip = 40
		}
		if got := binary.BigEndian.Uint16(c.packet[c.at:]); got != c.want {
			t.Errorf("%s: offers %d, want %d", name, got, c.want)
		}
		if ipsum.Of(pseudo(c.packet, ip), c.packet[ip:]) != 0 {
			t.Errorf("%s: wrong checksum", name)
		}
		if full := bytes.Clone(before); true {
			if testFit(1420).clamp(full); !bytes.Equal(full, before) {
				t.Errorf("%s: changed though everything fits", name)
			}
		}
	}
}

func TestSaysWhatIsTooBig(t *testing.T) {
	v4 := make([]byte, 1280)
	v4[0], v4[6], v4[9] = 0x45, 0x40, 17
	copy(v4[12:], []byte{100, 64, 0, 20, 100, 64, 1, 30})
	b := tooBig(v4, 1220)
	if len(b) != 56 || b[20] != 3 || b[21] != 4 || binary.BigEndian.Uint16(b[26:]) != 1220 || !bytes.Equal(b[28:], v4[:28]) ||
		!bytes.Equal(b[12:16], v4[16:20]) || !bytes.Equal(b[16:20], v4[12:16]) || ipsum.Of(0, b[:20]) != 0 || ipsum.Of(0, b[20:]) != 0 {
		t.Errorf("fragmentation needed: %x", b)
	}
	v6 := make([]byte, 1400)
	v6[0], v6[6], v6[23], v6[39] = 0x60, 17, 1, 2
	b = tooBig(v6, 1300)
	if len(b) != 1280 || b[40] != 2 || binary.BigEndian.Uint32(b[44:]) != 1300 || !bytes.Equal(b[48:], v6[:1232]) ||
		ipsum.Of(ipsum.Add(58+1240, b[8:40]), b[40:]) != 0 || b[23] != 2 || b[39] != 1 {
		t.Errorf("packet too big: %x", b[:64])
	}
	may := bytes.Clone(v4)
	may[6] = 0
	icmp := bytes.Clone(v4)
	icmp[9] = 1
	for name, p := range map[string][]byte{"may be cut up": may, "ICMP": icmp, "IPv6 of its least MTU": v6[:1280], "nothing": nil, "noise": {0x45, 0, 0}} {
		if b := tooBig(p, 1220); b != nil {
			t.Errorf("%s is answered", name)
		}
	}
}

func TestEchoesAreKnown(t *testing.T) {
	f := testFit(1200)
	f.round.Store(7)
	e := f.echo(1280)
	if ipsum.Of(0, e[:20]) != 0 || ipsum.Of(0, e[20:]) != 0 || len(e) != 1280 {
		t.Errorf("echo %x", e[:28])
	}
	if _, ok := f.echoed(e); ok {
		t.Error("a request is an answer")
	}
	copy(e[12:], []byte{100, 64, 0, 1})
	e[20] = 0
	if a, ok := f.echoed(e); !ok || a != (reply{1280, 7}) {
		t.Errorf("%+v, %t", a, ok)
	}
	if _, ok := f.echoed(e[:1000]); ok {
		t.Error("half an answer counts")
	}
	for _, at := range []int{25, 35} { // id and token
		other := bytes.Clone(e)
		other[at]++
		if _, ok := f.echoed(other); ok {
			t.Error("another's answer counts")
		}
	}
}

// What comes back of an earlier measurement's echoes is no answer to a later one.
func TestALateEchoProvesNothing(t *testing.T) {
	f := testFit(1200)
	f.udp = func() bool { return true }
	early := f.echo(1280)
	copy(early[12:], []byte{100, 64, 0, 1})
	early[20] = 0
	answer := func() { _, _ = f.Write([][]byte{bytes.Clone(early)}, 0) }
	answer() // between the measurements
	asked := 0
	ctx, stop := context.WithCancel(t.Context())
	f.patience = time.Millisecond
	f.push = func(netip.AddrPort) error {
		answer() // and in the later one
		if asked++; asked == 5 {
			stop()
		}
		return nil
	}
	if n := f.measure(ctx); n != 0 {
		t.Errorf("%d bytes are proven, and no echo was answered", n)
	}
}

// Of echoes that leave together none follows a larger one: both could be one
// datagram on the way.
func TestSmallEchoesLeaveFirst(t *testing.T) {
	f := testFit(1200)
	f.patience = time.Millisecond
	var left []int
	f.push = func(netip.AddrPort) error {
		for _, e := range *f.pending.Load() {
			left = append(left, len(e))
		}
		return nil
	}
	f.ask(t.Context(), 1280, 1216, alive)
	if !slices.Equal(left, []int{alive, 1216, 1280}) {
		t.Errorf("%v", left)
	}
}

// queueTUN gives what is in its queue.
type queueTUN struct {
	tun.Device
	packets [][]byte
	n       int // calls
}

func (q *queueTUN) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	q.n++
	for ; n < len(bufs) && len(q.packets) > 0; n++ {
		sizes[n] = copy(bufs[n][offset:], q.packets[0])
		q.packets = q.packets[1:]
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// Our own packets leave whatever room there is, before all others, and what only
// made Read return does not: nobody would count it out again.
func TestWhatLeavesIsSomebodys(t *testing.T) {
	wake := make([]byte, 29)
	wake[0], wake[9], wake[23] = 0x45, 17, discard
	copy(wake[16:], []byte{100, 64, 0, 1})
	data := syn(false, 2, 2, 4, 0x02, 0x18)
	large := segmentOf(1280)
	for _, batch := range []int{1, 2, 8} {
		f := testFit(1200)
		f.udp = func() bool { return true }
		asked := 0
		f.question = func(bool) { asked++ }
		f.Device = &queueTUN{packets: [][]byte{wake, data, wake, large, wake}}
		f.pending.Store(&[][]byte{f.echo(1280), f.echo(alive), f.echo(1200)})
		f.calling.Store(true)
		var got []int
		bufs, sizes := make([][]byte, batch), make([]int, batch)
		for i := range bufs {
			bufs[i] = make([]byte, 2000)
		}
		for {
			n, err := f.Read(bufs, sizes, 16)
			got = append(got, sizes[:n]...)
			if err != nil {
				break
			}
		}
		if want := []int{1280, alive, 1200, callSize, len(data), 1200, 40 + 80}; !slices.Equal(got, want) {
			t.Errorf("in batches of %d: %v, want %v", batch, got, want)
		}
		if asked == 0 || !f.inUse.Load() {
			t.Errorf("in batches of %d: nobody is waited for", batch)
		}
	}
}

// segmentOf is a TCP segment of size bytes to an app.
func segmentOf(size int) []byte {
	p := append(syn(false, 0x10), make([]byte, size-40)...)
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	p[36], p[37] = 0, 0
	binary.BigEndian.PutUint16(p[36:], ipsum.Of(pseudo(p, 20), p[20:]))
	return p
}

// What the gateway says by itself is no use; all that is long, or to anybody
// else, is.
func TestWhoUsesTheTunnel(t *testing.T) {
	packet := func(size int, from, to string) []byte {
		p := make([]byte, size)
		a, b := netip.MustParseAddr(from), netip.MustParseAddr(to)
		if a.Is4() {
			p[0] = 0x45
			copy(p[12:], a.AsSlice())
			copy(p[16:], b.AsSlice())
		} else {
			p[0] = 0x60
			copy(p[8:], a.AsSlice())
			copy(p[24:], b.AsSlice())
		}
		return p
	}
	const own4, own6, gw4, gw6 = "100.64.0.20", "fd00:64::20", "100.64.0.1", "fd00:64::1"
	for name, c := range map[string]struct {
		p        []byte
		in, want bool
	}{
		"a sign of life":       {packet(120, gw4, own4), true, false},
		"one by IPv6":          {packet(120, gw6, own6), true, false},
		"how it is heard":      {packet(52, own4, gw4), false, false},
		"by IPv6":              {packet(72, own6, gw6), false, false},
		"a page of its":        {packet(1200, gw4, own4), true, true},
		"an app":               {packet(52, "100.64.1.30", own4), true, true},
		"what an app is asked": {packet(72, own6, "fd00:64::1:30"), false, true},
	} {
		f := testFit(1200)
		f.gateways = []netip.Addr{netip.MustParseAddr(gw4), netip.MustParseAddr(gw6)}
		if f.uses(c.p, c.in); f.inUse.Load() != c.want {
			t.Errorf("%s: %t", name, !c.want)
		}
	}
}

// FuzzClamp lowers nothing but an MSS, and keeps a right checksum right.
func FuzzClamp(f *testing.F) {
	f.Add(syn(false, 2, 2, 4, 0x05, 0x78))
	f.Add(syn(true, 0x12, 1, 2, 4, 0x05, 0x64))
	f.Add(testFit(1200).echo(100))
	f.Add([]byte{0x4f, 0, 0, 20})
	f.Fuzz(func(t *testing.T, p []byte) {
		fit := testFit(1200)
		fit.echoed(p)
		tooBig(p, 1200)
		before := bytes.Clone(p)
		fit.clamp(p)
		changed := 0
		for i := range p {
			if p[i] != before[i] {
				changed++
			}
		}
		if changed > 4 {
			t.Fatalf("%d bytes changed", changed)
		}
		if h, ip := tcpHeader(before); h != nil && changed > 0 && ipsum.Of(pseudo(before, ip), before[ip:]) == 0 &&
			ipsum.Of(pseudo(p, ip), p[ip:]) != 0 {
			t.Fatalf("checksum broken: %x to %x", before, p)
		}
	})
}
