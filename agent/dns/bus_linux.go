package dns

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"
)

const (
	resolvedService = "org.freedesktop.resolve1"
	resolvedPath    = dbus.ObjectPath("/org/freedesktop/resolve1")
	resolvedManager = "org.freedesktop.resolve1.Manager."

	networkManagerService = "org.freedesktop.NetworkManager"
	networkManagerPath    = dbus.ObjectPath("/org/freedesktop/NetworkManager")

	loginService = "org.freedesktop.login1"
)

// throughResolved says whether names are resolved by systemd-resolved: its stub
// is the only server of resolv.conf, or programs ask it through libnss_resolve.
func (m *Manager) throughResolved(ctx context.Context, bus *dbus.Conn) (bool, error) {
	if !owned(ctx, bus, resolvedService) {
		return false, nil
	}
	text, err := os.ReadFile(m.path("etc/resolv.conf"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	servers := nameservers(string(text))
	stub := func(s string) bool { return s == "127.0.0.53" || s == "127.0.0.54" }
	if len(servers) > 0 && !slices.ContainsFunc(servers, func(s string) bool { return !stub(s) }) {
		return true, nil
	}
	nss, err := os.ReadFile(m.path("etc/nsswitch.conf"))
	if err != nil {
		return false, nil
	}
	for line := range strings.Lines(string(nss)) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "hosts:" {
			resolve, plain := slices.Index(f, "resolve"), slices.Index(f, "dns")
			return resolve > 0 && (plain < 0 || resolve < plain), nil
		}
	}
	return false, nil
}

// resolved is systemd-resolved: org.freedesktop.resolve1(5).
type resolved struct {
	m     *Manager
	index int32 // of the interface
}

func (*resolved) name() string { return Resolved }

type linkAddress struct {
	Family  int32
	Address []byte
}

type linkDomain struct {
	Name        string
	RoutingOnly bool
}

func (r *resolved) call(ctx context.Context, method string, args ...any) error {
	// A restarted resolved has the same name on the same bus; a restarted bus
	// is another connection.
	bus, err := r.m.connect()
	if err != nil {
		return err
	}
	o := bus.Object(resolvedService, resolvedPath)
	if err := o.CallWithContext(ctx, resolvedManager+method, dbus.FlagNoAutoStart, args...).Err; err != nil {
		return fmt.Errorf("calling %s: %w", method, err)
	}
	return nil
}

func (r *resolved) set(ctx context.Context, s Setting) error {
	var servers []linkAddress
	for _, a := range s.Servers {
		family := int32(2) // AF_INET
		if a.Is6() {
			family = 10 // AF_INET6
		}
		servers = append(servers, linkAddress{family, a.AsSlice()})
	}
	var domains []linkDomain
	for _, d := range s.Domains {
		domains = append(domains, linkDomain{d, true})
	}
	if len(domains) == 0 {
		// A link with servers and no domain may be asked for everything.
		return r.undo(ctx)
	}
	// The order keeps the link from being asked for anything but the apps.
	for _, c := range []struct {
		method string
		value  any
		must   bool
	}{
		{"SetLinkDefaultRoute", false, false}, // from systemd 240 on; older ones follow the domains
		{"SetLinkDomains", domains, true},
		{"SetLinkDNS", servers, true},
		{"SetLinkLLMNR", "no", false},
		{"SetLinkMulticastDNS", "no", false},
		{"SetLinkDNSOverTLS", "no", false}, // the tunnel encrypts already
		{"SetLinkDNSSEC", "no", false},     // the apps' names are signed by nobody
	} {
		if err := r.call(ctx, c.method, r.index, c.value); err != nil && c.must {
			return err
		}
	}
	_ = r.call(ctx, "FlushCaches") // an app that was asked for too early must not stay unknown
	return nil
}

func (r *resolved) undo(ctx context.Context) error {
	err := r.call(ctx, "RevertLink", r.index)
	if e, ok := errors.AsType[dbus.Error](err); ok && (e.Name == "org.freedesktop.resolve1.NoSuchLink" || e.Name == "org.freedesktop.DBus.Error.ServiceUnknown" || e.Name == "org.freedesktop.DBus.Error.NameHasNoOwner") {
		return nil // it went, and all it was told with it
	}
	return err
}

// throughDnsmasq says whether NetworkManager runs a dnsmasq for the names.
func (m *Manager) throughDnsmasq(ctx context.Context, bus *dbus.Conn) bool {
	if !owned(ctx, bus, networkManagerService) {
		return false
	}
	var mode dbus.Variant
	err := bus.Object(networkManagerService, networkManagerPath+"/DnsManager").CallWithContext(ctx,
		"org.freedesktop.DBus.Properties.Get", dbus.FlagNoAutoStart, networkManagerService+".DnsManager", "Mode").Store(&mode)
	s, _ := mode.Value().(string)
	return err == nil && s == "dnsmasq"
}

// dnsmasq is the one that NetworkManager runs. Its D-Bus interface can only
// replace all servers or edit a connection that it manages itself, which the
// tunnel's interface is not; a file in dnsmasq.d is what its manual offers.
type dnsmasq struct {
	m      *Manager
	loaded bool // what is in the file
	stale  bool // what was in the file, and is not any more
}

func (*dnsmasq) name() string { return Dnsmasq }

func (d *dnsmasq) file() string { return d.m.path("etc/NetworkManager/dnsmasq.d/portvakt.conf") }

func (d *dnsmasq) set(ctx context.Context, s Setting) error {
	var b strings.Builder
	b.WriteString("# The names of Portvakt's apps; removed when the agent ends.\n")
	for _, name := range s.Domains {
		for _, a := range s.Servers {
			fmt.Fprintf(&b, "server=/%s/%s\n", name, a)
		}
	}
	if old, err := os.ReadFile(d.file()); err == nil && d.loaded && string(old) == b.String() {
		return nil
	}
	d.loaded = false
	if err := os.MkdirAll(filepath.Dir(d.file()), 0o755); err != nil {
		return err
	}
	if err := replace(d.file(), []byte(b.String()), 0o644); err != nil {
		return err
	}
	err := d.reload(ctx)
	d.loaded = err == nil
	return err
}

func (d *dnsmasq) undo(ctx context.Context) error {
	err := os.Remove(d.file())
	if errors.Is(err, os.ErrNotExist) && !d.stale {
		return nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	d.loaded, d.stale = false, true
	err = d.reload(ctx)
	d.stale = err != nil
	return err
}

// reload has NetworkManager start its dnsmasq anew with its files.
func (d *dnsmasq) reload(ctx context.Context) error {
	bus, err := d.m.connect()
	if err != nil || !owned(ctx, bus, networkManagerService) {
		return nil // it reads the files when it starts
	}
	const dnsFull = uint32(4) // NMManagerReloadFlags: restart the DNS plugin
	if err := bus.Object(networkManagerService, networkManagerPath).CallWithContext(ctx, networkManagerService+".Reload", dbus.FlagNoAutoStart, dnsFull).Err; err != nil {
		return fmt.Errorf("having NetworkManager reload its DNS: %w", err)
	}
	return nil
}

// watchBus hears of restarts and of waking up.
func (m *Manager) watchBus(ctx context.Context, changed chan<- string) {
	for first := true; ; first = false {
		if err := m.listen(ctx, changed, first); err != nil && ctx.Err() == nil {
			m.cfg.Log.Debug("no D-Bus to listen to", "err", err)
		}
		if !pause(ctx, busRetry) {
			return
		}
	}
}

// listen returns when the bus is gone.
func (m *Manager) listen(ctx context.Context, changed chan<- string, first bool) error {
	m.mu.Lock()
	bus, err := m.connect()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	signals := make(chan *dbus.Signal, 16)
	bus.Signal(signals)
	defer bus.RemoveSignal(signals)
	for _, service := range []string{resolvedService, networkManagerService} {
		err = errors.Join(err, bus.AddMatchSignalContext(ctx, dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, service)))
	}
	err = errors.Join(err, bus.AddMatchSignalContext(ctx, dbus.WithMatchSender(loginService), dbus.WithMatchInterface(loginService+".Manager"), dbus.WithMatchMember("PrepareForSleep")))
	if err != nil {
		return err
	}
	if !first {
		tell(changed, "the system's D-Bus came back")
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case s, open := <-signals:
			if !open {
				return errors.New("the connection ended")
			}
			if why := meaning(s); why != "" && genuine(ctx, bus, s) {
				tell(changed, why)
			}
		}
	}
}

