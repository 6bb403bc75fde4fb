package nethelper_test

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/nethelper"
)

func (b *bench) tables() []*nftables.Table {
	c, err := nftables.New()
	b.must(err)
	tables, err := c.ListTables()
	b.must(err)
	return tables
}

const (
	udp, tcp = unix.IPPROTO_UDP, unix.IPPROTO_TCP
	synFlag  = 2
	rstFlag  = 4
)

// packet is a UDP datagram, or a TCP SYN without a body.
func packet(proto byte, from, to netip.AddrPort, body string) []byte {
	var l4 []byte
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from.Port()), to.Port())
	sum := 6
	if proto == udp {
		l4 = append(binary.BigEndian.AppendUint16(ports, uint16(8+len(body))), 0, 0)
	} else {
		l4 = append(ports, 0, 0, 0, 1, 0, 0, 0, 0, 5<<4, synFlag, 0xff, 0xff, 0, 0, 0, 0)
		sum = 16
	}
	l4 = append(l4, body...)
	pseudo := slices.Concat(from.Addr().AsSlice(), to.Addr().AsSlice(), []byte{0, proto}, binary.BigEndian.AppendUint16(nil, uint16(len(l4))), l4)
	binary.BigEndian.PutUint16(l4[sum:], checksum(pseudo))
	var ip []byte
	if from.Addr().Is4() {
		ip = []byte{0x45, 0, 0, byte(20 + len(l4)), 0, 0, 0, 0, 64, proto, 0, 0}
		ip = slices.Concat(ip, from.Addr().AsSlice(), to.Addr().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	} else {
		ip = []byte{0x60, 0, 0, 0, 0, byte(len(l4)), proto, 64}
		ip = slices.Concat(ip, from.Addr().AsSlice(), to.Addr().AsSlice())
	}
	return append(ip, l4...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for len(b) > 1 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// lan is the network as a neighbour has it.
type lan struct {
	b     *bench
	fd    int
	index int
	mac   net.HardwareAddr
}

func (b *bench) neighbour() *lan {
	l := b.link("neighbour").Attrs()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	b.must(err)
	b.must(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: l.Index}))
	b.must(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	return &lan{b: b, fd: fd, index: l.Index, mac: l.HardwareAddr}
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

func (l *lan) send(p []byte) {
	kind := []byte{0x08, 0x00}
	if p[0]>>4 == 6 {
		kind = []byte{0x86, 0xdd}
	}
	frame := slices.Concat(l.b.link("lan").Attrs().HardwareAddr, l.mac, kind, p)
	l.b.must(unix.Sendto(l.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.index}))
}

// resetFrom waits for the next reset and returns who sent it.
func (l *lan) resetFrom() netip.Addr {
	frame := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(l.fd, frame, 0)
		l.b.must(err)
		p := frame[14:max(14, n)]
		switch {
		case len(p) >= 40 && p[0] == 0x45 && p[9] == tcp && p[20+13]&rstFlag != 0:
			a, _ := netip.AddrFromSlice(p[12:16])
			return a
		case len(p) >= 60 && p[0]>>4 == 6 && p[6] == tcp && p[40+13]&rstFlag != 0:
			a, _ := netip.AddrFromSlice(p[8:24])
			return a
		}
	}
}

// asksAround asks by ARP who has each of the addresses and returns the first that
// is answered.
func (l *lan) asksAround(from string, for4 ...string) netip.Addr {
	for _, a := range for4 {
		ask := []byte{0, 1, 8, 0, 6, 4, 0, 1}
		ask = slices.Concat(ask, l.mac, netip.MustParseAddr(from).AsSlice(), make([]byte, 6), netip.MustParseAddr(a).AsSlice())
		frame := slices.Concat(net.HardwareAddr{255, 255, 255, 255, 255, 255}, l.mac, []byte{8, 6}, ask)
		l.b.must(unix.Sendto(l.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: l.index}))
	}
	frame := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(l.fd, frame, 0)
		l.b.must(err)
		if n >= 42 && frame[12] == 8 && frame[13] == 6 && frame[21] == 2 {
			a, _ := netip.AddrFromSlice(frame[28:32])
			return a
		}
	}
}

