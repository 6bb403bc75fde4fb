package overlay

import (
	"encoding/binary"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// TestPathsThatAreBelieved: news of a smaller path gets to a gateway's stack, of
// a path no packet takes it does not. The stack makes one byte a segment of it.
func TestPathsThatAreBelieved(t *testing.T) {
	d := &device{stack: &Stack{opts: Options{Gateway: true}}}
	for _, c := range []struct {
		name      string
		version   byte
		proto     byte
		typ, code byte
		mtu       uint16
		want      bool
	}{
		{"IPv4", 4, 1, 3, 4, 1300, true},
		{"IPv4, the least", 4, 1, 3, 4, 576, true},
		{"IPv4, less", 4, 1, 3, 4, 575, false},
		{"IPv4, as routers of before 1990 say it", 4, 1, 3, 4, 0, false},
		{"IPv6", 6, 58, 2, 0, 1300, true},
		{"IPv6, the least", 6, 58, 2, 0, 1280, true},
		{"IPv6, less", 6, 58, 2, 0, 1279, false},
		{"no route", 4, 1, 3, 0, 1300, false},
		{"an unknown code", 6, 58, 2, 1, 1300, false},
		{"the other family's in IPv4", 4, 58, 2, 0, 1300, false},
		{"the other family's in IPv6", 6, 1, 3, 4, 1300, false},
	} {
		p := make([]byte, 100)
		p[0], p[3], p[9] = 0x45, 100, c.proto
		l4 := p[20:]
		if c.version == 6 {
			p[0], p[5], p[6], p[9] = 0x60, 60, c.proto, 0
			l4 = p[40:]
		}
		l4[0], l4[1] = c.typ, c.code
		binary.BigEndian.PutUint16(l4[6:], c.mtu)
		if got := d.forGateway(p); got != c.want {
			t.Errorf("%s, %d bytes: %v, want %v", c.name, c.mtu, got, c.want)
		}
		if d.forGateway(p[:len(p)-len(l4)+7]) {
			t.Errorf("%s: a message of seven bytes passes", c.name)
		}
	}
}

// FuzzRaiseMSS: whatever the options of a SYN are, the stack reads a size of 536
// or more out of them, and all else as it was.
func FuzzRaiseMSS(f *testing.F) {
	for _, o := range []string{
		"\x02\x04\x05\x64", "\x02\x04\x00\x01", "\x02\x04\x00\x00", "\x01\x01\x02\x04\x00\x30\x03\x03\x0a\x00", "\x03\x03\x0a\x02\x04\x00\x01\x00",
		"\x02\x04\x05\x64\x02\x04\x00\x01", "\x08\x0a\x02\x04\x00\x01\x00\x00\x00\x00\x02\x04\x00\x01", "\x02\x03\x01\x02\x04\x00\x01\x00", "\xfe\x02\x02\x04\x00\x01", "\x02",
	} {
		f.Add([]byte(o))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > header.TCPOptionsMaximumSize {
			return
		}
		was := header.ParseSynOptions(b, false)
		raiseMSS(b)
		is := header.ParseSynOptions(b, false)
		if is.MSS < leastMSS || was.MSS >= leastMSS && is.MSS < was.MSS {
			t.Fatalf("%x: a segment of %d bytes is read as %d", b, was.MSS, is.MSS)
		}
		if is.WS != was.WS || is.TS != was.TS || is.TSVal != was.TSVal || is.SACKPermitted != was.SACKPermitted {
			t.Fatalf("%x: %+v is read as %+v", b, was, is)
		}
	})
}
