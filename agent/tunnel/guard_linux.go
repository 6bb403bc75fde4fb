package tunnel

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

// answerWithin is how long after a local port last sent a datagram one may
// come back to it; the gateway forgets a UDP flow after 120 s.
const answerWithin = 300 // seconds

// guard stands between WireGuard and the interface and lets nothing in but
// answers: with a TUN every program of the laptop that listens would otherwise
// listen to the gateway too. TCP must not begin outside, a datagram may only
// come to a port that sent one lately, and of ICMP only answers and errors are
// wanted.
type guard struct {
	tun.Device
	own     []netip.Addr
	began   time.Time
	sent    [1 << 16]atomic.Uint32 // seconds since began, plus one, by local UDP port
	refused atomic.Uint64
}

func newGuard(dev tun.Device, own []netip.Addr) *guard {
	return &guard{Device: dev, own: own, began: time.Now()}
}

func (g *guard) now() uint32 { return uint32(time.Since(g.began)/time.Second) + 1 }

// Read implements [tun.Device].
func (g *guard) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := g.Device.Read(bufs, sizes, offset)
	var now uint32
	for i := range n {
		p := bufs[i][offset : offset+sizes[i]]
		if port, ok := udpSource(p); ok {
			if now == 0 {
				now = g.now()
			}
			g.sent[port].Store(now)
		}
	}
	return n, err
}

// Write implements [tun.Device].
func (g *guard) Write(bufs [][]byte, offset int) (int, error) {
	all, now := len(bufs), g.now()
	for i, b := range bufs {
		if g.wanted(b[offset:], now) {
			continue
		}
		kept := slices.Clone(bufs[:i])
		for _, b := range bufs[i:] {
			if g.wanted(b[offset:], now) {
				kept = append(kept, b)
			}
		}
		g.refused.Add(uint64(all - len(kept)))
		bufs = kept
		break
	}
	if len(bufs) == 0 {
		return all, nil
	}
	if _, err := g.Device.Write(bufs, offset); err != nil {
		return 0, err
	}
	return all, nil
}

// wanted judges a packet from the tunnel.
func (g *guard) wanted(p []byte, now uint32) bool {
	h, ok := parse(p)
	if !ok || !slices.Contains(g.own, h.dst) {
		return false
	}
	switch {
	case h.proto == 6 && len(h.rest) >= 20:
		const syn, ack = 0x02, 0x10
		return h.rest[13]&(syn|ack) != syn
	case h.proto == 17 && len(h.rest) >= 8:
		last := g.sent[binary.BigEndian.Uint16(h.rest[2:])].Load()
		return last != 0 && now-last <= answerWithin
	case h.proto == 1 && !h.v6 && len(h.rest) >= 8:
		t := h.rest[0]
		return t == 0 || t == 3 || t == 11 || t == 12 // RFC 792: echo reply and the errors
	case h.proto == 58 && h.v6 && len(h.rest) >= 8:
		t := h.rest[0]
		return t >= 1 && t <= 4 || t == 129 // RFC 4443: the errors and echo reply
	}
	return false
}

// head is what the guard reads of a packet.
type head struct {
	v6    bool
	proto byte
	dst   netip.Addr
	rest  []byte // from the transport header on
}

// parse reads a whole packet that is no fragment and has no extension header.
func parse(p []byte) (h head, ok bool) {
	if len(p) < 20 {
		return head{}, false
	}
	switch p[0] >> 4 {
	case 4:
		n, total := int(p[0]&15)*4, int(binary.BigEndian.Uint16(p[2:]))
		const moreOrOffset = 0x3fff
		if n < 20 || total < n || total > len(p) || binary.BigEndian.Uint16(p[6:])&moreOrOffset != 0 {
			return head{}, false
		}
		return head{proto: p[9], dst: netip.AddrFrom4([4]byte(p[16:20])), rest: p[n:total]}, true
	case 6:
		if len(p) < 40 {
			return head{}, false
		}
		total := 40 + int(binary.BigEndian.Uint16(p[4:]))
		if total > len(p) {
			return head{}, false
		}
		return head{v6: true, proto: p[6], dst: netip.AddrFrom16([16]byte(p[24:40])), rest: p[40:total]}, true
	}
	return head{}, false
}

func udpSource(p []byte) (uint16, bool) {
	h, ok := parse(p)
	if !ok || h.proto != 17 || len(h.rest) < 8 {
		return 0, false
	}
	return binary.BigEndian.Uint16(h.rest), true
}
