package refusal

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// fact says a Fact in plain words. The JSON and the log have it as it is. One
// whose name is not known, such as a custom module's, stays as its author wrote it.
func (l labels) fact(f policy.Fact) (name, value, wanted string) {
	name, known := l.Facts[f.Name]
	if !known {
		if f.Value == "" {
			f.Value = l.Values[""]
		}
		return f.Name, f.Value, f.Wanted
	}
	if f.Name == "all" && f.Value == "" { // a lockdown of everything
		f.Value = "everything"
	}
	value = l.say(f.Name, f.Value)
	if f.Wanted != "" {
		wanted = l.say(f.Name, f.Wanted)
	}
	return name, value, wanted
}

var (
	dayNames = regexp.MustCompile(`\b(mon|tue|wed|thu|fri|sat|sun)\b`)
	instants = regexp.MustCompile(`\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[+-][0-9:]+)`)
)

func (l labels) say(name, text string) string {
	if whole, ok := l.Values[text]; ok {
		return whole
	}
	if rest, ok := strings.CutPrefix(text, "one of "); ok {
		return fmt.Sprintf(l.OneOf, rest)
	}
	// What a signal says of itself comes after its state.
	if state, said, ok := strings.Cut(text, ": "); ok && (state == "pass" || state == "fail" || state == "unknown") {
		return l.Values[state] + " (" + said + ")"
	}
	for _, form := range []struct{ name, prefix, as string }{
		{"country", "not ", l.Not},
		{"session.expires_at", "later than ", l.Later},
		{"open connections", "fewer than ", l.Fewer},
		{"device", "revoked ", l.Withdrawn},
	} {
		if rest, ok := strings.CutPrefix(text, form.prefix); ok && name == form.name {
			text = fmt.Sprintf(form.as, rest)
		}
	}
	if name == "time" {
		text = dayNames.ReplaceAllStringFunc(text, func(day string) string { return l.Days[strings.Index("montuewedthufrisatsun", day)/3] })
	}
	if name == "session.expires_at" || name == "device" {
		text = instants.ReplaceAllStringFunc(text, func(s string) string {
			if at, err := time.Parse(time.RFC3339, s); err == nil {
				return at.UTC().Format(l.Stamp)
			}
			return s
		})
	}
	return text
}
