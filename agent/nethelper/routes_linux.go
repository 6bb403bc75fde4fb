package nethelper

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// How a packet to an app's address is routed, before the main table with
// whatever the network's DHCP put there is asked:
//
//	5100  of the user who logged in               -> tableTunnel
//	5101  of the agent, bound to our address      -> tableTunnel
//	5102  of the kernel, from our address         -> tableTunnel
//	5103  to the gateway's DNS, from anybody      -> tableTunnel
//	5109  everything else                         -> tableRefuse
//
// tableTunnel has the current host routes and nothing else. tableRefuse has a
// prohibit for every address that was routed since open: another account's
// packet, or one to an app that went away, ends there and never on the LAN.
// 5101 and 5102 ask for the source, which an ordinary program has not chosen
// when its first packet is routed: answers that the kernel sends by itself
// (resets, the last acknowledgement of a closed connection) count as root's.
const (
	tableTunnel = 20714
	tableRefuse = 20715

	ruleUser   = 5100
	ruleAgent  = 5101
	ruleKernel = 5102
	ruleDNS    = 5103
	ruleRefuse = 5109

	// protocol marks our rules and routes (rtnetlink(7), rtm_protocol).
	protocol = 157
)

var families = []int{netlink.FAMILY_V4, netlink.FAMILY_V6}

// routes is the state of rules and tables of one open interface.
type routes struct {
	index  int // of the interface
	own    []netip.Addr
	user   uint32
	dns    []netip.Addr            // whose port 53 is open to everybody
	now    map[netip.Addr]struct{} // in tableTunnel
	refuse map[netip.Addr]struct{} // in tableRefuse
}

// newRoutes sets the rules that do not change.
func newRoutes(index int, agent uint32, own []netip.Addr) (*routes, error) {
	r := &routes{index: index, own: own, user: NoUser, now: map[netip.Addr]struct{}{}, refuse: map[netip.Addr]struct{}{}}
	for _, a := range own {
		bound := func(priority int, uid uint32) *netlink.Rule {
			rule := newRule(family(a), priority, tableTunnel)
			rule.Src, rule.UIDRange = ipNet(a), netlink.NewRuleUIDRange(uid, uid)
			return rule
		}
		refuse := newRule(family(a), ruleRefuse, tableRefuse)
		for _, rule := range []*netlink.Rule{bound(ruleAgent, agent), bound(ruleKernel, 0), refuse} {
			if err := netlink.RuleAdd(rule); err != nil {
				return nil, errors.Join(fmt.Errorf("adding rule %d: %w", rule.Priority, err), undoRoutes())
			}
		}
	}
	return r, nil
}

// set replaces the user and the routes: what goes goes first. A failure may
// leave less routed than asked for, never more.
func (r *routes) set(user uint32, addrs []netip.Addr) error {
	want := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		if r.from(a) != nil {
			want[a] = struct{}{}
		}
	}
	if n := len(want) + len(r.refuse); n > 2*maxRoutes {
		return fmt.Errorf("more than %d addresses were routed since the interface was opened", 2*maxRoutes)
	}
	for a := range r.now {
		if _, stays := want[a]; stays {
			continue
		}
		if err := netlink.RouteDel(r.tunnel(a)); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("removing the route to %v: %w", a, err)
		}
		delete(r.now, a)
	}
	if err := r.setUser(user); err != nil {
		return err
	}
	for _, a := range addrs {
		if _, ok := r.now[a]; ok || r.from(a) == nil {
			continue
		}
		if _, ok := r.refuse[a]; !ok {
			if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(a), Table: tableRefuse, Type: unix.RTN_PROHIBIT, Protocol: protocol, Family: family(a)}); err != nil {
				return fmt.Errorf("closing %v to others: %w", a, err)
			}
			r.refuse[a] = struct{}{}
		}
		if err := netlink.RouteReplace(r.tunnel(a)); err != nil {
			return fmt.Errorf("adding the route to %v: %w", a, err)
		}
		r.now[a] = struct{}{}
	}
	return nil
}

func (r *routes) setUser(user uint32) error {
	if user == r.user {
		return nil
	}
	for _, f := range families {
		if err := deleteRules(f, func(rule netlink.Rule) bool { return rule.Priority == ruleUser && rule.Protocol == protocol }); err != nil {
			return fmt.Errorf("closing the tunnel to user %d: %w", r.user, err)
		}
	}
	r.user = NoUser
	if user == NoUser {
		return nil
	}
	for _, a := range r.own {
		rule := newRule(family(a), ruleUser, tableTunnel)
		rule.UIDRange = netlink.NewRuleUIDRange(user, user)
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, syscall.EEXIST) {
			return fmt.Errorf("opening the tunnel to user %d: %w", user, err)
		}
	}
	r.user = user
	return nil
}

// setDNS lets every account ask these servers, and nothing else of them:
// programs do not resolve names themselves but have a service do it.
func (r *routes) setDNS(servers []netip.Addr) error {
	if slices.Equal(servers, r.dns) {
		return nil
	}
	for _, f := range families {
		if err := deleteRules(f, func(rule netlink.Rule) bool { return rule.Priority == ruleDNS && rule.Protocol == protocol }); err != nil {
			return fmt.Errorf("closing the gateway's DNS: %w", err)
		}
	}
	r.dns = nil
	for _, a := range servers {
		if r.from(a) == nil {
			continue
		}
		for _, transport := range []int{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
			rule := newRule(family(a), ruleDNS, tableTunnel)
			rule.Dst, rule.IPProto, rule.Dport = ipNet(a), transport, netlink.NewRulePortRange(53, 53)
			if err := netlink.RuleAdd(rule); err != nil {
				return fmt.Errorf("opening the gateway's DNS: %w", err)
			}
		}
	}
	r.dns = slices.Clone(servers)
	return nil
}

