package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// systemBus is where the D-Bus specification puts it. The environment's word
// for it is not taken: this runs as root.
const systemBus = "unix:path=/run/dbus/system_bus_socket"

const (
	callTimeout = 3 * time.Second
	busRetry    = 30 * time.Second
	// calm is how long a change is let settle before it is looked at.
	calm = 200 * time.Millisecond
	// Rewriting a file that another program rewrites each time must not become
	// a race: after maxFights within fightWindow it is theirs for a while.
	maxFights   = 5
	fightWindow = time.Minute
	// What could not be undone is tried again after firstRetry, later and later,
	// and with every change of the file.
	firstRetry = time.Second
	maxRetry   = time.Minute
)

// Config of a Manager.
type Config struct {
	// Index is the tunnel's interface, if it is known yet.
	Index int
	// Root is the tree of the files; empty means "/".
	Root string
	// Bus is the address of the system's D-Bus; empty means the usual one.
	Bus string
	// Log may be nil.
	Log *slog.Logger
}

// Setting is the DNS of the apps.
type Setting struct {
	Servers []netip.Addr // of the gateway, inside the tunnel
	Domains []string     // the apps' names, lower case, without the final dot
}

// backend is one way to have a Setting. set may be called again, with the same
// or another one.
type backend interface {
	name() string
	set(context.Context, Setting) error
	undo(context.Context) error
}

// Manager keeps a Setting in force. Its methods may be called from any
// goroutine.
type Manager struct {
	cfg Config

	mu   sync.Mutex
	bus  *dbus.Conn // guarded by mu; nil until it is needed
	want *Setting   // guarded by mu; nil while none is
	in   backend    // guarded by mu; what has it, nil if none
	owed []backend  // guarded by mu; what could not be undone, one of a name

	owing chan struct{} // told when owed got more
}

// New returns a Manager that has changed nothing yet.
func New(cfg Config) *Manager {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Bus == "" {
		cfg.Bus = systemBus
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{cfg: cfg, owing: make(chan struct{}, 1)}
}

// Use names the tunnel's interface anew. What resolved was told of a former one
// it forgets with that.
func (m *Manager) Use(index int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cfg.Index = index
	m.owed = slices.DeleteFunc(m.owed, func(b backend) bool { return b.name() == Resolved })
}

// Recover undoes what a killed process left. What it cannot is tried again by
// Run. What resolved was told it forgot with the interface.
func (m *Manager) Recover(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ownFiles() != nil {
		return nil // what is in them is another's
	}
	m.owe(&dnsmasq{m: m})
	m.owe(&resolvConf{m: m})
	return m.settle(ctx)
}

// Set puts s in force and returns the name of the manager that has it.
func (m *Manager) Set(ctx context.Context, s Setting) (manager string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.want = &Setting{slices.Clone(s.Servers), slices.Clone(s.Domains)}
	return m.apply(ctx)
}

// Undo puts everything back as it was. What it cannot is tried again by Run, and
// is in the way of every Undo until it is done.
func (m *Manager) Undo(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.want = nil
	m.leave()
	return m.settle(ctx)
}

// leave makes what has the setting to be undone. The caller holds mu.
func (m *Manager) leave() {
	if m.in != nil {
		m.owe(m.in)
		m.in = nil
	}
}

func (m *Manager) owe(b backend) {
	m.owed = slices.DeleteFunc(m.owed, func(o backend) bool { return o.name() == b.name() })
	m.owed = append(m.owed, b)
	select {
	case m.owing <- struct{}{}:
	default:
	}
}

// settle undoes what is to be undone, as far as it can. The caller holds mu.
func (m *Manager) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var errs []error
	m.owed = slices.DeleteFunc(m.owed, func(b backend) bool {
		err := b.undo(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("undoing DNS in %s: %w", b.name(), err))
		}
		return err == nil
	})
	return errors.Join(errs...)
}

// retry settles, and says whether there is nothing left to.
func (m *Manager) retry(ctx context.Context) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.owed) == 0 {
		return true
	}
	if err := m.settle(ctx); err != nil {
		m.cfg.Log.Debug("trying again to undo", "err", err)
		return false
	}
	m.cfg.Log.Info("what could not be undone of this laptop's DNS is undone")
	return true
}

// apply gives want to the manager that is right now. The caller holds mu.
func (m *Manager) apply(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	b, err := m.choose(ctx)
	if err != nil {
		m.leave()
		return "", errors.Join(err, m.settle(ctx))
	}
	if m.in != nil && m.in.name() != b.name() {
		m.leave()
	}
	if m.in == nil {
		m.in = b
		if i := slices.IndexFunc(m.owed, func(o backend) bool { return o.name() == b.name() }); i >= 0 {
			m.in = m.owed[i]
			m.owed = slices.Delete(m.owed, i, i+1)
		}
	}
	if err := m.settle(ctx); err != nil {
		m.cfg.Log.Warn("the former DNS manager keeps something", "err", err)
	}
	if err := m.in.set(ctx, *m.want); err != nil {
		return "", fmt.Errorf("setting DNS in %s: %w", m.in.name(), err)
	}
	return m.in.name(), nil
}

