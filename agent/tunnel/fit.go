package tunnel

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/ipsum"
	"github.com/portvakt/portvakt/internal/pathsize"
)

// reply is an echo that came back.
type reply struct {
	size  int    // bytes
	round uint16 // measurement it was sent for
}

// unproven is the inner MTU, in bytes, that SYNs are made for until a larger one
// is proven: it fits the smallest outer MTU of IPv6, 1280, with 40 + 8 + 32
// bytes around it.
const unproven = 1200

// innerMTUs are tried from the largest that the gateway allows down. WireGuard
// pads to 16 bytes, so that others are of no use: 1216 passes an outer MTU of
// 1280 by IPv4, 1200 by IPv6.
var innerMTUs = []int{1420, 1408, 1392, 1376, 1344, 1312, 1280, 1248, 1216, 1200, 1120}

// fit is the device's [tun.Device] that makes packets fit the path: it finds out
// how long they may be, by echoes to the gateway's own inner address, lowers
// the segment size in every SYN that passes, and answers what is longer as a
// router does. The path's routers may say nothing, and need not.
type fit struct {
	tun.Device
	own, gateway netip.Addr // inner, IPv4
	gateways     []netip.Addr
	full         int    // the gateway's MTU
	id           uint16 // of our echoes
	token        uint64 // in them, which nobody outside the tunnel knows
	patience     time.Duration
	every        time.Duration // between two measurements of a path that did not change
	check, idle  time.Duration // between two looks whether it did, while the tunnel is in use and else

	segments atomic.Int32             // MTU that SYNs are made for, and to which TCP is cut
	limit    atomic.Int32             // of what is let through, full until less is proven
	pending  atomic.Pointer[[][]byte] // echoes to send next
	cutter   pathsize.Cutter          // Read's
	classes  classes
	inUse    atomic.Bool   // somebody's packet went by since the last look
	calling  atomic.Bool   // an echo of callSize bytes is to be sent, too
	round    atomic.Uint32 // measurement that is under way; the low 16 bits are in its echoes
	answers  chan reply    // echoes that came back
	changed  chan struct{} // holds a token when the path changed
	// push sends a datagram to an address inside the tunnel, so that Read returns.
	push func(netip.AddrPort) error
	udp  func() bool // whether datagrams leave by UDP
	// question is told when something leaves that the other end has to answer,
	// and whether it is of somebody who uses the tunnel.
	question func(used bool)
}

func newFit(inner tun.Device, own, gateway []netip.Addr, full int) (*fit, error) {
	is4 := func(a netip.Addr) bool { return a.Is4() }
	i, j := slices.IndexFunc(own, is4), slices.IndexFunc(gateway, is4)
	if i < 0 || j < 0 {
		return nil, errors.New("the gateway gave no inner IPv4 addresses")
	}
	f := &fit{
		Device: inner, own: own[i], gateway: gateway[j], full: full, id: uint16(rand.Uint32()), token: rand.Uint64(),
		gateways: gateway,
		patience: 700 * time.Millisecond, every: 5 * time.Minute, check: 3 * time.Second, idle: time.Minute,
		classes: classes{began: time.Now(), calls: map[call]*heard{}},
		answers: make(chan reply, 2*len(innerMTUs)), changed: make(chan struct{}, 1),
	}
	f.segments.Store(int32(min(full, unproven)))
	f.limit.Store(int32(full))
	return f, nil
}

// Read implements [tun.Device].
func (f *fit) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		if n := f.ours(bufs, sizes, offset); n > 0 {
			f.classes.mark(bufs[:n], sizes, offset)
			return n, nil
		}
		n, err := f.cutter.Read(f.Device.Read, bufs, sizes, offset, f.small(), f.cutTo)
		asks := false
		for i := range n {
			p := bufs[i][offset : offset+sizes[i]]
			switch {
			case f.wakes(p):
				sizes[i] = 0
			case sizes[i] > int(f.limit.Load()):
				if answer := tooBig(p, int(f.limit.Load())); answer != nil {
					sizes[i] = 0
					// As the network would: from a router on the way.
					_, _ = f.Device.Write([][]byte{append(make([]byte, offset, offset+len(answer)), answer...)}, offset)
				}
			default:
				f.clamp(p)
				if wantsAnswer(p) {
					asks = true
					f.uses(p, false)
				}
			}
		}
		if asks {
			f.question(true)
		}
		if n = pathsize.Close(bufs, sizes, offset, n); n > 0 || err != nil {
			f.classes.mark(bufs[:n], sizes, offset)
			return n, err
		}
	}
}

