package audit

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/portvakt/portvakt/gateway/audit/people"
	"github.com/portvakt/portvakt/policy"
)

// personalDetail says as which field the Detail of a kind is sealed; that of
// other kinds says nothing about a person.
var personalDetail = map[Kind]people.Field{
	KindLogin: people.Person, KindLockdown: people.Person, KindLocation: people.Address,
	KindInvite: people.Device, KindEnroll: people.Device, KindPosture: people.Device,
}

// detailField says as which field the Detail of r is sealed, if it is.
func (r *Record) detailField() (people.Field, bool) {
	f, ok := personalDetail[r.Kind]
	if r.Kind == KindLockdown { // of one person, it names the person
		ok = r.Detail["scope"] == "subject"
	}
	return f, ok
}

// worded tells a record whose texts are a Rego module's own, and may name
// somebody.
func (r *Record) worded() bool { return r.Reason == string(policy.ReasonPolicyDenied) }

// appendField appends the members of r that are sealed as a field, as a JSON
// object; nothing when there are none.
func (r *Record) appendField(dst []byte, f people.Field) (_ []byte, err error) {
	start := len(dst)
	switch f {
	case people.Address:
		dst = appendMember(dst, `,"remote":`, r.Remote)
	case people.Facts:
		if r.worded() {
			dst = appendMember(dst, `,"message":`, r.Message)
		}
		dst = appendFact(dst, r.Fact)
		if r.worded() {
			dst = appendMember(dst, `,"remedy":`, r.Remedy)
		}
		if len(r.Input) > 0 {
			if dst, err = appendInput(append(dst, `,"input":`...), r); err != nil {
				return dst, fmt.Errorf("encoding an audit record of kind %q: %w", r.Kind, err)
			}
		}
	case people.Person:
		dst = appendMember(dst, `,"subject":`, r.Subject)
	case people.Request:
		dst = appendMember(dst, `,"path":`, r.Path)
		// Whoever guesses the query, which may name people, can check the guess.
		dst = appendMember(dst, `,"request_hash":`, r.RequestHash)
	}
	if of, ok := r.detailField(); ok && of == f {
		dst = appendDetail(dst, r.Detail)
	}
	if len(dst) == start {
		return dst, nil
	}
	dst[start] = '{' // the first member's comma
	return append(dst, '}'), nil
}

// open returns r without what is sealed, and the name of whom that is about: the
// subject, the device when nobody is known to use it, or any stranger.
func (r *Record) open() (open Record, name string) {
	open, name = *r, r.Subject
	open.Subject, open.Remote, open.Fact, open.Path, open.RequestHash, open.Input = "", "", nil, "", "", nil
	if r.worded() {
		open.Message, open.Remedy = "", ""
	}
	if _, ok := r.detailField(); ok {
		open.Detail = nil
		if r.Kind == KindLockdown {
			name = r.Detail["value"]
		}
	}
	switch {
	case name != "":
	case r.Device != "":
		name = deviceName(r.Device)
	default:
		name = "strangers"
	}
	return open, name
}

// scratch is what sealing one record needs for a moment.
type scratch struct{ plain, sealed []byte }

var scratches = sync.Pool{New: func() any { return &scratch{} }}

// appendRecord appends the line of r, without number and newline, with its
// personal data sealed; with no keys everything stands in the open.
func appendRecord(dst []byte, r *Record, keys *people.Keys) ([]byte, error) {
	if keys == nil {
		return appendBody(dst, r)
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if cap(s.plain) > 64<<10 {
		*s = scratch{} // of a rare giant, not to be kept for each
	}
	// Person comes first in the line: it is the member that older records have.
	var ends [len(sealOrder)]int
	var err error
	s.plain = s.plain[:0]
	for i, f := range sealOrder {
		if s.plain, err = r.appendField(s.plain, f); err != nil {
			return dst, err
		}
		ends[i] = len(s.plain)
	}
	if len(s.plain) == 0 {
		return appendBody(dst, r)
	}
	open, name := r.open()
	who := keys.For(name, r.Time)
	start := len(dst)
	if dst, err = appendBody(dst, &open); err != nil {
		return dst[:start], err
	}
	dst = appendMember(dst[:len(dst)-1], `,"person":`, who.ID)
	from, end := 0, ""
	for i, f := range sealOrder {
		plain := s.plain[from:ends[i]]
		from = ends[i]
		switch {
		case len(plain) == 0:
			continue
		case f == people.Person:
			dst = append(dst, `,"sealed":`...)
		case end == "":
			dst, end = append(append(append(dst, `,"sealed_fields":{"`...), f.String()...), `":`...), "}"
		default:
			dst = append(append(append(dst, `,"`...), f.String()...), `":`...)
		}
		s.sealed = who.Seal(f, s.sealed[:0], plain)
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, s.sealed)
		dst = append(dst, '"')
	}
	return append(append(dst, end...), '}'), nil
}