// tunnel is the host route to a; its source is the device's own address.
func (r *routes) tunnel(a netip.Addr) *netlink.Route {
	return &netlink.Route{LinkIndex: r.index, Dst: ipNet(a), Src: r.from(a), Table: tableTunnel, Protocol: protocol, Scope: netlink.SCOPE_LINK}
}

// from is the device's own address of a's family; nil when it has none.
func (r *routes) from(a netip.Addr) net.IP {
	for _, own := range r.own {
		if own.Is4() == a.Is4() {
			return own.AsSlice()
		}
	}
	return nil
}

func newRule(family, priority, table int) *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table, rule.Protocol = family, priority, table, protocol
	return rule
}

// undoRoutes removes every rule and route of ours, whoever made them: the
// tables and priorities are fixed, so that a killed helper's are found.
func undoRoutes() error {
	var errs []error
	for _, f := range families {
		mine := func(r netlink.Rule) bool {
			return r.Protocol == protocol && (r.Table == tableTunnel || r.Table == tableRefuse)
		}
		if err := deleteRules(f, mine); err != nil {
			errs = append(errs, err)
		}
		for _, table := range []int{tableTunnel, tableRefuse} {
			list, err := netlink.RouteListFiltered(f, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
			if err != nil && !errors.Is(err, syscall.EAFNOSUPPORT) {
				errs = append(errs, fmt.Errorf("listing routes: %w", err))
			}
			for _, route := range list {
				route.Family = f
				if err := netlink.RouteDel(&route); err != nil && !errors.Is(err, syscall.ESRCH) {
					errs = append(errs, fmt.Errorf("removing the route to %v: %w", route.Dst, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func deleteRules(family int, which func(netlink.Rule) bool) error {
	rules, err := netlink.RuleList(family)
	if err != nil {
		if errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP) {
			return nil // a kernel without IPv6
		}
		return fmt.Errorf("listing rules: %w", err)
	}
	for _, r := range rules {
		if !which(r) {
			continue
		}
		r.Family = family
		if err := netlink.RuleDel(&r); err != nil && !errors.Is(err, syscall.ENOENT) {
			return fmt.Errorf("removing rule %d: %w", r.Priority, err)
		}
	}
	return nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func ipNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// neighbours are the prefixes of the networks this machine is attached to.
type neighbours []netip.Prefix

// onLink lists them, those of our own interface left out.
func onLink() (neighbours, error) {
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the machine's addresses: %w", err)
	}
	ours, err := ourLinks()
	if err != nil {
		return nil, err
	}
	var out neighbours
	for _, a := range addrs {
		if slices.Contains(ours, a.LinkIndex) {
			continue
		}
		nets := []*net.IPNet{a.IPNet, a.Peer}
		for _, n := range nets {
			if n == nil {
				continue
			}
			ip, ok := netip.AddrFromSlice(n.IP)
			ones, bits := n.Mask.Size()
			if ok && bits > 0 {
				ip = ip.Unmap()
				out = append(out, netip.PrefixFrom(ip, ones).Masked())
			}
		}
	}
	return out, nil
}

func ourLinks() (out []int, err error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing the machine's interfaces: %w", err)
	}
	for _, l := range links {
		if CheckName(l.Attrs().Name) == nil {
			out = append(out, l.Attrs().Index)
		}
	}
	return out, nil
}

func (n neighbours) check(a netip.Addr) error {
	for _, p := range n {
		if p.Contains(a) {
			return fmt.Errorf("%v belongs to the network %v this laptop is attached to", a, p)
		}
	}
	return nil
}

// makeTUN makes the interface. It lives for as long as somebody holds its
// descriptor. own are the addresses it got: a kernel without IPv6 gives it
// none of that.
func makeTUN(name string, mtu int, addrs []netip.Addr) (fd, index int, own []netip.Addr, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, nil, fmt.Errorf("opening /dev/net/tun: %w", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fd, 0, nil, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		if errors.Is(err, syscall.EBUSY) {
			err = errors.New("another program holds it")
		}
		return fd, 0, nil, fmt.Errorf("making the interface %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fd, 0, nil, fmt.Errorf("finding the interface: %w", err)
	}
	// No address of its own choice, and no router to listen to.
	v6 := "/proc/sys/net/ipv6/conf/" + name + "/"
	_, noV6 := os.Stat(v6)
	if noV6 == nil {
		for _, s := range [][2]string{{"addr_gen_mode", "1"}, {"accept_ra", "0"}, {"disable_ipv6", "0"}} {
			if err := os.WriteFile(v6+s[0], []byte(s[1]), 0o644); err != nil {
				noV6 = err
			}
		}
	}
	if err := netlink.LinkSetMTU(link, mtu); err != nil {
		return fd, 0, nil, fmt.Errorf("setting the interface's MTU: %w", err)
	}
	for _, a := range addrs {
		if a.Is6() && noV6 != nil {
			continue
		}
		addr := &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fd, 0, nil, fmt.Errorf("giving the interface the address %v: %w", a, err)
		}
		own = append(own, a)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fd, 0, nil, fmt.Errorf("bringing the interface up: %w", err)
	}
	return fd, link.Attrs().Index, own, nil
}
