package session

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// drain is the time an app's on_loss gives a Flow beyond its permission. It is
// one for the whole life of the Flow: what was used of it stays used when the
// permission comes back, so that nothing makes it longer.
type drain struct {
	on    bool
	since time.Duration // Elapsed when it began
	used  time.Duration // by earlier ones
	end   time.Duration // Elapsed at which it is over; it never moves to later
	until time.Time     // the same on the wall clock, for people
	why   policy.Decision
	over  bool // it was used up

	// await is nil once the record is written that it began: until then no lease
	// is given for it.
	await *awaited
}

// awaited is the record that a Flow may be finished, on its way into the log.
type awaited struct {
	on   *basis
	by   time.Duration // Elapsed at which it comes too late
	told chan struct{} // closed when it was written, or could not be
}

// recordWait is how long the record may take of a drain that begins when the
// lease is over already, because the gateway stood still.
const recordWait = 5 * time.Second

// detail is what the record of a cut says of it, nil if the Flow was not
// draining, as far as the log knows.
func (dr *drain) detail() map[string]string {
	if !dr.on || dr.await != nil {
		return nil
	}
	d := map[string]string{"drain": "cut", "drain_until": dr.until.UTC().Format(time.RFC3339)}
	if dr.over {
		d["drain"] = "over"
	}
	return d
}

// goOn renews the lease of a Flow that is allowed, perhaps again.
func (f *Flow) goOn(on *basis) {
	f.mu.Lock()
	f.held = on
	was := f.drain
	was.on = was.on && !f.ended
	if was.on {
		f.drain = drain{used: was.used + max(0, f.m.cfg.Elapsed()-was.since)}
	}
	f.mu.Unlock()
	if was.on {
		f.d.mu.Lock()
		f.d.drained()
		f.d.mu.Unlock()
		if was.await == nil {
			f.noteDrain(was.why, "allowed_again", was.until)
		}
	}
	f.renew()
}

// lose ends what is allowed no more: at once, or, where the app says so and
// only time has passed or policy changed, when it is finished.
func (f *Flow) lose(on *basis, dec policy.Decision, now time.Time) {
	f.mu.Lock()
	held, dr, owner := f.held, f.drain, f.facts
	f.mu.Unlock()
	bound := f.m.catalogue.Load().drains[f.begin.App.Name]
	if bound == 0 || !soft(on, held, dec.Reason) || on.facts.Subject() != nil && !samePerson(owner, on.facts) {
		f.cutWith(on, dec)
		return
	}
	// A soft Reason may hide a hard one: it is only the first that policy
	// found. Were it not for what is soft, would this be allowed?
	if on2, dec2 := f.suppose(held, on); !dec2.Allow {
		f.cutWith(on2, dec2)
		return
	}
	elapsed := f.m.cfg.Elapsed()
	since := elapsed
	if dr.on {
		since = dr.since
	}
	end := since + bound - dr.used
	if dr.on {
		end = min(end, dr.end) // a shorter bound counts, a longer one does not
	}
	late := dr.await != nil && elapsed >= dr.await.by
	if late || elapsed >= end {
		f.mu.Lock()
		f.drain.over = elapsed >= end
		f.mu.Unlock()
		f.cutWith(on, dec)
		return
	}
	switch {
	case !dr.on:
		f.beginDrain(on, drain{on: true, since: since, used: dr.used, end: end, until: now.Add(end - elapsed), why: dec})
		return
	case end != dr.end: // sooner, for which no record is awaited
		f.mu.Lock()
		f.drain.end, f.drain.until, f.drain.why = end, now.Add(end-elapsed), dec
		f.mu.Unlock()
		if dr.await == nil {
			f.m.cfg.Audit.Note(*f.drainRecord(on, dec, "shortened", now.Add(end-elapsed)))
		}
	}
	if dr.await == nil {
		f.renewUntil(end - 1)
		return
	}
	f.leaseEnd.Store(min(f.leaseEnd.Load(), int64(end-1)))
}

// soft says whether a Reason leaves a Flow time: what it was last allowed on is
// held.
func soft(on, held *basis, reason policy.Reason) bool {
	if on == nil || on.unasked { // the connection is over, or locked down
		return false
	}
	switch reason.Loss() {
	case policy.LossSoft:
		return true
	case policy.LossByPublish:
		return on.revision != held.revision
	}
	return false
}

// suppose asks policy what it would say of a Flow had only time not passed, and
// policy not changed, since it was last allowed.
func (f *Flow) suppose(held, on *basis) (*basis, policy.Decision) {
	was := &basis{facts: f.d.suppose(held.facts, on.facts), question: held.question, revision: held.revision}
	return was, f.m.answerBy(context.Background(), was)
}

// beginDrain lets a Flow be finished once that is recorded, for which nothing
// here waits: until then it goes on with the lease it has, and is cut with it.
func (f *Flow) beginDrain(on *basis, dr drain) {
	lease := time.Duration(f.leaseEnd.Load())
	dr.await = &awaited{on: on, by: lease, told: make(chan struct{})}
	if lease < dr.since {
		dr.await.by = dr.since + recordWait
	}
	f.leaseEnd.Store(int64(min(lease, dr.end-1)))
	f.mu.Lock()
	first := !f.ended && f.cut == nil
	if first {
		f.drain = dr
	}
	f.mu.Unlock()
	if !first {
		return
	}
	f.d.mu.Lock()
	f.d.draining++
	f.d.untidy = true
	f.d.mu.Unlock()
	f.m.drains.add(beginning{f, dr.await})
}

// beginnings are the drains whose records are not written yet.
type beginnings struct {
	mu   sync.Mutex // guards the fields below
	list []beginning
	poke chan struct{} // made by keepDrains; nil until then
}