// A neighbour of the laptop's on the home network, who knows all addresses and
// ports, neither speaks into a call nor learns that an address is the laptop's.
func neighbourCase(b *bench) {
	for _, dev := range []string{"all", "default", "lan"} {
		b.must(os.WriteFile("/proc/sys/net/ipv4/conf/"+dev+"/rp_filter", []byte("0"), 0o644))
	}
	defer b.helper(nethelper.HelperConfig{AllowUID: 0})()
	n := b.open()
	b.must(n.Set(0, addrs("100.96.1.1", "fd70::1:1")))
	tun, err := n.Dup()
	b.must(err)
	l := b.neighbour()
	for _, c := range []struct{ own, app, home, neighbour string }{
		{"100.96.0.9", "100.96.1.1", "192.168.1.50", "192.168.1.7"},
		{"fd70::9", "fd70::1:1", "fd05::50", "fd05::7"},
	} {
		at := func(a string, port uint16) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(a), port) }
		own, app := at(c.own, 40000), at(c.app, 5004)
		b.must(netlink.NeighAdd(&netlink.Neigh{LinkIndex: b.link("lan").Attrs().Index, IP: net.ParseIP(c.neighbour), HardwareAddr: l.mac, State: netlink.NUD_PERMANENT}))
		call, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(own), net.UDPAddrFromAddrPort(app))
		b.must(err)
		other, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at(c.home, 40000)))
		b.must(err)
		hear := func(s *net.UDPConn) string {
			buf := make([]byte, 100)
			b.must(s.SetReadDeadline(time.Now().Add(10 * time.Second)))
			n, err := s.Read(buf)
			b.must(err)
			return string(buf[:n])
		}
		l.send(packet(udp, app, own, "injected"))
		// What was sent after it has arrived.
		l.send(packet(udp, at(c.neighbour, 5004), at(c.home, 40000), "the home network"))
		if got := hear(other); got != "the home network" {
			b.fail("%s: the home network says %q", c.home, got)
		}
		// A call of a program that has bound no address and knows the app by its
		// source.
		loose, err := net.ListenUDP("udp", &net.UDPAddr{Port: 40002})
		b.must(err)
		l.send(packet(udp, app, at(c.home, 40002), "injected"))
		l.send(packet(udp, at(c.neighbour, 5004), at(c.home, 40002), "the home network"))
		if got := hear(loose); got != "the home network" {
			b.fail("%s: as if from the app the home network says %q", c.home, got)
		}
		_, err = unix.Write(tun, append(make([]byte, 10), packet(udp, app, at(c.own, 40002), "the call")...))
		b.must(err)
		if got := hear(loose); got != "the call" {
			b.fail("%s: the loose call says %q", c.own, got)
		}
		loose.Close()
		_, err = unix.Write(tun, append(make([]byte, 10), packet(udp, app, own, "the call")...))
		b.must(err)
		if got := hear(call); got != "the call" {
			b.fail("%s: the call says %q", c.own, got)
		}
		// From the laptop itself it is an address like any.
		local, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(at(c.own, 0)), net.UDPAddrFromAddrPort(at(c.own, 40001)))
		b.must(err)
		self, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at(c.own, 40001)))
		b.must(err)
		_, err = local.Write([]byte("itself"))
		b.must(err)
		if got := hear(self); got != "itself" {
			b.fail("%s: the laptop itself says %q", c.own, got)
		}
		l.send(packet(tcp, at(c.neighbour, 4000), at(c.own, 1), ""))
		l.send(packet(tcp, at(c.neighbour, 4000), at(c.home, 1), ""))
		if got := l.resetFrom(); got != netip.MustParseAddr(c.home) {
			b.fail("%v answers on the home network", got)
		}
		for _, s := range []*net.UDPConn{call, other, local, self} {
			s.Close()
		}
	}
	if got := l.asksAround("192.168.1.7", "100.96.0.9", "192.168.1.50"); got.String() != "192.168.1.50" {
		b.fail("the laptop tells that %v is its own", got)
	}
	unix.Close(l.fd)
	// An agent that goes on holding the interface holds no address.
	b.must(n.Close())
	if list, err := netlink.AddrList(b.link("portvakt0"), netlink.FAMILY_ALL); err != nil || len(list) != 0 {
		b.fail("an address stays without its guard: %v %v", list, err)
	}
	unix.Close(tun)
	b.clean("close")
}

