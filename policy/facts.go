package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Facts are what is known about one device: the part of an Input that stays the
// same until something is learnt. They never change, and remember what the
// Engine granted on them; see [Engine.Answer]. They are safe for concurrent use.
type Facts struct {
	in   Input
	json []byte // the members from "device" to "location", with the comma before
	err  error  // why there is no json
	key  string // of the subject, "" when nobody is logged in

	classOnce sync.Once // makes classText
	classText string

	mu       sync.Mutex // guards what follows
	revision *Revision  // that granted
	granted  map[asked]Decision
}

// Question is the rest of an Input: what is asked, and when.
type Question struct {
	Time    time.Time
	Action  Action
	App     AppRef
	Request *Request // ActionRequest
	Flow    *Flow    // ActionFlow
}

// NewFacts takes the facts of in; what it asks does not matter. The caller must
// not change what in points to.
func NewFacts(in Input) *Facts {
	in.Time, in.Action, in.App, in.Request, in.Flow = time.Time{}, "", AppRef{}, nil, nil
	f := &Facts{in: in}
	if in.Subject != nil {
		f.key = in.Subject.Key()
	}
	data, err := json.Marshal(in)
	if err != nil {
		f.err = fmt.Errorf("encoding facts: %w", err)
		return f
	}
	rest, ok := strings.CutPrefix(string(data), `{"time":"0001-01-01T00:00:00Z","action":"","app":{"name":"","protocol":""}`)
	if !ok {
		f.err = fmt.Errorf("encoding facts: %.100s does not begin with an empty question", data)
		return f
	}
	f.json = []byte(strings.TrimSuffix(rest, "}"))
	return f
}

// Suppose returns the facts of f as if what only time has changed since was,
// from which a permission was last given, had not: a login that ran out is in
// force, and a signal that grew old or unknown is what it was. What has been
// learnt since stays learnt: a failed signal, another place, other groups.
func (f *Facts) Suppose(was *Facts) *Facts {
	in := f.in
	if in.Subject == nil && in.Ended == string(ReasonSessionExpired) {
		in.Subject, in.Session, in.Ended = was.in.Subject, was.in.Session, ""
	}
	if in.Posture.ReceivedAt == nil {
		in.Posture.ReceivedAt = was.in.Posture.ReceivedAt
	}
	signals := maps.Clone(was.in.Posture.Signals)
	if signals == nil {
		signals = map[string]Signal{}
	}
	for name, s := range in.Posture.Signals {
		if s.State == "pass" || s.State == "fail" {
			signals[name] = s
		}
	}
	in.Posture.Signals = signals
	return NewFacts(in)
}

// Input returns the whole Input. The caller must not change what it points to.
func (f *Facts) Input(q Question) *Input {
	in := f.in
	in.Time, in.Action, in.App, in.Request, in.Flow = q.Time, q.Action, q.App, q.Request, q.Flow
	return &in
}

// Subject returns the authenticated person, nil when nobody is logged in.
func (f *Facts) Subject() *Subject { return f.in.Subject }

// SubjectKey returns the person's Key, empty when nobody is logged in.
func (f *Facts) SubjectKey() string { return f.key }

// Session returns the Session, nil when nobody is logged in.
func (f *Facts) Session() *Session { return f.in.Session }

// Device returns the device.
func (f *Facts) Device() Device { return f.in.Device }

// Address returns the device's outer address.
func (f *Facts) Address() string { return f.in.Location.Address }

