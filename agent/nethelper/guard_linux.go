package nethelper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// guardTable is the laptop's nftables table. Linux takes a packet to any of its
// addresses on any interface, so that without it whoever shares a network with
// the laptop could speak into its calls (CVE-2019-14899). nftables asks every
// table: one of firewalld's or ufw's can only drop more.
const guardTable = "portvakt-laptop"

func newGuardTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: guardTable}
}

// arpInput is NF_ARP_IN.
const arpInput = 0

// errNoTables is a kernel without what the guard needs.
var errNoTables = errors.New("the kernel has no nf_tables, without which the laptop's neighbours could speak into its calls; load the module nf_tables, or run without --tun")

// guard drops what comes from anywhere but the tunnel and the laptop itself, to
// the device's own addresses, and from an app's: a program may have bound its call
// to any address and know the other end by its source alone. It stays without its
// process.
type guard struct {
	link string
	own  []netip.Addr

	mu     sync.Mutex
	apps   map[netip.Addr]struct{} // guarded by mu; routed since open
	partly bool                    // guarded by mu; not all of it could be set
}

// guardSign is in each rule of ours. A copy that another program read and put in
// their place (nft list ruleset, nft -f) has none: it is of former addresses. The
// form is libnftnl's, a type that nobody has, a length and so many bytes.
var guardSign = []byte{0x70, 4, 'l', 'i', 'v', 'e'}

// guardAgain is when what could not be set is tried again.
const guardAgain = time.Second

// side is the rules' part for one family.
type side struct {
	version      byte
	source, dest uint32 // where the addresses are in the header
	length       uint32
	apps         string // name of the set
	kind         nftables.SetDatatype
}

func sideOf(a netip.Addr) side {
	if a.Is4() {
		return side{unix.NFPROTO_IPV4, 12, 16, 4, "apps4", nftables.TypeIPAddr}
	}
	return side{unix.NFPROTO_IPV6, 8, 24, 16, "apps6", nftables.TypeIP6Addr}
}

// set puts the guard in force, in the place of any former one, in one step but for
// the apps' addresses.
func (g *guard) set() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.setLocked()
}

func (g *guard) setLocked() (err error) {
	g.partly = true
	defer func() { g.partly = err != nil }()
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("guarding the device's addresses: %w", err)
	}
	c.AddTable(newGuardTable()) // so that there is one to delete
	c.DelTable(newGuardTable())
	table := c.AddTable(newGuardTable())
	// Before connections are tracked, and so before any rule that accepts what
	// belongs to one.
	chain := c.AddChain(&nftables.Chain{
		Table: table, Name: "prerouting", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	for _, a := range g.own {
		f := sideOf(a)
		apps := &nftables.Set{Table: table, Name: f.apps, KeyType: f.kind}
		if err := c.AddSet(apps, nil); err != nil {
			return fmt.Errorf("guarding the apps' addresses: %w", err)
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, UserData: guardSign, Exprs: g.drop(f, f.dest, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()})})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, UserData: guardSign, Exprs: g.drop(f, f.source, &expr.Lookup{SourceRegister: 1, SetName: apps.Name, SetID: apps.ID})})
	}
	if err := c.Flush(); noTables(err) {
		return errNoTables
	} else if err != nil {
		return fmt.Errorf("guarding the device's addresses: %w", err)
	}
	return errors.Join(g.setARP(), addApps(slices.Collect(maps.Keys(g.apps))))
}

// setARP keeps the laptop from telling a neighbour who asks around that one of its
// addresses is the device's. A kernel that cannot filter ARP
// goes without.
func (g *guard) setARP() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("guarding ARP: %w", err)
	}
	table := newGuardTable()
	table.Family = nftables.TableFamilyARP
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{
		Table: table, Name: "input", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookRef(arpInput), Priority: nftables.ChainPriorityFilter,
	})
	for _, a := range g.own {
		if a.Is6() {
			continue // IPv6 answers for an interface's own addresses only
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 4},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := c.Flush(); err != nil && !noTables(err) && !errors.Is(err, os.ErrNotExist) { // no such kind of chain
		return fmt.Errorf("guarding ARP: %w", err)
	}
	return nil
}

// routed guards these addresses as well, from now on.
func (g *guard) routed(addrs []netip.Addr) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	var fresh []netip.Addr
	for _, a := range addrs {
		_, known := g.apps[a]
		if known || !slices.ContainsFunc(g.own, func(own netip.Addr) bool { return own.Is4() == a.Is4() }) {
			continue
		}
		if len(g.apps) >= 2*maxRoutes {
			return fmt.Errorf("more than %d addresses were routed since the interface was opened", 2*maxRoutes)
		}
		g.apps[a] = struct{}{}
		fresh = append(fresh, a)
	}
	if !g.partly && addApps(fresh) == nil {
		return nil
	}
	return g.setLocked() // somebody took the table away just now
}

