package ipsum

import (
	"encoding/binary"
	"testing"
)

// plain is RFC 1071 as it is written there.
func plain(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for ; len(b) > 1; b = b[2:] {
			s += uint32(b[0])<<8 | uint32(b[1])
			s = s>>16 + s&0xffff
		}
		if len(b) == 1 {
			s += uint32(b[0]) << 8
			s = s>>16 + s&0xffff
		}
	}
	return uint16(s)
}

func TestKnownSums(t *testing.T) {
	// The example of RFC 1071 section 3, and an IPv4 header with its checksum.
	if got := Fold(Add(0, []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7})); got != 0xddf2 {
		t.Errorf("%#x", got)
	}
	header := []byte{0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7}
	if got := Fold(Add(0, header)); got != 0xffff {
		t.Errorf("%#x", got)
	}
	header[10], header[11] = 0, 0
	if got := Of(0, header); got != 0xb861 {
		t.Errorf("%#x", got)
	}
	if got := Fold(Add(0, nil)); got != 0 {
		t.Errorf("%#x", got)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint16(0))
	f.Add([]byte{1}, uint16(1), uint16(0xffff))
	f.Add(make([]byte, 65535), uint16(0xffff), uint16(20))
	ones := make([]byte, 1501)
	for i := range ones {
		ones[i] = 0xff
	}
	f.Add(ones, uint16(0xffff), uint16(1000))
	f.Fuzz(func(t *testing.T, b []byte, number, cut uint16) {
		at := int(cut) &^ 1
		if at > len(b) {
			at = len(b) &^ 1
		}
		want := plain(binary.BigEndian.AppendUint16(nil, number), b)
		if got := Fold(Add(uint64(number), b)); got != want {
			t.Errorf("%#x, want %#x", got, want)
		}
		if got := Fold(Add(Add(uint64(number), b[:at]), b[at:])); got != want {
			t.Errorf("in two parts %#x, want %#x", got, want)
		}
		if got := Of(uint64(number), b); got != ^want {
			t.Errorf("checksum %#x, want %#x", got, ^want)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	p := make([]byte, 1420)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		Add(0, p)
	}
}
