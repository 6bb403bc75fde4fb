package overlay_test

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	wireguard "golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/transport"
)

// tunnelled is a gateway's stack and an agent's behind two WireGuard devices
// on loopback: the whole road but for the apps' own sockets.
func tunnelled(b *testing.B, o overlay.Options) (agent *overlay.Stack) {
	b.Helper()
	o.Addresses, o.Gateway = gateway, true
	g, err := overlay.New(o)
	if err != nil {
		b.Fatal(err)
	}
	a, err := overlay.New(overlay.Options{Addresses: device})
	if err != nil {
		b.Fatal(err)
	}
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			b.Fatal(err)
		}
	}
	var devices [2]*wireguard.Device
	for i, s := range []*overlay.Stack{g, a} {
		inside, outside, _ := transport.Pace(s.Device(), transport.NewUDP(transport.UDPOptions{Listen: netip.MustParseAddrPort("127.0.0.1:0")}))
		d := wireguard.NewDevice(inside, outside, &wireguard.Logger{
			Verbosef: wireguard.DiscardLogf, Errorf: wireguard.DiscardLogf,
		})
		allowed := []string{device[0].String() + "/32", device[1].String() + "/128"}
		if i == 1 {
			allowed = []string{"0.0.0.0/0", "::/0"}
		}
		conf := fmt.Sprintf("private_key=%s\npublic_key=%s\n", hex.EncodeToString(keys[i].Bytes()), hex.EncodeToString(keys[1-i].PublicKey().Bytes()))
		for _, a := range allowed {
			conf += "allowed_ip=" + a + "\n"
		}
		if i == 1 {
			conf += fmt.Sprintf("endpoint=127.0.0.1:%s\n", port(b, devices[0]))
		}
		if err := d.IpcSet(conf); err != nil {
			b.Fatal(err)
		}
		if err := d.Up(); err != nil {
			b.Fatal(err)
		}
		devices[i] = d
	}
	b.Cleanup(func() {
		for _, s := range []*overlay.Stack{a, g} {
			if err := s.Close(); err != nil {
				b.Error(err)
			}
		}
		for _, d := range devices {
			d.Close()
		}
	})
	return a
}

func port(b *testing.B, d *wireguard.Device) string {
	b.Helper()
	conf, err := d.IpcGet()
	if err != nil {
		b.Fatal(err)
	}
	_, after, ok := strings.Cut(conf, "listen_port=")
	if !ok {
		b.Fatalf("no port in %q", conf)
	}
	p, _, _ := strings.Cut(after, "\n")
	return p
}

// cpu is what this process has used so far, in user mode and in the kernel.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peak is the most memory this process has had so far, in MiB.
func peak() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Maxrss) / 1024
}

func benchDial(b *testing.B, s *overlay.Stack, port uint16) net.Conn {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second)
	defer cancel()
	c, err := s.DialTCP(ctx, netip.AddrPortFrom(app[0], port))
	if err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkStream moves b.N MiB. Both ends' work is counted.
func BenchmarkStream(b *testing.B) {
	const chunk = 64 << 10
	for _, down := range []bool{false, true} {
		for _, streams := range []int{1, 4} {
			b.Run(fmt.Sprintf("%s-%d", map[bool]string{false: "up", true: "down"}[down], streams), func(b *testing.B) {
				total := make(chan int64, 64)
				read := func(c net.Conn) {
					var n int64
					buf := make([]byte, chunk)
					for {
						m, err := c.Read(buf)
						n += int64(m)
						if err != nil {
							break
						}
					}
					_ = c.Close()
					total <- n
				}
				write := func(c net.Conn, n int64) {
					buf := make([]byte, chunk)
					for n > 0 {
						m, err := c.Write(buf[:min(n, chunk)])
						if n -= int64(m); err != nil {
							b.Error(err)
							break
						}
					}
					_ = c.Close()
				}
				var each int64 // what a stream carries; set before the dials
				agent := tunnelled(b, overlay.Options{TCP: func(r *overlay.TCPRequest) {
					c, err := r.Accept(context.Background())
					switch {
					case err != nil:
						b.Error(err)
					case r.Local().Port() == 1:
						echoOne(c)
					case down:
						write(c, each)
					default:
						read(c)
					}
				}})
				echoed(b, agent) // the handshake is done
				each = int64(b.N) << 20 / int64(streams)
				b.SetBytes(1 << 20)
				b.ResetTimer()
				start := cpu()
				for range streams {
					c := benchDial(b, agent, 443)
					if down {
						go read(c)
					} else {
						go write(c, each)
					}
				}
				for range streams {
					if n := <-total; n != each {
						b.Errorf("a stream carried %d bytes, want %d", n, each)
					}
				}
				used := cpu() - start
				b.StopTimer()
				b.ReportMetric(float64(used)/float64(each*int64(streams)), "cpu-ns/B")
				b.ReportMetric(peak(), "peak-MiB")
			})
		}
	}
}

func echoOne(c net.Conn) {
	buf := make([]byte, 64)
	for {
		if _, err := io.ReadFull(c, buf); err != nil {
			break
		}
		if _, err := c.Write(buf); err != nil {
			break
		}
	}
	_ = c.Close()
}

func echoed(b *testing.B, agent *overlay.Stack) net.Conn {
	b.Helper()
	c := benchDial(b, agent, 1)
	b.Cleanup(func() { _ = c.Close() })
	buf := make([]byte, 64)
	if _, err := c.Write(buf); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(c, buf); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkPingPong sends 64 bytes and waits for their echo.
func BenchmarkPingPong(b *testing.B) {
	agent := tunnelled(b, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		if c, err := r.Accept(context.Background()); err == nil {
			echoOne(c)
		}
	}})
	c := echoed(b, agent)
	buf := make([]byte, 64)
	b.ResetTimer()
	start := cpu()
	for range b.N {
		if _, err := c.Write(buf); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(cpu()-start)/float64(b.N), "cpu-ns/op")
}

// BenchmarkConnect opens a connection, waits for one byte and closes it, eight
// at a time.
func BenchmarkConnect(b *testing.B) {
	agent := tunnelled(b, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		c, err := r.Accept(context.Background())
		if err != nil {
			return
		}
		if r.Local().Port() == 1 {
			echoOne(c)
			return
		}
		_, _ = c.Write([]byte{1})
		_, _ = c.Read(make([]byte, 1))
		_ = c.Close()
	}})
	echoed(b, agent)
	var left sync.WaitGroup
	work := make(chan struct{}, b.N)
	for range b.N {
		work <- struct{}{}
	}
	close(work)
	b.ResetTimer()
	start := cpu()
	for range 8 {
		left.Go(func() {
			for range work {
				ctx, cancel := context.WithTimeout(b.Context(), 5*time.Second)
				c, err := agent.DialTCP(ctx, netip.AddrPortFrom(app[0], 443))
				cancel()
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.ReadFull(c, make([]byte, 1))
				_ = c.Close()
			}
		})
	}
	left.Wait()
	b.ReportMetric(float64(cpu()-start)/float64(b.N), "cpu-ns/op")
}
