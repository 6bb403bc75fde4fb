package tunnel_test

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"

	"github.com/portvakt/portvakt/gateway/tunnel"
)

// flood sends initiations with a good mac1 that open to nothing, from many
// addresses that never answer, until stop.
func flood(t *testing.T, in *ingress, perSecond int, from ...string) (stop func() (sent int)) {
	t.Helper()
	var conns []net.Conn
	for _, ip := range from {
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}).Dial("udp4", in.addr())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	return floodBy(in, perSecond, conns)
}

func floodBy(in *ingress, perSecond int, conns []net.Conn) (stop func() (sent int)) {
	pub := in.PublicKey()
	key := blake2s.Sum256(append([]byte("mac1----"), pub[:]...))
	done := make(chan struct{})
	var sent atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		b := make([]byte, 148)
		for begun := time.Now(); ; {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			for want := int64(time.Since(begun).Seconds() * float64(perSecond)); sent.Load() < want; sent.Add(1) {
				b[0] = 1
				for i := 4; i < 116; i += 8 {
					binary.LittleEndian.PutUint64(b[i:], rand.Uint64())
				}
				mac, _ := blake2s.New128(key[:])
				_, _ = mac.Write(b[:116])
				mac.Sum(b[116:116])
				_, _ = conns[int(sent.Load())%len(conns)].Write(b)
			}
		}
	})
	return sync.OnceValue(func() int {
		close(done)
		wg.Wait()
		for _, c := range conns {
			_ = c.Close()
		}
		return int(sent.Load())
	})
}

// comeIn makes a device's first contact: it asks again after a while, as stock
// does after 5 s, and proves its address when it is told to. It returns how long
// the tunnel took and whether a cookie was needed.
func comeIn(c net.Conn, i *tunnel.Initiator, index uint32, again time.Duration, until time.Time) (took time.Duration, cookie, ok bool) {
	begun := time.Now()
	b := make([]byte, 2000)
	for time.Now().Before(until) {
		if _, err := c.Write(i.Initiate(index, time.Now())); err != nil {
			return 0, cookie, false
		}
		for retry := time.Now().Add(again); ; {
			_ = c.SetReadDeadline(retry)
			n, err := c.Read(b)
			if err != nil {
				break
			}
			if i.Cookie(b[:n]) {
				cookie = true
				continue
			}
			if i.Finish(b[:n]) == nil {
				_, err := c.Write(i.Transport(nil))
				return time.Since(begun), cookie, err == nil
			}
		}
	}
	return 0, cookie, false
}

