package session

import (
	"context"
	"sync"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/store"
)

// books are what is in force already and only waits to be stored. Whoever cuts
// writes here and waits for no disk; keepBooks stores. What a crash loses of it
// follows again from the times in the store.
type books struct {
	mu      sync.Mutex    // guards the fields below
	expired []store.End   // Sessions whose time was over
	keys    [][32]byte    // of registrations that have ended
	touch   bool          // the Sessions in force are to be noted as alive
	poke    chan struct{} // made by keepBooks; nil until then
}

func (b *books) add(change func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change()
	select {
	case b.poke <- struct{}{}:
	default:
	}
}

func (b *books) sessionExpired(e store.End) { b.add(func() { b.expired = append(b.expired, e) }) }

func (b *books) registrationEnded(key [32]byte) { b.add(func() { b.keys = append(b.keys, key) }) }

func (b *books) minute() { b.add(func() { b.touch = true }) }

// take returns what waits.
func (b *books) take() (expired []store.End, keys [][32]byte, touch bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	expired, keys, touch = b.expired, b.keys, b.touch
	b.expired, b.keys, b.touch = nil, nil, false
	return expired, keys, touch
}

// keepBooks stores what waits until ctx ends, and then what is left.
func (m *Manager) keepBooks(ctx context.Context) {
	poke := make(chan struct{}, 1)
	m.books.add(func() { m.books.poke = poke }) // what came before Run is stored too
	for ended := false; !ended; {
		select {
		case <-ctx.Done():
			ended = true
		case <-poke:
		}
		m.enter(context.WithoutCancel(ctx)) // the store bounds how long it takes
	}
}

func (m *Manager) enter(ctx context.Context) {
	expired, keys, touch := m.books.take()
	for _, e := range expired {
		if _, err := m.cfg.Store.EndSession(ctx, e); err != nil {
			m.log.Warn("storing that a session expired", "session", e.SessionID, "err", err)
		}
	}
	for _, key := range keys {
		if err := m.cfg.Store.DeleteRegistration(ctx, key); err != nil {
			m.log.Warn("deleting an ended registration", "err", err)
		}
	}
	if !touch {
		return
	}
	var alive []string
	for _, d := range m.all() {
		if s, ok := d.sessionNow(); ok {
			alive = append(alive, s.ID)
		}
	}
	if err := m.cfg.Store.TouchSessions(ctx, alive, m.cfg.Now()); err != nil {
		m.log.Warn("noting which sessions are alive", "err", err)
	}
}

// noteExpired records that a Session's time was over; it is out of force
// already. s may be nil.
func (m *Manager) noteExpired(s *store.Session, now time.Time) {
	if s == nil {
		return
	}
	r := audit.Record{Kind: audit.KindSessionEnd, Device: s.DeviceID, Reason: store.EndExpired, Outcome: store.EndExpired}
	noteSession(&r, s)
	m.cfg.Audit.NoteEnd(r)
	m.books.sessionExpired(store.End{SessionID: s.ID, Reason: store.EndExpired, By: "gateway", At: now})
}
