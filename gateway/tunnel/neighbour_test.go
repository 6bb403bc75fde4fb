package tunnel_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"
)

// badPackets are by the cause for which they must be refused.
func badPackets(me, to netip.AddrPort) map[string][][]byte {
	whole := packet4(6, me, to)
	with := func(p []byte, change func([]byte)) []byte {
		b := bytes.Clone(p)
		change(b)
		if n := int(b[0]&15) * 4; b[0]>>4 == 4 && n >= 20 && n <= len(b) {
			b[10], b[11] = 0, 0
			binary.BigEndian.PutUint16(b[10:], sum(b[:n]))
		}
		return b
	}
	options := append(append(bytes.Clone(whole[:20]), 1, 1, 1, 0), whole[20:]...)
	return map[string][][]byte{
		"malformed": {
			whole[:20], whole[:33],
			with(whole, func(b []byte) { b[0] = 0x44 }),
			with(whole, func(b []byte) { b[0] = 0x4f }),
			with(whole, func(b []byte) { b[32] = 0xf0 }),
			packet4(6, at(me.Addr(), 0), to), packet4(6, me, at(to.Addr(), 0)),
		},
		"fragment":  {with(whole, func(b []byte) { b[6] = 0x20 }), with(whole, func(b []byte) { b[7] = 1 }), with(whole, func(b []byte) { b[6], b[7] = 0x3f, 0xff })},
		"options":   {with(options, func(b []byte) { b[0], b[3] = 0x46, 44 })},
		"multicast": {packet4(6, me, at(netip.MustParseAddr("224.0.0.251"), 5353)), packet4(6, me, at(netip.MustParseAddr("255.255.255.255"), 67))},
		"protocol":  {packet4(2, me, to), packet4(47, me, to), packet4(132, me, to), packet4(255, me, to)},
		"icmp":      {packet4(1, me, to)},
		"other_device": {
			packet4(6, me, at(inner(1)[0], 40000)),
		},
		"closed": {packet4(6, me, at(hidden[0], 443)), packet4(6, me, at(to.Addr(), 1))},
	}
}

// While one device sends nothing but nonsense, inside its tunnel and as
// datagrams that were or look like its own, another's round trips go on, the
// gateway keeps nothing of it, and all of it is counted by its cause.
func TestBadDeviceDisturbsNoOther(t *testing.T) {
	in := start(t, "127.0.0.1:0")
	bad, good := newClient(), newClient()
	in.admit(t, bad, 0)
	in.admit(t, good, 1)
	relay := newRelay(t, in)
	var mu sync.Mutex
	var recorded [][]byte
	keep := func(b []byte) {
		mu.Lock()
		defer mu.Unlock()
		if b[0] == 4 && len(recorded) < 500 {
			recorded = append(recorded, bytes.Clone(b))
		}
	}
	relay.seen.Store(&keep)
	bad.connectRaw(t, in, relay.addr)
	good.connect(t, in, in.addr(), 1)
	conn := good.mustDial(t, at(app[0], 443))
	roundTrip(t, conn)
	before := settled()

	me := at(inner(0)[0], 40000)
	packets := badPackets(me, at(app[0], 443))
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { // from the inside, some 10,000 packets a second
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			for _, ps := range packets {
				for _, p := range ps {
					select {
					case bad.raw.out <- p:
					case <-done:
						return
					}
				}
			}
		}
	})
	wg.Go(func() { // from the outside
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			mu.Lock()
			some := recorded
			mu.Unlock()
			for i := range min(len(some), 20) {
				b := bytes.Clone(some[rand.IntN(len(some))])
				switch i % 4 { // 0: as it was
				case 1:
					b[rand.IntN(len(b))] ^= 1 << rand.IntN(8)
				case 2:
					binary.LittleEndian.PutUint64(b[8:], rand.Uint64())
				case 3:
					b = append([]byte{1 + byte(rand.IntN(3)), 0, 0, 0}, b[4:]...)
				}
				relay.mu.Lock()
				_, _ = relay.back.Write(b)
				relay.mu.Unlock()
			}
		}
	})
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		roundTrip(t, conn)
	}
	for range 20 {
		c := good.mustDial(t, at(app[0], 443))
		roundTrip(t, c)
		_ = c.Close()
	}
	counts := in.table.Counts()
	for cause := range packets {
		if counts[cause] == 0 {
			t.Errorf("nothing is counted as %s: %v", cause, counts)
		}
	}
	if outer := in.Refused(); outer["malformed"] == 0 {
		t.Errorf("no handshake message of a wrong length is counted: %v", outer)
	}
	close(done)
	wg.Wait()
	_ = conn.Close() // so that nothing comes for a second
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if noSession, barren := in.Unopened(); noSession > 0 && barren > 0 {
			break
		}
		if time.Now().After(end) {
			noSession, barren := in.Unopened()
			t.Fatalf("%d messages without a session and %d without a packet are counted", noSession, barren)
		}
	}
	// WireGuard's queues of both ends, of 1,024 buffers of 64 KiB each, run empty.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		grown := settled() - before
		if grown < 24<<20 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("it holds %d KiB more", grown>>10)
		}
	}
}

// settled is what the heap holds once it was looked through.
func settled() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
