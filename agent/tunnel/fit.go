package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/ipsum"
	"github.com/portvakt/portvakt/internal/transport"
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
	full         int        // the gateway's MTU
	id           uint16     // of our echoes
	token        uint64     // in them, which nobody outside the tunnel knows
	patience     time.Duration
	every        time.Duration // between two looks at a path that did not change

	segments atomic.Int32           // MTU that SYNs are made for
	limit    atomic.Int32           // of what is let through, full until less is proven
	pending  atomic.Pointer[[]byte] // echo to send with the next batch
	calling  atomic.Bool            // an echo of callSize bytes is to be sent, too
	round    atomic.Uint32          // measurement that is under way; the low 16 bits are in its echoes
	answers  chan reply             // echoes that came back
	changed  chan struct{}          // holds a token when the path changed
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
		patience: 700 * time.Millisecond, every: 5 * time.Minute,
		answers: make(chan reply, 1), changed: make(chan struct{}, 1),
	}
	f.segments.Store(int32(min(full, unproven)))
	f.limit.Store(int32(full))
	return f, nil
}

// Read implements [tun.Device].
func (f *fit) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	room := len(bufs)
	if f.pending.Load() != nil && room > 1 {
		room-- // for it, whatever else there is
	}
	n, err := f.Device.Read(bufs[:room], sizes, offset)
	asks, calls := false, false
	for i := range n {
		if sizes[i] == 0 {
			continue
		}
		p := bufs[i][offset : offset+sizes[i]]
		if sizes[i] <= int(f.limit.Load()) {
			f.clamp(p)
			asks = asks || f.wantsAnswer(p)
			continue
		}
		if answer := tooBig(p, int(f.limit.Load())); answer != nil {
			sizes[i] = 0
			// As the network would: from a router on the way.
			_, _ = f.Device.Write([][]byte{append(make([]byte, offset, offset+len(answer)), answer...)}, offset)
		}
	}
	send := func(p []byte) {
		sizes[n] = copy(bufs[n][offset:], p)
		transport.Mark(bufs[n], transport.ClassNone)
		n++
	}
	if n < len(bufs) && err == nil {
		if p := f.pending.Swap(nil); p != nil {
			send(*p)
		}
	}
	if n < len(bufs) && err == nil && f.calling.Swap(false) {
		send(f.echo(callSize))
		calls = true
	}
	if asks || calls {
		f.question(asks)
	}
	return n, err
}

// callSize is the length in bytes of the echoes that ask whether anybody is
// there. None of those that measure the path has it.
const callSize = 60

// call asks the gateway whether it is there, and waits for nothing: what comes
// back tells.
func (f *fit) call() {
	f.calling.Store(true)
	_ = f.push(netip.AddrPortFrom(f.gateway, discard)) // without it, the next packet takes it along
}

// discard is the port where nobody is, and from where nothing comes back.
const discard = 9

// wantsAnswer tells whether a packet is one the other end has to answer: any but
// our own to nobody, and what TCP says about what it received.
func (f *fit) wantsAnswer(p []byte) bool {
	h, ip := tcpHeader(p)
	if h == nil {
		ours := len(p) >= 28 && p[0] == 0x45 && p[9] == 17 && p[22] == 0 && p[23] == discard && netip.AddrFrom4([4]byte(p[16:20])) == f.gateway
		return !ours
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

// echo is an echo request of size bytes to the gateway's own inner address.
func (f *fit) echo(size int) []byte {
	b := make([]byte, size)
	b[0], b[8], b[9] = 0x45, 64, 1
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	src, dst := f.own.As4(), f.gateway.As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[10:], ipsum.Of(0, b[:20]))
	b[20] = 8
	binary.BigEndian.PutUint16(b[24:], f.id)
	binary.BigEndian.PutUint16(b[26:], uint16(f.round.Load()))
	binary.BigEndian.PutUint64(b[28:], f.token)
	binary.BigEndian.PutUint16(b[22:], ipsum.Of(0, b[20:]))
	return b
}

// echoed is one of our echoes that came back.
func (f *fit) echoed(p []byte) (a reply, ok bool) {
	if len(p) < 36 || p[0] != 0x45 || p[9] != 1 || p[20] != 0 || binary.BigEndian.Uint16(p[24:]) != f.id ||
		binary.BigEndian.Uint64(p[28:]) != f.token || netip.AddrFrom4([4]byte(p[12:16])) != f.gateway {
		return a, false
	}
	return reply{len(p), binary.BigEndian.Uint16(p[26:])}, int(binary.BigEndian.Uint16(p[2:])) == len(p)
}

// run measures the path at the beginning, after every change and now and then.
func (f *fit) run(ctx context.Context) {
	for ctx.Err() == nil {
		switch n := f.measure(ctx); {
		case ctx.Err() != nil:
			return
		case n != 0:
			f.segments.Store(int32(n))
			f.limit.Store(int32(n))
		}
		t := time.NewTimer(f.every)
		select {
		case <-ctx.Done():
		case <-f.changed:
			f.segments.Store(int32(min(f.full, unproven)))
			f.limit.Store(int32(f.full))
		case <-t.C:
		}
		t.Stop()
	}
}

// moved says that the path is another one.
func (f *fit) moved() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// measure finds the largest inner MTU that passes both ways; 0 if the path went
// away meanwhile. A WebSocket takes everything. What answers an echo of an
// earlier measurement proves nothing: it may have gone by another way, as what
// waited for a first handshake does when that comes about by a WebSocket.
func (f *fit) measure(ctx context.Context) int {
	f.round.Add(1)
	for _, size := range innerMTUs {
		if size > f.full {
			continue
		}
		for try := 0; try < 3; try++ {
			if !f.udp() {
				return f.full
			}
			if f.ask(ctx, size) {
				return size
			}
			if ctx.Err() != nil {
				return 0
			}
		}
		// Only a path that takes something has refused something.
		for !f.ask(ctx, 64) {
			if ctx.Err() != nil {
				return 0
			}
		}
	}
	return innerMTUs[len(innerMTUs)-1]
}

// ask sends an echo and waits for it.
func (f *fit) ask(ctx context.Context, size int) bool {
	p := f.echo(size)
	f.pending.Store(&p)
	if f.push(netip.AddrPortFrom(f.gateway, discard)) != nil {
		pause(ctx, f.patience)
		return false
	}
	t := time.NewTimer(f.patience)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
			f.pending.Store(nil)
			return false
		case a := <-f.answers:
			if a == (reply{size, uint16(f.round.Load())}) {
				return true
			}
		}
	}
}