// ours puts our own packets that wait into bufs and returns how many.
func (f *fit) ours(bufs [][]byte, sizes []int, offset int) (n int) {
	send := func(p []byte) {
		sizes[n] = copy(bufs[n][offset:], p)
		n++
	}
	if p := f.pending.Swap(nil); p != nil {
		for i, e := range *p {
			if n == len(bufs) {
				rest := (*p)[i:]
				f.pending.CompareAndSwap(nil, &rest)
				return n
			}
			send(e)
		}
	}
	if n < len(bufs) && f.calling.Swap(false) {
		send(f.echo(callSize))
		f.question(false)
	}
	return n
}

// small tells whether TCP has to be cut, and cutTo to what.
func (f *fit) small() bool { return int(f.segments.Load()) < f.full }

func (f *fit) cutTo([]byte) int { return int(f.segments.Load()) }

// uses notes a packet that is somebody's, which what the gateway says by itself
// and how it is heard is not.
func (f *fit) uses(p []byte, in bool) {
	if f.inUse.Load() {
		return
	}
	const chatter = 256 // bytes, which that does not reach
	if len(p) <= chatter {
		var other netip.Addr
		switch {
		case len(p) >= 20 && p[0]>>4 == 4 && in:
			other = netip.AddrFrom4([4]byte(p[12:16]))
		case len(p) >= 20 && p[0]>>4 == 4:
			other = netip.AddrFrom4([4]byte(p[16:20]))
		case len(p) >= 40 && in:
			other = netip.AddrFrom16([16]byte(p[8:24]))
		case len(p) >= 40:
			other = netip.AddrFrom16([16]byte(p[24:40]))
		}
		if slices.Contains(f.gateways, other) {
			return
		}
	}
	f.inUse.Store(true)
}

// callSize is the length in bytes of the echoes that ask whether anybody is
// there. None of those that measure the path has it.
const callSize = 60

// call asks the gateway whether it is there, and waits for nothing: what comes
// back tells.
func (f *fit) call() {
	f.calling.Store(true)
	_ = f.push(netip.AddrPortFrom(f.gateway, discard)) // without it, it leaves when something else does
}

// discard is the port where nobody is, whose packets end in Read.
const discard = 9

// wakes tells whether a packet is push's, which made Read return and has done
// its work.
func (f *fit) wakes(p []byte) bool {
	return len(p) >= 28 && p[0] == 0x45 && p[9] == 17 && p[22] == 0 && p[23] == discard && netip.AddrFrom4([4]byte(p[16:20])) == f.gateway
}

// wantsAnswer tells whether a packet is one the other end has to answer: any but
// what TCP says about what it received.
func wantsAnswer(p []byte) bool {
	h, ip := tcpHeader(p)
	if h == nil {
		return len(p) > 0
	}
	const synOrFIN = 0x03
	return h[13]&synOrFIN != 0 || len(p) > ip+len(h)
}

// Write implements [tun.Device].
func (f *fit) Write(bufs [][]byte, offset int) (int, error) {
	all := len(bufs)
	bufs = slices.DeleteFunc(bufs, func(b []byte) bool {
		p := b[offset:]
		if a, ok := f.echoed(p); ok {
			if a.size != callSize && a.round == uint16(f.round.Load()) {
				select {
				case f.answers <- a:
				default:
				}
			}
			return true
		}
		f.clamp(p)
		f.uses(p, true)
		return false
	})
	if len(bufs) == 0 {
		return all, nil
	}
	return f.Device.Write(bufs, offset)
}

