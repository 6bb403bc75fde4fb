package media

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The app of the benchmarks is a process of its own, so that the CPU time of
// this one is the relay's.
const echoVariable = "PORTVAKT_MEDIA_ECHO"

func init() {
	if os.Getenv(echoVariable) == "" {
		return
	}
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		panic(err)
	}
	_ = c.SetReadBuffer(4 << 20)
	fmt.Println(c.LocalAddr())
	buf := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			os.Exit(1)
		}
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

// echoProcess starts the app and returns its address.
func echoProcess(b *testing.B) string {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), echoVariable+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line := make([]byte, 64)
	n, err := out.Read(line)
	if err != nil {
		b.Fatal(err)
	}
	return strings.TrimSpace(string(line[:n]))
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkCalls is voice: many flows, a datagram of 200 bytes each way in
// turn. An operation is one datagram to the app and its answer; cpu-ns/packet
// counts both.
func BenchmarkCalls(b *testing.B) {
	for _, flows := range []int{20, 200} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			var back atomic.Int64
			w := newWorld(b, []string{yaml("call", echoProcess(b))}, func(c *Config) {
				c.Inject = func(packets [][]byte) int { back.Add(int64(len(packets))); return len(packets) }
				c.Timeouts.Sweep = time.Second
			})
			l := w.laptop()
			packets := make([][]byte, flows)
			for i := range packets {
				packets[i] = packet(netip.AddrPortFrom(l.device.Addresses[0], uint16(20000+i)), w.at("call", 0, 5004), make([]byte, 200))
			}
			// round sends a datagram of every flow and waits for the answers.
			round := func() (lost int64) {
				before := back.Load()
				for batch := range slices.Chunk(packets, 64) {
					w.relay.Take(batch)
				}
				for end := time.Now().Add(time.Second); back.Load()-before < int64(flows); {
					if time.Now().After(end) {
						break
					}
					runtime.Gosched()
					time.Sleep(20 * time.Microsecond)
				}
				return int64(flows) - (back.Load() - before)
			}
			for end := time.Now().Add(patience); w.relay.Stats().Sockets < flows; {
				if time.Now().After(end) {
					b.Fatalf("%+v %v", w.relay.Stats(), w.relay.Dropped())
				}
				round()
			}
			var lost int64
			rounds := max(1, b.N/flows)
			b.ReportAllocs()
			b.ResetTimer()
			begun := cpuTime(b)
			for range rounds {
				lost += round()
			}
			used := cpuTime(b) - begun
			b.StopTimer()
			b.ReportMetric(float64(used.Nanoseconds())/float64(2*rounds*flows), "cpu-ns/packet")
			b.ReportMetric(float64(lost)/float64(rounds*flows), "lost/op")
		})
	}
}

// BenchmarkTake is the way to the app alone, from packet to system call, of what
// is marked as a call and what is not; the app reads nothing.
func BenchmarkTake(b *testing.B) {
	sink, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close()
	w := newWorld(b, []string{yaml("call", sink.LocalAddr().String())})
	l := w.laptop()
	for i, name := range []string{"data", "call"} {
		payload := make([]byte, 200)
		payload[0] = byte(i) << 7 // RTP's version is 2
		p := packet(netip.AddrPortFrom(l.device.Addresses[0], uint16(4000+i)), w.at("call", 0, 5004), payload)
		w.relay.Take([][]byte{p})
		w.eventually("the flow is open", func() bool { return w.relay.Stats().Sockets == 1+i })
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			one := [][]byte{p}
			for b.Loop() {
				w.relay.Take(one)
			}
		})
	}
}

// BenchmarkWithoutSystem is what the relay itself costs: parsing, table, lease,
// wrapping.
func BenchmarkWithoutSystem(b *testing.B) {
	a := newApp(b, "udp4", "127.0.0.1:0", echo)
	w := newWorld(b, []string{a.yaml("call")})
	l := w.laptop()
	l.ask(4000, w.at("call", 0, 5004), "x")
	p := packet(netip.AddrPortFrom(l.device.Addresses[0], 4000), w.at("call", 0, 5004), make([]byte, 200))
	var d datagram
	parse(p, &d)
	var in batch
	f := in.find(w.relay, &d)
	b.Run("up", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var d datagram
			if parse(p, &d) != passed || in.find(w.relay, &d) != f || f.session.Check() != nil {
				b.Fatal("the flow is gone")
			}
		}
	})
	buf := make([]byte, headMax+200)
	b.Run("down", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if f.session.Check() != nil {
				b.Fatal("the flow is gone")
			}
			f.down.Look(buf[headMax:])
			f.back.wrap(buf, 0)
		}
	})
}
