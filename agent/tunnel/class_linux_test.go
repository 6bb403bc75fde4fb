package tunnel_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/tunnel"
)

const expedited = 46 << 2

// witness relays between an agent and a gateway, and notes with which class the
// agent's datagrams come.
type witness struct {
	addr string

	mu     sync.Mutex
	marked map[int]int // by length; guarded by mu
	plain  map[int]int // guarded by mu
}

func newWitness(t *testing.T, network, address string, to uint16) *witness {
	t.Helper()
	a, err := net.ResolveUDPAddr(network, address)
	if err != nil {
		t.Fatal(err)
	}
	front, err := net.ListenUDP(network, a)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := front.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if network == "udp4" {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		}
	})
	back, derr := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(to)})
	if err := errors.Join(err, derr); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*net.UDPConn{front, back} {
		_ = c.SetReadBuffer(4 << 20)
	}
	w := &witness{addr: front.LocalAddr().String(), marked: map[int]int{}, plain: map[int]int{}}
	var client atomic.Pointer[netip.AddrPort]
	var wg sync.WaitGroup
	wg.Go(func() {
		b, oob := make([]byte, 65536), make([]byte, 200)
		for {
			n, on, _, src, err := front.ReadMsgUDPAddrPort(b, oob)
			if err != nil {
				return
			}
			client.Store(&src)
			w.note(t, n, oob[:on])
			_, _ = back.Write(b[:n])
		}
	})
	wg.Go(func() {
		b := make([]byte, 65536)
		for {
			n, err := back.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if c := client.Load(); err == nil && c != nil {
				_, _ = front.WriteToUDPAddrPort(b[:n], *c)
			}
		}
	})
	t.Cleanup(func() {
		_ = front.Close()
		_ = back.Close()
		wg.Wait()
	})
	return w
}

func (w *witness) note(t *testing.T, n int, oob []byte) {
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(ms) != 1 || len(ms[0].Data) == 0 {
		t.Errorf("control messages %v, %v", ms, err)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch c := ms[0].Data[0]; c {
	case expedited:
		w.marked[n]++
	case 0:
		w.plain[n]++
	default:
		t.Errorf("a datagram has the class %#x", c)
	}
}

// count is how many datagrams of a length came since the last count, and how
// many marked ones of any other.
func (w *witness) count(size int) (marked, plain, others int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for n, k := range w.marked {
		if n != size {
			others += k
		}
	}
	marked, plain = w.marked[size], w.plain[size]
	clear(w.marked)
	clear(w.plain)
	return marked, plain, others
}

// laptop is a tunnel as the laptop's programs use it.
type laptop struct {
	*tunnel.Tunnel
	*witness
	kernel bool
}

// openLaptop starts one: with the userspace stack, or behind an interface in a network
// namespace of its own, which goes with the test's thread.
func openLaptop(t *testing.T, kernel bool, network, address string) laptop {
	t.Helper()
	gwPriv, gwPub := tunnel.Generate()
	priv, pub := tunnel.Generate()
	psk, _ := tunnel.Generate()
	cfg := tunnel.Config{Connect: answer(gwPub, psk), PrivateKey: priv}
	if kernel {
		cfg.TUN = &tunnel.TUN{FD: newInterface(t), Routes: func([]netip.Addr) error { return nil }}
	}
	w := newWitness(t, network, address, gateway(t, gwPriv, pub, psk))
	cfg.Endpoint = w.addr
	tun, err := tunnel.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tun.Close() })
	return laptop{tun, w, kernel}
}

// newInterface makes the interface and the routes of TUN mode, in a namespace
// where nothing else is.
func newInterface(t *testing.T) (fd int) {
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
	ifr, err := unix.NewIfreq("classes0")
	if err != nil {
		t.Fatal(err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		t.Fatal(err)
	}
	lines := []string{
		"link set lo up", "addr add 100.64.0.20/32 dev classes0", "addr add fd00:64::20/128 dev classes0 nodad", "link set classes0 mtu 1280 up",
		"route add 100.64.0.0/16 dev classes0", "route add fd00:64::/64 dev classes0",
	}
	for _, line := range lines {
		if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", line, err, out)
		}
	}
	return fd
}

// dialUDP is a program's socket; its own class is what it asks the system for.
func (l laptop) dialUDP(t *testing.T, to netip.AddrPort, class int) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	if l.kernel {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	} else {
		c, err = l.DialUDP(to)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	setClass(t, c, class)
	return c
}

func (l laptop) dialTCP(t *testing.T, to netip.AddrPort, class int) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	if l.kernel {
		c, err = (&net.Dialer{Timeout: 10 * time.Second}).DialContext(context.Background(), "tcp", to.String())
	} else {
		c, err = l.DialTCP(ctx(t), to)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	setClass(t, c, class)
	return c
}

func setClass(t *testing.T, c net.Conn, class int) {
	t.Helper()
	if class == 0 {
		return
	}
	raw, err := c.(interface {
		SyscallConn() (syscall.RawConn, error)
	}).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if strings.HasPrefix(c.LocalAddr().String(), "[") {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, class)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, class)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// talker is where datagrams go to and come from.
type talker interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
}

// bound is one destination of a socket that may have many.
type bound struct {
	net.PacketConn
	to net.Addr
}

func (b bound) Write(p []byte) (int, error) { return b.WriteTo(p, b.to) }

