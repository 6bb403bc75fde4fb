package session

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// lockdownSet are the lockdowns in force; immutable, swapped as a whole.
type lockdownSet struct {
	list      []store.Lockdown    // the earliest first
	apps      []policy.App        // of the active revision
	following map[string][]string // the apps of other names, by a lockdown's ID; sorted
	exact     map[lockKey]struct{}
	sites     []netip.Prefix
	subjects  bool // some name a person
}

type lockKey struct {
	scope store.Scope
	value string
}

// CheckLockdown says what is wrong with a lockdown's scope or value.
func CheckLockdown(l store.Lockdown) error {
	switch l.Scope {
	case store.ScopeAll:
		if l.Value != "" {
			return errors.New("a lockdown of all has no value")
		}
		return nil
	case store.ScopeSite:
		p, err := netip.ParsePrefix(l.Value)
		if err != nil || p != p.Masked() {
			return fmt.Errorf("a site is a prefix of addresses such as 198.51.100.0/24, not %q", l.Value)
		}
		_, err = Site(l.Value)
		return err
	case store.ScopeApp, store.ScopeSubject, store.ScopeDevice:
		if l.Value == "" {
			return fmt.Errorf("a lockdown of a %s names it", l.Scope)
		}
		return nil
	}
	return fmt.Errorf("the scope of a lockdown is all, app, subject, device or site, not %q", l.Scope)
}

// mapped are the IPv4 addresses as IPv6 writes them (RFC 4291, section 2.5.5.2).
var mapped = netip.MustParsePrefix("::ffff:0:0/96")

// Site reads an address or a prefix of addresses as those of devices are known:
// IPv4 that is written as IPv6 becomes IPv4, and an IPv6 prefix around it, which
// no device would be in, is refused.
func Site(text string) (netip.Prefix, error) {
	a, err := netip.ParseAddr(text)
	p := netip.PrefixFrom(a, a.BitLen())
	if err != nil {
		p, err = netip.ParsePrefix(text)
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("a site is an address or a prefix such as 198.51.100.0/24, not %q", text)
	}
	p = p.Masked()
	switch {
	case !p.Overlaps(mapped) || p.Bits() == 0: // ::/0 is all of IPv6
		return p, nil
	case p.Bits() < mapped.Bits():
		return netip.Prefix{}, fmt.Errorf("the site %q stands for no device's address: write IPv4 addresses as IPv4, such as 198.51.100.0/24", text)
	}
	return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped.Bits()), nil
}

func newLockdownSet(list []store.Lockdown, apps []policy.App) (*lockdownSet, error) {
	s := &lockdownSet{list: list, apps: apps, following: map[string][]string{}, exact: map[lockKey]struct{}{}}
	for _, l := range list {
		if err := CheckLockdown(l); err != nil {
			return nil, fmt.Errorf("lockdown %s: %w", l.ID, err)
		}
		if l.Scope == store.ScopeSite {
			site, err := Site(l.Value)
			if err != nil {
				return nil, fmt.Errorf("lockdown %s: %w", l.ID, err)
			}
			s.sites = append(s.sites, site)
			continue
		}
		s.exact[lockKey{l.Scope, l.Value}] = struct{}{}
		for i := range apps {
			if name := apps[i].Name; Follows(l, &apps[i]) != "" && !slices.Contains(s.following[l.ID], name) {
				s.exact[lockKey{l.Scope, name}] = struct{}{}
				s.following[l.ID] = append(s.following[l.ID], name)
			}
		}
		s.subjects = s.subjects || l.Scope == store.ScopeSubject
	}
	return s, nil
}

