package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/open-policy-agent/opa/v1/ast"
)

// MarshalJSON writes the form that Rego and the audit log see: lists and maps
// that are nil are empty ones, so that counting them works.
func (in Input) MarshalJSON() ([]byte, error) {
	type plain Input
	if in.Subject != nil && in.Subject.Groups == nil {
		s := *in.Subject
		s.Groups = []string{}
		in.Subject = &s
	}
	if in.Posture.Signals == nil {
		in.Posture.Signals = map[string]Signal{}
	}
	return json.Marshal(plain(in))
}

// value is the Input as Rego sees it. It equals reading the JSON form, without
// the detour: a test compares the two.
func (in *Input) value() (ast.Value, error) {
	for name := range in.Posture.Signals {
		if !utf8.ValidString(name) {
			return in.valueByJSON() // members that JSON makes the same name
		}
	}
	v := object{}
	v.time("time", in.Time)
	v.text("action", string(in.Action))
	v.object("app", func(o *object) {
		o.text("name", in.App.Name)
		o.text("protocol", in.App.Protocol)
	})
	v.object("device", func(o *object) {
		o.text("id", in.Device.ID)
		o.text("name", in.Device.Name)
		o.optional("serial", in.Device.Serial)
		o.text("os", in.Device.OS)
		o.text("key_tier", in.Device.KeyTier)
		o.time("enrolled_at", in.Device.EnrolledAt)
	})
	if s := in.Subject; s != nil {
		v.object("subject", func(o *object) { o.subject(s) })
	}
	if s := in.Session; s != nil {
		v.object("session", func(o *object) {
			o.text("id", s.ID)
			o.text("os_user", s.OSUser)
			o.time("started_at", s.StartedAt)
			o.time("expires_at", s.ExpiresAt)
		})
	}
	v.optional("ended", in.Ended)
	v.object("posture", func(o *object) {
		if at := in.Posture.ReceivedAt; at != nil {
			o.time("received_at", *at)
		}
		o.object("signals", func(o *object) {
			for name, signal := range in.Posture.Signals {
				o.object(name, func(o *object) {
					o.text("state", signal.State)
					o.optional("value", signal.Value)
				})
			}
		})
	})
	v.object("location", func(o *object) {
		o.optional("address", in.Location.Address)
		o.optional("country", in.Location.Country)
	})
	if r := in.Request; r != nil {
		v.object("request", func(o *object) {
			o.text("method", r.Method)
			o.text("host", r.Host)
			o.text("path", r.Path)
			o.optional("upgrade", r.Upgrade)
		})
	}
	if f := in.Flow; f != nil {
		v.object("flow", func(o *object) { o.put("port", ast.IntNumberTerm(int(f.Port))) })
	}
	return v.value()
}

// valueByJSON is the definition of value.
func (in *Input) valueByJSON() (ast.Value, error) {
	data, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	return ast.ValueFromReader(bytes.NewReader(data))
}

// object collects the members of one ast.Object.
type object struct {
	members [][2]*ast.Term
	errs    []error
}

func (o *object) put(key string, t *ast.Term) {
	o.members = append(o.members, ast.Item(ast.InternedTerm(key), t))
}

func (o *object) value() (ast.Value, error) {
	return ast.NewObject(o.members...), errors.Join(o.errs...)
}

func (o *object) object(key string, fill func(*object)) {
	child := object{}
	fill(&child)
	o.errs = append(o.errs, child.errs...)
	o.put(key, ast.ObjectTerm(child.members...))
}

func (o *object) text(key, s string) {
	if !utf8.ValidString(s) {
		s = string([]rune(s)) // each bad byte becomes U+FFFD, as in JSON
	}
	o.put(key, ast.StringTerm(s))
}

func (o *object) optional(key, s string) {
	if s != "" {
		o.text(key, s)
	}
}

func (o *object) time(key string, t time.Time) {
	text, err := t.MarshalText()
	if err != nil {
		o.errs = append(o.errs, fmt.Errorf("%s: %w", key, err))
		return
	}
	o.put(key, ast.StringTerm(string(text)))
}

func (o *object) subject(s *Subject) {
	o.text("issuer", s.Issuer)
	o.text("sub", s.ID)
	o.optional("name", s.Name)
	o.optional("email", s.Email)
	groups := object{}
	for _, g := range s.Groups {
		groups.text("", g)
	}
	terms := make([]*ast.Term, len(groups.members))
	for i, m := range groups.members {
		terms[i] = m[1]
	}
	o.put("groups", ast.ArrayTerm(terms...))
	if len(s.Claims) > 0 {
		data, err := json.Marshal(s.Claims)
		if err != nil {
			o.errs = append(o.errs, fmt.Errorf("claims: %w", err))
			return
		}
		claims, err := ast.ValueFromReader(bytes.NewReader(data))
		if err != nil {
			o.errs = append(o.errs, fmt.Errorf("claims: %w", err))
			return
		}
		o.put("claims", ast.NewTerm(claims))
	}
	o.time("authenticated_at", s.AuthenticatedAt)
}