// addApps adds to the sets of the table, in steps: the kernel bounds the length of
// one.
func addApps(addrs []netip.Addr) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("guarding the apps' addresses: %w", err)
	}
	for part := range slices.Chunk(addrs, 500) {
		elements := map[side][]nftables.SetElement{}
		for _, a := range part {
			elements[sideOf(a)] = append(elements[sideOf(a)], nftables.SetElement{Key: a.AsSlice()})
		}
		for f, e := range elements {
			if err := c.SetAddElements(&nftables.Set{Table: newGuardTable(), Name: f.apps, KeyType: f.kind}, e); err != nil {
				return fmt.Errorf("guarding the apps' addresses: %w", err)
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("guarding the apps' addresses: %w", err)
		}
	}
	return nil
}

// drop is: iifname != LINK iifname != "lo" ip ADDRESS matches drop.
func (g *guard) drop(f side, offset uint32, matches expr.Any) []expr.Any {
	var out []expr.Any
	for _, name := range []string{g.link, "lo"} {
		padded := make([]byte, unix.IFNAMSIZ)
		copy(padded, name)
		out = append(out, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: padded})
	}
	return append(out,
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.version}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.length},
		matches,
		&expr.Verdict{Kind: expr.VerdictDrop})
}

// stands says whether every rule is there, and all was set.
func (g *guard) stands() (bool, error) {
	g.mu.Lock()
	partly := g.partly
	g.mu.Unlock()
	if partly {
		return false, nil
	}
	c, err := nftables.New()
	if err != nil {
		return false, err
	}
	rules, err := c.GetRules(newGuardTable(), &nftables.Chain{Name: "prerouting"})
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	signed := func(r *nftables.Rule) bool { return bytes.Equal(r.UserData, guardSign) }
	return len(rules) == 2*len(g.own) && !slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return !signed(r) }), err
}

// keep puts the guard back whenever somebody took it away, as `nft flush
// ruleset` does, until ctx is done.
func (g *guard) keep(ctx context.Context, log *slog.Logger) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "netlink")
	defer f.Close()
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { f.Close() })()
	buf := make([]byte, 64<<10)
	failed := false
	for {
		again := time.Time{}
		if ok, err := g.stands(); err != nil || !ok {
			switch err := g.set(); {
			case err == nil:
				failed = false
				log.Warn("the guard of the tunnel's addresses was set again, since another program took it away")
			case !failed:
				log.Error("another program took the guard of the tunnel's addresses away; it is tried to set it again", "err", err)
				fallthrough
			default:
				failed, again = true, time.Now().Add(guardAgain)
			}
		}
		if err := f.SetReadDeadline(again); err != nil {
			return err
		}
		// What was changed does not matter, nor how much of it was missed.
		if _, err := f.Read(buf); err != nil && !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
}

// undoKernel removes what is ours in the kernel, but for an interface that an
// agent holds. Interfaces that come and go meanwhile, as the agent's own does when
// it is killed, interrupt the kernel's lists; then it begins anew.
func undoKernel() (err error) {
	for range 20 {
		err = errors.Join(undoRoutes(), undoGuard())
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return err
}

// undoGuard takes the guard away, whoever set it. The addresses go first.
func undoGuard() error {
	if err := undoAddresses(); err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("removing the guard of the device's addresses: %w", err)
	}
	var errs []error
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyARP} {
		table := newGuardTable()
		table.Family = family
		c.AddTable(table) // so that there is one to delete
		c.DelTable(table)
		if err := c.Flush(); err != nil && !noTables(err) {
			errs = append(errs, fmt.Errorf("removing the guard of the device's addresses: %w", err))
		}
	}
	return errors.Join(errs...)
}

// undoAddresses takes the addresses from our interfaces: an agent that has not
// ended yet still holds its own.
func undoAddresses() error {
	ours, err := ourLinks()
	if err != nil {
		return err
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("listing the machine's addresses: %w", err)
	}
	var errs []error
	for _, a := range addrs {
		if !slices.Contains(ours, a.LinkIndex) {
			continue
		}
		link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: a.LinkIndex}}
		err := netlink.AddrDel(link, &netlink.Addr{IPNet: a.IPNet})
		if err != nil && !errors.Is(err, syscall.EADDRNOTAVAIL) && !errors.Is(err, syscall.ENODEV) {
			errs = append(errs, fmt.Errorf("removing the address %v: %w", a.IPNet, err))
		}
	}
	return errors.Join(errs...)
}

// noTables says whether err is a kernel's that was built or runs without
// nf_tables, where there is nothing of ours either.
func noTables(err error) bool {
	return errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}
