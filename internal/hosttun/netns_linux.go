package hosttun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/halfopen"
)

const (
	// ifName is the tunnel's name inside the namespace; nobody else sees it.
	ifName = "tunnel"

	// queueLength is how many packets wait in the device for the tunnel's
	// reader, superpackets of up to 64 KiB among them.
	queueLength = 1000

	// backlog bounds the connections the kernel completes per port before they
	// are accepted. No more SYNs than halfopen.Total get as far as the kernel.
	backlog = 2 * halfopen.Total
)

// namespace is a network namespace with a thread in it. The thread never
// belongs to any other goroutine again; it ends with close, and the namespace
// with the last socket made in it.
type namespace struct {
	work chan func()
	done chan struct{}
}

// newNamespace makes the namespace and its thread.
func newNamespace() (*namespace, error) {
	ns := &namespace{work: make(chan func()), done: make(chan struct{})}
	made := make(chan error, 1)
	go ownThread(func() {
		defer close(ns.done)
		err := unix.Unshare(unix.CLONE_NEWNET)
		made <- err
		if err != nil {
			return
		}
		for fn := range ns.work {
			fn()
		}
	})
	if err := <-made; err != nil {
		return nil, needs("making a network namespace", err)
	}
	return ns, nil
}

// ownThread runs fn on a thread that dies with it. The process's first thread
// cannot die and would keep the namespace; with it in hand another is asked for.
func ownThread(fn func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		fn()
		return
	}
	begun := make(chan struct{})
	go ownThread(func() {
		close(begun)
		fn()
	})
	<-begun
	runtime.UnlockOSThread()
}

// do runs fn inside and waits for it. It must not be called after close.
func (ns *namespace) do(fn func() error) error {
	result := make(chan error, 1)
	ns.work <- func() { result <- fn() }
	return <-result
}

// close ends the thread.
func (ns *namespace) close() {
	close(ns.work)
	<-ns.done
}

// needs says what to do about a refusal.
func needs(what string, err error) error {
	err = fmt.Errorf("%s: %w", what, err)
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w; the gateway needs root or CAP_NET_ADMIN and CAP_SYS_ADMIN for tunnel.mode tun, userspace needs neither", err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w; tunnel.mode tun needs a writable /proc/sys (ProtectKernelTunables=no in a unit)", err)
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%w; tunnel.mode tun needs /dev/net/tun (modprobe tun) and IPv6 in the kernel", err)
	}
	return err
}

// settings of the namespace, in the order they are written. Some are inherited
// from the host, so that every one that matters is set.
var settings = []struct{ key, value string }{
	// Nothing is routed, announced, redirected or learnt.
	{"ipv4/ip_forward", "0"},
	{"ipv6/conf/all/forwarding", "0"},
	{"ipv6/conf/all/disable_ipv6", "0"},
	{"ipv6/conf/default/disable_ipv6", "0"},
	{"ipv6/conf/default/addr_gen_mode", "1"}, // no link-local address, so nobody asks for routers
	{"ipv6/conf/default/accept_ra", "0"},
	{"ipv6/conf/default/autoconf", "0"},
	{"ipv6/conf/default/router_solicitations", "0"},
	{"ipv6/conf/default/dad_transmits", "0"},
	{"ipv6/conf/all/accept_redirects", "0"},
	{"ipv6/conf/default/accept_redirects", "0"},
	{"ipv6/conf/all/accept_source_route", "0"},
	{"ipv6/conf/default/accept_source_route", "0"},
	{"ipv4/conf/all/rp_filter", "1"},
	{"ipv4/conf/all/accept_local", "0"},
	{"ipv4/conf/default/accept_local", "0"},
	{"ipv4/conf/all/route_localnet", "0"},
	{"ipv4/conf/default/route_localnet", "0"},
	{"ipv4/conf/all/accept_redirects", "0"},
	{"ipv4/conf/default/accept_redirects", "0"},
	{"ipv4/conf/all/secure_redirects", "0"},
	{"ipv4/conf/default/secure_redirects", "0"},
	{"ipv4/conf/all/send_redirects", "0"},
	{"ipv4/conf/default/send_redirects", "0"},
	{"ipv4/conf/all/accept_source_route", "0"},
	{"ipv4/conf/default/accept_source_route", "0"},
	{"ipv4/icmp_echo_ignore_broadcasts", "1"},
	// TCP as the userspace stack has it. A device cannot ask for tiny segments:
	// IPv6's least MTU leaves more than 536 bytes.
	{"ipv4/tcp_sack", "1"},
	{"ipv4/tcp_window_scaling", "1"},
	{"ipv4/tcp_timestamps", "1"},
	{"ipv4/tcp_fastopen", "0"}, // data before a decision
	{"ipv4/tcp_min_snd_mss", "536"},
	{"ipv4/tcp_keepalive_time", "60"},
	{"ipv4/tcp_keepalive_intvl", "15"},
	{"ipv4/tcp_keepalive_probes", "4"},
	{"ipv4/tcp_synack_retries", "4"}, // gives up after 31 s, see acceptTimeout
	{"ipv4/tcp_max_syn_backlog", fmt.Sprint(backlog)},
	{"core/somaxconn", fmt.Sprint(backlog)},
	{"ipv4/tcp_rmem", "4096 131072 8388608"},
	{"ipv4/tcp_wmem", "4096 131072 6291456"},
}

