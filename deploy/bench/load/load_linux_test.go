package load

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- EchoTCP(ctx, l) }()
	d, err := PingPong(ctx, l.Addr().String(), 0, 50*time.Millisecond)
	if err != nil || d.Count < 10 || d.P50 <= 0 || d.P99 < d.P50 || d.P99 > 1e6 {
		t.Errorf("ping-pong: %+v %v", d, err)
	}
	o, err := Connect(ctx, l.Addr().String(), 3, 50*time.Millisecond)
	if err != nil || o.Failed != 0 || o.PerSecond < 10 || o.Delays.Count < 3 {
		t.Errorf("connecting: %+v %v", o, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if o, err := Connect(t.Context(), l.Addr().String(), 2, 10*time.Millisecond); err == nil {
		t.Errorf("nobody listens, and connecting gives %+v", o)
	}
	if d, err := PingPong(t.Context(), l.Addr().String(), 0, 10*time.Millisecond); err == nil {
		t.Errorf("nobody listens, and the ping-pong gives %+v", d)
	}
}

func TestVoice(t *testing.T) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- EchoUDP(ctx, c) }()
	v := Voice{To: c.LocalAddr().(*net.UDPAddr).AddrPort(), Flows: 7, Rate: 50, Size: 200, For: 400 * time.Millisecond}
	got, err := v.Run(ctx)
	if err != nil || got.Sent != 140 || got.Received != 140 || got.Loss() != 0 || got.Delays.P50 <= 0 || got.Delays.Jitter <= 0 {
		t.Errorf("calls: %+v %v", got, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Seven calls to three ports, from three local ones.
func TestVoiceToManyPorts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 3)
	first := uint16(31337)
	for i := range 3 {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 77), Port: int(first) + i})
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- EchoUDP(ctx, c) }()
	}
	v := Voice{To: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.77"), first), Flows: 7, Ports: 3, Rate: 50, Size: 200, For: 200 * time.Millisecond}
	got, err := v.Run(ctx)
	if err != nil || got.Sent != 70 || got.Received != 70 {
		t.Errorf("calls: %+v %v", got, err)
	}
	cancel()
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// answering is a server that sends for each datagram what answers returns, to
// whom it came from, until the test ends.
func answering(t *testing.T, answers func(b []byte) [][]byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			for _, b := range answers(buf[:n]) {
				_, _ = c.WriteToUDPAddrPort(b, from)
			}
		}
	}()
	t.Cleanup(func() {
		c.Close()
		<-ended
	})
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Of four datagrams this server answers three.
func TestVoiceLoss(t *testing.T) {
	came := 0
	to := answering(t, func(b []byte) [][]byte {
		if came++; came%4 == 0 {
			return nil
		}
		return [][]byte{b}
	})
	v := Voice{To: to, Flows: 2, Rate: 100, Size: 60, For: 200 * time.Millisecond}
	got, err := v.Run(t.Context())
	if err != nil || got.Sent != 40 || got.Received != 30 || got.Loss() != 25 {
		t.Errorf("calls: %+v, loss %v, %v", got, got.Loss(), err)
	}
	if got, err := (Voice{To: netip.MustParseAddrPort("127.0.0.1:9"), Flows: 1, Rate: 1, Size: 3}).Run(t.Context()); err == nil {
		t.Errorf("datagrams of 3 bytes: %+v", got)
	}
}

// This server answers late: what the run before sent, from the same ports, comes
// among the answers of the next, which take no notice.
func TestVoiceOfTheRunBefore(t *testing.T) {
	var first []byte // the very first datagram, of flow 0
	to := answering(t, func(b []byte) [][]byte {
		if first == nil {
			first = bytes.Clone(b)
			return nil
		}
		return [][]byte{first, b} // to any flow's port
	})
	v := Voice{To: to, Flows: 1, Rate: 100, Size: 60, For: 50 * time.Millisecond, FirstPort: 31347}
	if got, err := v.Run(t.Context()); err != nil || got.Received == 0 {
		t.Errorf("the first run: %+v %v", got, err)
	}
	v.Flows = 2
	if got, err := v.Run(t.Context()); err != nil || got.Received != got.Sent {
		t.Errorf("the second: %+v %v", got, err)
	}
}

func TestJitter(t *testing.T) {
	changes := make([]time.Duration, 200) // all 5 us, but for two stalls
	for i := range changes {
		changes[i] = 5 * time.Microsecond
	}
	changes[7], changes[8] = time.Second, time.Second
	if j := jitter(changes); j != 5 {
		t.Errorf("the jitter of two stalls in 200 is %v us", j)
	}
	if j := jitter(nil); j != 0 {
		t.Errorf("the jitter of nothing is %v us", j)
	}
}

func TestQuantile(t *testing.T) {
	all := make([]time.Duration, 100)
	for i := range all {
		all[i] = time.Duration(i+1) * time.Microsecond
	}
	if d := delays(all); d.P50 != 50 || d.P99 != 99 {
		t.Errorf("of 1 to 100: %+v", d)
	}
	if d := delays(nil); d.P50 != 0 || d.Count != 0 {
		t.Errorf("of nothing: %+v", d)
	}
}
