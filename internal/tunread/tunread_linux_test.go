package tunread

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
)

const (
	offset = 16
	mtu    = 1420
)

// open makes an interface in a namespace of its own, which goes with the
// test's thread, and returns it with a reader.
func open(t *testing.T) (*os.File, *Reader) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for an interface in a network namespace")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ifr, err := unix.NewIfreq("tunread0")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_USO4|unix.TUN_F_USO6); err != nil {
		t.Skip("the kernel does not hand UDP superpackets over:", err)
	}
	for _, line := range []string{
		"addr add 10.9.0.1/24 dev tunread0", "-6 addr add fd09::1/64 dev tunread0 nodad",
		fmt.Sprintf("link set tunread0 mtu %d up", mtu),
	} {
		if out, err := exec.Command("sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/tunread0/addr_gen_mode; ip "+line).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	f := os.NewFile(uintptr(fd), "tun")
	t.Cleanup(func() { f.Close() })
	r, err := New(f)
	if err != nil {
		t.Fatal(err)
	}
	return f, r
}

func buffers(n int) ([][]byte, []int) {
	bufs := make([][]byte, n)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16-1)
	}
	return bufs, make([]int, n)
}

// sound says what is wrong with a packet's lengths and checksums.
func sound(p []byte) error {
	ip, addrs, total, proto := 40, []byte(nil), 0, byte(0)
	if p[0]>>4 == 4 {
		ip, addrs, total, proto = 20, p[12:20], int(binary.BigEndian.Uint16(p[2:])), p[9]
		if checksum.Checksum(p[:20], 0) != 0xffff {
			return errors.New("wrong IP checksum")
		}
	} else {
		addrs, total, proto = p[8:40], 40+int(binary.BigEndian.Uint16(p[4:])), p[6]
	}
	if total != len(p) || len(p) > mtu {
		return fmt.Errorf("%d bytes say they are %d", len(p), total)
	}
	l4 := p[ip:]
	if proto == unix.IPPROTO_UDP && int(binary.BigEndian.Uint16(l4[4:])) != len(l4) {
		return errors.New("wrong UDP length")
	}
	pseudo := checksum.Combine(checksum.Combine(checksum.Checksum(addrs, 0), uint16(proto)), uint16(len(l4)))
	if checksum.Checksum(l4, pseudo) != 0xffff {
		return errors.New("wrong transport checksum")
	}
	return nil
}

// What programs sent comes whole, in order, with right checksums, many at a
// time, in either family; a superpacket goes on where the buffers ended.
func TestDatagrams(t *testing.T) {
	_, r := open(t)
	random := rand.NewChaCha8([32]byte{1})
	for _, to := range []string{"10.9.0.7:9", "[fd09::7]:9"} {
		c, err := net.Dial("udp", to)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fd := c.(*net.UDPConn)
		raw, err := fd.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		segment := func(size int) {
			t.Helper()
			var set error
			_ = raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
			if set != nil {
				t.Fatal(set)
			}
		}
		var want [][]byte
		send := func(total, size int) {
			t.Helper()
			b := make([]byte, total)
			_, _ = random.Read(b)
			segment(size)
			if _, err := c.Write(b); err != nil {
				t.Fatal(err)
			}
			for len(b) > 0 {
				n := len(b)
				if size > 0 {
					n = min(size, n)
				}
				want = append(want, b[:n])
				b = b[n:]
			}
		}
		for i := range 5 {
			send(1, 0)
			send(1300+i, 0)
			send(40*200+7, 200) // more segments than there are buffers
			send(200, 0)
		}
		bufs, sizes := buffers(16)
		header := 48
		if netip.MustParseAddrPort(to).Addr().Is4() {
			header = 28
		}
		reads := 0
		for i := 0; i < len(want); reads++ {
			n, err := r.Read(bufs, sizes, offset)
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			if n != len(bufs) && i+n != len(want) {
				t.Errorf("%d packets at a time while more were waiting", n)
			}
			for k := range n {
				p := bufs[k][offset:][:sizes[k]]
				if err := sound(p); err != nil {
					t.Fatalf("%s: packet %d: %v", to, i, err)
				}
				if !bytes.Equal(p[header:], want[i]) {
					t.Fatalf("%s: packet %d has %d bytes, not the %d that were sent", to, i, len(p)-header, len(want[i]))
				}
				i++
			}
		}
		if n := r.More(bufs, sizes, offset); n != 0 {
			t.Errorf("%s: %d packets that nobody sent", to, n)
		}
	}
}

