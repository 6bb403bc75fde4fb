// Package session owns what the gateway knows about connected devices: the
// Session that binds a Subject to a Device, the facts behind it (posture,
// location), the epoch that grows when one of them changes, the segment that
// follows from them, and the registry of open Flows. Whoever lets something
// through asks a [Flow]; whoever learns something tells the [Manager], which
// decides everything again and cuts what no longer holds.
//
// The order that makes revocation certain (DESIGN.md, "Change"):
//
//	opening:  register the Flow -> decide -> record -> mark as decided -> compare the epoch
//	changing: change the fact -> raise the epoch -> decide every marked Flow again
//
// Either the opener sees the new epoch and decides again, or the changer sees
// the marked Flow. There is no third interleaving.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// Config is what a Manager needs. Engine, Store, Audit, Table, Locate,
// AddPeer and RemovePeer are required.
type Config struct {
	Engine *policy.Engine
	Store  *store.Store
	Audit  *audit.Log
	// Table receives every device's segment.
	Table *segment.Table
	// Gateway are the gateway's own inner addresses, IPv4 and IPv6, and
	// ControlPort the TCP port of its control API there.
	Gateway     [2]netip.Addr
	ControlPort uint16
	// Locate says where an outer address is.
	Locate func(netip.Addr) policy.Location
	// AddPeer makes a connection's tunnel key known to the tunnel, RemovePeer
	// unknown at once.
	AddPeer    func(Connection) error
	RemovePeer func(key [32]byte) error
	// Gone is told when a device's connection ended, after its Flows were cut:
	// what idles on its inner addresses has nobody left to serve. May be nil.
	Gone func(inner [2]netip.Addr)
	// SessionOver is told when a Session is no longer in force on a device that
	// stays, after its Flows were confirmed or cut. May be nil.
	SessionOver func(inner [2]netip.Addr, session string)
	// Left is told when a device is connected no more, not even anew. May be nil.
	Left func(device string)
	// PostureMaxAge is how long a report counts; zero means 90 s.
	PostureMaxAge time.Duration
	// Lease is how long an open Flow may go on unconfirmed; zero means 30 s.
	Lease time.Duration
	// MaxFlows bounds the open Flows of one device; zero means 2,048.
	MaxFlows int
	// Now is the wall clock; nil means time.Now.
	Now func() time.Time
	// Elapsed is a clock that runs during suspend and that nobody sets, for leases
	// and the age of posture reports; nil means the system's (CLOCK_BOOTTIME).
	Elapsed func() time.Duration
	Log     *slog.Logger
}

// Manager is the owner of all devices' facts. Its methods are safe for
// concurrent use.
type Manager struct {
	cfg Config
	log *slog.Logger

	// connectMu is held for the whole of Connect, so that of two connects of one
	// device the later one's key is the one that stays.
	connectMu sync.Mutex

	// sessionMu is held while the store's and the devices' idea of which Session
	// is in force change together. It is taken before every other lock of a
	// device and not while refreshing.
	sessionMu sync.Mutex

	// mu guards the maps, not the devices in them. A device's Flows are cut
	// before it leaves them.
	mu      sync.RWMutex
	devices map[string]*device
	inner   map[netip.Addr]*device
	keys    map[[32]byte]*device

	// publishMu is held while a revision becomes active.
	publishMu sync.Mutex
	catalogue atomic.Pointer[catalogue]

	// lockdowns is never nil. lockdownMu is held while one is stored or lifted,
	// never while one is put in force.
	lockdowns  atomic.Pointer[lockdownSet]
	lockdownMu sync.Mutex

	books  books
	drains beginnings

	beat    atomic.Int64 // Elapsed when the gateway was last known to run
	decided atomic.Int64 // and when nothing open was left to decide again

	flows   atomic.Int64
	refused atomic.Uint64
	crowded atomic.Uint64
	cuts    atomic.Uint64
}

// catalogue is the app list of the active revision with its addresses;
// immutable, swapped as a whole.
type catalogue struct {
	apps   []policy.App
	addrs  map[string][2]netip.Addr
	byAddr map[netip.Addr]*policy.App
	byHost map[string]string        // app by host name
	drains map[string]time.Duration // how long an app's Flows may drain, if at all
	views  sync.Map                 // string of zeros and ones, one an app -> view
}

// ErrUnknownDevice is returned for a device that is not connected.
var ErrUnknownDevice = errors.New("the device is not connected")

