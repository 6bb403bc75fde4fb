package segment_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/portvakt/portvakt/gateway/segment"
)

func seeds(f *testing.F) {
	for i := range device {
		from := at(device[i], 40000)
		f.Add(tcp(from, at(app[i], 443), syn, 1, 0, ""))
		f.Add(tcp(from, at(hidden[i], 443), ack, 1, 2, "payload"))
		f.Add(udp(from, at(app[i], 5004), "voice"))
		f.Add(echo(device[i], gateway[i]))
		f.Add(tooBig(device[i], app[i], 1300, tcp(at(app[i], 443), from, ack, 1, 1, "")))
	}
}

// FuzzFilter holds what passes against fixed offsets: with options and
// extension headers refused, every field has one place.
func FuzzFilter(f *testing.F) {
	seeds(f)
	table := newTable()
	type to struct {
		proto byte
		dst   netip.AddrPort
	}
	allowed := map[to]bool{}
	for i := range app {
		allowed[to{6, at(app[i], 443)}], allowed[to{17, at(app[i], 5004)}], allowed[to{6, at(gateway[i], 80)}] = true, true, true
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := string(b)
		v, c := table.Filter(b)
		if string(b) != before {
			t.Fatal("Filter changed the packet")
		}
		if (v == segment.Pass) != (c == segment.CauseNone) {
			t.Fatalf("verdict %v with cause %v", v, c)
		}
		if v == segment.Drop {
			return
		}
		var src, dst netip.Addr
		var proto byte
		var l4 []byte
		if b[0] == 0x45 {
			src, _ = netip.AddrFromSlice(b[12:16])
			dst, _ = netip.AddrFromSlice(b[16:20])
			proto, l4 = b[9], b[20:]
		} else {
			src, _ = netip.AddrFromSlice(b[8:24])
			dst, _ = netip.AddrFromSlice(b[24:40])
			proto, l4 = b[6], b[40:]
		}
		if src != device[0] && src != device[1] && src != other[0] && src != other[1] {
			t.Fatalf("%v for source %v", v, src)
		}
		if v == segment.Reset {
			if proto != 6 {
				t.Fatalf("reset for protocol %d", proto)
			}
			return
		}
		if proto == 1 || proto == 58 {
			if l4[0] != 3 && l4[0] != 2 {
				if dst != gateway[0] && dst != gateway[1] {
					t.Fatalf("ICMP to %v passed", dst)
				}
				return
			}
			// News of a smaller path: about a segment from where it is sent to.
			about, ports := l4[8:], l4[8+len(b)-len(l4):]
			from, _ := netip.AddrFromSlice(about[12:16])
			whom, _ := netip.AddrFromSlice(about[16:20])
			if b[0]>>4 == 6 {
				from, _ = netip.AddrFromSlice(about[8:24])
				whom, _ = netip.AddrFromSlice(about[24:40])
			}
			if from != dst || whom != src || !allowed[to{6, netip.AddrPortFrom(dst, binary.BigEndian.Uint16(ports))}] {
				t.Fatalf("news about %v to %v for %v passed", from, whom, dst)
			}
			return
		}
		if !allowed[to{proto, netip.AddrPortFrom(dst, binary.BigEndian.Uint16(l4[2:]))}] {
			t.Fatalf("protocol %d to %v passed", proto, dst)
		}
	})
}

func FuzzResetFor(f *testing.F) {
	seeds(f)
	f.Add(tcp(at(device[0], 9), at(app[0], 443), rst, 1, 0, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := segment.ResetFor(b)
		if r == nil {
			return
		}
		var src, dst, inSrc, inDst, l4, inL4 []byte
		if b[0]>>4 == 4 {
			src, dst, inSrc, inDst, l4, inL4 = r[12:16], r[16:20], b[12:16], b[16:20], r[20:], b[20:]
			if checksum(r[:20]) != 0 {
				t.Fatal("wrong IP checksum")
			}
		} else {
			src, dst, inSrc, inDst, l4, inL4 = r[8:24], r[24:40], b[8:24], b[24:40], r[40:], b[40:]
		}
		if string(src) != string(inDst) || string(dst) != string(inSrc) || string(l4[:2]) != string(inL4[2:4]) || string(l4[2:4]) != string(inL4[:2]) {
			t.Fatal("the reset does not go back where the packet came from")
		}
		if len(l4) != 20 || checksum(pseudo(src, dst, 6, len(l4)), l4) != 0 {
			t.Fatal("wrong TCP checksum")
		}
		if inL4[13]&rst != 0 {
			t.Fatal("a reset was answered")
		}
		if segment.ResetFor(r) != nil {
			t.Fatal("the reset would be answered by a reset")
		}
	})
}