// meaning says what a signal is about; "" means nothing of ours.
func meaning(s *dbus.Signal) string {
	switch {
	case s.Name == "org.freedesktop.DBus.NameOwnerChanged" && s.Sender == "org.freedesktop.DBus" && len(s.Body) == 3:
		service, _ := s.Body[0].(string)
		owner, _ := s.Body[2].(string)
		if (service == resolvedService || service == networkManagerService) && owner != "" {
			return service + " was started"
		}
	case s.Name == loginService+".Manager.PrepareForSleep" && len(s.Body) == 1:
		if sleeps, ok := s.Body[0].(bool); ok && !sleeps {
			return "the laptop woke up"
		}
	}
	return ""
}

// genuine says whether a signal is of the service it speaks for. What is sent to
// this connection's own name arrives whatever was asked for, and from anybody.
func genuine(ctx context.Context, bus *dbus.Conn, s *dbus.Signal) bool {
	if s.Sender == "org.freedesktop.DBus" {
		return true // nobody else can have that name
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var owner string
	err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, loginService).Store(&owner)
	return err == nil && s.Sender == owner
}

// nameservers are the servers resolv.conf names.
func nameservers(text string) (out []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		a, err := netip.ParseAddr(f[1])
		if err != nil {
			out = append(out, f[1]) // not one of ours in any case
			continue
		}
		out = append(out, a.String())
	}
	return out
}