// clamp lowers the segment size a SYN offers to what fits.
func (f *fit) clamp(p []byte) {
	mtu := int(f.segments.Load())
	if mtu >= f.full {
		return
	}
	h, header := tcpHeader(p)
	if h == nil || h[13]&0x02 == 0 { // SYN, alone or with ACK
		return
	}
	lowerMSS(h, uint16(mtu-header-20))
}

// tcpHeader is the TCP header of a whole packet that has one right behind the
// IP header, whose length it returns.
func tcpHeader(p []byte) (h []byte, ip int) {
	switch {
	case len(p) >= 20 && p[0]>>4 == 4 && p[9] == 6 && binary.BigEndian.Uint16(p[6:])&0x3fff == 0:
		ip = int(p[0]&15) * 4
		if ip < 20 {
			return nil, 0
		}
	case len(p) >= 40 && p[0]>>4 == 6 && p[6] == 6:
		ip = 40
	default:
		return nil, 0
	}
	if len(p) < ip+20 {
		return nil, 0
	}
	h = p[ip:]
	n := int(h[12]>>4) * 4
	if n < 20 || n > len(h) {
		return nil, 0
	}
	return h[:n], ip
}

// lowerMSS lowers the MSS option (RFC 9293 section 3.7.1) of a TCP header and
// corrects the checksum.
func lowerMSS(h []byte, limit uint16) {
	for i := 20; i+1 < len(h); {
		switch {
		case h[i] == 0:
			return
		case h[i] == 1:
			i++
			continue
		case h[i+1] < 2 || i+int(h[i+1]) > len(h):
			return
		case h[i] == 2 && h[i+1] == 4:
			old := binary.BigEndian.Uint16(h[i+2:])
			if old <= limit {
				return
			}
			binary.BigEndian.PutUint16(h[i+2:], limit)
			replaced, by := old, limit
			if i%2 == 1 { // the checksum's words lie across it
				replaced, by = replaced<<8|replaced>>8, by<<8|by>>8
			}
			// RFC 1624 section 3.
			sum := uint32(^binary.BigEndian.Uint16(h[16:])) + uint32(^replaced) + uint32(by)
			sum = sum>>16 + sum&0xffff
			sum += sum >> 16
			binary.BigEndian.PutUint16(h[16:], ^uint16(sum))
			return
		}
		i += int(h[i+1])
	}
}

// tooBig is a router's answer to a packet that does not fit: fragmentation
// needed (RFC 1191 section 4) or packet too big (RFC 4443 section 3.2). There is
// none to a packet that may be cut up, and to one of IPv6 below its least MTU,
// where the tunnel's own datagram is cut up instead.
func tooBig(p []byte, mtu int) []byte {
	switch {
	case len(p) >= 28 && p[0]>>4 == 4 && p[6]&0x40 != 0 && p[9] != 1:
		quoted := min(len(p), int(p[0]&15)*4+8)
		b := make([]byte, 28, 28+quoted)
		b[0], b[8], b[9] = 0x45, 64, 1
		binary.BigEndian.PutUint16(b[2:], uint16(28+quoted))
		copy(b[12:], p[16:20])
		copy(b[16:], p[12:16])
		binary.BigEndian.PutUint16(b[10:], ipsum.Of(0, b[:20]))
		b[20], b[21] = 3, 4
		binary.BigEndian.PutUint16(b[26:], uint16(mtu))
		b = append(b, p[:quoted]...)
		binary.BigEndian.PutUint16(b[22:], ipsum.Of(0, b[20:]))
		return b
	case len(p) > 1280 && p[0]>>4 == 6 && p[6] != 58:
		const quoted = 1280 - 48
		b := make([]byte, 48, 1280)
		b[0], b[6], b[7] = 0x60, 58, 64
		binary.BigEndian.PutUint16(b[4:], 8+quoted)
		copy(b[8:], p[24:40])
		copy(b[24:], p[8:24])
		b[40] = 2
		binary.BigEndian.PutUint32(b[44:], uint32(max(mtu, 1280)))
		b = append(b, p[:quoted]...)
		binary.BigEndian.PutUint16(b[42:], ipsum.Of(ipsum.Add(58+8+quoted, b[8:40]), b[40:]))
		return b
	}
	return nil
}
