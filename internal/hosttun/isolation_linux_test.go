package hosttun

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// hostOfItsOwn runs a test in a child whose host namespace is a fresh one, so
// that this machine's network is left alone. It reports whether it is the child.
func hostOfItsOwn(t *testing.T) bool {
	t.Helper()
	need(t)
	if os.Getenv("PORTVAKT_HOSTTUN_HOST") == t.Name() {
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "PORTVAKT_HOSTTUN_HOST="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a host of its own: %v\n%s", err, out)
	}
	return false
}

// cable joins the host with a neighbour on its network, a namespace besides.
func cable(t *testing.T) (lan *namespace) {
	t.Helper()
	lan, err := newNamespace()
	must(t, err)
	t.Cleanup(lan.close)
	var fd int
	must(t, lan.do(func() (err error) {
		fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	}))
	defer unix.Close(fd)
	host := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan"}, PeerName: "lan"}
	must(t, netlink.LinkAdd(host))
	peer, err := netlink.LinkByName("lan")
	must(t, err, netlink.LinkSetNsFd(peer, fd))
	up := func(name, addr string) error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		a, err := netlink.ParseAddr(addr)
		return errors.Join(err, netlink.AddrAdd(l, a), netlink.LinkSetUp(l))
	}
	must(t, up("wan", "192.0.2.1/24"))
	must(t, lan.do(func() error {
		if err := up("lan", "192.0.2.2/24"); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, Gw: net.IPv4(192, 0, 2, 1)})
	}))
	return lan
}

// TestNeighboursReachNothing: what the host's networks send to the overlay's
// addresses, or from them, gets no answer and never enters the tunnel, on a host
// that forwards and filters nothing.
func TestNeighboursReachNothing(t *testing.T) {
	if !hostOfItsOwn(t) {
		return
	}
	lan := cable(t)
	for key, v := range map[string]string{"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "0", "ipv4/conf/wan/rp_filter": "0", "ipv4/conf/all/accept_local": "1"} {
		must(t, os.WriteFile("/proc/sys/net/"+key, []byte(v), 0))
	}
	conns := make(chan net.Conn, 10)
	asked := make(chan netip.AddrPort, 10)
	w := start(t, passing(func(r *TCPRequest) {
		asked <- r.Local()
		if c, err := r.Accept(context.Background()); err == nil {
			conns <- c
		}
	}))
	// The tunnel works, and its listener is there.
	w.connect(t, at(laptop, 40000), at(app, 443))
	<-asked
	c := <-conns
	defer c.Close()
	hostListener, err := net.Listen("tcp", "192.0.2.1:443")
	must(t, err)
	defer hostListener.Close()

	dial := func(to string, within time.Duration) error {
		var c net.Conn
		err := lan.do(func() (err error) {
			d := net.Dialer{Timeout: within}
			c, err = d.Dial("tcp4", to)
			return err
		})
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	if err := dial("192.0.2.1:443", 20*time.Second); err != nil {
		t.Fatalf("the neighbour does not reach the host: %v", err) // or nothing below means anything
	}
	for _, to := range []string{"100.64.1.30:443", "100.64.0.1:443", "100.64.0.20:40000"} {
		err, nobody := dial(to, 300*time.Millisecond), dial("100.64.77.77:443", 300*time.Millisecond)
		if err == nil || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ETIMEDOUT) != errors.Is(nobody, syscall.ETIMEDOUT) {
			t.Errorf("the neighbour dials %s: %v; an address nobody has: %v", to, err, nobody)
		}
	}
	// Addresses of the overlay as the source, a device's and the app's.
	must(t, lan.do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, p := range [][]byte{
			segment(at(laptop, 41000), at(app, 443), flagSYN, 1, 0),
			segment(at(laptop, 40000), at(app, 443), flagRST, 101, 0), // of the open connection
			segment(at(app, 443), at(laptop, 40000), flagRST, 101, 0),
			segment(at(laptop, 41000), at(own[0], 443), flagSYN, 1, 0),
		} {
			to := &unix.SockaddrInet4{Addr: [4]byte(p[16:20])}
			if err := unix.Sendto(fd, p, 0, to); err != nil {
				return err
			}
		}
		return nil
	}))
	if got := w.next(300 * time.Millisecond); got != nil {
		t.Errorf("the tunnel carries an answer: %x", got)
	}
	select {
	case to := <-asked:
		t.Errorf("a neighbour's connection to %v is asked for", to)
	default:
	}
	if _, err := c.Write([]byte("still here")); err != nil {
		t.Errorf("the device's connection: %v", err)
	}
	if got := w.next(3 * time.Second); got == nil || !bytes.HasSuffix(got, []byte("still here")) {
		t.Errorf("the device gets %x", got)
	}
	// The other way: a device asks for the neighbour, and gets no further than
	// the owner's decision.
	var l net.Listener
	must(t, lan.do(func() (err error) {
		l, err = net.Listen("tcp4", "192.0.2.2:8443")
		return err
	}))
	defer l.Close()
	w.send(t, segment(at(laptop, 42000), at(netip.MustParseAddr("192.0.2.2"), 8443), flagSYN, 1, 0))
	<-asked
	_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(200 * time.Millisecond))
	if c, err := l.Accept(); err == nil {
		t.Errorf("the neighbour got a connection from %v", c.RemoteAddr())
	}
}

// TestEverythingEndsWithTheProcess kills one that has no chance to clean up.
func TestEverythingEndsWithTheProcess(t *testing.T) {
	if !hostOfItsOwn(t) {
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+roleVictim)
	out, err := cmd.StdoutPipe()
	must(t, err, cmd.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/task/%s/ns/net", cmd.Process.Pid, strings.TrimSpace(line)), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("finding the namespace of thread %q: %v", line, err)
	}
	// A cable into the namespace: its end dies with it, and ours with that.
	probe := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, PeerName: "probe1"}
	must(t, netlink.LinkAdd(probe))
	peer, err := netlink.LinkByName("probe1")
	must(t, err, netlink.LinkSetNsFd(peer, fd), unix.Close(fd))
	if _, err := netlink.LinkByName("probe0"); err != nil {
		t.Fatal(err)
	}
	must(t, cmd.Process.Kill())
	_, _ = io.Copy(io.Discard, out)
	_ = cmd.Wait()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := netlink.LinkByName("probe0"); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the namespace outlives its process by 10 s")
		}
	}
}

func TestWithoutPrivilege(t *testing.T) {
	need(t)
	dir := t.TempDir()
	bin, err := os.ReadFile(os.Args[0])
	path := filepath.Join(dir, "test")
	must(t, err, os.WriteFile(path, bin, 0o755), os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755))
	cmd := exec.CommandContext(t.Context(), path)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), roleEnv+"="+roleUnprivileged)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "CAP_SYS_ADMIN") || !strings.Contains(string(out), "userspace") {
		t.Errorf("without privilege: %v\n%s", err, out)
	}
}
