package nethelper_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/nethelper"
)

const caseEnv = "NETHELPER_CASE"

// Each case is a process of its own in a network namespace of its own, with a
// home network on the interface lan: 192.168.1.0/24 and fd05::/64.
var cases = map[string]func(*bench){
	"routes": routesCase, "refusals": refusalsCase, "endings": endingsCase, "leftovers": leftoversCase, "strangers": strangersCase,
	"names": namesCase, "neighbour": neighbourCase, "flushed": flushedCase, "taken": takenCase,
	"stubborn": stubbornCase, "second": secondCase,
}

func TestMain(m *testing.M) {
	name := os.Getenv(caseEnv)
	if name == "" {
		goleak.VerifyTestMain(m)
	}
	b := &bench{dir: os.Getenv("NETHELPER_DIR")}
	b.home()
	cases[name](b)
	if err := goleak.Find(); err != nil {
		b.fail("%v", err)
	}
	os.Exit(b.failed)
}

func TestInNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes interfaces in network namespaces")
	}
	for name := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "/proc/self/exe")
			cmd.Env = append(os.Environ(), caseEnv+"="+name, "NETHELPER_DIR="+t.TempDir())
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

// bench is where a case works.
type bench struct {
	dir    string
	failed int
}

func (b *bench) fail(format string, args ...any) {
	b.failed = 1
	fmt.Printf(format+"\n", args...)
}

func (b *bench) must(err error) {
	if err != nil {
		_, _, line, _ := runtime.Caller(1)
		fmt.Printf("line %d: %v\n", line, err)
		os.Exit(1)
	}
}

func (b *bench) link(name string) netlink.Link {
	l, err := netlink.LinkByName(name)
	b.must(err)
	return l
}

func (b *bench) home() {
	b.must(netlink.LinkSetUp(b.link("lo")))
	b.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "lan"}, PeerName: "neighbour"}))
	for _, n := range []string{"lan", "neighbour"} {
		b.must(netlink.LinkSetUp(b.link(n)))
	}
	for _, a := range []string{"192.168.1.50/24", "fd05::50/64"} {
		addr, err := netlink.ParseAddr(a)
		b.must(err)
		addr.Flags = unix.IFA_F_NODAD
		b.must(netlink.AddrAdd(b.link("lan"), addr))
	}
	for _, r := range [][2]string{{"0.0.0.0/0", "192.168.1.1"}, {"::/0", "fd05::1"}} {
		_, all, _ := net.ParseCIDR(r[0])
		b.must(netlink.RouteAdd(&netlink.Route{LinkIndex: b.link("lan").Attrs().Index, Dst: all, Gw: net.ParseIP(r[1])}))
	}
}

func (b *bench) socket() string { return filepath.Join(b.dir, "net.sock") }

// helper runs one until the func is called.
func (b *bench) helper(cfg nethelper.HelperConfig) (stop func()) {
	b.must(os.Chmod(b.dir, 0o755))
	cfg.Socket = b.socket()
	cfg.Log = slog.New(slog.NewTextHandler(os.Stdout, nil))
	ready, done := make(chan struct{}), make(chan error, 1)
	cfg.Ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- nethelper.Run(ctx, cfg) }()
	select {
	case <-ready:
	case err := <-done:
		b.must(err)
	}
	return func() {
		cancel()
		b.must(<-done)
	}
}

var own = []netip.Addr{netip.MustParseAddr("100.96.0.9"), netip.MustParseAddr("fd70::9")}

func (b *bench) open() *nethelper.Network {
	n, err := nethelper.Open(context.Background(), b.socket(), nethelper.Config{Name: "portvakt0", MTU: 1280, Addresses: own})
	b.must(err)
	return n
}

// road is where a packet of a user goes: the interface's name, or the error.
func (b *bench) road(uid uint32, to string) string {
	routes, err := netlink.RouteGetWithOptions(net.ParseIP(to), &netlink.RouteGetOptions{UID: &uid})
	if err != nil {
		return err.Error()
	}
	l, err := netlink.LinkByIndex(routes[0].LinkIndex)
	b.must(err)
	return l.Attrs().Name
}

func (b *bench) want(when string, uid uint32, to, want string) {
	if got := b.road(uid, to); got != want {
		b.fail("%s: user %d to %s: %s, want %s", when, uid, to, got, want)
	}
}