// New returns a Manager that knows no device. It opens nothing.
func New(cfg Config) *Manager {
	if cfg.PostureMaxAge == 0 {
		cfg.PostureMaxAge = 90 * time.Second
	}
	if cfg.Lease == 0 {
		cfg.Lease = 30 * time.Second
	}
	if cfg.MaxFlows == 0 {
		cfg.MaxFlows = 2048
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Elapsed == nil {
		cfg.Elapsed = sinceBoot
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{cfg: cfg, log: cfg.Log, devices: map[string]*device{}, inner: map[netip.Addr]*device{}, keys: map[[32]byte]*device{}}
	m.catalogue.Store(&catalogue{})
	m.lockdowns.Store(&lockdownSet{})
	m.beat.Store(int64(cfg.Elapsed()))
	m.decided.Store(m.beat.Load())
	return m
}

// Run confirms open Flows before their leases end and acts on the edges of
// time: sessions that expire, reports that grow old, hours that begin or end.
func (m *Manager) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	beside.Go(func() { m.keepBooks(ctx) })
	beside.Go(func() { m.keepDrains(ctx) })
	beside.Go(func() { m.watchLapses(ctx) })
	defer beside.Wait()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	minute := m.cfg.Now().Truncate(time.Minute)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now := m.cfg.Now()
		edge := !now.Truncate(time.Minute).Equal(minute)
		minute = now.Truncate(time.Minute)
		m.tick(now, edge)
	}
}

// tick does what time makes due. With edge set a minute has begun: hours may
// begin or end.
func (m *Manager) tick(now time.Time, edge bool) {
	for _, d := range m.expired(now) {
		m.remove(d.record.ID, d, policy.Decision{})
		m.books.registrationEnded(d.key)
	}
	elapsed := m.cfg.Elapsed()
	onAll(slices.DeleteFunc(m.all(), func(d *device) bool {
		return !edge && !d.due(now, elapsed)
	}), m.refresh)
	if edge {
		m.books.minute()
	}
}

// Publish makes a revision the active one: recorded, activated, and every
// device decided again before it returns. On an error the old one stays.
func (m *Manager) Publish(ctx context.Context, rev *policy.Revision, actor string) error {
	m.publishMu.Lock()
	defer m.publishMu.Unlock()
	apps := rev.Apps()
	names := make([]string, len(apps))
	for i, a := range apps {
		names[i] = a.Name
	}
	addrs, err := m.cfg.Store.AppAddresses(ctx, names)
	if err != nil {
		return fmt.Errorf("giving apps their addresses: %w", err)
	}
	next := &catalogue{apps: apps, addrs: addrs, byAddr: map[netip.Addr]*policy.App{}, byHost: map[string]string{}, drains: map[string]time.Duration{}}
	detail := map[string]string{"apps": fmt.Sprint(len(apps))}
	var draining []string
	for i := range apps {
		a := &apps[i]
		if a.OnLoss.Drain > 0 {
			next.drains[a.Name] = a.OnLoss.Drain
			draining = append(draining, a.Name+": "+a.OnLoss.String())
		}
		for _, h := range a.Hosts {
			next.byHost[h] = a.Name
		}
		for _, addr := range addrs[a.Name] {
			next.byAddr[addr] = a
		}
	}
	if draining != nil {
		detail["on_loss"] = strings.Join(draining, ", ")
	}
	err = m.cfg.Audit.Append(&audit.Record{Kind: audit.KindPolicy, Revision: rev.ID(), Actor: actor, Detail: detail})
	if err != nil {
		return fmt.Errorf("recording the policy revision: %w", err)
	}
	before := m.followApps(apps)
	m.cfg.Engine.Activate(rev)
	m.catalogue.Store(next)
	m.forgetApps(apps)
	m.noteFollowing(before, apps, rev.ID(), actor)
	m.refreshAll()
	m.storeMarks(ctx, before.list)
	return nil
}

// AppByAddr returns the app of a virtual address, nil for an address of none.
// Nobody changes an App.
func (m *Manager) AppByAddr(addr netip.Addr) *policy.App { return m.catalogue.Load().byAddr[addr] }

// AppAddresses returns the virtual addresses of an app of the active revision.
func (m *Manager) AppAddresses(name string) [2]netip.Addr {
	return m.catalogue.Load().addrs[name]
}

// Relocate looks every device's place up again, after the location database
// changed.
func (m *Manager) Relocate() {
	onAll(m.all(), func(d *device) { m.setLocation(d, netip.AddrPort{}) })
}

// Elapsed is the clock of leases, for others that count how long something has
// been: it runs during suspend, and no step of the wall clock moves it.
func (m *Manager) Elapsed() time.Duration { return m.cfg.Elapsed() }

// Counts are the numbers that metrics show.
type Counts struct {
	Devices, Sessions, Flows int
	Refused, Cuts            uint64
	Draining                 int    // of Flows
	Crowded                  uint64 // of Refused, for want of room among the device's open Flows
}

// Counts returns the current numbers.
func (m *Manager) Counts() Counts {
	c := Counts{Flows: int(m.flows.Load()), Refused: m.refused.Load(), Cuts: m.cuts.Load(), Crowded: m.crowded.Load()}
	for _, d := range m.all() {
		c.Devices++
		c.Draining += d.drainCount()
		if _, ok := d.sessionNow(); ok {
			c.Sessions++
		}
	}
	return c
}

func (m *Manager) all() []*device {
	m.mu.RLock()
	defer m.mu.RUnlock()
	out := make([]*device, 0, len(m.devices))
	for _, d := range m.devices {
		out = append(out, d)
	}
	return out
}

