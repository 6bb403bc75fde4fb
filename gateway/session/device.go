package session

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// device is one connection of a Device: it lives from Connect to the next
// Connect, to Remove, or to the registration's end.
type device struct {
	// record, key, bootID and tokenHash never change.
	record    record
	key       [32]byte
	bootID    string
	tokenHash [32]byte

	// refusals bounds what this device writes into the log by being refused.
	refusals *audit.Refusals

	// epoch grows with every change; raised with mu held, read without.
	epoch atomic.Uint64

	// refreshMu is held for the whole of a refresh, so that segments and views
	// are published in the order of their epochs. It is taken before mu.
	refreshMu sync.Mutex
	told      string // the Session that was in force at the last refresh; refreshMu guards it

	// mu guards everything below and is never held while deciding or writing.
	mu        sync.Mutex
	expires   time.Time // of the registration
	session   *store.Session
	last      *store.Session // the one that expired last
	ended     policy.Reason  // why there is no session: login_required, session_expired or session_revoked
	posture   *report
	nonce     string         // of the next posture report
	outer     netip.AddrPort // where the tunnel's packets come from
	location  policy.Location
	moved     bool             // location changed, and what is open was not decided again yet
	movedFrom policy.Location  // then: what it was
	prepared  *prepared        // nil: none
	gone      *policy.Decision // set once; nothing is allowed any more
	supposed  supposed
	flows     map[*Flow]struct{} // nil while there is none, as watchers
	draining  int                // how many of flows drain
	drainEnd  time.Duration      // Elapsed when the first of them is over, as of the last refresh
	untidy    bool               // one began or ended to drain since the last refresh
	view      view
	confirmed time.Duration // Elapsed at the last refresh
	watchers  map[*Watch]struct{}
}

// record is what is needed of a device's row for as long as it is registered,
// asleep or not.
type record struct {
	ID, Name, Serial, OS, KeyTier string
	Addresses                     [2]netip.Addr
	EnrolledAt                    time.Time
}

// report is the last valid posture report.
type report struct {
	received time.Time     // for records and rules
	at       time.Duration // Elapsed then
	until    time.Duration // Elapsed from which on it is too old
	signals  map[string]policy.Signal
	stale    bool // known to be too old; it counts as none
}

// counts says whether the report is one that decisions may rest on. Nil is none.
func (r *report) counts(elapsed time.Duration) bool {
	return r != nil && !r.stale && elapsed <= r.until
}

// due says whether the device must be decided again because time passed.
func (d *device) due(now time.Time, elapsed time.Duration) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.flows) > 0 && elapsed-d.confirmed >= confirmEvery {
		return true // nothing else has a lease
	}
	if d.untidy || d.draining > 0 && elapsed >= d.drainEnd {
		return true
	}
	if d.session != nil && !now.Before(d.session.ExpiresAt) {
		return true
	}
	return d.posture != nil && !d.posture.stale && !d.posture.counts(elapsed)
}

// confirmEvery is how often leases are renewed: well below their length, so
// that one late round cuts nobody.
const confirmEvery = 10 * time.Second

// expireLocked drops what time has ended, and returns a Session that did. mu is
// held.
func (d *device) expireLocked(now time.Time, elapsed time.Duration) (expired *store.Session) {
	if d.session != nil && !now.Before(d.session.ExpiresAt) {
		expired = d.session
		d.last = expired
		d.session, d.ended = nil, policy.ReasonSessionExpired
	}
	if d.posture != nil && !d.posture.counts(elapsed) {
		d.posture = &report{received: d.posture.received, stale: true} // a sleeping laptop's signals are nobody's any more
	}
	return expired
}

// sessionNow returns the Session in force.
func (d *device) sessionNow() (store.Session, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session == nil {
		return store.Session{}, false
	}
	return *d.session, true
}

// prepared are a device's facts in the form policy takes, and what they were
// made of.
type prepared struct {
	session  *store.Session // nil unless in force
	ended    string
	posture  *report // nil unless it counts
	location policy.Location
	facts    *policy.Facts
}