// left is everything of ours in the kernel.
func (b *bench) left() string {
	var out []string
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		rules, err := netlink.RuleList(f)
		b.must(err)
		for _, r := range rules {
			if r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_LOCAL && r.Table != unix.RT_TABLE_DEFAULT {
				out = append(out, r.String())
			}
		}
		for _, table := range []int{20714, 20715} {
			routes, err := netlink.RouteListFiltered(f, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
			b.must(err)
			for _, r := range routes {
				out = append(out, r.String())
			}
		}
	}
	if _, err := netlink.LinkByName("portvakt0"); err == nil {
		out = append(out, "portvakt0")
	}
	for _, t := range b.tables() {
		if t.Name == "portvakt-laptop" {
			out = append(out, t.Name)
		}
	}
	return strings.Join(out, "\n")
}

func (b *bench) clean(after string) {
	for deadline := time.Now().Add(5 * time.Second); b.left() != ""; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.fail("after %s there is\n%s", after, b.left())
			return
		}
	}
}

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// Where packets go, by user and address, whatever the home network's DHCP says.
func routesCase(b *bench) {
	const anna, other, denied = 1001, 1002, "permission denied"
	defer b.helper(nethelper.HelperConfig{AllowUID: anna})()
	n := b.open()
	for _, a := range []string{"100.96.1.1", "fd70::1:1"} {
		// TunnelVision (CVE-2024-3661): the home network claims the apps.
		ip := net.ParseIP(a)
		bits := 8 * len(ip)
		if ip4 := ip.To4(); ip4 != nil {
			bits = 32
		}
		b.must(netlink.RouteAdd(&netlink.Route{LinkIndex: b.link("lan").Attrs().Index, Dst: &net.IPNet{IP: ip, Mask: net.CIDRMask(bits, bits)}, Priority: 1}))
	}
	b.must(n.Set(anna, addrs("100.96.0.1", "100.96.1.1", "fd70::1", "fd70::1:1")))
	for _, a := range []string{"100.96.0.1", "100.96.1.1", "fd70::1", "fd70::1:1"} {
		b.want("routed", anna, a, "portvakt0")
		b.want("routed", other, a, denied)
		b.want("routed", 0, a, denied)
	}
	for _, a := range []string{"192.168.1.1", "8.8.8.8", "100.96.1.2", "2001:db8::1"} {
		b.want("not an app", anna, a, "lan")
	}
	b.must(n.Set(other, addrs("100.96.0.1", "fd70::1:1")))
	b.want("another user", other, "100.96.0.1", "portvakt0")
	b.want("another user", anna, "100.96.0.1", denied)
	b.want("withdrawn", other, "100.96.1.1", denied)
	b.must(n.Set(nethelper.NoUser, addrs("100.96.0.1")))
	b.want("nobody", other, "100.96.0.1", denied)
	b.want("nobody", other, "fd70::1:1", denied)

	// The agent's own connections are bound to the device's address; this test
	// is root and so the agent.
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP("100.96.0.9")}}
	if c, err := d.Dial("udp", "100.96.0.1:80"); err != nil {
		b.fail("the agent's own: %v", err)
	} else {
		c.Close()
	}
	mtu := b.link("portvakt0").Attrs().MTU
	if mtu != 1280 {
		b.fail("the MTU is %d", mtu)
	}
	list, err := netlink.AddrList(b.link("portvakt0"), netlink.FAMILY_ALL)
	b.must(err)
	if len(list) != 2 {
		b.fail("the interface chose addresses of its own: %v", list)
	}
	b.must(n.Close())
	b.clean("close")
	b.want("closed", anna, "100.96.1.1", "lan")
}

// What the helper must not do for an agent, whoever that has become.
func refusalsCase(b *bench) {
	defer b.helper(nethelper.HelperConfig{AllowUID: 0, Domains: []string{"example.com"}})()
	for name, cfg := range map[string]nethelper.Config{
		"another interface's name": {Name: "eth0", MTU: 1280, Addresses: own},
		"the home network's":       {Name: "lan", MTU: 1280, Addresses: own},
		"no address":               {Name: "portvakt0", MTU: 1280},
		"an address of others":     {Name: "portvakt0", MTU: 1280, Addresses: addrs("8.8.8.8")},
		"loopback":                 {Name: "portvakt0", MTU: 1280, Addresses: addrs("127.0.0.1")},
		"a neighbour's address":    {Name: "portvakt0", MTU: 1280, Addresses: addrs("fd05::9")},
		"a tiny MTU":               {Name: "portvakt0", MTU: 60, Addresses: own},
		"a huge MTU":               {Name: "portvakt0", MTU: 65535, Addresses: own},
	} {
		if n, err := nethelper.Open(context.Background(), b.socket(), cfg); err == nil {
			b.fail("opened with %s", name)
			n.Close()
		}
		b.clean(name)
	}
	n := b.open()
	b.must(n.Set(0, addrs("100.96.0.1")))
	for _, a := range []string{"8.8.8.8", "192.168.1.1", "127.0.0.1", "224.0.0.1", "255.255.255.255", "0.0.0.0", "169.254.169.254", "fe80::1", "ff02::1", "::1", "::", "fd05::1", "fd05::50", "::ffff:100.96.0.2"} {
		if err := n.Set(0, addrs("100.96.0.1", a)); err == nil {
			b.fail("routed %s", a)
		}
	}
	b.want("after refusals", 0, "100.96.0.1", "portvakt0")
	for _, s := range []string{"8.8.8.8", "192.168.1.1", "100.96.0.77"} {
		if _, _, err := n.DNS(addrs(s), []string{"crm.example.com"}); err == nil {
			b.fail("DNS through %s", s)
		}
	}
	b.must(n.Close())
}