// 1,000 devices behind one address come in during a flood of initiations from
// addresses that are not theirs, and live tunnels lose nothing. Those whose
// address is known from their connect come in with their first initiation, the
// others, behind an address that the flood uses too, prove it.
func TestThousandDevicesDuringAFlood(t *testing.T) {
	const known, strangers = 500 / scale, 500 / scale
	in := startWith(t, nil)
	var live []net.Conn
	for i := range 5 {
		c := newClient()
		in.admit(t, c, i)
		c.connect(t, in, in.addr(), i)
		u, err := c.stack.DialUDP(at(app[0], 5004))
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, u)
		live = append(live, u)
	}
	// Every other datagram is in the strangers' name: their address's tokens stay
	// spent, also when the race detector slows both sides.
	var from []string
	for i := range 100 {
		from = append(from, "127.0.9.2", netip.AddrFrom4([4]byte{127, 1, byte(i), 1}).String())
	}
	stop := flood(t, in, floodRate, from...)
	time.Sleep(300 * time.Millisecond) // the tokens of strangers are spent by now

	done := make(chan struct{})
	var lost, echoed atomic.Int64
	var lives, wg sync.WaitGroup
	for _, u := range live {
		lives.Go(func() {
			b := make([]byte, 200)
			for {
				select {
				case <-done:
					return
				case <-time.After(20 * time.Millisecond):
				}
				_ = u.SetDeadline(time.Now().Add(10 * time.Second)) // a packet that is lost does not come later
				if _, err := u.Write(b); err != nil {
					lost.Add(1)
				} else if _, err := u.Read(b); err != nil {
					lost.Add(1)
				} else {
					echoed.Add(1)
				}
			}
		})
	}
	var mu sync.Mutex
	var times []time.Duration
	cookies, failed, knownCookies := 0, 0, 0
	until := time.Now().Add(time.Minute)
	for n := range known + strangers {
		ip, p := "127.0.9.1", tunnel.Peer{From: netip.MustParseAddr("127.0.9.1")}
		if n >= known {
			ip, p.From = "127.0.9.2", netip.Addr{}
		}
		i := tunnel.NewInitiator(in.PublicKey())
		p.Key, p.PresharedKey = i.Public, i.PSK
		p.Addresses[0] = netip.AddrFrom4([4]byte{100, 65, byte(n >> 8), byte(n)})
		if err := in.AddPeer(p); err != nil {
			t.Fatal(err)
		}
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}).Dial("udp4", in.addr())
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer c.Close()
			took, cookie, ok := comeIn(c, i, uint32(n)+1, time.Second, until)
			mu.Lock()
			defer mu.Unlock()
			if !ok {
				failed++
				return
			}
			times = append(times, took)
			if cookie {
				cookies++
				if n < known {
					knownCookies++
				}
			}
		})
	}
	wg.Wait()
	close(done)
	lives.Wait()
	sent := stop()
	if failed > 0 {
		t.Errorf("%d of %d did not come in: %v", failed, known+strangers, in.Refused())
	}
	if knownCookies > 0 {
		t.Errorf("%d devices at an address known from their connect had to prove it", knownCookies)
	}
	if cookies == 0 {
		t.Error("nobody had to prove an address: the flood did not count")
	}
	if lost.Load() != 0 {
		t.Errorf("live tunnels lost %d of %d packets", lost.Load(), lost.Load()+echoed.Load())
	}
	slices.Sort(times)
	if len(times) > 0 {
		t.Logf("flood of %d; %d came in, %d with a cookie: p50 %v p99 %v; live tunnels %d echoes; %v",
			sent, len(times), cookies, times[len(times)/2].Round(time.Millisecond), times[len(times)*99/100].Round(time.Millisecond), echoed.Load(), in.Refused())
	}
}

// Whoever writes a live peer's address and port as the sender gets no more than
// a stranger: initiations from there neither fill the places that others with a
// claim wait in nor keep a core busy.
func TestFloodFromALivePlace(t *testing.T) {
	const devices = 100 / scale
	in := startWith(t, nil)
	contact := func(n int, ip string) (net.Conn, *tunnel.Initiator) {
		i := tunnel.NewInitiator(in.PublicKey())
		p := tunnel.Peer{Key: i.Public, PresharedKey: i.PSK, From: netip.MustParseAddr(ip)}
		p.Addresses[0] = netip.AddrFrom4([4]byte{100, 66, byte(n >> 8), byte(n)})
		if err := in.AddPeer(p); err != nil {
			t.Fatal(err)
		}
		c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(ip)}}).Dial("udp4", in.addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c, i
	}
	live, i := contact(0, "127.0.8.1") // in no prefix of theirs
	if _, _, ok := comeIn(live, i, 1, time.Second, time.Now().Add(answerPatience)); !ok {
		t.Fatal("the live device did not come in")
	}
	stop := floodBy(in, 20_000, []net.Conn{live})
	time.Sleep(500 * time.Millisecond)
	until := time.Now().Add(time.Minute)
	var cookies, failed atomic.Int64
	var wg sync.WaitGroup
	for n := range devices {
		c, i := contact(n+1, "127.0.9.1")
		wg.Go(func() {
			_, cookie, ok := comeIn(c, i, uint32(n)+2, time.Second, until)
			if !ok {
				failed.Add(1)
			}
			if cookie {
				cookies.Add(1)
			}
		})
	}
	wg.Wait()
	sent := stop()
	if failed.Load() > 0 || cookies.Load() > 0 {
		t.Errorf("of %d known devices %d did not come in and %d had to prove their address: %v", devices, failed.Load(), cookies.Load(), in.Refused())
	}
	// The live place's burst, then what its address may fail as a stranger and
	// what waits when that is spent.
	opened := in.Handshakes().Opened
	if sent < 5000 || opened > uint64(sent/10) {
		t.Errorf("%d of %d initiations were opened, want a tenth at most: %v", opened, sent, in.Refused())
	}
	t.Logf("flood of %d; %d opened; %v", sent, opened, in.Refused())
}
