package dns_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/agent/dns"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var setting = dns.Setting{
	Servers: []netip.Addr{netip.MustParseAddr("fd70::1"), netip.MustParseAddr("100.96.0.1")},
	Domains: []string{"crm.example.com", "wiki.example.com"},
}

const stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\n"

// tree makes a root directory with these files.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	must(t, os.Mkdir(filepath.Join(root, "etc"), 0o755))
	for name, text := range files {
		path := filepath.Join(root, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return root
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	must(t, err)
	return string(b)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not come to: %s", what)
		}
	}
}

// bus is a private D-Bus; "" when there is none, as on a small machine.
func bus(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "bus.conf")
	must(t, os.WriteFile(conf, []byte(`<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>unix:path=`+dir+`/bus</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow receive_sender="*"/><allow user="*"/></policy></busconfig>`), 0o644))
	cmd := exec.Command("dbus-daemon", "--config-file="+conf, "--nofork", "--nopidfile", "--nosyslog")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Skipf("needs dbus-daemon (Debian: apt-get install dbus-daemon): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, "the bus listens", func() bool {
		c, err := net.Dial("unix", dir+"/bus")
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return "unix:path=" + dir + "/bus"
}

func connect(t *testing.T, address string) *dbus.Conn {
	t.Helper()
	c, err := dbus.Connect(address)
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// resolve1 is systemd-resolved's Manager object as org.freedesktop.resolve1(5)
// has it: the wire types are the real ones.
type resolve1 struct {
	mu    sync.Mutex
	calls []string
	links map[int32]*link
	fail  string // name of the method that fails
}

type link struct {
	servers, domains []string
	route            *bool
}

func (r *resolve1) note(method string, index int32) (*link, *dbus.Error) {
	r.calls = append(r.calls, method)
	if r.fail == method {
		return nil, dbus.NewError("org.freedesktop.resolve1.LinkBusy", []any{"Link is managed."})
	}
	if r.links[index] == nil {
		r.links[index] = &link{}
	}
	return r.links[index], nil
}

func (r *resolve1) SetLinkDNS(index int32, addrs []struct {
	Family  int32
	Address []byte
},
) *dbus.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, err := r.note("SetLinkDNS", index)
	if err != nil {
		return err
	}
	l.servers = nil
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.Address)
		if ip.Is4() != (a.Family == 2) || ip.Is6() != (a.Family == 10) {
			return dbus.NewError("org.freedesktop.DBus.Error.InvalidArgs", nil)
		}
		l.servers = append(l.servers, ip.String())
	}
	return nil
}

func (r *resolve1) SetLinkDomains(index int32, domains []struct {
	Name        string
	RoutingOnly bool
},
) *dbus.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, err := r.note("SetLinkDomains", index)
	if err != nil {
		return err
	}
	l.domains = nil
	for _, d := range domains {
		name := d.Name
		if d.RoutingOnly {
			name = "~" + name
		}
		l.domains = append(l.domains, name)
	}
	return nil
}

func (r *resolve1) SetLinkDefaultRoute(index int32, on bool) *dbus.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	l, err := r.note("SetLinkDefaultRoute", index)
	if err == nil {
		l.route = &on
	}
	return err
}

func (r *resolve1) setting(method string, index int32) *dbus.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, err := r.note(method, index)
	return err
}

func (r *resolve1) SetLinkLLMNR(i int32, _ string) *dbus.Error { return r.setting("SetLinkLLMNR", i) }

func (r *resolve1) SetLinkMulticastDNS(i int32, _ string) *dbus.Error {
	return r.setting("SetLinkMulticastDNS", i)
}

func (r *resolve1) SetLinkDNSOverTLS(i int32, _ string) *dbus.Error {
	return r.setting("SetLinkDNSOverTLS", i)
}

func (r *resolve1) SetLinkDNSSEC(i int32, _ string) *dbus.Error { return r.setting("SetLinkDNSSEC", i) }

