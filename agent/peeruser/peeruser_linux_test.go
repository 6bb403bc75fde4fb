package peeruser_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/portvakt/portvakt/agent/peeruser"
)

const nobody = 65534

// TestMain is also the client that runs as another user: it opens a socket,
// says its local address and keeps it until its input ends.
func TestMain(m *testing.M) {
	if spec := os.Getenv("PEERUSER_CLIENT"); spec != "" {
		network, addr, _ := strings.Cut(spec, "/")
		c, err := net.Dial(network, addr)
		if err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		fmt.Println(c.LocalAddr())
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a second user is impersonated")
	}
}

// dialAs runs the client as another user and returns its local address.
func dialAs(t *testing.T, uid uint32, network, addr string) netip.AddrPort {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"PEERUSER_CLIENT=" + network + "/" + addr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	local, err := netip.ParseAddrPort(strings.TrimSpace(line))
	if err != nil {
		t.Fatalf("client: %s", line)
	}
	return local
}

func TestTCPOwnUser(t *testing.T) {
	for _, listen := range []struct{ network, addr string }{
		{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"tcp", ":0"}, // the last is dual-stack: its ends are v4-mapped
	} {
		t.Run(listen.addr, func(t *testing.T) {
			l, err := net.Listen(listen.network, listen.addr)
			if err != nil {
				t.Skipf("needs %s: %v", listen.network, err)
			}
			defer l.Close()
			to := l.Addr().String()
			if listen.network == "tcp" {
				to = fmt.Sprintf("127.0.0.1:%d", l.Addr().(*net.TCPAddr).Port)
			}
			c, err := net.Dial("tcp", to)
			if err != nil {
				t.Fatal(err)
			}
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			uid, err := peeruser.Conn(s)
			if err != nil || uid != uint32(os.Geteuid()) {
				t.Fatalf("Conn = %d, %v; want the test's own user", uid, err)
			}
			c.Close()
			if uid, err := peeruser.Conn(s); !errors.Is(err, peeruser.ErrNotFound) {
				t.Fatalf("after the client closed: %d, %v; want ErrNotFound", uid, err)
			}
		})
	}
}

func TestTCPOtherUser(t *testing.T) {
	needRoot(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dialAs(t, nobody, "tcp", l.Addr().String())
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if uid, err := peeruser.Conn(s); err != nil || uid != nobody {
		t.Fatalf("Conn = %d, %v; want %d", uid, err, nobody)
	}
}

func TestTCPUnknownAndForeign(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server := netip.MustParseAddrPort(l.Addr().String())
	// The kernel falls back to a listening socket here; it must not count.
	if uid, err := peeruser.TCP(server, netip.MustParseAddrPort("127.0.0.1:9")); !errors.Is(err, peeruser.ErrNotFound) {
		t.Errorf("a listener was taken for a connection: %d, %v", uid, err)
	}
	if _, err := peeruser.TCP(netip.MustParseAddrPort("192.0.2.1:40000"), server); err == nil {
		t.Error("a client outside the loopback was answered")
	}
	if _, err := peeruser.UDP(netip.MustParseAddrPort("192.0.2.1:40000")); err == nil {
		t.Error("a UDP client outside the loopback was answered")
	}
}

func TestUDPOwners(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", ":0"} {
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		client := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(c.LocalAddr().(*net.UDPAddr).Port))
		uids, err := peeruser.UDP(client)
		if err != nil || !slices.Equal(uids, []uint32{uint32(os.Geteuid())}) {
			t.Errorf("UDP(%s) = %v, %v; want the test's own user", addr, uids, err)
		}
		c.Close()
		if uids, err := peeruser.UDP(client); !errors.Is(err, peeruser.ErrNotFound) {
			t.Errorf("after close: %v, %v; want ErrNotFound", uids, err)
		}
	}
}

// Another user's socket on the same port of another loopback address may send
// from ours; both owners have to be named.
func TestUDPNamesEverySuspect(t *testing.T) {
	needRoot(t)
	other := dialAs(t, nobody, "udp", "127.0.0.1:9")
	mine, err := net.ListenPacket("udp", fmt.Sprintf("127.0.0.2:%d", other.Port()))
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	uids, err := peeruser.UDP(netip.MustParseAddrPort(mine.LocalAddr().String()))
	if err != nil || !slices.Equal(uids, []uint32{0, nobody}) {
		t.Fatalf("UDP = %v, %v; want both owners", uids, err)
	}
}
