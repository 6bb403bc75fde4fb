package session

import (
	"context"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// denials are those of one refresh: Flows of a device that ask the same are told
// the same.
type denials map[denialKey]policy.Decision

// denialKey is what was asked of whom, at the refresh's one time.
type denialKey struct {
	app      string
	port     uint16
	request  policy.Request
	facts    *policy.Facts
	revision *policy.Revision
}

// again decides an open Flow again.
func (f *Flow) again(now time.Time, req *policy.Request, known denials) (*basis, policy.Decision) {
	if known == nil || f.d.goneWhy() != nil {
		return f.decide(context.Background(), now, req)
	}
	on := f.basis(now, req)
	on.revision = f.m.cfg.Engine.Active()
	key := denialKey{app: f.begin.App.Name, port: f.begin.Port, facts: on.facts, revision: on.revision}
	if req != nil {
		key.request = *req
	}
	if dec, ok := known[key]; ok {
		dec.ID = newID("d-")
		return on, dec
	}
	dec := f.m.answerBy(context.Background(), on)
	if !dec.Allow && !on.unasked {
		known[key] = dec
	}
	return on, dec
}

// confirm decides an open Flow again and renews its lease, lets it drain, or
// cuts it. Flows that are still being decided are left to their own epoch
// comparison. known may be nil.
func (f *Flow) confirm(now time.Time, known denials) {
	f.confirming.Lock()
	defer f.confirming.Unlock()
	f.mu.Lock()
	decided, req, owner := f.decided && !f.ended && f.cut == nil, f.request, f.facts
	f.mu.Unlock()
	if !decided {
		return
	}
	on, dec := f.again(now, req, known)
	switch {
	case dec.Allow && !samePerson(owner, on.facts):
		// The app was told whose this is. Whoever logged in since may use the
		// app, but not another's connection to it. No policy decided this, so
		// no Input goes with it.
		f.cutWith(nil, policy.NewDecision(policy.ReasonLoginRequired, &policy.Fact{
			Name: "session", Value: "another login", Wanted: "the login the connection was opened with",
		}))
	case dec.Allow:
		f.goOn(on)
	default:
		f.lose(on, dec, now)
	}
}

// samePerson says whether the person and OS user a Flow belongs to are still
// the ones of the Session in force. A new login of the same person is no reason
// to end their call.
func samePerson(owner Facts, now *policy.Facts) bool {
	if owner.Subject == nil || owner.Session == nil {
		return true // opened for the device alone
	}
	subject, session := now.Subject(), now.Session()
	return subject != nil && session != nil && session.OSUser == owner.Session.OSUser &&
		subject.Issuer == owner.Subject.Issuer && subject.ID == owner.Subject.ID
}