func (m *Manager) device(id string) (*device, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d, ok := m.devices[id]
	if !ok {
		return nil, ErrUnknownDevice
	}
	return d, nil
}

func (m *Manager) refreshAll() { onAll(m.all(), m.refresh) }

// refresh decides everything about one device again: every Flow it has open,
// first of all, and which apps it reaches, hence its segment. It raises the
// epoch before, so that a Flow being opened meanwhile decides again too.
func (m *Manager) refresh(d *device) {
	d.refreshMu.Lock()
	defer d.refreshMu.Unlock()
	now, elapsed := m.cfg.Now(), m.cfg.Elapsed()

	d.mu.Lock()
	if d.gone != nil {
		// dissolve does all there is to do, and the segment at these addresses
		// may be a newer connection's by now.
		d.mu.Unlock()
		return
	}
	expired := d.expireLocked(now, elapsed)
	d.epoch.Add(1)
	d.confirmed = elapsed
	d.mu.Unlock()
	known := denials{}
	for _, f := range d.open() {
		f.confirm(now, known)
	}
	d.mu.Lock()
	d.untidy = false
	d.mu.Unlock()
	drains, _, first := d.drains()
	d.mu.Lock()
	d.drainEnd = first
	d.mu.Unlock()

	cat := m.catalogue.Load()
	allowed := make([]byte, len(cat.apps))
	var entries []segment.Entry
	facts := d.facts(now, elapsed)
	for i, a := range cat.apps {
		reaches := m.reaches(facts, reachQuestion(now, a))
		if reaches {
			allowed[i] = 1
		}
		_, drain := drains[a.Name] // its packets pass; what is new is refused behind
		entries = append(entries, reachable(a, cat.addrs[a.Name], reaches || drain)...)
	}
	for _, g := range m.cfg.Gateway {
		entries = append(entries,
			segment.Entry{Addr: g, Proto: protoTCP, Port: m.cfg.ControlPort},
			segment.Entry{Addr: g, Proto: protoUDP, Port: dnsPort})
	}
	m.cfg.Table.Set(d.record.Addresses, entries)
	m.tellOver(d)
	d.publish(cat.view(allowed))
	d.rest()
	m.noteExpired(expired, now)
}

const (
	protoTCP = 6
	protoUDP = 17

	// dnsPort of the gateway's own addresses answers every connected device.
	dnsPort = 53
)

// reachable lists what a device may send to for one app. An explained http app
// answers on its web ports whatever the decision, so that the block page can.
func reachable(a policy.App, addrs [2]netip.Addr, allowed bool) []segment.Entry {
	var proto uint8 = protoTCP
	ports := a.Ports
	switch a.Protocol {
	case "http":
		ports = []uint16{80, 443}
		allowed = allowed || a.Visibility == "explain"
	case "udp":
		proto = protoUDP
	}
	if !allowed {
		return nil
	}
	var out []segment.Entry
	for _, addr := range addrs {
		for _, p := range ports {
			out = append(out, segment.Entry{Addr: addr, Proto: proto, Port: p})
		}
	}
	return out
}

// Resolve returns the virtual addresses of the app with that host name, in
// lower case, if the device at an inner address may know of it. A name that is
// hidden from the device takes the same look-ups as one that is no app's.
func (m *Manager) Resolve(inner netip.Addr, host string) (addrs [2]netip.Addr, ok bool) {
	m.mu.RLock()
	d := m.inner[inner]
	m.mu.RUnlock()
	if d == nil {
		return addrs, false
	}
	cat := m.catalogue.Load()
	name := cat.byHost[host]
	allowed, reached := d.viewNow()[name]
	addrs = cat.addrs[name]
	if !reached || !allowed && !cat.explains(addrs[0]) {
		return [2]netip.Addr{}, false
	}
	return addrs, true
}

// explains says whether the app at a virtual address explains itself to
// devices that may not use it.
func (c *catalogue) explains(addr netip.Addr) bool {
	return c.byAddr[addr].Visibility == policy.VisibilityExplain
}

// visible returns the apps a device may know of, by name: those it reaches,
// those that explain themselves, and those of which it finishes something.
func (c *catalogue) visible(v view, drains map[string]time.Time) []policy.App {
	var out []policy.App
	for _, a := range c.apps { // Revision.Apps is sorted by name
		_, drain := drains[a.Name]
		if allowed, ok := v[a.Name]; ok && (allowed || drain || a.Visibility == "explain") {
			out = append(out, a)
		}
	}
	return out
}

// view is what one device reaches: every app it was asked about, and whether it
// is allowed. It never changes. Devices that reach the same share one: most do,
// and of a registration whose laptop sleeps little else is kept.
type view map[string]bool

// view returns the one in which the apps, in their order, are allowed as said.
func (c *catalogue) view(allowed []byte) view {
	if v, ok := c.views.Load(string(allowed)); ok {
		return v.(view)
	}
	made := make(view, len(c.apps))
	for i, a := range c.apps {
		made[a.Name] = allowed[i] == 1
	}
	v, _ := c.views.LoadOrStore(string(allowed), made)
	return v.(view)
}
