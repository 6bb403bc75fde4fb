package transport

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzControl reads control messages as the kernel never writes them, and
// compares with the standard parser where that one reads them.
func FuzzControl(f *testing.F) {
	f.Add([]byte{})
	f.Add(putSegment(make([]byte, 0, 100), 1400))
	f.Add(putSource(make([]byte, 0, 100), loopbacks["IPv4"]))
	f.Add(putClass(putSource(make([]byte, 0, 200), loopbacks["IPv6"]), true, dscpEF))
	gro, data := put(make([]byte, 0, 200), unix.SOL_UDP, unix.UDP_GRO, 4, spaceInt)
	data[0], data[1] = 0x78, 5
	f.Add(gro)
	f.Add(append(putClass(make([]byte, 0, 200), false, 1), gro...))
	f.Add(gro[:len(gro)-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		r := parseControl(b)
		if r.segment < 0 {
			t.Fatalf("segment of %d bytes", r.segment)
		}
		ms, err := unix.ParseSocketControlMessage(b)
		if err != nil {
			return
		}
		for _, m := range ms {
			if m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= 20 && !r.sticky {
				t.Fatal("an address was passed over")
			}
		}
	})
}

// FuzzSplit cuts messages into datagrams: nothing is lost, none is empty, none
// is longer than the segment, and only the last is shorter.
func FuzzSplit(f *testing.F) {
	f.Add([]byte("abcdefg"), 3)
	f.Add([]byte("abcdef"), 3)
	f.Add([]byte("a"), 1400)
	f.Add([]byte("abc"), 0)
	f.Add([]byte("abc"), -7)
	f.Add([]byte{}, 5)
	f.Fuzz(func(t *testing.T, data []byte, segment int) {
		var all []byte
		short := false
		for r := split(data, segment); len(r.data) > 0; {
			d := r.pop()
			if len(d) == 0 || short || (segment > 0 && len(d) > segment) {
				t.Fatalf("a datagram of %d bytes", len(d))
			}
			short = segment > 0 && len(d) < segment
			all = append(all, d...)
		}
		if !bytes.Equal(all, data) {
			t.Fatal("bytes were lost")
		}
	})
}
