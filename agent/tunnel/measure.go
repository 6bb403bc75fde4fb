package tunnel

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/portvakt/portvakt/internal/ipsum"
	"github.com/portvakt/portvakt/internal/pathsize"
)

// run measures the path at the beginning, after every change, when it turns out
// to have become smaller, and now and then.
func (f *fit) run(ctx context.Context) {
	for ctx.Err() == nil {
		if n := f.measure(ctx); n != 0 && len(f.changed) == 0 {
			f.segments.Store(int32(n))
			f.limit.Store(int32(n))
			f.tell(ctx)
		}
		f.rest(ctx)
	}
}

// rest returns when the path is to be measured. While the tunnel is in use, what
// is proven is proven again every few seconds: a path that became smaller without
// a word would hold up what is open, in either direction.
func (f *fit) rest(ctx context.Context) {
	end := time.NewTimer(f.every)
	defer end.Stop()
	look := time.NewTicker(f.check)
	defer look.Stop()
	for looked := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
			f.segments.Store(int32(min(f.full, unproven)))
			f.limit.Store(int32(f.full))
			return
		case <-end.C:
			return
		case <-look.C:
		}
		if !f.udp() || !f.inUse.Swap(false) && time.Since(looked) < f.idle {
			continue
		}
		looked = time.Now()
		f.round.Add(1)
		if f.ask(ctx, int(f.segments.Load())) == 0 {
			return
		}
	}
}

// moved says that the path is another one.
func (f *fit) moved() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// alive is the length in bytes of an echo that any path takes.
const alive = 64

// measure finds the largest inner MTU that passes both ways; 0 if the path went
// away meanwhile. A WebSocket takes everything. What answers an echo of an
// earlier measurement proves nothing: it may have gone by another way, as what
// waited for a first handshake does when that comes about by a WebSocket.
func (f *fit) measure(ctx context.Context) int {
	f.round.Add(1)
	sizes := slices.DeleteFunc(slices.Clone(innerMTUs), func(n int) bool { return n > f.full })
	if len(sizes) == 0 {
		return f.full
	}
	best := 0
	for try := range 3 {
		if !f.udp() {
			return f.full
		}
		ask := append([]int{sizes[0]}, alive) // most paths take it
		if try > 0 {
			ask = slices.DeleteFunc(slices.Clone(sizes), func(n int) bool { return n <= best })
		}
		switch n := f.ask(ctx, ask...); {
		case n == sizes[0]:
			return n
		case n == 0 && best == 0:
			// Only a path that takes something has refused something.
			for f.ask(ctx, alive) == 0 {
				if ctx.Err() != nil {
					return 0
				}
			}
		case n != alive:
			best = max(best, n)
		}
	}
	return max(best, sizes[len(sizes)-1])
}

// tells is how often the gateway is told what was measured, until it answers.
const tells = 5

// tell tells the gateway what was measured. Each later echo tells it again.
func (f *fit) tell(ctx context.Context) {
	f.round.Add(1)
	for range tells {
		if f.ask(ctx, alive) != 0 || ctx.Err() != nil || len(f.changed) > 0 {
			return
		}
	}
}

// ask sends echoes of sizes, whose largest is first, and waits for that one. It
// returns the largest that was answered, 0 for none.
func (f *fit) ask(ctx context.Context, sizes ...int) (largest int) {
	echoes := make([][]byte, len(sizes))
	for i, n := range sizes {
		// The smallest leaves first: one behind a larger one could leave in one
		// datagram for the network card to cut (UDP GSO), and be lost with that.
		echoes[len(sizes)-1-i] = f.echo(n)
	}
	f.pending.Store(&echoes)
	if f.push(netip.AddrPortFrom(f.gateway, discard)) != nil {
		pause(ctx, f.patience)
		return 0
	}
	t := time.NewTimer(f.patience)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0
		case <-t.C:
			f.pending.Store(nil)
			return largest
		case a := <-f.answers:
			if a.round == uint16(f.round.Load()) && slices.Contains(sizes, a.size) {
				largest = max(largest, a.size)
			}
			if largest == sizes[0] {
				return largest
			}
		}
	}
}

// echo is an echo request of size bytes to the gateway's own inner address. It
// tells the gateway what TCP is cut to, so that the gateway does the same.
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
	pathsize.Note(b, int(f.segments.Load()))
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
