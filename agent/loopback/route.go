package loopback

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/portvakt/portvakt/internal/wire"
)

// targetKey is what a connection depends on: when any of it changes, the
// connections of the old one are cut.
type targetKey struct {
	app, protocol string
	addrs         string
	port          uint16
}

func (k targetKey) portName() string { return fmt.Sprintf("%s/%s/%d", k.app, k.protocol, k.port) }

func (k targetKey) compare(o targetKey) int {
	return cmp.Or(cmp.Compare(k.app, o.app), cmp.Compare(k.protocol, o.protocol), cmp.Compare(k.port, o.port), cmp.Compare(k.addrs, o.addrs))
}

// target is one port of one app. All but its context is set before others see
// it, or guarded by the server's mu (local, listener, udp).
type target struct {
	key    targetKey
	addr   netip.Addr
	ctx    context.Context // ends when the app or the port is gone
	cancel context.CancelFunc

	local    netip.AddrPort
	listener io.Closer
	udp      *udpPort
}

func (t *target) close() {
	t.cancel()
	if t.listener != nil {
		t.listener.Close()
	}
}

// appRoute is what the names and addresses of one app lead to.
type appRoute struct {
	name     string
	protocol string
	hosts    []string // as [normalHost] returns them
	addrs    []netip.Addr
}

type hostPort struct {
	host string
	port uint16
}

// routes is the immutable table of what the proxy carries.
type routes struct {
	byHost map[string]*appRoute
	byPort map[hostPort]*target

	// What UDP associations carry: where a name or address leads to, and who
	// may answer.
	udpTo   map[hostPort]netip.AddrPort
	udpFrom map[netip.AddrPort]struct{}
}

func newRoutes() *routes {
	return &routes{
		byHost: map[string]*appRoute{}, byPort: map[hostPort]*target{},
		udpTo: map[hostPort]netip.AddrPort{}, udpFrom: map[netip.AddrPort]struct{}{},
	}
}

// findUDP returns the address of a UDP app's host and port, as a client wrote
// them.
func (r *routes) findUDP(host string, port uint16) (netip.AddrPort, bool) {
	h, ok := normalHost(host)
	if !ok {
		return netip.AddrPort{}, false
	}
	to, ok := r.udpTo[hostPort{h, port}]
	return to, ok
}

// addUDP takes the app's first address for its names, and for each of its
// addresses that one itself: a program expects the answer from where it sent to.
func (r *routes) addUDP(a *appRoute, t *target, log *slog.Logger) {
	claim := func(host string, to netip.Addr) {
		k := hostPort{host, t.key.port}
		if _, taken := r.udpTo[k]; taken {
			log.Warn("two apps claim the same name and port", "app", a.name)
			return
		}
		r.udpTo[k] = netip.AddrPortFrom(to, t.key.port)
	}
	for _, h := range a.hosts {
		claim(h, a.addrs[0])
	}
	for _, ip := range a.addrs {
		claim(ip.String(), ip)
		r.udpFrom[netip.AddrPortFrom(ip, t.key.port)] = struct{}{}
	}
}

// find returns the target of a host (as a client wrote it) and port. known says
// that the host is an app's though the port is not.
func (r *routes) find(host string, port uint16) (t *target, known bool) {
	h, ok := normalHost(host)
	if !ok {
		return nil, false
	}
	_, known = r.byHost[h]
	return r.byPort[hostPort{h, port}], known
}

func (r *routes) add(a *appRoute, t *target, log *slog.Logger) {
	if a.protocol == "udp" {
		r.addUDP(a, t, log)
		return
	}
	names := a.hosts
	for _, ip := range a.addrs {
		names = append(names[:len(names):len(names)], ip.String())
	}
	for _, h := range names {
		if other := r.byPort[hostPort{h, t.key.port}]; other != nil {
			log.Warn("two apps claim the same name and port", "app", a.name, "reason", other.key.app+" keeps it")
			continue
		}
		if r.byHost[h] == nil {
			r.byHost[h] = a
		}
		r.byPort[hostPort{h, t.key.port}] = t
	}
}

// routeFor reads an app; nil if it has no address or its protocol is unknown.
func routeFor(a wire.App) (*appRoute, []targetKey) {
	r := &appRoute{name: a.Name, protocol: a.Protocol}
	ports := a.Ports
	switch a.Protocol {
	case "http":
		ports = []uint16{443, 80}
	case "tcp", "udp":
	default:
		return nil, nil
	}
	var text []string
	for _, ip := range a.Addresses {
		if ip = ip.Unmap(); ip.IsValid() && !ip.IsUnspecified() && ip.Zone() == "" {
			r.addrs = append(r.addrs, ip)
			text = append(text, ip.String())
		}
	}
	if len(r.addrs) == 0 {
		return nil, nil
	}
	for _, h := range a.Hosts {
		if n, ok := normalHost(h); ok {
			r.hosts = append(r.hosts, n)
		}
	}
	var keys []targetKey
	for _, p := range ports {
		if p != 0 {
			keys = append(keys, targetKey{a.Name, a.Protocol, strings.Join(text, " "), p})
		}
	}
	return r, keys
}

// normalHost returns the one spelling of a host name or IP address that the
// tables use: lower case without the final dot, and netip's form for addresses
// (in brackets or not). Anything that is neither is refused.
func normalHost(s string) (string, bool) {
	s = strings.TrimSuffix(s, ".")
	bare := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		bare = s[1 : len(s)-1]
	}
	if ip, err := netip.ParseAddr(bare); err == nil {
		return ip.Unmap().String(), ip.Zone() == ""
	}
	if s == "" || len(s) > 253 || strings.HasSuffix(s, ".") {
		return "", false
	}
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' {
			continue
		}
		return "", false
	}
	return strings.ToLower(s), true
}
