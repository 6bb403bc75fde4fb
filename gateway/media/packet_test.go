package media

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/internal/voice"
)

// naive is RFC 1071 as it is written.
func naive(b []byte, s uint32) uint16 {
	for i, c := range b {
		if i%2 == 0 {
			s += uint32(c) << 8
		} else {
			s += uint32(c)
		}
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// packet makes a UDP packet by hand, independently of header.
func packet(src, dst netip.AddrPort, payload []byte) []byte {
	var p []byte
	length := uint16(udpLen + len(payload))
	if src.Addr().Is4() {
		p = append([]byte{0x45, 0}, 0, 0, 0, 7, 0x40, 0, 64, udpIP, 0, 0)
		binary.BigEndian.PutUint16(p[2:], ip4Len+length)
		p = append(append(p, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
		binary.BigEndian.PutUint16(p[10:], ^naive(p, 0))
	} else {
		p = append([]byte{0x60, 0, 0, 0}, byte(length>>8), byte(length), udpIP, 64)
		p = append(append(p, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	}
	addrs := p[len(p)-2*src.Addr().BitLen()/8:]
	l4 := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, src.Port()), dst.Port())
	l4 = append(binary.BigEndian.AppendUint16(l4, length), 0, 0)
	l4 = append(l4, payload...)
	c := ^naive(append(bytes.Clone(addrs), l4...), uint32(udpIP)+uint32(length))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(l4[6:], c)
	return append(p, l4...)
}

var (
	peers = [2]netip.AddrPort{netip.MustParseAddrPort("100.64.0.9:4000"), netip.MustParseAddrPort("[fd00:64::9]:4000")}
	apps  = [2]netip.AddrPort{netip.MustParseAddrPort("100.64.128.1:5004"), netip.MustParseAddrPort("[fd00:64::1:1]:5004")}
)

func TestParse(t *testing.T) {
	change := func(p []byte, at int, to ...byte) []byte {
		p = bytes.Clone(p)
		copy(p[at:], to)
		return p
	}
	resum := func(p []byte) []byte { // the IPv4 header's checksum, after a change
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], ^naive(p[:20], 0))
		return p
	}
	v4, v6 := packet(peers[0], apps[0], []byte("hello")), packet(peers[1], apps[1], []byte("hello"))
	at := func(a netip.AddrPort, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), port) }
	for _, c := range []struct {
		name   string
		packet []byte
		want   cause
	}{
		{"IPv4", v4, passed},
		{"IPv6", v6, passed},
		{"IPv4, nothing in it", packet(peers[0], apps[0], nil), passed},
		{"IPv6, nothing in it", packet(peers[1], apps[1], nil), passed},
		{"IPv4 without a checksum", change(v4, 26, 0, 0), passed},
		{"IPv6 without a checksum", change(v6, 46, 0, 0), checksum},
		{"IPv4, another byte", change(v4, 28, 'H'), checksum},
		{"IPv6, another byte", change(v6, 48, 'H'), checksum},
		{"IPv6, another source", change(v6, 8, 0xfe), checksum},
		{"IPv4, another source", change(v4, 12, 101), checksum},
		{"IPv4, another source, header right", resum(change(v4, 12, 101)), checksum},
		{"IPv4, wrong header checksum", change(v4, 10, 1, 2), checksum},
		{"IPv4, UDP length too small", change(v4, 24, 0, 12), malformed},
		{"IPv4, UDP length too large", change(v4, 24, 0, 14), malformed},
		{"IPv4, UDP length below its header", change(v4, 24, 0, 7), malformed},
		{"IPv6, UDP length too small", change(v6, 44, 0, 12), malformed},
		{"IPv6, UDP length too large", change(v6, 44, 0, 14), malformed},
		{"IPv4, total length too small", resum(change(v4, 2, 0, 32)), malformed},
		{"IPv4, total length too large", resum(change(v4, 2, 0, 34)), malformed},
		{"IPv6, payload length too small", change(v6, 4, 0, 12), malformed},
		{"IPv6, payload length too large", change(v6, 4, 0, 14), malformed},
		{"IPv4, truncated", v4[:len(v4)-1], malformed},
		{"IPv6, truncated", v6[:len(v6)-1], malformed},
		{"IPv4, half a UDP header", v4[:24], malformed},
		{"IPv6, half a UDP header", v6[:44], malformed},
		{"IPv4, a byte more", append(bytes.Clone(v4), 0), malformed},
		{"IPv4, options", change(v4, 0, 0x46), malformed},
		{"IPv4, more fragments", resum(change(v4, 6, 0x20)), malformed},
		{"IPv4, a later fragment", resum(change(v4, 6, 0, 1)), malformed},
		{"IPv4 from port 0", packet(at(peers[0], 0), apps[0], nil), malformed},
		{"IPv4 to port 0", packet(peers[0], at(apps[0], 0), nil), malformed},
		{"IPv6 from port 0", packet(at(peers[1], 0), apps[1], nil), malformed},
		{"IPv6 to port 0", packet(peers[1], at(apps[1], 0), nil), malformed},
		{"version 5", change(v4, 0, 0x55), malformed},
	} {
		var d datagram
		if got := parse(c.packet, &d); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, causeNames[got], causeNames[c.want])
		} else if got == passed && d.src != peers[0] && d.src != peers[1] {
			t.Errorf("%s: from %v", c.name, d.src)
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "a byte": {0x45}, "IPv4 TCP": change(v4, 9, 6), "IPv6 TCP": change(v6, 6, 6), "version 0": change(v4, 0, 5)} {
		if got := parse(b, &datagram{}); got != malformed || segment.IsUDP(b) {
			t.Errorf("%s passes for UDP: %s", name, causeNames[got])
		}
	}
}