// A name that is refused takes no other with it, and is told.
func namesCase(b *bench) {
	const file = "/etc/resolv.conf"
	ours := filepath.Join(b.dir, "resolv.conf")
	b.must(os.WriteFile(ours, []byte("nameserver 192.168.1.1\n"), 0o644))
	b.must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	b.must(unix.Mount(ours, file, "", unix.MS_BIND, ""))
	defer b.helper(nethelper.HelperConfig{AllowUID: 0, Domains: []string{"example.com"}})()
	n := b.open()
	b.must(n.Set(0, addrs("100.96.0.1")))
	many := []string{"com", "crm.example.net", "wiki.example.net", "no name", "crm.example.com"}
	long := strings.Repeat(strings.Repeat("a", 60)+".", 3)
	for i := range 1024 {
		many = append(many, fmt.Sprintf("%s%d.example.com", long, i))
	}
	for _, c := range []struct {
		names []string
		set   bool
		left  []string
	}{
		{[]string{"crm.example.com"}, true, nil},
		{many, true, []string{`"com"`, "and 1 more", `"crm.example.net"`, "one name too many"}},
		{many[:3], false, []string{`"com"`, `"crm.example.net"`}},
		{nil, false, nil},
	} {
		manager, left, err := n.DNS(addrs("100.96.0.1"), c.names)
		if err != nil || (manager == "resolv.conf") != c.set || (left == "") != (c.left == nil) {
			b.fail("%d names: %q, %q, %v", len(c.names), manager, left, err)
		}
		for _, want := range c.left {
			if !strings.Contains(left, want) {
				b.fail("%d names: %s is missing in %s", len(c.names), want, left)
			}
		}
		text, err := os.ReadFile(file)
		b.must(err)
		if strings.Contains(string(text), "nameserver 100.96.0.1\n") != c.set {
			b.fail("%d names: resolv.conf is\n%s", len(c.names), text)
		}
	}
	b.must(n.Close())
}

// A resolv.conf that cannot be written when the agent ends, and when the next
// helper starts, is undone once it can be.
func stubbornCase(b *bench) {
	const file, text = "/etc/resolv.conf", "nameserver 192.168.1.1\n"
	ours := filepath.Join(b.dir, "resolv.conf")
	b.must(os.WriteFile(ours, []byte(text), 0o644))
	b.must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	b.must(unix.Mount("tmpfs", "/etc", "tmpfs", 0, ""))
	b.must(os.WriteFile(file, nil, 0o644))
	b.must(unix.Mount(ours, file, "", unix.MS_BIND, ""))
	writable := func(yes bool) {
		flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND)
		if !yes {
			flags |= unix.MS_RDONLY
		}
		b.must(unix.Mount("", file, "", flags, ""))
	}
	still := func() bool {
		now, err := os.ReadFile(file)
		b.must(err)
		return string(now) != text
	}
	for _, again := range []bool{false, true} {
		stop := b.helper(nethelper.HelperConfig{AllowUID: 0})
		n := b.open()
		b.must(n.Set(0, addrs("100.96.0.1")))
		if _, _, err := n.DNS(addrs("100.96.0.1"), []string{"crm.example.com"}); err != nil || !still() {
			b.fail("DNS: %v", err)
		}
		writable(false)
		b.must(n.Close())
		if again {
			stop()
			stop = b.helper(nethelper.HelperConfig{AllowUID: 0})
		}
		if !still() {
			b.fail("what cannot be written was written, so that this shows nothing")
		}
		writable(true)
		for deadline := time.Now().Add(20 * time.Second); still(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				b.fail("another helper %t: the gateway is still asked first", again)
				break
			}
		}
		stop()
	}
}