// Other programs' rules come and go, all at once, too.
func flushedCase(b *bench) {
	defer b.helper(nethelper.HelperConfig{AllowUID: 0})()
	n := b.open()
	c, err := nftables.New()
	b.must(err)
	firewall := func() {
		drop := nftables.ChainPolicyDrop
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "firewalld"})
		in := c.AddChain(&nftables.Chain{Name: "in", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter, Policy: &drop})
		c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
		b.must(c.Flush())
	}
	ours := &nftables.Table{Family: nftables.TableFamilyINet, Name: "portvakt-laptop"}
	many := addrs("100.96.1.1")
	for a := netip.MustParseAddr("fd70::1:1"); len(many) < 4096; a = a.Next() {
		many = append(many, a)
	}
	b.must(n.Set(0, many))
	there := func(when string) {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			rules, err := c.GetRules(ours, &nftables.Chain{Name: "prerouting"})
			apps4, err4 := c.GetSetElements(&nftables.Set{Table: ours, Name: "apps4", KeyType: nftables.TypeIPAddr})
			apps6, err6 := c.GetSetElements(&nftables.Set{Table: ours, Name: "apps6", KeyType: nftables.TypeIP6Addr})
			if err = errors.Join(err, err4, err6); err == nil && len(rules) == 4 && len(apps4)+len(apps6) == len(many) {
				return
			}
			if time.Now().After(deadline) {
				b.fail("%s: %d rules, %d and %d apps, %v", when, len(rules), len(apps4), len(apps6), err)
				return
			}
		}
	}
	there("at first")
	for range 3 {
		c.FlushRuleset()
		firewall()
		there("after everything was flushed")
		c.FlushTable(ours)
		b.must(c.Flush())
		there("after our rules were flushed")
	}
	there("before what was saved comes back")
	saved, err := c.GetRules(ours, &nftables.Chain{Name: "prerouting"})
	b.must(err)
	c.DelTable(ours) // nft -f, with what nft list ruleset said before there were apps
	c.AddTable(ours)
	b.must(c.AddSet(&nftables.Set{Table: ours, Name: "apps4", ID: 1, KeyType: nftables.TypeIPAddr}, nil))
	b.must(c.AddSet(&nftables.Set{Table: ours, Name: "apps6", ID: 2, KeyType: nftables.TypeIP6Addr}, nil))
	chain := c.AddChain(&nftables.Chain{Name: "prerouting", Table: ours, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
	for _, r := range saved {
		c.AddRule(&nftables.Rule{Table: ours, Chain: chain, Exprs: r.Exprs})
	}
	b.must(c.Flush())
	there("after what was saved came back")
	b.must(n.Close())
	b.clean("close")
	if tables := b.tables(); len(tables) != 1 {
		b.fail("tables are %v", tables)
	}
}

// take makes the guard's table of a family another program's, which alone may
// change it, until the descriptor is closed.
func (b *bench) take(family byte) (fd int) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	b.must(err)
	b.must(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
	attr := func(kind uint16, value []byte) []byte {
		a := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
		a = append(binary.NativeEndian.AppendUint16(a, kind), value...)
		return append(a, make([]byte, -len(a)&3)...)
	}
	message := func(kind, flags uint16, family byte, resource uint16, attrs ...[]byte) []byte {
		body := slices.Concat(attrs...)
		m := binary.NativeEndian.AppendUint32(nil, uint32(20+len(body)))
		m = binary.NativeEndian.AppendUint16(m, kind)
		m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|flags)
		m = append(m, 0, 0, 0, 0, 0, 0, 0, 0, family, 0)
		return append(binary.BigEndian.AppendUint16(m, resource), body...)
	}
	const tables = unix.NFNL_SUBSYS_NFTABLES << 8
	name := attr(unix.NFTA_TABLE_NAME, []byte("portvakt-laptop\x00"))
	b.must(unix.Sendto(fd, slices.Concat(
		message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES),
		message(tables|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, family, 0, name),
		message(tables|unix.NFT_MSG_DELTABLE, 0, family, 0, name),
		message(tables|unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE|unix.NLM_F_ACK, family, 0, name, attr(unix.NFTA_TABLE_FLAGS, []byte{0, 0, 0, 2})),
		message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES),
	), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
	ack := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, ack, 0)
	b.must(err)
	if n < 20 || binary.NativeEndian.Uint32(ack[16:]) != 0 {
		b.fail("the table cannot be taken: %x", ack[:n])
	}
	return fd
}

// A guard that cannot be set just then is no guard: what was to be routed is not,
// and it is set as soon as it can be.
func takenCase(b *bench) {
	defer b.helper(nethelper.HelperConfig{AllowUID: 0})()
	arp := b.take(unix.NFPROTO_ARP)
	if n, err := nethelper.Open(context.Background(), b.socket(), nethelper.Config{Name: "portvakt0", MTU: 1280, Addresses: own}); err == nil {
		b.fail("opened without a guard")
		n.Close()
	}
	unix.Close(arp)
	b.clean("a refusal")
	n := b.open()
	b.must(n.Set(0, addrs("100.96.1.1")))
	c, err := nftables.New()
	b.must(err)
	ours := &nftables.Table{Family: nftables.TableFamilyINet, Name: "portvakt-laptop"}
	guarded := func(when string, apps int) {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			got, err := c.GetSetElements(&nftables.Set{Table: ours, Name: "apps4", KeyType: nftables.TypeIPAddr})
			if err == nil && len(got) == apps {
				return
			}
			if time.Now().After(deadline) {
				b.fail("%s: %d apps, %v", when, len(got), err)
				return
			}
		}
	}
	guarded("at first", 1)
	fd := b.take(unix.NFPROTO_INET)
	for range 2 {
		if err := n.Set(0, addrs("100.96.1.1", "100.96.1.2")); err == nil {
			b.fail("an app is routed that is not guarded")
		}
	}
	b.want("not guarded", 0, "100.96.1.2", "lan")
	unix.Close(fd) // with which the table goes
	guarded("after the table was let go", 2)
	b.must(n.Set(0, addrs("100.96.1.1", "100.96.1.2")))
	// All descriptors are in use just when the table goes.
	last, err := nftables.New(nftables.AsLasting())
	b.must(err)
	last.FlushRuleset()
	var limit unix.Rlimit
	b.must(unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	b.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}))
	err = last.Flush()
	time.Sleep(300 * time.Millisecond) // the helper notices
	b.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	b.must(err)
	b.must(last.CloseLasting())
	guarded("after there were descriptors again", 2)
	b.must(n.Close())
	b.clean("close")
}