// What a header wraps reads back, in every length and class.
func TestWrap(t *testing.T) {
	for i := range apps {
		h := newHeader(apps[i], peers[i])
		for n := range 300 {
			buf := make([]byte, headMax+n)
			for j := range buf {
				buf[j] = byte(rand.Uint32())
			}
			payload := bytes.Clone(buf[headMax:])
			class := byte(n % 2 * voice.DSCP)
			p := h.wrap(buf, class)
			var d datagram
			if c := parse(p, &d); c != passed || d.src != apps[i] || d.dst != peers[i] || !bytes.Equal(d.payload, payload) {
				t.Fatalf("%d bytes: %s, %+v", n, causeNames[c], d)
			}
			got := p[1] >> 2
			if p[0]>>4 == 6 {
				got = p[0]<<4&0xf0>>2 | p[1]>>6
			}
			if got != class {
				t.Fatalf("class %d, want %d", got, class)
			}
			if given := binary.BigEndian.Uint16(p[h.size-2:]); given == 0 {
				t.Fatal("no checksum")
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for i := range apps {
		f.Add(packet(peers[i], apps[i], []byte("hello")))
		f.Add(packet(peers[i], apps[i], nil)[:ip4Len])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var d datagram
		before := bytes.Clone(b)
		if parse(b, &d) != passed {
			return
		}
		if !segment.IsUDP(b) || !d.src.IsValid() || !d.dst.IsValid() || d.src.Port() == 0 || d.dst.Port() == 0 || len(d.payload) > len(b)-ip4Len-udpLen {
			t.Errorf("%x reads %+v", b, d)
		}
		h := newHeader(d.src, d.dst)
		var again datagram
		if c := parse(h.wrap(append(make([]byte, headMax), d.payload...), 0), &again); c != passed || again.src != d.src || again.dst != d.dst || !bytes.Equal(again.payload, d.payload) {
			t.Errorf("%x wrapped again reads %s %+v", b, causeNames[c], again)
		}
		if !bytes.Equal(b, before) {
			t.Error("the packet was changed")
		}
	})
}