// openTUN makes the interface and sets the namespace up. It runs on the
// namespace's thread.
func openTUN(addrs []netip.Addr, mtu int) (wgtun.Device, error) {
	for _, s := range settings {
		path := filepath.Join("/proc/sys/net", s.key)
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			return nil, needs("setting "+s.key+" in the tunnel's namespace", err)
		}
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, needs("opening /dev/net/tun", err)
	}
	ifr, err := unix.NewIfreq(ifName)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		return nil, errors.Join(needs("making the tunnel's interface", err), unix.Close(fd))
	}
	// Unmonitored: the interface is nobody else's, so nobody changes it.
	native, _, err := wgtun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the tunnel's interface: %w", err), unix.Close(fd))
	}
	if err := plumb(addrs, mtu); err != nil {
		return nil, errors.Join(err, native.Close())
	}
	return native, nil
}

// plumb brings the interfaces up and makes the two rules of the namespace: what
// comes in by the tunnel is local whatever its address, everything else leaves
// by the tunnel.
//
// The kernel looks for its own addresses in the table "local" before it answers
// from one (and in no other), so the route that makes all addresses local has to
// be there; the rule that has outgoing packets look there first has to go.
func plumb(addrs []netip.Addr, mtu int) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding the namespace's loopback: %w", err)
	}
	link, err := netlink.LinkByName(ifName)
	if err != nil {
		return fmt.Errorf("finding the tunnel's interface: %w", err)
	}
	for _, step := range []struct {
		what string
		run  func() error
	}{
		{"bringing loopback up", func() error { return netlink.LinkSetUp(lo) }},
		{"setting its MTU", func() error { return netlink.LinkSetMTU(link, mtu) }},
		{"setting its queue", func() error { return netlink.LinkSetTxQLen(link, queueLength) }},
		{"turning multicast off", func() error { return netlink.LinkSetMulticastOff(link) }},
		{"bringing it up", func() error { return netlink.LinkSetUp(link) }},
	} {
		if err := step.run(); err != nil {
			return needs("tunnel's interface: "+step.what, err)
		}
	}
	for _, a := range addrs {
		ones := a.BitLen()
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(ones, ones)}, Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return needs(fmt.Sprintf("tunnel's interface: adding %v", a), err)
		}
	}
	for family, any := range map[int]*net.IPNet{
		netlink.FAMILY_V4: {IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
		netlink.FAMILY_V6: {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
	} {
		inward := netlink.NewRule()
		inward.Family, inward.Priority, inward.IifName, inward.Table = family, 10, ifName, unix.RT_TABLE_LOCAL
		first := netlink.NewRule()
		first.Family, first.Priority, first.Table = family, 0, unix.RT_TABLE_LOCAL
		err := errors.Join(
			netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: any, Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST}),
			netlink.RuleAdd(inward),
			netlink.RuleDel(first),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: any, Scope: unix.RT_SCOPE_LINK}),
		)
		if err != nil {
			return needs("making the rules of the tunnel's namespace", err)
		}
	}
	return nil
}
