package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

var (
	batchOwn = netip.MustParseAddr("10.9.0.1")
	batchApp = netip.MustParseAddr("10.9.0.7")
)

// openBatched makes an interface in a namespace of its own, which goes with the
// test's thread, and a socket there that hears what comes from batchApp.
func openBatched(t testing.TB) (*batched, *net.UDPConn) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for an interface in a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	dev, err := tun.CreateTUN("batched0", 1420)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	for _, args := range [][]string{{"addr", "add", "10.9.0.1/24", "dev", "batched0"}, {"link", "set", "batched0", "up"}} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	b, err := newBatched(dev)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(batchOwn, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return b, c
}

const batchOffset = 16

// toSocket is a datagram to c behind batchOffset bytes of what was there before,
// with its number at the payload's start. UDP's checksum it does without.
func toSocket(c *net.UDPConn, number uint32, size int) []byte {
	l4 := make([]byte, 8+size)
	binary.BigEndian.PutUint16(l4, 7)
	binary.BigEndian.PutUint16(l4[2:], c.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
	binary.BigEndian.PutUint32(l4[8:], number)
	p := packet(batchApp, batchOwn, unix.IPPROTO_UDP, l4)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum+sum>>16))
	return append(slices.Repeat([]byte{0xff}, batchOffset), p...)
}

// Calls, downloads and what is neither come through, each flow in its order, and
// the end of the interface is an error.
func TestBatchedWrite(t *testing.T) {
	b, c := openBatched(t)
	syn := append(make([]byte, batchOffset), packet(batchApp, batchOwn, unix.IPPROTO_TCP, tcpPart(2))...)
	for name, sizes := range map[string][]int{
		"calls":           {4, 160, 600, 200, 200},
		"downloads":       {1200, 1200, 700, 1200},
		"both":            {200, 1200, 1200, 4, 700, 200},
		"calls and TCP":   {200, 0, 4, 0, 300},
		"one":             {200},
		"the largest one": {1392},
	} {
		t.Run(name, func(t *testing.T) {
			var bufs [][]byte
			for i, size := range sizes {
				if size == 0 {
					bufs = append(bufs, slices.Clone(syn))
					continue
				}
				bufs = append(bufs, toSocket(c, uint32(i), size))
			}
			if _, err := b.Write(bufs, batchOffset); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
			buf := make([]byte, 2048)
			for i, size := range sizes {
				if size == 0 {
					continue
				}
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil || n != size || binary.BigEndian.Uint32(buf) != uint32(i) || from.Addr() != batchApp {
					t.Fatalf("%d bytes from %v, number %d: %v; want %d, number %d", n, from, binary.BigEndian.Uint32(buf), err, size, i)
				}
			}
		})
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write([][]byte{toSocket(c, 0, 200)}, batchOffset); !errors.Is(err, os.ErrClosed) {
		t.Errorf("writing to a closed interface: %v", err)
	}
}

// BenchmarkBatchedWrite is what a datagram of a call costs on its way to a
// program that does not read, beside the same through what joins packets.
func BenchmarkBatchedWrite(b *testing.B) {
	dev, c := openBatched(b)
	var bufs [][]byte
	for i := range 64 {
		p := toSocket(c, uint32(i), 200)
		binary.BigEndian.PutUint16(p[batchOffset+20:], uint16(1000+i)) // a flow each
		bufs = append(bufs, p)
	}
	for _, w := range []tun.Device{dev.Device, dev} {
		b.Run(fmt.Sprintf("%T", w), func(b *testing.B) {
			for range b.N {
				if _, err := w.Write(bufs, batchOffset); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(bufs)), "ns/datagram")
		})
	}
}
