package pathsize

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"

	"github.com/portvakt/portvakt/internal/ipsum"
)

// segment is a TCP segment with a time stamp and right checksums.
func segment(v6 bool, flags byte, seq uint32, payload int) []byte {
	ip := ip4
	if v6 {
		ip = ip6
	}
	p := make([]byte, ip+tcp+12+payload)
	if v6 {
		p[0], p[6], p[7], p[23], p[39] = 0x60, protoTCP, 64, 1, 2
	} else {
		p[0], p[5], p[6], p[8], p[9], p[15], p[19] = 0x45, 9, 0x40, 64, protoTCP, 1, 2
	}
	h := p[ip:]
	binary.BigEndian.PutUint16(h, 443)
	binary.BigEndian.PutUint16(h[2:], 50000)
	binary.BigEndian.PutUint32(h[4:], seq)
	h[12], h[13] = 8<<4, flags
	copy(h[20:], []byte{1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8})
	for i := range payload {
		h[32+i] = byte(i * 7)
	}
	seal(p, ip)
	return p
}

// reader hands packets out as a tun.Device does, as many as there is room for.
type reader struct {
	packets [][]byte
	most    int // room in the last Read
}

var errEnd = errors.New("end")

func (r *reader) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	if r.most = len(bufs); len(r.packets) == 0 {
		return 0, errEnd
	}
	for ; n < len(bufs) && n < len(r.packets); n++ {
		sizes[n] = copy(bufs[n][offset:], r.packets[n])
		bufs[n][len(bufs[n])-1] = byte(len(r.packets[n])) // stands for its class
	}
	r.packets = r.packets[n:]
	return n, nil
}

// all reads until the end.
func all(t *testing.T, packets [][]byte, batch int, small bool, limit func([]byte) int) (out [][]byte, classes []byte) {
	t.Helper()
	const offset = 16
	r := &reader{packets: packets}
	var c Cutter
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	for {
		n, err := c.Read(r.Read, bufs, sizes, offset, small, limit)
		for i := range n {
			out = append(out, bytes.Clone(bufs[i][offset:offset+sizes[i]]))
			classes = append(classes, bufs[i][len(bufs[i])-1])
		}
		if err != nil {
			return out, classes
		}
	}
}

func TestCutsWhatIsTooLongAndKeepsTheOrder(t *testing.T) {
	const flags = psh | fin | cwr | 0x10
	udp := segment(false, flags, 9, 1300)
	udp[9] = 17
	wrong := segment(false, flags, 10, 1300)
	wrong[1000]++
	packets := [][]byte{
		segment(false, flags, 1, 1228), // 1,280 bytes
		segment(false, flags, 2, 1164), // 1,216: fits
		{},
		segment(true, flags, 3, 1208), // 1,280
		udp,
		segment(false, 0x10, 1<<32-1, 1348), // 1,400, and the numbers begin anew
		segment(false, syn, 4, 1300),
		wrong,
		segment(true, 0x10, 5, 0),
	}
	for _, batch := range []int{1, 2, 3, 8, 64} {
		got, classes := all(t, packets, batch, true, func([]byte) int { return 1216 })
		want := []int{1216, 52 + 64, 1216, 0, 1216, 72 + 64, 1352, 1216, 52 + 184, 1352, 1352, 72}
		if len(got) != len(want) {
			t.Fatalf("in batches of %d: %d packets, want %d", batch, len(got), len(want))
		}
		for i, p := range got {
			if len(p) != want[i] {
				t.Errorf("in batches of %d: packet %d has %d bytes, want %d", batch, i, len(p), want[i])
			}
		}
		for i, of := range map[int]int{0: 0, 1: 0, 2: 1, 4: 3, 5: 3, 6: 4, 7: 5, 8: 5, 11: 8} {
			if classes[i] != byte(len(packets[of])) {
				t.Errorf("in batches of %d: packet %d is of another class", batch, i)
			}
		}
		for i, of := range map[int]int{0: 0, 4: 3, 7: 5} {
			same(t, packets[of], got[i], got[i+1])
		}
		if !bytes.Equal(got[2], packets[1]) || !bytes.Equal(got[6], udp) || !bytes.Equal(got[9], packets[6]) || !bytes.Equal(got[10], wrong) {
			t.Errorf("in batches of %d: what is not to be cut has changed", batch)
		}
	}
	for name, limit := range map[string]int{"unknown": 0, "none is believed": 100, "large": 1420} {
		if got, _ := all(t, packets, 64, true, func([]byte) int { return limit }); len(got) != len(packets) {
			t.Errorf("limit %s: %d packets", name, len(got))
		}
	}
	if got, _ := all(t, packets, 64, false, nil); len(got) != len(packets) {
		t.Errorf("nothing is small: %d packets", len(got))
	}
}