// hit returns the fact by which a lockdown stands in the way, nil when none
// does. Where a site is locked down, a device that could be anywhere may be there.
func (s *lockdownSet) hit(subject *policy.Subject, device, app, address string) *policy.Fact {
	if len(s.list) == 0 {
		return nil
	}
	locked := func(scope store.Scope, value string) *policy.Fact {
		return &policy.Fact{Name: string(scope), Value: value, Wanted: "lockdown lifted"}
	}
	keys := [4]lockKey{{store.ScopeAll, ""}, {store.ScopeApp, app}, {store.ScopeDevice, device}}
	if s.subjects && subject != nil {
		keys[3] = lockKey{store.ScopeSubject, subject.Key()}
	}
	for _, k := range keys { // nothing is locked down by the zero key
		if _, ok := s.exact[k]; ok {
			return locked(k.scope, k.value)
		}
	}
	if len(s.sites) == 0 {
		return nil
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return locked(store.ScopeSite, "unknown")
	}
	for _, p := range s.sites {
		if p.Contains(a.Unmap()) {
			return locked(store.ScopeSite, p.String())
		}
	}
	return nil
}

// answer decides by the active revision: a lockdown before policy is asked.
func (m *Manager) answer(ctx context.Context, on *basis) policy.Decision {
	on.revision = m.cfg.Engine.Active()
	return m.answerBy(ctx, on)
}

// reaches is whether answer allows.
func (m *Manager) reaches(facts *policy.Facts, q policy.Question) bool {
	_, locked := m.lockedDown(facts, q.App.Name)
	return !locked && m.cfg.Engine.Allows(context.Background(), facts, q)
}

// answerBy is answer by the revision that on names.
func (m *Manager) answerBy(ctx context.Context, on *basis) policy.Decision {
	dec, locked := m.lockedDown(on.facts, on.question.App.Name)
	if on.unasked = locked; locked {
		return dec
	}
	return m.cfg.Engine.AnswerBy(ctx, on.revision, on.facts, on.question)
}

// lockedDown says whether a lockdown stands in the way of an app.
func (m *Manager) lockedDown(on *policy.Facts, app string) (policy.Decision, bool) {
	s := m.lockdowns.Load()
	if len(s.list) == 0 {
		return policy.Decision{}, false
	}
	return m.lockdownDecision(s.hit(on.Subject(), on.Device().ID, app, on.Address()), app)
}

// LockedDown says whether a lockdown stands in the way of what in describes.
func (m *Manager) LockedDown(in *policy.Input) (policy.Decision, bool) {
	fact := m.lockdowns.Load().hit(in.Subject, in.Device.ID, in.App.Name, in.Location.Address)
	return m.lockdownDecision(fact, in.App.Name)
}

func (m *Manager) lockdownDecision(fact *policy.Fact, app string) (policy.Decision, bool) {
	if fact == nil {
		return policy.Decision{}, false
	}
	dec := policy.NewDecision(policy.ReasonLockedDown, fact)
	dec.ID, dec.App, dec.Time = newID("d-"), app, m.cfg.Now()
	return dec, true
}

// Lockdowns returns the lockdowns in force, the earliest first.
func (m *Manager) Lockdowns() []store.Lockdown { return slices.Clone(m.lockdowns.Load().list) }

// RestoreLockdowns puts the stored lockdowns in force. It is called before the
// first Connect: a restart opens no gap.
func (m *Manager) RestoreLockdowns(ctx context.Context) error {
	list, err := m.cfg.Store.Lockdowns(ctx)
	if err != nil {
		return fmt.Errorf("reading the lockdowns: %w", err)
	}
	before := m.lockdowns.Load()
	if err := m.swapLockdowns(func(old *lockdownSet) (*lockdownSet, error) {
		learnt := slices.Clone(list)
		for i := range learnt {
			learnt[i] = marked(learnt[i], old.apps)
		}
		return newLockdownSet(learnt, old.apps)
	}); err != nil {
		return fmt.Errorf("putting stored lockdowns in force: %w", err)
	}
	if rev := m.cfg.Engine.Active(); rev != nil { // the policy may have changed while nothing ran
		m.noteFollowing(before, rev.Apps(), rev.ID(), "gateway")
		m.storeMarks(ctx, list)
	}
	return nil
}

