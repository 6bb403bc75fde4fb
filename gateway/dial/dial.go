// Package dial opens connections to apps, and none to what a name must not
// lead to: each address is looked at after the name was resolved, right before
// it is used.
package dial

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"
)

// ErrForbidden is why an address was not dialled.
var ErrForbidden = errors.New("the address is one that the gateway must not dial")

// neverDialled can be no app; no prefix in `allow` changes that.
var neverDialled = prefixes("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8")

// guarded are what a name must not lead to by itself: the gateway's own
// loopback, its link, and the addresses cloud machines get their credentials
// from.
var guarded = prefixes(
	"127.0.0.0/8", "::1/128",
	"169.254.0.0/16", "fe80::/10", "fec0::/10",
	"100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::/32", "fd20:ce::254/128",
	"240.0.0.0/4",
	// Forms that hide an IPv4 address where it cannot be read off: NAT64 of
	// local use (RFC 8215) and Teredo (RFC 4380).
	"64:ff9b:1::/48", "2001::/32",
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
	compat = netip.MustParsePrefix("::/96")
)

// plainAddr takes the forms off in which an IPv4 address hides in an IPv6 one.
func plainAddr(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	b := a.As16()
	switch {
	case a.Is4():
	case nat64.Contains(a), compat.Contains(a) && (b[12] != 0 || b[13] != 0):
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixTo4.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

// check refuses an address the gateway must not dial for an app. It
// is asked after name resolution, for each address that is dialled. own lists
// the machine's addresses, and is asked last.
func check(a netip.Addr, allow, forbidden []netip.Prefix, own func() ([]netip.Addr, error)) error {
	a = plainAddr(a)
	if within(neverDialled, a) {
		return fmt.Errorf("%w: %s", ErrForbidden, a)
	}
	if within(allow, a) {
		return nil
	}
	if within(guarded, a) || within(forbidden, a) {
		return fmt.Errorf("%w: %s", ErrForbidden, a)
	}
	list, err := own()
	if err != nil {
		return err
	}
	if slices.Contains(list, a) {
		return fmt.Errorf("%w: %s", ErrForbidden, a)
	}
	return nil
}

// Failed says for the log what an error of dialling an app means.
func Failed(err error) string {
	if errors.Is(err, ErrForbidden) {
		return "an app's address may not be dialled; name it under the app's allow"
	}
	return "an app does not answer"
}

// Check refuses, with [ErrForbidden], an address that New's dialer would refuse
// on every machine.
func Check(a netip.Addr, allow, forbidden []netip.Prefix) error {
	return check(a, allow, forbidden, func() ([]netip.Addr, error) { return nil, nil })
}

// ownFor is how long the list of the machine's addresses is used: listing them
// costs more than a connection within the machine.
const ownFor = time.Second

var (
	ownMu   sync.Mutex
	ownList []netip.Addr
	ownAt   time.Time
)

// ownNow is ownAddresses, of at most a second ago.
func ownNow() ([]netip.Addr, error) {
	ownMu.Lock()
	defer ownMu.Unlock()
	if !ownAt.IsZero() && time.Since(ownAt) < ownFor {
		return ownList, nil
	}
	list, err := ownAddresses()
	if err != nil {
		return nil, err
	}
	ownList, ownAt = list, time.Now()
	return list, nil
}

// ownAddresses are the machine's; an app there is the gateway itself unless it
// says so in `allow`.
func ownAddresses() ([]netip.Addr, error) {
	ifs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the machine's addresses: %w", err)
	}
	out := make([]netip.Addr, 0, len(ifs))
	for _, i := range ifs {
		if p, err := netip.ParsePrefix(i.String()); err == nil {
			out = append(out, p.Addr().Unmap().WithZone(""))
		}
	}
	return out, nil
}

// New returns a dialer for one app. allow are the prefixes the app may be at
// though they are guarded, forbidden the gateway's own.
func New(timeout time.Duration, allow, forbidden []netip.Prefix) *net.Dialer {
	return &net.Dialer{
		Timeout:         timeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3},
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			dst, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("%w: %s", ErrForbidden, address)
			}
			return check(dst.Addr(), allow, forbidden, ownNow)
		},
	}
}

// Datagram finds the address that datagrams for hostPort go to: of those its
// name has, the first that may be dialled and that the system has a way to.
// Nothing is sent.
func Datagram(ctx context.Context, timeout time.Duration, allow, forbidden []netip.Prefix, hostPort string) (netip.AddrPort, error) {
	c, err := New(timeout, allow, forbidden).DialContext(ctx, "udp", hostPort)
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer c.Close()
	to, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("reading the address of %s: %w", hostPort, err)
	}
	return netip.AddrPortFrom(to.Addr().Unmap(), to.Port()), nil
}
