package tunnel_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
)

// ipPacket is an IP packet of either family without options. The checksum in b
// at the offset check is made, over a pseudo-header but for ICMPv4.
func ipPacket(proto byte, src, dst netip.Addr, b []byte, check int) []byte {
	pseudo := append(append(src.AsSlice(), dst.AsSlice()...), 0, proto, byte(len(b)>>8), byte(len(b)))
	if proto == 1 {
		pseudo = nil
	}
	b[check], b[check+1] = 0, 0
	binary.BigEndian.PutUint16(b[check:], sum(append(pseudo, b...)))
	h := make([]byte, 40)
	if src.Is6() {
		h[0], h[6], h[7] = 0x60, proto, 64
		binary.BigEndian.PutUint16(h[4:], uint16(len(b)))
		copy(h[8:], src.AsSlice())
		copy(h[24:], dst.AsSlice())
		return append(h, b...)
	}
	h = h[:20]
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(b)))
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(h[10:], sum(h))
	return append(h, b...)
}

// tcpPacket is a TCP segment of either family without payload, whose window is
// wide. There have to be four options, or eight.
func tcpPacket(src, dst netip.AddrPort, flags byte, seq, ack uint32, options ...byte) []byte {
	b := make([]byte, 20, 20+len(options))
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13], b[14], b[15] = byte(20+len(options))/4<<4, flags, 0xff, 0xff
	return ipPacket(6, src.Addr(), dst.Addr(), append(b, options...), 16)
}

// tcpOf is the TCP part of a packet, nil if it has none.
func tcpOf(p []byte) []byte {
	switch {
	case len(p) >= 40 && p[0]>>4 == 4 && p[9] == 6:
		return p[20:]
	case len(p) >= 60 && p[0]>>4 == 6 && p[6] == 6:
		return p[40:]
	}
	return nil
}

// asks opens a connection to a port of 8 by hand, with these TCP options in its
// SYN. It returns the gateway's end.
func (c *client) asks(t *testing.T, in *ingress, me, dst netip.AddrPort, options ...byte) net.Conn {
	t.Helper()
	got := tcpOf(c.exchange(tcpPacket(me, dst, 2, 100, 0, options...), 10*time.Second))
	if got == nil || got[13] != 0x12 {
		t.Fatalf("SYN to %v: %x, want SYN and ACK", dst, got)
	}
	c.raw.out <- tcpPacket(me, dst, 0x10, 101, binary.BigEndian.Uint32(got[4:])+1)
	select {
	case nc := <-in.conns:
		return nc
	case <-time.After(10 * time.Second):
		t.Fatalf("the connection to %v does not come", dst)
		return nil
	}
}

// caseSmallerPath: the device says that a segment did not fit; it is sent again
// in ones that do.
func caseSmallerPath(t *testing.T, in *ingress) {
	for i := range app {
		c := in.wired(t, i)
		nc := c.asks(t, in, at(inner(i)[i], 40000), at(app[i], 8), 2, 4, 1380>>8, 1380&0xff)
		defer nc.Close()
		if _, err := nc.Write(make([]byte, 3000)); err != nil {
			t.Fatal(err)
		}
		big := c.next(10 * time.Second)
		if len(big) <= 1300 {
			t.Fatalf("to %v: the first segment has %d bytes, want all of an MTU of 1420", app[i], len(big))
		}
		refused := in.Stats().Refused
		c.raw.out <- tooBig(big, 1300)
		// It may have been sent again already for want of an answer.
		for end := time.Now().Add(10 * time.Second); ; {
			p := c.next(time.Until(end))
			if p == nil {
				t.Fatalf("to %v: the segment that did not fit is not sent again with 1300 bytes; news refused: %d", app[i], in.Stats().Refused-refused)
			}
			if l4 := tcpOf(p); len(p) <= 1300 && l4 != nil && string(l4[4:8]) == string(tcpOf(big)[4:8]) {
				break
			}
		}
	}
}

// caseTinySegments: a device that asks for segments of a few bytes does not have
// the gateway make a packet for every few bytes.
func caseTinySegments(t *testing.T, in *ingress) {
	for i := range app {
		for n, mss := range []byte{0, 1, 48} {
			d := 3*i + n
			c := in.wired(t, d)
			nc := c.asks(t, in, at(inner(d)[i], 40000), at(app[i], 8), 1, 1, 1, 1, 2, 4, 0, mss)
			defer nc.Close()
			if _, err := nc.Write(make([]byte, 3000)); err != nil {
				t.Fatal(err)
			}
			if got := c.next(10 * time.Second); len(got) < 500 {
				t.Errorf("%v, who asks for segments of %d bytes, is sent packets of %d", inner(d)[i], mss, len(got))
			}
		}
	}
}

// caseWrongSums: nothing is decided, begun or ended by a packet with a wrong
// checksum, and each is counted.
func caseWrongSums(t *testing.T, in *ingress) {
	counted := in.Stats().Malformed
	for i := range app {
		c := in.wired(t, i)
		send := func(name string, p []byte, change int) {
			p[change] ^= 0xff
			c.raw.out <- p
			counted++
			in.eventually(t, name+" is counted", func() bool { return in.Stats().Malformed >= counted })
			if n := in.Stats().Malformed; n != counted {
				t.Errorf("%s: %d counted as malformed, want %d", name, n, counted)
			}
		}
		me, other, to := at(inner(i)[i], 40000), at(inner(i)[i], 40001), at(app[i], 9)
		header := len(tcpPacket(me, to, 2, 1, 0)) - 20
		send("a SYN", tcpPacket(me, to, 2, 1, 0), header+16)
		send("a SYN with a changed port", tcpPacket(me, to, 2, 1, 0), header+1)
		send("a segment of no connection", tcpPacket(me, to, 0x10, 1, 1), header+16)
		if i == 0 {
			send("an IPv4 header", tcpPacket(me, to, 2, 1, 0), 10)
		}
		c.raw.out <- tcpPacket(other, to, 2, 100, 0)
		r := <-in.asked
		if r.Peer() != other {
			t.Errorf("%v is decided on", r.Peer())
		}
		send("a reset", tcpPacket(other, to, 4, 101, 0), header+16)
		accepted := make(chan error, 1)
		go func() {
			nc, err := r.Accept(context.Background())
			if err == nil {
				_ = nc.Close()
			}
			accepted <- err
		}()
		got := tcpOf(c.next(10 * time.Second))
		if got == nil || got[13] != 0x12 {
			t.Fatalf("after a reset with a wrong checksum: %x, want SYN and ACK", got)
		}
		c.raw.out <- tcpPacket(other, to, 0x10, 101, binary.BigEndian.Uint32(got[4:])+1)
		if err := <-accepted; err != nil {
			t.Errorf("after a reset with a wrong checksum: %v", err)
		}
	}
	if n := len(in.asked); n != 0 {
		t.Errorf("%d more are decided on", n)
	}
}

// tooBig is the news that a packet did not fit (RFC 1191, RFC 4443), of whom it
// was for.
func tooBig(p []byte, mtu uint16) []byte {
	b := make([]byte, 8)
	binary.BigEndian.PutUint16(b[6:], mtu)
	if p[0]>>4 == 4 {
		b[0], b[1] = 3, 4
		return ipPacket(1, netip.AddrFrom4([4]byte(p[16:])), netip.AddrFrom4([4]byte(p[12:])), append(b, p[:28]...), 2)
	}
	b[0] = 2
	return ipPacket(58, netip.AddrFrom16([16]byte(p[24:])), netip.AddrFrom16([16]byte(p[8:])), append(b, p[:48]...), 2)
}
