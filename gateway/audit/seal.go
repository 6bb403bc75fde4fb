package audit

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"

	"github.com/portvakt/portvakt/gateway/audit/people"
	"github.com/portvakt/portvakt/policy"
)

// personalDetail are the kinds whose Detail says something about a person.
var personalDetail = map[Kind]bool{
	KindLogin: true, KindLocation: true, KindPosture: true, KindInvite: true, KindEnroll: true, KindLockdown: true,
}

// split takes what says who somebody is, where, and what is known about them
// out of a record, and names who that is: the subject, the device when nobody
// is known to use it, or any stranger. A request's hash is among it: whoever
// guesses the query, which may name people, can check the guess against it.
func (r *Record) split() (open, personal Record, name string) {
	open = *r
	personal = Record{Subject: r.Subject, Remote: r.Remote, Fact: r.Fact, RequestHash: r.RequestHash, Input: r.Input, InputCompact: r.InputCompact}
	open.Subject, open.Remote, open.Fact, open.RequestHash, open.Input = "", "", nil, "", nil
	if r.Reason == string(policy.ReasonPolicyDenied) { // its texts are a Rego module's own, and may name somebody
		personal.Message, personal.Remedy = r.Message, r.Remedy
		open.Message, open.Remedy = "", ""
	}
	name = r.Subject
	about := personalDetail[r.Kind]
	if r.Kind == KindLockdown { // of one person, it names the person
		if about = r.Detail["scope"] == "subject"; about {
			name = r.Detail["value"]
		}
	}
	if about {
		personal.Detail, open.Detail = r.Detail, nil
	}
	switch {
	case name != "":
	case r.Device != "":
		name = deviceName(r.Device)
	default:
		name = "strangers"
	}
	return open, personal, name
}

func (r *Record) empty() bool {
	return r.Subject == "" && r.Remote == "" && r.RequestHash == "" && r.Message == "" && r.Remedy == "" && r.Fact == nil && len(r.Input) == 0 && len(r.Detail) == 0
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
	open, personal, name := r.split()
	if personal.empty() {
		return appendBody(dst, r)
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	if cap(s.plain) > 64<<10 {
		*s = scratch{} // of a rare giant, not to be kept for each
	}
	var err error
	if s.plain, err = appendMembers(append(s.plain[:0], '{'), &personal); err != nil {
		return dst, err
	}
	s.plain = append(s.plain, '}')
	s.plain[1] = ' ' // the first member's comma
	who := keys.For(name, r.Time)
	s.sealed = who.Seal(s.sealed[:0], s.plain)
	start := len(dst)
	if dst, err = appendBody(dst, &open); err != nil {
		return dst[:start], err
	}
	dst = appendMember(dst[:len(dst)-1], `,"person":`, who.ID)
	dst = append(dst, `,"sealed":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, s.sealed)
	return append(dst, `"}`...), nil
}

// Reveal opens the personal data of a line as it is stored, with its newline
// cut off: r is completed, and the line returned as it would be had it been
// written in the open. Data whose key was destroyed stays away, and "erased"
// says so.
func (l *Log) Reveal(line []byte, r *Record) ([]byte, error) {
	if r.Sealed == "" || l.people == nil {
		return line, nil
	}
	sealed, err := base64.StdEncoding.DecodeString(r.Sealed)
	if err != nil {
		return nil, fmt.Errorf("record %d: its personal data: %w", r.Seq, err)
	}
	r.Sealed = ""
	plain, err := l.people.Open(r.Person, r.Time, sealed)
	switch {
	case errors.Is(err, people.ErrErased):
		r.Erased = true
	case err != nil:
		return nil, fmt.Errorf("record %d: %w", r.Seq, err)
	default:
		if err := json.Unmarshal(plain, r); err != nil {
			return nil, fmt.Errorf("record %d: its personal data: %w", r.Seq, err)
		}
	}
	open := append(make([]byte, 0, len(line)), seqPrefix[:len(seqPrefix)-1]...)
	open = strconv.AppendUint(open, r.Seq, 10)
	return appendBody(open, r)
}