// swapLockdowns replaces the set by what change makes of it; it waits for
// nobody.
func (m *Manager) swapLockdowns(change func(old *lockdownSet) (*lockdownSet, error)) error {
	for {
		old := m.lockdowns.Load()
		next, err := change(old)
		if err != nil {
			return err
		}
		if m.lockdowns.CompareAndSwap(old, next) {
			return nil
		}
	}
}

// Lockdown puts l in force, under an ID of its own: nothing of its scope that
// is open passes a byte after the cuts, whose number is returned, and nothing
// is allowed. What takes away waits for neither the store nor the log, which
// come last; the error says that it is in force but not stored, or, with an
// empty ID, that it is none.
func (m *Manager) Lockdown(ctx context.Context, l store.Lockdown) (_ store.Lockdown, cuts int, err error) {
	var id [4]byte // short, because people type it
	rand.Read(id[:])
	l.ID = "lock-" + hex.EncodeToString(id[:])
	var alone *lockdownSet
	err = m.swapLockdowns(func(old *lockdownSet) (_ *lockdownSet, err error) {
		one := marked(l, old.apps)
		if alone, err = newLockdownSet([]store.Lockdown{one}, old.apps); err != nil {
			return nil, err
		}
		return newLockdownSet(append(slices.Clone(old.list), one), old.apps)
	})
	if err != nil {
		return store.Lockdown{}, 0, err
	}
	cuts = m.enforce(alone)
	for _, d := range m.all() { // by one worker alone: nothing is urgent any more, and others' calls go on
		if m.touches(d, alone) {
			m.refresh(d)
		}
	}

	m.lockdownMu.Lock()
	defer m.lockdownMu.Unlock()
	r := audit.Record{Kind: audit.KindLockdown, Actor: l.By, Outcome: "on", Detail: lockdownDetail(l)}
	r.Detail["cuts"] = fmt.Sprint(cuts)
	list := m.Lockdowns()
	if i := slices.IndexFunc(list, func(x store.Lockdown) bool { return x.ID == l.ID }); i >= 0 { // not lifted meanwhile
		l = list[i]
		err = m.cfg.Store.PutLockdown(context.WithoutCancel(ctx), l)
	}
	if err != nil {
		r.Detail["stored"] = "no: " + err.Error()
	}
	m.cfg.Audit.Note(r)
	m.log.Warn("a lockdown is on", "id", l.ID, "scope", string(l.Scope), "value", l.Value, "by", l.By, "cuts", cuts)
	return l, cuts, err
}

func lockdownDetail(l store.Lockdown) map[string]string {
	return map[string]string{"lockdown": l.ID, "scope": string(l.Scope), "value": l.Value, "reason": l.Reason}
}

// enforce cuts every open Flow that a new lockdown stands in the way of, asking
// no policy. The set in force has it already: a Flow that is being decided has
// either seen it or sees the new epoch and decides again, and one that is marked
// as decided is seen here.
func (m *Manager) enforce(alone *lockdownSet) (cuts int) {
	var mu sync.Mutex // guards kills
	var kills []func()
	now, elapsed := m.cfg.Now(), m.cfg.Elapsed()
	onAll(m.all(), func(d *device) {
		if some := d.condemnLockedDown(alone, now, elapsed); some != nil {
			mu.Lock()
			defer mu.Unlock()
			kills = append(kills, some...)
		}
	})
	onAll(kills, func(kill func()) { kill() })
	return len(kills)
}

// condemnLockedDown raises the epoch, so that Flows which are being decided are
// decided again, and condemns those of the others that the lockdown is about.
func (d *device) condemnLockedDown(alone *lockdownSet, now time.Time, elapsed time.Duration) (kills []func()) {
	d.mu.Lock()
	d.epoch.Add(1)
	none := len(d.flows) == 0
	d.mu.Unlock()
	if none {
		return nil
	}
	on := d.facts(now, elapsed)
	for _, f := range d.open() {
		if kill := f.condemnLockedDown(alone, on); kill != nil {
			kills = append(kills, kill)
		}
	}
	return kills
}