// choose finds out through whom this system resolves names.
func (m *Manager) choose(ctx context.Context) (backend, error) {
	bus, busErr := m.connect()
	if busErr == nil {
		switch ok, err := m.throughResolved(ctx, bus); {
		case err != nil:
			return nil, err
		case ok:
			return &resolved{m, int32(m.cfg.Index)}, nil
		}
		if m.throughDnsmasq(ctx, bus) {
			return &dnsmasq{m: m}, nil
		}
	}
	if err := m.ownFiles(); err != nil {
		return nil, err
	}
	return &resolvConf{m: m}, nil
}

// connect returns the system's D-Bus. The caller holds mu.
func (m *Manager) connect() (*dbus.Conn, error) {
	if m.bus != nil && m.bus.Connected() {
		return m.bus, nil
	}
	// A bus that takes connections and says nothing, as while it is being started,
	// must not hold up an undo.
	ctx, cancel := context.WithCancel(context.Background())
	late := time.AfterFunc(callTimeout, cancel)
	c, err := dbus.Connect(m.cfg.Bus, dbus.WithContext(ctx))
	if !late.Stop() {
		err = errors.Join(context.DeadlineExceeded, err)
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("reaching the system's D-Bus: %w", err)
	}
	m.bus = c
	return c, nil
}

func (m *Manager) closeBus() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.bus != nil {
		_ = m.bus.Close()
		m.bus = nil
	}
}

// owned says whether a service is there. One in another network namespace has
// other interfaces than we and counts as not there.
func owned(ctx context.Context, bus *dbus.Conn, service string) bool {
	var there bool
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.NameHasOwner", 0, service).Store(&there); err != nil || !there {
		return false
	}
	var pid uint32
	if err := bus.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixProcessID", 0, service).Store(&pid); err != nil {
		return false
	}
	return sameNetwork(int(pid))
}

// sameNetwork says whether a process is in this network namespace. A file of
// /proc/PID/net is another one in each; /proc/PID/ns/net would say so by name,
// but only to who may trace the process.
func sameNetwork(pid int) bool {
	own, err1 := os.Stat("/proc/self/net/dev")
	theirs, err2 := os.Stat(fmt.Sprintf("/proc/%d/net/dev", pid))
	return err1 == nil && err2 == nil && os.SameFile(own, theirs)
}

func (m *Manager) path(p string) string { return filepath.Join(m.cfg.Root, p) }

// Run keeps the Setting in force until ctx is done, and goes on undoing what Undo
// or Recover could not.
func (m *Manager) Run(ctx context.Context) error {
	defer m.closeBus()
	bus, file := make(chan string, 1), make(chan string, 1)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watchers.Go(func() { m.watchBus(ctx, bus) })
	watchers.Go(func() { m.watchFile(ctx, file) })
	var fights []time.Time
	patience, later := firstRetry, time.NewTimer(firstRetry)
	defer later.Stop()
	for {
		var why string
		restarted := false
		select {
		case <-ctx.Done():
			return nil
		case why = <-bus:
			restarted = true
		case why = <-file:
		case <-m.owing:
			patience = firstRetry
			later.Reset(patience)
			continue
		case <-later.C:
			if !m.retry(ctx) {
				patience = min(2*patience, maxRetry)
				later.Reset(patience)
			}
			continue
		}
		if !pause(ctx, calm) {
			return nil
		}
		fights = slices.DeleteFunc(fights, func(t time.Time) bool { return time.Since(t) > fightWindow })
		if len(fights) >= maxFights && !restarted {
			m.cfg.Log.Warn("another program keeps changing this laptop's DNS; leaving it alone for a while")
			if !pause(ctx, fightWindow) {
				return nil
			}
			fights = nil
		}
		m.retry(ctx)
		did, err := m.again(ctx, restarted)
		if did != "" && !restarted {
			fights = append(fights, time.Now())
		}
		if err != nil {
			m.cfg.Log.Warn("putting DNS right, since "+why, "err", err)
		} else if did != "" {
			m.cfg.Log.Info(did + ", since " + why)
		}
	}
}

// again applies what is wanted once more: after a restart of somebody's in any
// case, else when the file lost it or another manager is in charge by now. It says
// for people what it did, "" for nothing.
func (m *Manager) again(ctx context.Context, restarted bool) (did string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.want == nil {
		return m.stray(ctx)
	}
	if !restarted && m.in != nil {
		f, ok := m.in.(*resolvConf)
		if b, err := m.choose(ctx); err == nil && b.name() == m.in.name() && (!ok || f.holds()) {
			return "", nil
		}
	}
	_, err = m.apply(ctx)
	return "DNS was set again", err
}

// stray undoes what came back with a copy of resolv.conf that another program, as
// that of a VPN, had made while our lines stood in it. The caller holds mu.
func (m *Manager) stray(ctx context.Context) (did string, err error) {
	f := &resolvConf{m: m}
	if len(m.owed) > 0 || m.ownFiles() != nil || !f.ours() {
		return "", nil
	}
	m.owe(f)
	return "the apps' DNS was taken out of resolv.conf again", m.settle(ctx)
}

// pause waits and says whether ctx is still alive.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func tell(changed chan<- string, why string) {
	select {
	case changed <- why:
	default: // one is on its way already
	}
}
