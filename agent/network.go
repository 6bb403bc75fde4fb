package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/portvakt/portvakt/agent/dns"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/nethelper"
	"github.com/portvakt/portvakt/agent/tunnel"
	"github.com/portvakt/portvakt/internal/wire"
)

// DefaultInterface is what the interface of TUN mode is called when nothing
// else is said.
const DefaultInterface = "portvakt0"

// TUN makes an interface of the operating system the inside of the tunnel.
type TUN struct {
	// HelperSocket is where the privileged helper listens; empty means
	// [nethelper.DefaultSocket].
	HelperSocket string
	// Interface is its name; empty means [DefaultInterface].
	Interface string
	// NoDNS leaves the laptop's DNS alone.
	NoDNS bool
}

// noInterface marks a link that failed for want of the interface.
type noInterface struct{ err error }

func (e *noInterface) Error() string { return e.err.Error() }
func (e *noInterface) Unwrap() error { return e.err }

var errHelperGone = &noInterface{errors.New("the network helper stopped")}

// network is the interface of TUN mode. It outlives the links, so that the
// connections of the laptop's programs outlive them as well.
type network struct {
	cfg TUN
	log *slog.Logger

	mu     sync.Mutex
	open   *nethelper.Network // guarded by mu; nil while there is none
	made   nethelper.Config   // guarded by mu; what open was made with
	user   uint32             // guarded by mu; who may use it
	routes []netip.Addr       // guarded by mu; sorted
	unsure bool               // guarded by mu; the helper may have others, since it failed
	names  []string           // guarded by mu; that DNS was given last, sorted; nil when it must be given them again
	dns    *localapi.DNS      // guarded by mu; nil until it was tried for this link
	has    string             // guarded by mu; the DNS manager that has names of ours, also past a link's end
}

func newNetwork(cfg TUN, user uint32, log *slog.Logger) *network {
	if cfg.HelperSocket == "" {
		cfg.HelperSocket = nethelper.DefaultSocket
	}
	if cfg.Interface == "" {
		cfg.Interface = DefaultInterface
	}
	return &network{cfg: cfg, log: log, user: user}
}

// prepare returns the interface for a tunnel of this answer to connect: the one
// there is if it fits, else a new one. The gateway's addresses are routed.
func (n *network) prepare(ctx context.Context, c *wire.ConnectResponse) (*tunnel.TUN, <-chan struct{}, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	want := nethelper.Config{Name: n.cfg.Interface, MTU: c.MTU, Addresses: c.Addresses}
	if n.open != nil {
		if n.gone() || n.made.MTU != want.MTU || !slices.Equal(n.made.Addresses, want.Addresses) {
			n.closeLocked()
		}
	}
	if n.open == nil {
		open, err := nethelper.Open(ctx, n.cfg.HelperSocket, want)
		if err != nil {
			return nil, nil, &noInterface{err}
		}
		n.open, n.made = open, want
	}
	if err := n.setLocked(n.user, slices.Concat(n.routes, c.Gateway.Addresses)); err != nil {
		return nil, nil, &noInterface{err}
	}
	fd, err := n.open.Dup()
	if err != nil {
		return nil, nil, &noInterface{err}
	}
	return &tunnel.TUN{FD: fd, Routes: n.route}, n.open.Gone(), nil
}

// gone says whether the helper of the open interface is. The caller holds mu.
func (n *network) gone() bool {
	select {
	case <-n.open.Gone():
		return true
	default:
		return false
	}
}

// route makes the routes exactly those to addrs.
func (n *network) route(addrs []netip.Addr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.setLocked(n.user, addrs); err != nil {
		return &noInterface{err}
	}
	return nil
}

// setUser says who may use the tunnel beside the agent.
func (n *network) setUser(user uint32) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.setLocked(user, n.routes)
}

func (n *network) setLocked(user uint32, addrs []netip.Addr) error {
	addrs = slices.Clone(addrs)
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	if !n.unsure && user == n.user && slices.Equal(addrs, n.routes) {
		return nil
	}
	if n.open == nil {
		n.user = user
		return nil
	}
	err := n.open.Set(user, addrs)
	if n.unsure = err != nil; n.unsure {
		return err
	}
	n.user, n.routes = user, addrs
	return nil
}

// setDNS has the gateway asked for the apps' names. When it cannot be, the apps
// still work through the proxy; the status says so. own are the names that the
// agent itself needs to reach the gateway.
func (n *network) setDNS(servers []netip.Addr, apps []wire.App, own []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil || n.cfg.NoDNS {
		return
	}
	names, taking := namesOf(apps, own)
	if n.dns != nil && n.names != nil && slices.Equal(names, n.names) {
		return
	}
	manager, left, err := n.open.DNS(servers, names)
	n.names = names
	st := &localapi.DNS{Manager: manager}
	switch {
	case taking == "" || manager == dns.ResolvConf: // that takes no name from anybody
	case left == "":
		left = taking
	default:
		left = taking + "; " + left
	}
	switch {
	case err != nil:
		n.names = nil
		st.Problem = "The apps' names do not resolve on this laptop: " + err.Error() + ". The apps work through the proxy."
	case left != "":
		st.Problem = "Some apps' names do not resolve on this laptop: " + left + ". These apps work through the proxy."
		fallthrough
	default:
		n.has = manager
	}
	if st.Problem != "" && (n.dns == nil || n.dns.Problem != st.Problem) {
		n.log.Warn("setting this laptop's DNS", "err", err, "left_out", left)
	}
	n.dns = st
}

// state is how the laptop's DNS is; nil when nothing was tried.
func (n *network) state() *localapi.DNS {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dns
}

// unlinked is called when a link has ended: without one the gateway answers no
// question. Where names are split nobody else is asked for the apps', and the
// next link is soon there; resolv.conf cannot split, and every name would wait.
func (n *network) unlinked() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.has == dns.ResolvConf {
		n.undoDNS()
	}
	n.dns, n.names = nil, nil
}

// unresolved is called when there is no link and a name on the way to the next
// one did not resolve. It may lie below an app's, which only the gateway is
// asked for.
func (n *network) unresolved() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.has != "" {
		n.undoDNS()
	}
}

// undoDNS is called with mu held.
func (n *network) undoDNS() {
	if n.open == nil || n.gone() {
		return
	}
	if _, _, err := n.open.DNS(nil, nil); err != nil {
		n.log.Warn("undoing this laptop's DNS", "err", err)
		return
	}
	n.has = ""
}

// namesOf are the names of the apps in the one form that DNS uses. With a name
// goes all that is below it, so that one above a name of own is left out;
// taking says so.
func namesOf(apps []wire.App, own []string) (names []string, taking string) {
	names = []string{}
	for _, app := range apps {
		for _, h := range app.Hosts {
			h = strings.ToLower(strings.TrimSuffix(h, "."))
			if _, err := netip.ParseAddr(h); err != nil && strings.Contains(h, ".") {
				names = append(names, h)
			}
		}
	}
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(name string) bool {
		for _, o := range own {
			if o == name || strings.HasSuffix(o, "."+name) {
				taking = fmt.Sprintf("%s would take %s along, which leads to the gateway", name, o)
				return true
			}
		}
		return false
	})
	return names, taking
}

// close gives the interface back.
func (n *network) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closeLocked()
}

func (n *network) closeLocked() {
	if n.open == nil {
		return
	}
	if err := n.open.Close(); err != nil {
		n.log.Warn("giving the network interface back", "err", err)
	}
	n.open, n.routes, n.names, n.dns = nil, nil, nil, nil
	n.unsure, n.has = false, ""
}
