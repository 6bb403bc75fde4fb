package session

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// Connection is a Device that connected, with the Session it took along.
type Connection struct {
	Device       store.Device
	Registration store.Registration
	Session      *store.Session
	// Remote is the address the connect came from; empty when a restarted
	// gateway puts a stored registration in force again.
	Remote string
	// Nonce is the one its first posture report must carry.
	Nonce string
}

// Connect makes a device's registration the one in force. The device's former
// connection, if any, ends: its key dies and its Flows are cut, but the
// Session in c goes on. The caller has recorded the connect and stored the
// registration.
func (m *Manager) Connect(c Connection) error {
	m.connectMu.Lock()
	defer m.connectMu.Unlock()
	if c.Nonce == "" {
		c.Nonce = newID("n-") // after a restart: nobody has it, and "" must not pass for it
	}
	d := &device{
		record: record{c.Device.ID, c.Device.Name, c.Device.Serial, c.Device.OS, c.Device.KeyTier, c.Device.Addresses, c.Device.EnrolledAt},
		key:    c.Registration.TunnelKey, bootID: c.Registration.BootID,
		tokenHash: c.Registration.TokenHash, expires: c.Registration.ExpiresAt.Round(0), // see Login
		session: c.Session, ended: policy.ReasonLoginRequired, nonce: c.Nonce,
		refusals: audit.NewRefusals(m.cfg.Audit, m.cfg.Now),
	}
	if before, err := m.device(d.record.ID); err == nil {
		d.refusals = before.refusals // connecting anew buys no new bound
		before.end(policy.Decision{})
	}
	old, err := m.install(d)
	if err != nil {
		return err
	}
	if old != nil {
		m.dissolve(old, false)
		if s, ok := old.sessionNow(); ok && c.Session == nil {
			m.noteSuperseded(&s)
		}
	}
	if s, ok := d.sessionNow(); ok && c.Remote != "" {
		// Whoever copied a laptop's state takes its Session along too; this
		// line is where security sees from where.
		r := audit.Record{Kind: audit.KindResume, Device: d.record.ID, Remote: c.Remote}
		noteSession(&r, &s)
		m.cfg.Audit.Note(r)
	}
	m.refresh(d)
	if err := m.cfg.AddPeer(c); err != nil {
		m.Remove(d.record.ID, policy.Decision{})
		return fmt.Errorf("adding a tunnel peer: %w", err)
	}
	if d.goneWhy() == nil {
		return nil
	}
	// Removed meanwhile, and perhaps before the peer was there to be removed.
	if err := m.cfg.RemovePeer(d.key); err != nil {
		return fmt.Errorf("removing a tunnel peer: %w", err)
	}
	return nil
}