func (b bound) Read(p []byte) (int, error) {
	n, _, err := b.ReadFrom(p)
	return n, err
}

// talk sends n datagrams and waits for the echo of each.
func talk(t *testing.T, c talker, n int, payload string) {
	t.Helper()
	buf := make([]byte, 2000)
	for i := range n {
		if _, err := io.WriteString(c, payload); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if got, err := c.Read(buf); err != nil || string(buf[:got]) != payload {
			t.Fatalf("datagram %d: %d bytes came back, %v", i, got, err)
		}
	}
}

// What leaves the laptop for an app whose calls are told is marked when it is a
// call's, and nothing else is: on the wire, in both modes, by either family
// inside and outside, among bulk.
func TestCallsAreMarkedOnTheWire(t *testing.T) {
	rtp := "\x80\x00\x00\x01\x00\x00\x00\x00\x09\x09\x09\x09" + strings.Repeat("x", 160)
	text := strings.Repeat("no RTP ", 10)
	quiet := []netip.Addr{elsewhere, netip.MustParseAddr("fd00:64::1:31")}
	for network, address := range map[string]string{"udp4": "127.0.0.1:0", "udp6": "[::1]:0"} {
		for mode, kernel := range map[string]bool{"rootless": false, "tun": true} {
			t.Run(mode+" over "+network, func(t *testing.T) {
				l := openLaptop(t, kernel, network, address)
				if err := l.SetAllowed(append(quiet[:2:2], app...)); err != nil {
					t.Fatal(err)
				}
				told := []netip.AddrPort{at(app[0], 5004), at(app[1], 5004)}
				for i := range app {
					head := 20 + 8
					if i == 1 {
						head = 40 + 8
					}
					sealed := func(n int) int { return (head+n+15)/16*16 + 32 }
					call, off := l.dialUDP(t, at(app[i], 5004), 0), l.dialUDP(t, at(quiet[i], 5004), 0)
					expect := func(what string, payload string, marked, plain int) {
						t.Helper()
						m, p, others := l.count(sealed(len(payload)))
						if m != marked || p != plain || others != 0 {
							t.Errorf("%v, %s: %d marked, %d not, %d marked of others; want %d, %d, 0", app[i], what, m, p, others, marked, plain)
						}
					}
					l.SetCalls(nil)
					talk(t, call, 1, rtp) // the handshake is done
					l.count(0)
					talk(t, call, 4, rtp)
					expect("nobody's calls are told", rtp, 0, 4)
					l.SetCalls(told)
					talk(t, call, 5, rtp)
					expect("a call", rtp, 4, 1)
					talk(t, off, 5, rtp)
					expect("an app with off", rtp, 0, 5)
					c, err := l.ListenUDP(i == 1, 0) // as a UDP association of SOCKS has it
					if err != nil {
						t.Fatal(err)
					}
					talk(t, bound{c, net.UDPAddrFromAddrPort(told[i])}, 5, rtp)
					expect("a call of one socket for all", rtp, 4, 1)
					talk(t, bound{c, net.UDPAddrFromAddrPort(at(quiet[i], 5004))}, 2, rtp)
					expect("another app's datagrams on it", rtp, 0, 2)
					if err := c.Close(); err != nil {
						t.Error(err)
					}
					l.beside(t, at(app[i], 5004), at(app[i], 80), rtp, sealed(len(rtp)))
					l.SetCalls(nil)
					talk(t, call, 5, rtp)
					expect("after off", rtp, 0, 5)
					if kernel {
						l.SetCalls(told)
						talk(t, l.dialUDP(t, at(app[i], 5004), expedited), 3, text)
						expect("a program's own mark", text, 3, 0)
						talk(t, l.dialUDP(t, at(quiet[i], 5004), expedited), 3, rtp)
						expect("a program's own mark, of an app with off", rtp, 0, 3)
					}
				}
			})
		}
	}
}

// beside has a call while bulk goes to the same app, which its program marked
// where it can.
func (l laptop) beside(t *testing.T, voice, bulk netip.AddrPort, rtp string, sealed int) {
	t.Helper()
	class := 0
	if l.kernel {
		class = expedited
	}
	c := l.dialTCP(t, bulk, class)
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	const size = 1 << 20
	var both sync.WaitGroup
	both.Go(func() { _, _ = c.Write(make([]byte, size)) })
	both.Go(func() {
		if n, err := io.CopyN(io.Discard, c, size); err != nil {
			t.Errorf("%d bytes of bulk came back: %v", n, err)
		}
	})
	done := make(chan struct{})
	go func() { both.Wait(); close(done) }()
	call := l.dialUDP(t, voice, 0)
	sent, buf := 0, make([]byte, 2000)
	for open := true; open || sent < 20; sent++ {
		if _, err := io.WriteString(call, rtp); err != nil {
			t.Error(err)
		}
		// What is lost among bulk is not missed here.
		_ = call.SetReadDeadline(time.Now().Add(time.Second))
		_, _ = call.Read(buf)
		select {
		case <-done:
			open = false
		default:
		}
	}
	talk(t, l.dialUDP(t, voice, 0), 1, "all before has arrived")
	m, _, others := l.count(sealed)
	t.Logf("%v: %d datagrams of a call among bulk, %d arrived marked", voice, sent, m)
	if m == 0 || m >= sent || others != 0 {
		t.Errorf("%v: of %d datagrams of a call %d are marked, and %d of others", voice, sent, m, others)
	}
}