func (r *resolve1) RevertLink(index int32) *dbus.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links[index] == nil {
		return dbus.NewError("org.freedesktop.resolve1.NoSuchLink", nil)
	}
	delete(r.links, index)
	return nil
}

func (r *resolve1) FlushCaches() *dbus.Error { return nil }

func (r *resolve1) state(index int32) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.links[index]
	if l == nil {
		return "nothing"
	}
	return fmt.Sprintf("%v %v default=%t", l.servers, l.domains, l.route == nil || *l.route)
}

// last is the method called last.
func (r *resolve1) last() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls[len(r.calls)-1]
}

// startResolved serves a fresh resolved, which knows nothing.
func startResolved(t *testing.T, c *dbus.Conn) *resolve1 {
	t.Helper()
	r := &resolve1{links: map[int32]*link{}}
	must(t, c.Export(r, "/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager"))
	own(t, c, "org.freedesktop.resolve1")
	return r
}

func own(t *testing.T, c *dbus.Conn, name string) {
	t.Helper()
	reply, err := c.RequestName(name, dbus.NameFlagDoNotQueue)
	if err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatal(reply, err)
	}
}

const want = "[fd70::1 100.96.0.1] [~crm.example.com ~wiki.example.com] default=false"

// start runs a Manager until the test ends.
func start(t *testing.T, cfg dns.Config) *dns.Manager {
	t.Helper()
	m := dns.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

func set(t *testing.T, m *dns.Manager, s dns.Setting, manager string) {
	t.Helper()
	got, err := m.Set(t.Context(), s)
	if err != nil || got != manager {
		t.Fatalf("Set: %q %v, want %s", got, err, manager)
	}
}

func TestResolved(t *testing.T) {
	address := bus(t)
	service := connect(t, address)
	r := startResolved(t, service)
	root := tree(t, map[string]string{"etc/resolv.conf": stub})
	m := start(t, dns.Config{Index: 7, Root: root, Bus: address})
	set(t, m, setting, dns.Resolved)
	if got := r.state(7); got != want {
		t.Errorf("resolved has %s", got)
	}
	// The link is never asked for other names, not even between two calls.
	r.mu.Lock()
	if d, s := slices.Index(r.calls, "SetLinkDomains"), slices.Index(r.calls, "SetLinkDNS"); d > s || slices.Index(r.calls, "SetLinkDefaultRoute") > s {
		t.Errorf("called in the order %v", r.calls)
	}
	r.mu.Unlock()
	if got := read(t, root, "etc/resolv.conf"); got != stub {
		t.Errorf("resolv.conf became %q", got)
	}
	set(t, m, dns.Setting{Servers: setting.Servers, Domains: []string{"crm.example.com"}}, dns.Resolved)
	if got := r.state(7); !strings.Contains(got, "[~crm.example.com]") {
		t.Errorf("with one app less resolved has %s", got)
	}
	set(t, m, dns.Setting{Servers: setting.Servers}, dns.Resolved)
	if got := r.state(7); got != "nothing" {
		t.Errorf("without apps resolved has %s", got)
	}
	set(t, m, setting, dns.Resolved)

	outer := t // resolved stays for all that follows
	t.Run("restarted", func(t *testing.T) {
		_, err := service.ReleaseName("org.freedesktop.resolve1")
		must(t, err)
		r = startResolved(t, connect(outer, address))
		eventually(t, "the new resolved knows", func() bool { return r.state(7) == want && r.last() == "SetLinkDNSSEC" })
	})
	t.Run("woke up", func(t *testing.T) {
		login := connect(t, address)
		own(t, login, "org.freedesktop.login1")
		r.mu.Lock()
		delete(r.links, 7)
		r.mu.Unlock()
		must(t, login.Emit("/org/freedesktop/login1", "org.freedesktop.login1.Manager.PrepareForSleep", true))
		time.Sleep(300 * time.Millisecond)
		if got := r.state(7); got != "nothing" {
			t.Errorf("going to sleep set %s", got)
		}
		must(t, login.Emit("/org/freedesktop/login1", "org.freedesktop.login1.Manager.PrepareForSleep", false))
		eventually(t, "it is set again", func() bool { return r.state(7) == want })
	})
	t.Run("undone", func(t *testing.T) {
		must(t, m.Undo(t.Context()))
		if got := r.state(7); got != "nothing" {
			t.Errorf("resolved keeps %s", got)
		}
		must(t, m.Undo(t.Context()))
	})
	t.Run("refusing", func(t *testing.T) {
		r.mu.Lock()
		r.fail = "SetLinkDomains"
		r.mu.Unlock()
		if _, err := m.Set(t.Context(), setting); err == nil || !strings.Contains(err.Error(), "Link is managed") {
			t.Errorf("Set: %v", err)
		}
		if got := read(t, root, "etc/resolv.conf"); got != stub {
			t.Errorf("resolv.conf became %q", got)
		}
	})
}

// Anybody may send signals; only those of the real senders count.
func TestForeignSignals(t *testing.T) {
	address := bus(t)
	r := startResolved(t, connect(t, address))
	m := start(t, dns.Config{Index: 7, Root: tree(t, map[string]string{"etc/resolv.conf": stub}), Bus: address})
	set(t, m, setting, dns.Resolved)
	r.mu.Lock()
	r.calls = nil
	r.mu.Unlock()
	stranger := connect(t, address)
	must(t, stranger.Emit("/org/freedesktop/login1", "org.freedesktop.login1.Manager.PrepareForSleep", false))
	must(t, stranger.Emit("/org/freedesktop/DBus", "org.freedesktop.DBus.NameOwnerChanged", "org.freedesktop.resolve1", "", ":1.99"))
	own(t, connect(t, address), "org.freedesktop.login1")
	var names []string
	must(t, stranger.BusObject().Call("org.freedesktop.DBus.ListNames", 0).Store(&names))
	for _, name := range names { // ours among them
		if !strings.HasPrefix(name, ":") {
			continue
		}
		msg := &dbus.Message{Type: dbus.TypeSignal, Body: []any{false}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(name), dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/login1")),
			dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.login1.Manager"), dbus.FieldMember: dbus.MakeVariant("PrepareForSleep"),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(false)),
		}}
		must(t, stranger.Send(msg, nil).Err)
	}
	time.Sleep(400 * time.Millisecond)
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.calls) != 0 {
		t.Errorf("a stranger's signals caused %v", r.calls)
	}
}