// install makes d the device in force and returns the one it takes the place
// of. A Session that ended since the registration was stored does not come
// along.
func (m *Manager) install(d *device) (old *device, err error) {
	m.sessionMu.Lock()
	defer m.sessionMu.Unlock()
	if d.session != nil {
		stored, err := m.cfg.Store.Session(context.Background(), d.session.ID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("looking at the session to resume: %w", err)
		}
		if err != nil || !stored.EndedAt.IsZero() {
			d.session, d.ended = nil, policy.ReasonSessionRevoked
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old = m.devices[d.record.ID]
	if old != nil {
		delete(m.keys, old.key)
	}
	m.devices[d.record.ID], m.keys[d.key] = d, d
	for _, a := range d.record.Addresses {
		m.inner[a] = d
	}
	return old, nil
}

// RevokedDecision says why a revoked device is refused.
func RevokedDecision(d store.Device, now time.Time) policy.Decision {
	value := "revoked " + d.RevokedAt.UTC().Format(time.RFC3339)
	if d.RevokedReason != "" {
		value += " (" + d.RevokedReason + ")"
	}
	dec := policy.NewDecision(policy.ReasonDeviceRevoked, &policy.Fact{Name: "device", Value: value, Wanted: "enrolled"})
	dec.ID, dec.Time = newID("d-"), now
	return dec
}

// NoteRefusal records that a call of a connected device was refused, within
// that device's bound.
func (m *Manager) NoteRefusal(id string, r audit.Record) {
	r.Device = id
	if d, err := m.device(id); err == nil {
		d.refusals.Note(r)
		return
	}
	m.cfg.Audit.Note(r)
}

// TokenDevice returns the device that sits at an inner address when the hash of
// its control token is that one.
func (m *Manager) TokenDevice(inner netip.Addr, tokenHash [32]byte) (id string, ok bool) {
	m.mu.RLock()
	d := m.inner[inner.Unmap()]
	m.mu.RUnlock()
	if d == nil || subtle.ConstantTimeCompare(d.tokenHash[:], tokenHash[:]) != 1 {
		return "", false
	}
	return d.record.ID, true
}

// Endpoint tells where the peer with that tunnel key sends from now; an outer
// that is not valid stands for where Moved was told it is. A changed place is
// recorded and decides everything again.
func (m *Manager) Endpoint(key [32]byte, outer netip.AddrPort) {
	m.mu.RLock()
	d := m.keys[key]
	m.mu.RUnlock()
	if d != nil {
		m.setLocation(d, outer)
	}
}

// Moved tells where a packet of the peer with that tunnel key came from before
// anything is decided about it: whatever is decided from here on is about the new
// place. It waits for nothing; Endpoint has to follow, which decides again what is
// open.
func (m *Manager) Moved(key [32]byte, outer netip.AddrPort) {
	m.mu.RLock()
	d := m.keys[key]
	m.mu.RUnlock()
	if d == nil || !outer.IsValid() {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	loc := m.cfg.Locate(outer.Addr().Unmap())
	d.outer = outer
	if d.location == loc {
		return
	}
	if !d.moved {
		d.moved, d.movedFrom = true, d.location
	}
	d.location = loc
	d.epoch.Add(1)
}

// setLocation looks up where a device is; an outer that is not valid stands for
// the one it has. The look-up is made with mu held, so that what is stored last
// has the newer address and the newer database.
func (m *Manager) setLocation(d *device, outer netip.AddrPort) {
	d.mu.Lock()
	if !outer.IsValid() {
		outer = d.outer
	}
	if !outer.IsValid() {
		d.mu.Unlock()
		return
	}
	loc := m.cfg.Locate(outer.Addr().Unmap())
	old, moved := d.location, d.moved
	if moved {
		old = d.movedFrom
	}
	d.outer, d.location, d.moved = outer, loc, false
	session := d.session
	d.mu.Unlock()
	if old != loc {
		r := audit.Record{
			Kind: audit.KindLocation, Device: d.record.ID, Remote: loc.Address,
			Detail: map[string]string{"country": orUnknown(loc.Country), "before": orUnknown(old.Country), "before_address": old.Address},
		}
		noteSession(&r, session)
		m.cfg.Audit.Note(r)
	}
	if old != loc || moved {
		m.refresh(d)
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

func noteSession(r *audit.Record, s *store.Session) {
	if s != nil {
		r.Session, r.Subject = s.ID, s.Subject.Key()
	}
}

// ErrNonce is returned for a report whose nonce is not the one that was given
// out last.
var ErrNonce = errors.New("the posture report's nonce is not the one given out last")

// Posture takes a verified report: the nonce is used up whatever follows, and
// the next one returned. A report that changes a signal is recorded before it
// counts, because it may grant; when it cannot be recorded, only its failures
// count.
func (m *Manager) Posture(id, nonce, bootID string, signals map[string]policy.Signal) (next string, err error) {
	d, err := m.device(id)
	if err != nil {
		return "", err
	}
	next = newID("n-")
	d.mu.Lock()
	if subtle.ConstantTimeCompare([]byte(d.nonce), []byte(nonce)) != 1 {
		d.nonce = next
		d.mu.Unlock()
		return next, ErrNonce
	}
	d.nonce = next
	if d.bootID != bootID {
		d.mu.Unlock()
		return next, fmt.Errorf("the report is of another boot of the device than its registration")
	}
	before := d.posture
	session := d.session
	d.mu.Unlock()

	now, elapsed := m.cfg.Now(), m.cfg.Elapsed()
	changed := !before.counts(elapsed) || !sameSignals(before.signals, signals)
	if changed && before != nil && !before.stale {
		m.worsen(d, before, signals)
	}
	if changed {
		r := audit.Record{Kind: audit.KindPosture, Device: id, Detail: map[string]string{}}
		for name, s := range signals {
			r.Detail[name] = strings.TrimSuffix(s.State+": "+s.Value, ": ")
		}
		noteSession(&r, session)
		if err := m.cfg.Audit.Append(&r); err != nil {
			m.log.Error("recording a posture report; only its failures count", "device", id, "err", err)
			signals = onlyFailures(signals)
		}
	}
	d.mu.Lock()
	d.posture = &report{received: now, at: elapsed, until: elapsed + m.cfg.PostureMaxAge, signals: signals}
	d.mu.Unlock()
	if changed {
		m.refresh(d)
	}
	return next, nil
}

// worsen puts in force what a report takes away, before anything is written.
func (m *Manager) worsen(d *device, before *report, signals map[string]policy.Signal) {
	worse := maps.Clone(before.signals)
	for name, was := range before.signals {
		if now, ok := signals[name]; !ok {
			delete(worse, name)
		} else if was.State == "pass" && now.State != "pass" {
			worse[name] = now
		}
	}
	if sameSignals(worse, before.signals) {
		return
	}
	d.mu.Lock()
	d.posture = &report{received: before.received, at: before.at, until: before.until, signals: worse}
	d.mu.Unlock()
	m.refresh(d)
}

func sameSignals(a, b map[string]policy.Signal) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if b[k] != v {
			return false
		}
	}
	return true
}

func onlyFailures(signals map[string]policy.Signal) map[string]policy.Signal {
	out := map[string]policy.Signal{}
	for k, s := range signals {
		if s.State == "pass" {
			s = policy.Signal{State: "unknown", Value: "the gateway could not record it"}
		}
		out[k] = s
	}
	return out
}

// Login binds a Subject to a connected device: recorded, stored, in force.
func (m *Manager) Login(ctx context.Context, s store.Session) (store.Session, error) {
	d, err := m.device(s.DeviceID)
	if err != nil {
		return store.Session{}, err
	}
	s.ID, s.BootID = newID("s-"), d.bootID
	// Without a monotonic reading, which stops during suspend: it ends when its
	// record says.
	s.ExpiresAt = s.ExpiresAt.Round(0)
	d.mu.Lock()
	remote := d.location.Address
	d.mu.Unlock()
	r := &audit.Record{
		Kind: audit.KindLogin, Subject: s.Subject.Key(), Device: s.DeviceID, Session: s.ID, Remote: remote,
		Detail: map[string]string{"name": s.Subject.Name, "groups": strings.Join(s.Subject.Groups, ","), "os_user": s.OSUser, "expires": s.ExpiresAt.UTC().Format(time.RFC3339)},
	}
	if err := m.cfg.Audit.Append(r); err != nil {
		return store.Session{}, fmt.Errorf("recording the login: %w", err)
	}
	if err := m.bind(ctx, d, s); err != nil {
		// The record above granted nothing after all.
		m.cfg.Audit.Note(audit.Record{
			Kind: audit.KindLoginRefused, Subject: r.Subject, Device: r.Device, Session: r.Session, Remote: remote,
			Reason: "not_in_force", Outcome: err.Error(),
		})
		return store.Session{}, err
	}
	m.refresh(d)
	return s, nil
}

// bind stores a Session and puts it in force.
func (m *Manager) bind(ctx context.Context, d *device, s store.Session) error {
	m.sessionMu.Lock()
	defer m.sessionMu.Unlock()
	if now, err := m.device(s.DeviceID); err != nil || now != d {
		return ErrUnknownDevice // it connected anew while the person typed
	}
	if err := m.cfg.Store.PutSession(ctx, s); err != nil {
		return fmt.Errorf("storing the session: %w", err)
	}
	d.mu.Lock()
	before := d.session
	d.session = &s
	d.mu.Unlock()
	m.noteSuperseded(before)
	return nil
}

// noteSuperseded records that another login or connection took a Session's
// place. s may be nil.
func (m *Manager) noteSuperseded(s *store.Session) {
	if s == nil {
		return
	}
	r := audit.Record{Kind: audit.KindSessionEnd, Device: s.DeviceID, Reason: store.EndSuperseded, Outcome: store.EndSuperseded}
	noteSession(&r, s)
	m.cfg.Audit.NoteEnd(r)
}

// ErrSessionOver is returned for a Session that has ended already.
var ErrSessionOver = errors.New("the session has ended already")

// EndSession ends a device's Session: in force at once, then stored and
// recorded. reason is session_revoked for an act of somebody else and
// login_required for a logout. The error says that the end is in force but not
// stored.
func (m *Manager) EndSession(ctx context.Context, e store.End, reason policy.Reason) error {
	kind := audit.KindSessionEnd
	if reason == policy.ReasonLoginRequired {
		kind = audit.KindLogout
	}
	r := audit.Record{Kind: kind, Session: e.SessionID, Actor: e.By, Outcome: e.Reason}
	if kind == audit.KindSessionEnd {
		r.Reason = string(reason)
	}
	m.unbind(&r, reason)
	wasBound := r.Device != ""
	stored, err := m.endStored(ctx, e)
	// What a login or a connect put in force meanwhile: either it saw the end
	// in the store, or it is seen here.
	m.unbind(&r, reason)
	if err == nil && !wasBound && r.Device == "" && !stored.EndedAt.Equal(e.At) {
		return ErrSessionOver
	}
	if err == nil {
		r.Device, r.Subject = stored.DeviceID, stored.Subject.Key()
	}
	if errors.Is(err, store.ErrNotFound) && r.Device == "" {
		return fmt.Errorf("ending the session: %w", err) // there never was one: nothing ended
	}
	if err != nil {
		r.Detail = map[string]string{"stored": "no: " + err.Error()}
	}
	m.cfg.Audit.NoteEnd(r)
	if err != nil {
		return fmt.Errorf("storing the end of the session: %w", err)
	}
	return nil
}

// unbind takes the Session that r names out of force, wherever it is, and ends
// what was still being finished of one that has expired.
func (m *Manager) unbind(r *audit.Record, reason policy.Reason) {
	for _, d := range m.all() {
		d.mu.Lock()
		s := d.session
		if s != nil && s.ID == r.Session {
			d.session = nil
		} else if s = d.last; d.draining == 0 || s == nil || s.ID != r.Session {
			d.mu.Unlock()
			continue
		}
		if d.session == nil {
			d.ended = reason
		}
		d.epoch.Add(1)
		r.Remote = d.location.Address
		d.mu.Unlock()
		var kills []func() // flows may share a connection: all are cut before one ends
		for _, f := range d.open() {
			if kill := f.condemnOwned(s.ID, reason); kill != nil {
				kills = append(kills, kill)
			}
		}
		for _, kill := range kills {
			kill()
		}
		m.refresh(d)
		r.Device, r.Subject = d.record.ID, s.Subject.Key()
	}
}

func (m *Manager) endStored(ctx context.Context, e store.End) (store.Session, error) {
	m.sessionMu.Lock()
	defer m.sessionMu.Unlock()
	return m.cfg.Store.EndSession(ctx, e)
}

// SessionOf returns the Session in force on a device.
func (m *Manager) SessionOf(id string) (store.Session, bool) {
	d, err := m.device(id)
	if err != nil {
		return store.Session{}, false
	}
	return d.sessionNow()
}

// Extend makes a registration last until then.
func (m *Manager) Extend(ctx context.Context, id string, until time.Time) error {
	d, err := m.device(id)
	if err != nil {
		return err
	}
	if err := m.cfg.Store.ExtendRegistration(ctx, id, until); err != nil {
		return fmt.Errorf("storing the registration: %w", err)
	}
	d.mu.Lock()
	d.expires = until.Round(0)
	d.mu.Unlock()
	return nil
}

// expired lists the connections whose registration has ended.
func (m *Manager) expired(now time.Time) []*device {
	var out []*device
	for _, d := range m.all() {
		d.mu.Lock()
		if !now.Before(d.expires) {
			out = append(out, d)
		}
		d.mu.Unlock()
	}
	return out
}