func TestClosesUp(t *testing.T) {
	sizes := []int{0, 2, 0, 1, 0}
	bufs := make([][]byte, len(sizes))
	for i := range bufs {
		bufs[i] = []byte{0xff, byte(i), byte(i), byte(i)} // one byte before, the class last
	}
	n := Close(bufs, sizes, 1, len(sizes))
	if n != 2 || sizes[0] != 2 || sizes[1] != 1 || !bytes.Equal(bufs[0], []byte{0xff, 1, 1, 1}) || bufs[1][1] != 3 || bufs[1][3] != 3 {
		t.Errorf("%d packets: %v %v", n, sizes, bufs)
	}
}

// same holds two segments to the one they were made of.
func same(t *testing.T, whole, first, second []byte) {
	t.Helper()
	ip := ip4
	if whole[0]>>4 == 6 {
		ip = ip6
	}
	head := ip + int(whole[ip+12]>>4)*4
	if !bytes.Equal(append(bytes.Clone(first[head:]), second[head:]...), whole[head:]) {
		t.Error("the payload is another one")
	}
	seq := func(p []byte) uint32 { return binary.BigEndian.Uint32(p[ip+4:]) }
	if seq(first) != seq(whole) || seq(second) != seq(whole)+uint32(len(first)-head) {
		t.Errorf("numbers %d and %d of %d", seq(first), seq(second), seq(whole))
	}
	if first[ip+13] != whole[ip+13]&^(fin|psh) || second[ip+13] != whole[ip+13]&^cwr {
		t.Errorf("flags %#x and %#x of %#x", first[ip+13], second[ip+13], whole[ip+13])
	}
	for _, p := range [][]byte{first, second} {
		if headers(p) != head {
			t.Errorf("no whole segment with a right checksum: %x", p[:head])
		}
		if !bytes.Equal(p[ip+20:head], whole[ip+20:head]) || !bytes.Equal(p[ip:ip+4], whole[ip:ip+4]) {
			t.Error("options or ports are others")
		}
		if ip == ip4 && ipsum.Of(0, p[:ip4]) != 0 {
			t.Error("wrong header checksum")
		}
	}
	if ip == ip4 && binary.BigEndian.Uint16(second[4:]) != binary.BigEndian.Uint16(first[4:])+1 {
		t.Error("both are one datagram")
	}
}

func TestNotes(t *testing.T) {
	gateway, own := netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("100.64.0.20")
	note := func(size int) []byte {
		b := make([]byte, 64)
		b[0], b[8], b[9], b[20] = 0x45, 64, 1, 8
		binary.BigEndian.PutUint16(b[2:], 64)
		copy(b[12:], own.AsSlice())
		copy(b[16:], gateway.AsSlice())
		Note(b, size)
		return b
	}
	if from, size, ok := Noted(note(1216), gateway); !ok || size != 1216 || from != own {
		t.Errorf("%v, %d, %t", from, size, ok)
	}
	answer, other, plain := note(1216), note(1216), note(1216)
	answer[20], other[19], plain[noteAt] = 0, 9, 0
	for name, p := range map[string][]byte{
		"too small": note(Least - 1), "an answer": answer, "to somebody else": other, "a plain echo": plain,
		"half": note(1216)[:NoteEnd-1], "nothing": nil,
	} {
		if _, _, ok := Noted(p, gateway); ok {
			t.Errorf("%s is a note", name)
		}
	}
}

// FuzzCut makes nothing of anything but whole segments, and of those what is one
// together.
func FuzzCut(f *testing.F) {
	f.Add(segment(false, psh, 1, 1300), uint16(1216))
	f.Add(segment(true, fin, 1, 1300), uint16(1200))
	f.Add(segment(false, psh, 1, 1300), uint16(0))
	f.Add([]byte{0x4f, 0, 0, 20}, uint16(1120))
	f.Fuzz(func(t *testing.T, p []byte, limit uint16) {
		p = p[:min(len(p), 2000)]
		Noted(p, netip.MustParseAddr("100.64.0.1"))
		switch got, _ := all(t, [][]byte{p}, 2, true, func([]byte) int { return int(limit) }); {
		case len(got) == 1 && bytes.Equal(got[0], p):
		case len(got) == 2 && len(got[0]) == int(limit) && len(got[1]) <= int(limit):
			same(t, p, got[0], got[1])
		default:
			t.Fatalf("%d packets", len(got))
		}
	})
}
