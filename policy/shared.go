package policy

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// shared are answers that a Revision gives alike to everybody of whom it can
// tell no difference: agents of one group on sound laptops in one country are
// one to it. A publish or a new location database decides everything about
// everybody again, of which most is the same.
//
// It holds only where no custom module takes part: the shipped ones (a test
// reads them for what they refer to) look at a person's groups and, where a rule
// names people, at who it is; at the state of signals and whether there is a
// report; at the country; and at what asked holds.
type shared struct {
	on       bool
	subjects bool // some rule names people

	mu      sync.RWMutex // guards answers
	answers map[sharedKey]Decision
}

type sharedKey struct {
	asked
	facts string
}

// maxShared bounds the answers of a Revision; what grows beyond is forgotten as
// a whole.
const maxShared = 16 << 10

func newShared(apps []App, custom bool) *shared {
	s := &shared{on: !custom, answers: map[sharedKey]Decision{}}
	for _, a := range apps {
		for _, rule := range a.Access {
			s.subjects = s.subjects || len(rule.Subjects) > 0
		}
	}
	return s
}

// key sorts facts and what is asked; ok is false when they must be looked at by
// themselves.
func (s *shared) key(f *Facts, k asked) (sharedKey, bool) {
	// A login that is none is nobody's (the shipped logged_in).
	if p := f.in.Subject; !s.on || p == nil || p.Issuer == "" || p.ID == "" || f.in.Session == nil || f.in.Session.ID == "" {
		return sharedKey{}, false
	}
	key := sharedKey{asked: k, facts: f.class()}
	if s.subjects {
		key.facts += strconv.Quote(f.in.Subject.Key())
	}
	return key, true
}

func (s *shared) get(k sharedKey) (Decision, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	d, ok := s.answers[k]
	return d, ok
}

func (s *shared) put(k sharedKey, d Decision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.answers) >= maxShared {
		s.answers = map[sharedKey]Decision{}
	}
	s.answers[k] = d
}

// class is all of the facts about somebody who is logged in that the shipped
// modules can grant by, but for who it is. It is made once.
func (f *Facts) class() string {
	f.classOnce.Do(func() {
		var b strings.Builder
		for _, g := range slices.Sorted(slices.Values(f.in.Subject.Groups)) {
			b.WriteString(strconv.Quote(g))
		}
		b.WriteString("|" + strconv.Quote(f.in.Location.Country) + "|" + strconv.FormatBool(f.in.Posture.ReceivedAt != nil))
		for _, name := range slices.Sorted(maps.Keys(f.in.Posture.Signals)) {
			b.WriteString("|" + strconv.Quote(name) + strconv.Quote(f.in.Posture.Signals[name].State))
		}
		b.WriteByte('|')
		f.classText = b.String()
	})
	return f.classText
}

// Allows is whether [Engine.Answer] would allow. It costs less where the answer
// is no: only the yes or no of a denial is alike for many.
func (e *Engine) Allows(ctx context.Context, f *Facts, q Question) bool {
	r := e.active.Load()
	if r == nil {
		return false
	}
	k, exact := r.remember.key(f, q)
	key, ok := sharedKey{}, false
	if exact {
		key, ok = r.shared.key(f, k)
	}
	if !ok {
		return e.AnswerBy(ctx, r, f, q).Allow
	}
	if d, known := r.shared.get(key); known {
		return d.Allow
	}
	d := e.decide(ctx, r, f.Input(q))
	if d.Allow || d.Reason != ReasonPolicyError { // what failed may not fail again
		d.ID, d.Fact = "", nil
		d.Revision, d.App = r.id, q.App.Name
		r.shared.put(key, d)
	}
	return d.Allow
}