type beginning struct {
	f *Flow
	*awaited
}

func (b *beginnings) add(one ...beginning) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list = append(b.list, one...)
	select {
	case b.poke <- struct{}{}:
	default:
	}
}

// keepDrains writes the records of drains that begin, until ctx ends. What is
// left then is cut with its lease.
func (m *Manager) keepDrains(ctx context.Context) {
	poke := make(chan struct{}, 1)
	m.drains.mu.Lock()
	m.drains.poke = poke
	m.drains.mu.Unlock()
	m.drains.add() // what came before Run
	for {
		select {
		case <-ctx.Done():
			return
		case <-poke:
		}
		m.drains.mu.Lock()
		list := m.drains.list
		m.drains.list = nil
		m.drains.mu.Unlock()
		for some := range slices.Chunk(list, 64) { // these share a write and an fsync
			var all sync.WaitGroup
			for _, b := range some {
				all.Go(func() { b.f.recordDrain(b.awaited) })
			}
			all.Wait()
		}
	}
}

// recordDrain records that a Flow may be finished, and gives it a lease then.
// It is cut if that cannot be recorded.
func (f *Flow) recordDrain(a *awaited) {
	defer close(a.told)
	awaits := func() (drain, bool) {
		f.mu.Lock()
		defer f.mu.Unlock()
		return f.drain, f.drain.await == a && f.decided && !f.ended && f.cut == nil
	}
	was, ok := awaits()
	if !ok {
		return
	}
	err := f.keep(f.drainRecord(a.on, was.why, "begun", was.until))
	f.confirming.Lock() // what is decided meanwhile comes before or after
	defer f.confirming.Unlock()
	now, ok := awaits()
	switch {
	case ok && err != nil:
		f.m.log.Error("recording that a flow may be finished; cutting it", "flow", f.id, "app", f.begin.App.Name, "err", err)
		f.cutWith(a.on, now.why)
	case ok:
		f.mu.Lock()
		f.drain.await = nil
		f.mu.Unlock()
		if now.end != was.end {
			f.noteDrain(now.why, "shortened", now.until)
		}
		f.renewUntil(now.end - 1)
	case err == nil && !f.over.Load():
		f.noteDrain(was.why, "allowed_again", was.until)
	}
}

// awaitDrain waits until the record of a drain is written that began when the
// lease was over already: no byte passes before.
func (f *Flow) awaitDrain() {
	f.mu.Lock()
	a := f.drain.await
	f.mu.Unlock()
	if a == nil || f.over.Load() {
		return
	}
	late := time.NewTimer(recordWait)
	defer late.Stop()
	select {
	case <-a.told:
	case <-f.Context().Done():
	case <-late.C:
		f.cutWith(a.on, policy.NewDecision(policy.ReasonAuditUnavailable, nil))
	}
}

// drainRecord is the record of a drain's beginning or end.
func (f *Flow) drainRecord(on *basis, why policy.Decision, outcome string, until time.Time) *audit.Record {
	r := f.record(on, why, audit.KindFlowDrain)
	f.mu.Lock()
	facts, req := f.facts, f.request
	f.mu.Unlock()
	facts.note(r) // whose it is, not whoever is logged in now
	if req != nil {
		r.Method, r.Host, r.Path = req.Method, req.Host, req.Path
	}
	r.Outcome = outcome
	r.Detail = map[string]string{"drain_until": until.UTC().Format(time.RFC3339)}
	return r
}

// noteDrain records what became of a drain.
func (f *Flow) noteDrain(why policy.Decision, outcome string, until time.Time) {
	f.m.cfg.Audit.Note(*f.drainRecord(nil, why, outcome, until))
}

// supposed are the facts that suppose made last, of which two: a device's Flows
// mostly ask about the same.
type supposed struct{ was, now, facts *policy.Facts }

// suppose returns the facts of now with those that only time took away as they
// were.
func (d *device) suppose(was, now *policy.Facts) *policy.Facts {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.supposed.was != was || d.supposed.now != now {
		d.supposed = supposed{was, now, now.Suppose(was)}
	}
	return d.supposed.facts
}

// drained is told when a Flow of the device drains no more. mu is held.
func (d *device) drained() {
	d.draining--
	d.untidy = true // its app leaves the segment
}

func (d *device) drainCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.draining
}

// drains returns when the last draining Flow of each app is to end, when in
// Elapsed one must be looked at again first, and whose they are. It is nil when none drains.
func (d *device) drains() (apps map[string]time.Time, osUser string, first time.Duration) {
	if d.drainCount() == 0 {
		return nil, "", 0
	}
	for _, f := range d.open() {
		f.mu.Lock()
		dr, app, s, over := f.drain, f.begin.App.Name, f.facts.Session, f.ended || f.cut != nil
		f.mu.Unlock()
		if !dr.on || over {
			continue
		}
		next := dr.end
		if dr.await != nil {
			next = min(next, dr.await.by)
		}
		if apps == nil {
			apps = map[string]time.Time{}
			first = next
		}
		first = min(first, next)
		if dr.until.After(apps[app]) {
			apps[app] = dr.until
		}
		if s != nil {
			osUser = s.OSUser
		}
	}
	return apps, osUser, first
}

// finishing returns the Session that has expired while something of the device
// drains.
func (d *device) finishing() (store.Session, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.draining == 0 || d.last == nil {
		return store.Session{}, false
	}
	return *d.last, true
}

// Finishing returns the Session that has expired on a device while something
// is still being finished.
func (m *Manager) Finishing(id string) (store.Session, bool) {
	d, err := m.device(id)
	if err != nil {
		return store.Session{}, false
	}
	return d.finishing()
}