// AppendInput appends the JSON of Input(q), the very bytes json.Marshal makes.
func (f *Facts) AppendInput(dst []byte, q Question) ([]byte, error) {
	if f.err != nil {
		return dst, f.err
	}
	dst = append(dst, `{"time":"`...)
	dst, err := q.Time.AppendText(dst)
	if err != nil {
		return dst, fmt.Errorf("encoding a question's time: %w", err)
	}
	dst = append(dst, `","action":`...)
	dst = appendText(dst, string(q.Action))
	dst = append(dst, `,"app":{"name":`...)
	dst = appendText(dst, q.App.Name)
	dst = append(dst, `,"protocol":`...)
	dst = appendText(dst, q.App.Protocol)
	dst = append(dst, '}')
	dst = append(dst, f.json...)
	if r := q.Request; r != nil {
		dst = append(dst, `,"request":{"method":`...)
		dst = appendText(dst, r.Method)
		dst = append(dst, `,"host":`...)
		dst = appendText(dst, r.Host)
		dst = append(dst, `,"path":`...)
		dst = appendText(dst, r.Path)
		if r.Upgrade != "" {
			dst = append(dst, `,"upgrade":`...)
			dst = appendText(dst, r.Upgrade)
		}
		dst = append(dst, '}')
	}
	if q.Flow != nil {
		dst = fmt.Appendf(dst, `,"flow":{"port":%d}`, q.Flow.Port)
	}
	return append(dst, '}'), nil
}

// appendText appends a JSON string as encoding/json writes it.
func appendText(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			b, _ := json.Marshal(s) // a string never fails
			return append(dst, b...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// asked is all of a Question that a grant on given Facts can depend on, but for
// the end of the Session. Two Questions with the same asked get the same answer
// from the same Revision; [remembering] says why.
type asked struct {
	app, protocol, method, upgrade string
	action                         Action
	port                           uint16
	host, path                     string // when a custom module reads them
	paths                          uint64 // the app's access rules whose paths match
	clock                          uint64 // weekday and minute in each zone of the app's hours
}

// maxGranted bounds what one device's Facts remember. A worker uses a handful
// of apps with a handful of methods; what grows beyond is forgotten as a whole.
const maxGranted = 128

// Answer decides the Question on the Facts. It says what [Engine.Decide] says
// to f.Input(q), but for the ID. A grant is remembered and given again to every
// Question that no rule of the Revision can tell from the first one, while the
// Session lasts. Denials are always evaluated: they say with what value.
func (e *Engine) Answer(ctx context.Context, f *Facts, q Question) Decision {
	return e.AnswerBy(ctx, e.active.Load(), f, q)
}

// AnswerBy is [Engine.Answer] by a Revision that need not be the active one any
// more; a nil one denies.
func (e *Engine) AnswerBy(ctx context.Context, r *Revision, f *Facts, q Question) Decision {
	key, exact := asked{}, false
	if r != nil {
		key, exact = r.remember.key(f, q)
	}
	if !exact {
		return e.finish(r, f.Input(q), e.decide(ctx, r, f.Input(q)))
	}
	f.mu.Lock()
	if f.revision != r {
		f.revision, f.granted = r, nil
	}
	d, known := f.granted[key]
	f.mu.Unlock()
	if known {
		d.ID, d.Time = newID(), q.Time
		return d
	}
	alike, ok := r.shared.key(f, key)
	if ok {
		d, known = r.shared.get(alike)
	}
	if known && d.Allow {
		d.ID, d.Time = newID(), q.Time
	} else {
		in := f.Input(q)
		d = e.finish(r, in, e.decide(ctx, r, in))
		if d.Allow && ok {
			r.shared.put(alike, d)
		}
	}
	if d.Allow {
		f.grant(r, key, d)
	}
	return d
}

func (f *Facts) grant(r *Revision, key asked, d Decision) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.revision != r {
		return // another one was asked meanwhile
	}
	if f.granted == nil || len(f.granted) >= maxGranted {
		f.granted = map[asked]Decision{}
	}
	// As they came they may hold a whole request in memory.
	key.host, key.path = strings.Clone(key.host), strings.Clone(key.path)
	f.granted[key] = d
}

// ordinary says whether q is a Question as the gateway asks it.
func (q Question) ordinary() bool {
	switch q.Action {
	case ActionReach:
		return q.Request == nil && q.Flow == nil
	case ActionRequest:
		return q.Request != nil && q.Flow == nil && utf8.ValidString(q.Request.Path)
	case ActionFlow:
		return q.Request == nil && q.Flow != nil
	}
	return false
}
