package load

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkVoice is what an answer costs caller and echo together when a thousand
// calls over the loopback ask for more than they can have.
func BenchmarkVoice(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 4)
	to := netip.MustParseAddrPort("127.0.0.78:31400")
	for i := range uint16(4) {
		c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.Addr(), to.Port()+i)))
		if err != nil {
			b.Fatal(err)
		}
		go func() { ended <- EchoUDP(ctx, c) }()
	}
	var got Calls
	before := cpu(b)
	for b.Loop() {
		c, err := Voice{To: to, Flows: 1000, Ports: 4, Rate: 300, Size: 200, For: time.Second, FirstPort: 10000}.Run(ctx)
		if err != nil {
			b.Fatal(err)
		}
		got.Sent += c.Sent
		got.Received += c.Received
	}
	b.ReportMetric(float64(cpu(b)-before)/1e3/float64(got.Received), "cpu-us/answer")
	b.ReportMetric(got.Loss(), "%lost")
	cancel()
	for range 4 {
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}
}

func cpu(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}
