package session

import (
	"context"
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
}

// detail is what the record of a cut says of it, nil if the Flow was not
// draining.
func (dr *drain) detail() map[string]string {
	if !dr.on {
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
		f.noteDrain(was.why, "allowed_again", was.until)
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
	if elapsed >= end {
		f.mu.Lock()
		f.drain.over = true
		f.mu.Unlock()
		f.cutWith(on, dec)
		return
	}
	if !dr.on || end != dr.end {
		dr = drain{on: true, since: since, used: dr.used, end: end, until: now.Add(end - elapsed), why: dec}
		if !f.beginDrain(on, dr) {
			f.cutWith(on, dec)
			return
		}
	}
	f.renewUntil(end - 1)
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

// beginDrain records that a Flow may be finished, and reports false when that
// cannot be recorded: then it may not.
func (f *Flow) beginDrain(on *basis, dr drain) bool {
	r := f.record(on, dr.why, audit.KindFlowDrain)
	outcome := "begun"
	if f.drain.on { // only confirm, which is held, writes it
		outcome = "shortened"
	}
	f.describeDrain(r, outcome, dr.until)
	if err := f.keep(r); err != nil {
		f.m.log.Error("recording that a flow may be finished; cutting it", "flow", f.id, "app", f.begin.App.Name, "err", err)
		return false
	}
	f.mu.Lock()
	first := !f.drain.on && !f.ended
	f.drain = dr
	f.mu.Unlock()
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if first {
		f.d.draining++
		f.d.untidy = true
	}
	return true
}

func (f *Flow) describeDrain(r *audit.Record, outcome string, until time.Time) {
	f.mu.Lock()
	facts, req := f.facts, f.request
	f.mu.Unlock()
	facts.note(r) // whose it is, not whoever is logged in now
	if req != nil {
		r.Method, r.Host, r.Path = req.Method, req.Host, req.Path
	}
	r.Outcome = outcome
	r.Detail = map[string]string{"drain_until": until.UTC().Format(time.RFC3339)}
}

// noteDrain records what became of a drain that is over.
func (f *Flow) noteDrain(why policy.Decision, outcome string, until time.Time) {
	r := f.record(nil, why, audit.KindFlowDrain)
	f.describeDrain(r, outcome, until)
	f.m.cfg.Audit.Note(*r)
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

// drains returns when the last draining Flow of each app is to end, the
// earliest end of all in Elapsed, and whose they are. It is nil when none drains.
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
		if apps == nil {
			apps = map[string]time.Time{}
			first = dr.end
		}
		first = min(first, dr.end)
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