// A superpacket of TCP is cut as a network card would.
func TestCutTCP(t *testing.T) {
	for _, ip6 := range []bool{false, true} {
		ip, gso := 20, byte(unix.VIRTIO_NET_HDR_GSO_TCPV4)
		if ip6 {
			ip, gso = 40, unix.VIRTIO_NET_HDR_GSO_TCPV6
		}
		const options, size, payload = 12, 1000, 2500
		p := make([]byte, ip+20+options+payload)
		for i := range p {
			p[i] = byte(i * 7)
		}
		if ip6 {
			p[0], p[6] = 0x60, 6
		} else {
			p[0], p[9] = 0x45, 6
			binary.BigEndian.PutUint16(p[4:], 0xffff) // the ID wraps
		}
		l4 := p[ip:]
		binary.BigEndian.PutUint32(l4[4:], 0xffffff00) // and so does the sequence
		l4[12], l4[13] = (20+options)/4<<4, 0x19       // FIN, PSH, ACK
		body := bytes.Clone(l4[20+options:])
		var c cutter
		if !c.start(p, gso, size, ip, 16) {
			t.Fatal("not taken")
		}
		var got []byte
		for i := 0; c.left(); i++ {
			out := make([]byte, 2000)
			out = out[:c.next(out)]
			if err := sound(out); err != nil {
				t.Fatal(i, err)
			}
			flags, seq := byte(0x10), uint32(0xffffff00)
			if i == 2 {
				flags = 0x19
			}
			if h := out[ip:]; h[13] != flags || binary.BigEndian.Uint32(h[4:]) != seq+uint32(i*size) {
				t.Errorf("segment %d has flags %#x and sequence %d", i, h[13], binary.BigEndian.Uint32(h[4:]))
			}
			if id := binary.BigEndian.Uint16(out[4:]); !ip6 && id != uint16(0xffff+i) {
				t.Errorf("segment %d has ID %d", i, id)
			}
			got = append(got, out[ip+20+options:]...)
		}
		if !bytes.Equal(got, body) {
			t.Errorf("%d bytes came of %d, or others", len(got), len(body))
		}
	}
}

// Closing ends the wait, a deadline interrupts it, and removing the interface
// ends it too.
func TestEnd(t *testing.T) {
	f, r := open(t)
	bufs, sizes := buffers(2)
	if err := f.SetReadDeadline(time.Now().Add(10 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(bufs, sizes, offset); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %d, %v", n, err)
	}
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, func() { f.Close() })
	if n, err := r.Read(bufs, sizes, offset); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %d, %v", n, err)
	}
	f, r = open(t)
	if out, err := exec.Command("ip", "link", "del", "tunread0").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if n, err := r.Read(bufs, sizes, offset); n != 0 || !errors.Is(err, os.ErrClosed) {
		t.Errorf("without the interface: %d, %v", n, err)
	}
}

// Whatever a header says, nothing is read or written beside the packet, and
// what is cut comes to an end.
func FuzzCut(f *testing.F) {
	f.Add(append([]byte{0x45}, make([]byte, 99)...), byte(unix.VIRTIO_NET_HDR_GSO_TCPV4), uint16(10), uint16(20), uint16(16))
	f.Add(append([]byte{0x60}, make([]byte, 99)...), byte(unix.VIRTIO_NET_HDR_GSO_UDP_L4), uint16(10), uint16(40), uint16(6))
	f.Fuzz(func(t *testing.T, p []byte, gso byte, size, start, sum uint16) {
		complete(bytes.Clone(p), int(start), int(sum))
		var c cutter
		if !c.start(p, gso, int(size), int(start), int(sum)) {
			return
		}
		out := make([]byte, 2048)
		for n := 0; c.left(); n++ {
			if n > len(p) {
				t.Fatal("more segments than bytes")
			}
			c.next(out)
		}
	})
}