// sealOrder is the order of the fields in a line: sealed stands before
// sealed_fields, which are sorted by name.
var sealOrder = [...]people.Field{people.Person, people.Address, people.Device, people.Facts, people.Request}

// Reveal opens the personal data of a line as it is stored, with its newline
// cut off: r is completed, and the line returned as it would be had it been
// written in the open. Data whose key was destroyed stays away, and "erased" or
// "expired" says so; so does what cannot be opened otherwise, and "unreadable"
// names it: one field that somebody damaged hides no other record.
func (l *Log) Reveal(line []byte, r *Record) ([]byte, error) {
	if l.people == nil || r.Sealed == "" && len(r.SealedFields) == 0 {
		return line, nil
	}
	sealed := r.SealedFields
	for i, name := range people.Names() {
		f := people.Field(i)
		text := sealed[name]
		if f == people.Person {
			text = r.Sealed
		}
		if text == "" {
			continue
		}
		if err := l.revealField(f, text, r); err != nil {
			r.Unreadable = append(r.Unreadable, name)
			l.unopened.tell(l.log, f, r, err)
		}
	}
	r.Sealed, r.SealedFields = "", nil
	for name, text := range sealed { // of a later version
		if !slices.Contains(people.Names(), name) {
			if r.SealedFields == nil {
				r.SealedFields = map[string]string{}
			}
			r.SealedFields[name] = text
		}
	}
	open := append(make([]byte, 0, len(line)), seqPrefix[:len(seqPrefix)-1]...)
	open = strconv.AppendUint(open, r.Seq, 10)
	return appendBody(open, r)
}

// revealField completes r by what was sealed of a field.
func (l *Log) revealField(f people.Field, text string, r *Record) error {
	sealed, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	plain, err := l.people.Open(f, r.Person, r.Time, sealed)
	switch {
	case errors.Is(err, people.ErrErased):
		r.Erased = true
		return nil
	case errors.Is(err, people.ErrExpired):
		r.Expired = append(r.Expired, f.String())
		return nil
	case err != nil:
		return err
	}
	with := *r
	if err := json.Unmarshal(plain, &with); err != nil {
		return err
	}
	*r = with
	return nil
}

// unopened remembers of what it was told that it cannot be opened.
type unopened struct {
	mu    sync.Mutex
	known map[string]bool // by field and day
}

// tell logs a field that cannot be opened, of each day once.
func (u *unopened) tell(log *slog.Logger, f people.Field, r *Record, err error) {
	what := f.String() + " of " + r.Time.UTC().Format(time.DateOnly)
	u.mu.Lock()
	known := u.known[what]
	if u.known == nil {
		u.known = map[string]bool{}
	}
	u.known[what] = true
	u.mu.Unlock()
	if !known {
		log.Error("personal data in the audit log cannot be opened although its key was not destroyed; records say so (unreadable). Restore the directory people from a backup, and see whether audit verify finds the log changed", "first", r.Seq, "field", f.String(), "day", r.Time.UTC().Format(time.DateOnly), "err", err)
	}
}

// Unreadable returns of how many fields of a day something was found, since Open,
// that cannot be opened although its key was not destroyed.
func (l *Log) Unreadable() int {
	l.unopened.mu.Lock()
	defer l.unopened.mu.Unlock()
	return len(l.unopened.known)
}