// Every way a connection can end leaves nothing behind.
func endingsCase(b *bench) {
	stop := b.helper(nethelper.HelperConfig{AllowUID: 0})
	raw := func() *net.UnixConn {
		c, err := net.Dial("unixpacket", b.socket())
		b.must(err)
		return c.(*net.UnixConn)
	}
	open := append([]byte{1, 1, 9}, "portvakt0\x05\x00\x01\x04\x64\x60\x00\x09"...)
	set := []byte{2, 0, 0, 0, 0, 0, 1, 4, 100, 96, 0, 1}
	var tuns []int
	exchange := func(c *net.UnixConn, msg []byte) (byte, error) {
		if _, err := c.Write(msg); err != nil {
			return 0, err
		}
		answer, oob := make([]byte, 1024), make([]byte, 64)
		c.SetDeadline(time.Now().Add(5 * time.Second))
		n, on, _, _, err := c.ReadMsgUnix(answer, oob)
		if err != nil || n == 0 {
			return 0, errors.Join(err, io.EOF)
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:on])
		b.must(err)
		for _, m := range msgs {
			fds, err := unix.ParseUnixRights(&m)
			b.must(err)
			tuns = append(tuns, fds...) // an interface lives as long as its descriptor
		}
		return answer[0], nil
	}
	for name, last := range map[string][]byte{
		"silence": nil, "garbage": {9, 9, 9}, "nothing": {3}, "two requests in one": slices.Concat(set, set),
		"a long one": make([]byte, 100<<10), "close": {4}, "a wrong count": binary.BigEndian.AppendUint16([]byte{2, 0, 0, 0, 0}, 5000),
	} {
		c := raw()
		for _, msg := range [][]byte{open, set} {
			if status, err := exchange(c, msg); err != nil || status != 0 {
				b.fail("%s: %d %v", name, status, err)
			}
		}
		if status, err := exchange(c, open); err != nil || status != 1 {
			b.fail("%s: opened twice: %d %v", name, status, err)
		}
		b.want(name, 0, "100.96.0.1", "portvakt0")
		if last != nil {
			_, _ = exchange(c, last)
		}
		c.Close()
		for _, fd := range tuns {
			unix.Close(fd)
		}
		tuns = nil
		b.clean(name)
	}
	// Somebody who asks before opening gets nothing.
	c := raw()
	if status, err := exchange(c, set); err != nil || status != 1 {
		b.fail("set before open: %d %v", status, err)
	}
	c.Close()
	// The helper's own end undoes too, and is noticed.
	n := b.open()
	b.must(n.Set(0, addrs("100.96.0.1")))
	stop()
	select {
	case <-n.Gone():
	case <-time.After(5 * time.Second):
		b.fail("the helper's end goes unnoticed")
	}
	if err := n.Set(0, nil); err == nil {
		b.fail("a helper that is gone answers")
	}
	_ = n.Close()
	b.clean("the helper's end")
	if _, err := os.Stat(b.socket()); !errors.Is(err, os.ErrNotExist) {
		b.fail("the socket stays: %v", err)
	}
}

// What a killed helper left is gone when the next one comes up, and what is
// somebody else's stays. A second helper refuses to start, and no other account
// can keep the first from it.
func leftoversCase(b *bench) {
	// Any account may take an abstract name.
	squatter, err := net.ListenUnix("unixpacket", &net.UnixAddr{Net: "unixpacket", Name: "@portvakt-net-helper"})
	b.must(err)
	defer squatter.Close()
	stop := b.helper(nethelper.HelperConfig{AllowUID: 0})
	if err := nethelper.Run(context.Background(), nethelper.HelperConfig{Socket: b.socket() + "2"}); err == nil || !strings.Contains(err.Error(), "another network helper") {
		b.fail("a second helper: %v", err)
	}
	// One that is about to end is waited for.
	go func() {
		time.Sleep(100 * time.Millisecond)
		stop()
	}()
	b.helper(nethelper.HelperConfig{AllowUID: 0})()
	_, dst, _ := net.ParseCIDR("100.96.1.1/32")
	b.must(netlink.RouteAdd(&netlink.Route{Dst: dst, Table: 20715, Type: unix.RTN_PROHIBIT, Protocol: 157}))
	for _, table := range []int{20714, 20715} {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table, r.Protocol = netlink.FAMILY_V4, 5109, table, 157
		b.must(netlink.RuleAdd(r))
	}
	foreign := netlink.NewRule()
	foreign.Family, foreign.Priority, foreign.Table = netlink.FAMILY_V4, 5109, unix.RT_TABLE_MAIN
	b.must(netlink.RuleAdd(foreign))
	c, err := nftables.New()
	b.must(err)
	for _, name := range []string{"portvakt-laptop", "firewalld"} {
		c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: name})
	}
	b.must(c.Flush())
	// The agent has not ended yet and holds the interface.
	b.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "portvakt7"}, PeerName: "peer7"}))
	b.must(netlink.AddrAdd(b.link("portvakt7"), &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP("100.96.0.9"), Mask: net.CIDRMask(32, 32)}}))
	b.helper(nethelper.HelperConfig{AllowUID: 0})()
	if list, err := netlink.AddrList(b.link("portvakt7"), netlink.FAMILY_ALL); err != nil || len(list) != 0 {
		b.fail("an address stays without its guard: %v %v", list, err)
	}
	if tables := b.tables(); len(tables) != 1 || tables[0].Name != "firewalld" {
		b.fail("somebody else's table is gone: %v", tables)
	}
	if left := b.left(); left != "" {
		b.fail("left is\n%s", left)
	}
	if err := netlink.RuleDel(foreign); err != nil {
		b.fail("somebody else's rule is gone: %v", err)
	}
}