// networkManager is what is used of NetworkManager.
type networkManager struct {
	mu      sync.Mutex
	mode    string
	reloads []uint32
	fail    bool // refuse to reload
}

func (n *networkManager) Reload(flags uint32) *dbus.Error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fail {
		return dbus.NewError("org.freedesktop.NetworkManager.Failed", []any{"not now"})
	}
	n.reloads = append(n.reloads, flags)
	return nil
}

func (n *networkManager) Get(iface, property string) (dbus.Variant, *dbus.Error) {
	if iface != "org.freedesktop.NetworkManager.DnsManager" || property != "Mode" {
		return dbus.Variant{}, dbus.NewError("org.freedesktop.DBus.Error.UnknownProperty", nil)
	}
	return dbus.MakeVariant(n.mode), nil
}

func startNetworkManager(t *testing.T, address, mode string) *networkManager {
	t.Helper()
	c := connect(t, address)
	n := &networkManager{mode: mode}
	must(t, c.Export(n, "/org/freedesktop/NetworkManager", "org.freedesktop.NetworkManager"))
	must(t, c.Export(n, "/org/freedesktop/NetworkManager/DnsManager", "org.freedesktop.DBus.Properties"))
	own(t, c, "org.freedesktop.NetworkManager")
	return n
}

const dropIn = "etc/NetworkManager/dnsmasq.d/portvakt.conf"

