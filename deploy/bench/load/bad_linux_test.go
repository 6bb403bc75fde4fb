package load

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
)

// Every packet is well formed but for one thing: what the receiver refuses is
// that, not a wrong checksum.
func TestMalformed(t *testing.T) {
	own, to := netip.MustParseAddr("100.64.0.9"), netip.MustParseAddrPort("100.64.1.1:7000")
	for i, p := range malformed(own, to) {
		if n := int(p[0]&15) * 4; len(p) < 20 || n >= 20 && n <= len(p) && sum(p[:n]) != 0 {
			t.Errorf("packet %d: %x", i, p)
		}
		for _, q := range malformed(own, to)[:i] {
			if bytes.Equal(p, q) {
				t.Errorf("packet %d is there twice", i)
			}
		}
	}
	from := netip.AddrPortFrom(own, 1)
	if p := syn(from, to); sum(append(append(append([]byte{}, p[12:20]...), 0, protoTCP, 0, 20), p[20:]...)) != 0 {
		t.Errorf("a SYN with a wrong checksum: %x", p)
	}
	if p := datagram(from, to, []byte("abc")); binary.BigEndian.Uint16(p[24:]) != 11 || string(p[28:]) != "abc" {
		t.Errorf("a datagram: %x", p)
	}
}

func TestSpoil(t *testing.T) {
	frame := append(make([]byte, 14), datagram(netip.MustParseAddrPort("10.0.0.1:1"), netip.MustParseAddrPort("10.0.0.2:51820"), append([]byte{4}, make([]byte, 63)...))...)
	for way := range 6 {
		f := spoil(bytes.Clone(frame), way)
		if sum(f[14:34]) != 0 || int(binary.BigEndian.Uint16(f[16:])) != len(f)-14 || int(binary.BigEndian.Uint16(f[38:])) != len(f)-34 {
			t.Errorf("way %d does not arrive: %x", way, f)
		}
		if bytes.Equal(f, frame) != (way == 0) {
			t.Errorf("way %d: %x", way, f)
		}
	}
}

func TestPace(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	n, err := pace(ctx, 1000, func(int) error { return nil })
	if err != nil || n == 0 || n > 250 {
		t.Errorf("%d in 200 ms at 1,000 a second; %v", n, err)
	}
}

// What needs no tunnel is done against an echo of the test's own.
func TestMisbehave(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond)
	defer cancel()
	go func() { _ = EchoTCP(ctx, l) }()
	to := l.Addr().(*net.TCPAddr).AddrPort()
	for _, kind := range []string{"idle", "unread"} {
		ctx, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		begun := false
		m, err := Misbehave{Kind: kind, Rate: 20_000, To: to, Voice: to}.Run(ctx, func() { begun = true })
		stop()
		if err != nil || m.Sent == 0 || m.Open == 0 || kind == "idle" && !begun {
			t.Errorf("%s: %+v %v, begun %t", kind, m, err, begun)
		}
	}
	if _, err := (Misbehave{Kind: "nothing"}).Run(ctx, func() {}); err == nil {
		t.Error("a kind that is none")
	}
}