// facts are what is known about the device as of now. They are made anew only
// when something they are made of is another one: what is compared here is all
// that they hold, so that no change can be forgotten. Sessions, reports and
// their maps never change once they are set.
func (d *device) facts(now time.Time, elapsed time.Duration) *policy.Facts {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := prepared{location: d.location}
	switch {
	case d.session != nil && now.Before(d.session.ExpiresAt):
		p.session = d.session
	case d.session != nil:
		p.ended = string(policy.ReasonSessionExpired) // and expireLocked has not come by yet
	case d.ended != policy.ReasonLoginRequired:
		p.ended = string(d.ended)
	}
	if d.posture.counts(elapsed) {
		p.posture = d.posture
	}
	if d.prepared != nil {
		p.facts = d.prepared.facts
	}
	if p.facts == nil || p != *d.prepared {
		p.facts = d.prepare(p)
		kept := p // only what is new moves to the heap
		d.prepared = &kept
	}
	return p.facts
}

func (d *device) prepare(p prepared) *policy.Facts {
	in := policy.Input{
		Device:   policyDevice(d.record),
		Ended:    p.ended,
		Posture:  policy.Posture{Signals: map[string]policy.Signal{}},
		Location: p.location,
	}
	if s := p.session; s != nil {
		subject := s.Subject
		in.Subject = &subject
		in.Session = &policy.Session{ID: s.ID, OSUser: s.OSUser, StartedAt: s.StartedAt.UTC(), ExpiresAt: s.ExpiresAt.UTC()}
	}
	if p.posture != nil {
		at := p.posture.received.UTC()
		in.Posture.ReceivedAt = &at
		in.Posture.Signals = p.posture.signals
	}
	return policy.NewFacts(in)
}

// reachQuestion asks whether a device may speak to an app at all.
func reachQuestion(now time.Time, a policy.App) policy.Question {
	return policy.Question{Time: now.UTC(), Action: policy.ActionReach, App: policy.AppRef{Name: a.Name, Protocol: a.Protocol}}
}

func policyDevice(r record) policy.Device {
	return policy.Device{ID: r.ID, Name: r.Name, Serial: r.Serial, OS: r.OS, KeyTier: r.KeyTier, EnrolledAt: r.EnrolledAt.UTC()}
}

// goneWhy returns the Decision that ended the connection, nil while it lives.
func (d *device) goneWhy() *policy.Decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.gone
}

// publish swaps the view and wakes every watcher.
func (d *device) publish(v view) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.view = v
	for w := range d.watchers {
		w.wake()
	}
}

// Held tells whether something of the device with that tunnel key is open: a
// Flow or an event stream.
func (m *Manager) Held(key [32]byte) bool {
	m.mu.RLock()
	d := m.keys[key]
	m.mu.RUnlock()
	if d == nil {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.flows) > 0 || len(d.watchers) > 0
}

// open returns the Flows that are registered now.
func (d *device) open() []*Flow {
	d.mu.Lock()
	defer d.mu.Unlock()
	flows := make([]*Flow, 0, len(d.flows))
	for f := range d.flows {
		flows = append(flows, f)
	}
	return flows
}

// rest drops what can be made again of a device with nothing open.
func (d *device) rest() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.flows) == 0 && len(d.watchers) == 0 {
		d.prepared, d.flows, d.watchers, d.supposed, d.last = nil, nil, nil, supposed{}, nil
	}
}

// viewNow returns the current view.
func (d *device) viewNow() view {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.view
}

// A Watch tells one event stream that a device's state changed.
type Watch struct {
	// C receives a value after every change; changes that come faster than
	// they are read are one.
	C chan struct{}
	d *device
}

func (w *Watch) wake() {
	select {
	case w.C <- struct{}{}:
	default:
	}
}

// Gone returns the Decision that ended the connection, once it has ended.
func (w *Watch) Gone() (policy.Decision, bool) {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	if w.d.gone == nil {
		return policy.Decision{}, false
	}
	return *w.d.gone, true
}

// Close ends the watch.
func (w *Watch) Close() {
	w.d.mu.Lock()
	defer w.d.mu.Unlock()
	delete(w.d.watchers, w)
}

// Watch begins to watch a connected device.
func (m *Manager) Watch(id string) (*Watch, error) {
	d, err := m.device(id)
	if err != nil {
		return nil, err
	}
	w := &Watch{C: make(chan struct{}, 1), d: d}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.watchers == nil {
		d.watchers = map[*Watch]struct{}{}
	}
	d.watchers[w] = struct{}{}
	w.wake()
	return w, nil
}

// tellOver tells when another Session, or none, is in force on a device than
// when this was last asked. d.refreshMu is held.
func (m *Manager) tellOver(d *device) {
	before, now := d.told, ""
	if s, ok := d.sessionNow(); ok {
		now = s.ID
	}
	d.told = now
	if before != "" && before != now && m.cfg.SessionOver != nil {
		m.cfg.SessionOver(d.record.Addresses, before)
	}
}