// A second agent is told who has the helper; the first one goes on, and its
// successor is served.
func secondCase(b *bench) {
	defer b.helper(nethelper.HelperConfig{AllowUID: 0})()
	for range 3 {
		n := b.open()
		b.must(n.Set(0, addrs("100.96.1.1")))
		second, err := nethelper.Open(context.Background(), b.socket(), nethelper.Config{Name: "portvakt1", MTU: 1280, Addresses: addrs("100.96.0.10")})
		if err == nil {
			b.fail("two agents at once")
			_ = second.Close()
		} else if want := fmt.Sprintf("process %d of user 0", os.Getpid()); !strings.Contains(err.Error(), want) {
			b.fail("a second agent is told %v", err)
		}
		b.must(n.Set(0, addrs("100.96.1.2")))
		b.want("beside a second agent", 0, "100.96.1.2", "portvakt0")
		b.must(n.Close())
	}
	b.clean("close")
	// One that was refused its interface and stays is in nobody's way for long.
	c, err := net.Dial("unixpacket", b.socket())
	b.must(err)
	defer c.Close()
	_, err = c.Write([]byte("\x01\x01\x04eth0\x05\x00\x01\x04\x64\x60\x00\x09"))
	b.must(err)
	answer := make([]byte, 1024)
	_, err = c.Read(answer)
	b.must(err)
	if answer[0] != 1 {
		b.fail("it may have eth0")
	}
	b.must(b.open().Close())
}

// Only the agent's user gets an answer, also when everybody may connect.
func strangersCase(b *bench) {
	defer b.helper(nethelper.HelperConfig{AllowUID: 1001})()
	info, err := os.Stat(b.socket())
	b.must(err)
	if st := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != 0o600 || st.Uid != 1001 {
		b.fail("the socket is %v of user %d", info.Mode(), st.Uid)
	}
	b.must(os.Chmod(b.socket(), 0o666))
	for p := b.dir; p != "/"; p = filepath.Dir(p) {
		if info, err := os.Stat(p); err == nil && info.Mode().Perm()&1 == 0 {
			b.must(os.Chmod(p, info.Mode().Perm()|0o011))
		}
	}
	for uid, served := range map[int]bool{1001: true, 1002: false} {
		answered := make(chan bool)
		go func() {
			// The thread keeps the uid and dies with the goroutine.
			runtime.LockOSThread()
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				fmt.Println(e)
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: b.socket()})
			}
			if err != nil {
				fmt.Println(uid, err)
			}
			c := os.NewFile(uintptr(fd), "socket")
			defer c.Close()
			_, _ = c.Write([]byte{2, 0, 0, 0, 0, 0, 0})
			_, err = bufio.NewReader(c).ReadByte()
			if err == nil {
				b.noRoot(c)
			}
			answered <- err == nil
		}()
		if got := <-answered; got != served {
			b.fail("user %d was answered: %t", uid, got)
		}
	}
}

// noRoot asks, as an agent that is not root, for a way in for itself and then
// for root.
func (b *bench) noRoot(c *os.File) {
	answer := make([]byte, 1024)
	for _, ask := range []struct {
		msg  string
		want byte
	}{
		{"\x01\x01\x09portvakt0\x05\x00\x01\x04\x64\x60\x00\x09", 0},
		{"\x02\x00\x00\x03\xe9\x00\x00", 0},
		{"\x02\x00\x00\x00\x00\x00\x00", 1},
	} {
		_, err := c.WriteString(ask.msg)
		b.must(err)
		n, err := c.Read(answer)
		b.must(err)
		if answer[0] != ask.want {
			b.fail("%x is answered %x %s", ask.msg, answer[0], answer[1:n])
		}
	}
}