// touches says whether a lockdown stands between the device and some app.
func (m *Manager) touches(d *device, alone *lockdownSet) bool {
	facts := d.facts(m.cfg.Now(), m.cfg.Elapsed())
	for _, a := range m.catalogue.Load().apps {
		if alone.hit(facts.Subject(), facts.Device().ID, a.Name, facts.Address()) != nil {
			return true
		}
	}
	return false
}

// condemnLockedDown condemns an open Flow that a lockdown stands in the way of.
// One that is still being decided is left to its own epoch comparison.
func (f *Flow) condemnLockedDown(alone *lockdownSet, on *policy.Facts) (kill func()) {
	f.mu.Lock()
	open, owner := f.decided && !f.ended && f.cut == nil, f.facts.Subject
	f.mu.Unlock()
	if !open {
		return nil
	}
	app := f.begin.App.Name
	fact := alone.hit(on.Subject(), f.d.record.ID, app, on.Address())
	if fact == nil { // it may still be of the person before a new login
		fact = alone.hit(owner, f.d.record.ID, app, on.Address())
	}
	if dec, locked := f.m.lockdownDecision(fact, app); locked {
		return f.condemn(nil, dec)
	}
	return nil
}

// Lift ends a lockdown.
type Lift struct {
	ID, By string
	At     time.Time
	// Detail goes into the record: who asked for it and why.
	Detail map[string]string
}

// LiftLockdown ends a lockdown: recorded, stored, then out of force.
// [store.ErrNotFound] when none with that ID is in force.
func (m *Manager) LiftLockdown(ctx context.Context, lift Lift) (store.Lockdown, error) {
	m.lockdownMu.Lock()
	defer m.lockdownMu.Unlock()
	list := m.Lockdowns()
	i := slices.IndexFunc(list, func(l store.Lockdown) bool { return l.ID == lift.ID })
	if i < 0 {
		return store.Lockdown{}, fmt.Errorf("lifting lockdown %q: %w", lift.ID, store.ErrNotFound)
	}
	l := list[i]
	r := audit.Record{Kind: audit.KindLockdown, Actor: lift.By, Outcome: "off", Detail: lockdownDetail(l)}
	for k, v := range lift.Detail {
		r.Detail[k] = v
	}
	if err := m.cfg.Audit.Append(&r); err != nil {
		return l, fmt.Errorf("recording that a lockdown is lifted, which it is not: %w", err)
	}
	// A lockdown that could not be stored is in force all the same, and can be lifted.
	err := m.cfg.Store.LiftLockdown(ctx, lift.ID, lift.By, lift.At)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		// The record above gave nothing back after all.
		m.cfg.Audit.Note(audit.Record{Kind: audit.KindLockdown, Actor: lift.By, Outcome: "not_off", Detail: lockdownDetail(l)})
		return l, fmt.Errorf("storing that a lockdown is lifted, which it is not: %w", err)
	}
	err = m.swapLockdowns(func(old *lockdownSet) (*lockdownSet, error) {
		return newLockdownSet(slices.DeleteFunc(slices.Clone(old.list), func(x store.Lockdown) bool { return x.ID == lift.ID }), old.apps)
	})
	if err != nil {
		return l, err
	}
	m.log.Warn("a lockdown is off", "id", l.ID, "scope", string(l.Scope), "value", l.Value, "by", lift.By)
	for _, d := range m.all() { // as slowly as it was tidied up
		m.refresh(d)
	}
	return l, nil
}

// onAll runs do for each of many. Two workers use both of a small machine's
// cores without starving the tunnel. They take the next one themselves: to be
// handed it is to wait behind everything else that runs.
func onAll[T any](all []T, do func(T)) {
	var next atomic.Int64
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			if i >= len(all) {
				return
			}
			do(all[i])
		}
	}
	var other sync.WaitGroup
	if len(all) > 1 {
		other.Go(work)
	}
	work()
	other.Wait()
}
