package transport

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// The pinned WireGuard keeps the buffers of what it takes, and only those: what
// names no session's index is not under way, however much of it comes.
func TestPaceCountsWhatWireGuardTook(t *testing.T) {
	in := newIntake(1<<20, time.Hour)
	gateway := NewUDP(UDPOptions{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	made := 0
	p := newPair(t, 1, 100, func() conn.Bind {
		if made++; made == 1 {
			return &pacedBind{gateway, newPace(1<<20, time.Hour), in}
		}
		return NewUDP(UDPOptions{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	})
	defer p.close()
	count := func(want int) {
		t.Helper()
		var got int
		for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			in.mu.Lock()
			got = in.count
			in.mu.Unlock()
			if got == want {
				return
			}
		}
		t.Fatalf("%d messages are under way, want %d", got, want)
	}
	send := func(n int) {
		t.Helper()
		p.clients[0].tokens <- n
		p.await(t, int64(n))
	}
	count(1)
	send(50)
	count(51)
	c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", gateway.open.Load().v4.port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before := gateway.Stats().Received
	forged := make([]byte, 100)
	forged[0] = device.MessageTransportType
	for i := range 500 {
		forged[4], forged[5] = byte(i), byte(i>>8)
		if _, err := c.Write(forged); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(5 * time.Second); gateway.Stats().Received < before+500; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of 500 forged messages arrived", gateway.Stats().Received-before)
		}
	}
	count(51)
	send(7)
	count(58)
	// What is written still has the head of its message before it, and says that
	// all before it of its session is gone.
	var writes atomic.Int64
	written := func(bufs [][]byte) {
		in.left(in.leaves(nil, bufs), len(bufs))
		writes.Add(1)
	}
	p.gateway.written.Store(&written)
	send(1)
	count(0)
	send(100)
	count(0)
	if writes.Load() < 2 {
		t.Errorf("%d writes", writes.Load())
	}
}

// Sessions come and go with every handshake; those of which nothing is under way
// are not kept for ever.
func TestPaceForgetsSessions(t *testing.T) {
	in := newIntake(256, time.Hour)
	for i := range uint32(10 * crowdAtLeast) {
		b := make([]byte, 64)
		in.entered([]held{{index: i, buffer: &b[0]}})
		if i%2 == 0 {
			in.left([]held{{index: i, buffer: &b[0]}}, 1)
		} else {
			in.refused([]held{{index: i, buffer: &b[0]}})
		}
	}
	if in.count != 0 || len(in.sessions) > crowdAtLeast {
		t.Errorf("%d packets are under way, of %d sessions", in.count, len(in.sessions))
	}
}