func TestNetworkManager(t *testing.T) {
	address := bus(t)
	n := startNetworkManager(t, address, "dnsmasq")
	const conf = "# Generated by NetworkManager\nnameserver 127.0.1.1\n"
	root := tree(t, map[string]string{"etc/resolv.conf": conf})
	cfg := dns.Config{Index: 7, Root: root, Bus: address}
	m := start(t, cfg)
	set(t, m, setting, dns.Dnsmasq)
	text := read(t, root, dropIn)
	for _, line := range []string{"server=/crm.example.com/100.96.0.1\n", "server=/wiki.example.com/fd70::1\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q in %q", line, text)
		}
	}
	set(t, m, setting, dns.Dnsmasq)
	must(t, m.Undo(t.Context()))
	if _, err := os.Stat(filepath.Join(root, dropIn)); err == nil {
		t.Error("the file stays")
	}
	n.mu.Lock()
	if !slices.Equal(n.reloads, []uint32{4, 4}) {
		t.Errorf("reloads %v, want one DNS reload for the file and one for its end", n.reloads)
	}
	n.mu.Unlock()
	if got := read(t, root, "etc/resolv.conf"); got != conf {
		t.Errorf("resolv.conf became %q", got)
	}
	t.Run("not reloaded", func(t *testing.T) {
		fail := func(on bool) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.fail, n.reloads = on, nil
		}
		fail(true)
		for range 2 {
			if _, err := m.Set(t.Context(), setting); err == nil || !strings.Contains(err.Error(), "not now") {
				t.Errorf("Set: %v", err)
			}
		}
		fail(false)
		set(t, m, setting, dns.Dnsmasq)
		n.mu.Lock()
		defer n.mu.Unlock()
		if !slices.Equal(n.reloads, []uint32{4}) {
			t.Errorf("reloads %v", n.reloads)
		}
	})
	t.Run("killed", func(t *testing.T) {
		set(t, m, setting, dns.Dnsmasq)
		must(t, start(t, cfg).Recover(t.Context()))
		if _, err := os.Stat(filepath.Join(root, dropIn)); err == nil {
			t.Error("the file stays")
		}
	})
}

// NetworkManager without a dnsmasq, and resolved that nobody asks, are passed by.
func TestManagersThatDoNotResolve(t *testing.T) {
	address := bus(t)
	startNetworkManager(t, address, "default")
	r := startResolved(t, connect(t, address))
	root := tree(t, map[string]string{"etc/resolv.conf": "nameserver 192.0.2.53\n", "etc/nsswitch.conf": "hosts: files dns\n"})
	m := start(t, dns.Config{Index: 7, Root: root, Bus: address})
	set(t, m, setting, dns.ResolvConf)
	if got := r.state(7); got != "nothing" {
		t.Errorf("resolved has %s", got)
	}
	// From now on programs ask resolved through its library.
	must(t, os.WriteFile(filepath.Join(root, "etc/nsswitch.conf"), []byte("hosts: files resolve [!UNAVAIL=return] dns\n"), 0o644))
	set(t, m, setting, dns.Resolved)
	if got := r.state(7); got != want {
		t.Errorf("resolved has %s", got)
	}
	if got := read(t, root, "etc/resolv.conf"); got != "nameserver 192.0.2.53\n" {
		t.Errorf("resolv.conf is still %q", got)
	}
}

// A bus that takes connections and says nothing keeps nothing from being set and
// undone.
func TestTheBusIsSilent(t *testing.T) {
	root, cfg := plain(t, home)
	cfg.Bus = "unix:path=" + root + "/bus"
	l, err := net.Listen("unix", root+"/bus")
	must(t, err)
	defer l.Close()
	m := dns.New(cfg)
	done := make(chan error, 1)
	go func() {
		_, err := m.Set(context.Background(), setting)
		done <- errors.Join(err, m.Undo(context.Background()))
	}()
	select {
	case err := <-done:
		must(t, err)
	case <-time.After(time.Minute):
		t.Fatal("it waits for the bus")
	}
	if got := read(t, root, "etc/resolv.conf"); got != home {
		t.Errorf("it is %q", got)
	}
}
