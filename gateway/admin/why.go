package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

func (s *Server) why(w http.ResponseWriter, r *http.Request) {
	var q Why
	if err := decode(w, r, &q); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	in, basis, err := s.suppose(r.Context(), q)
	if err != nil {
		s.asked(w, "asking why", err)
		return
	}
	dec, locked := s.cfg.Sessions.LockedDown(in)
	if !locked {
		dec = s.cfg.Engine.Decide(r.Context(), in)
	}
	if dec.Reason == policy.ReasonUnknownApp {
		dec.Remedy = "The policy in force has no such app; list them with: portvakt-gateway apps list" // the table's is for a laptop
	}
	rec := audit.Record{Kind: audit.KindWhy, Actor: actor(r), Device: in.Device.ID}
	rec.SetDecision(dec)
	if rec.Input, err = json.Marshal(in); err != nil {
		s.failed(w, "encoding the question", err)
		return
	}
	if locked {
		rec.Input = nil // no policy answered, so no opa could reproduce it
	}
	if in.Subject != nil {
		rec.Subject = in.Subject.Key()
	}
	s.cfg.Audit.Note(rec)
	s.answer(w, Because{Denial: *session.Denial(dec), Rule: dec.Rule, Basis: basis, Input: in})
}

// badQuestion is an error of the one who asked.
type badQuestion string

func (b badQuestion) Error() string { return string(b) }

// suppose builds the Input a question is about: the live facts of the Subject
// or Device, with what was given in their place.
func (s *Server) suppose(ctx context.Context, q Why) (*policy.Input, string, error) {
	app := policy.App{Name: q.App}
	if rev := s.cfg.Engine.Active(); rev != nil {
		for _, a := range rev.Apps() {
			if a.Name == q.App {
				app = a
			}
		}
	}
	device, subject, err := s.find(ctx, q)
	if err != nil {
		return nil, "", err
	}
	in := &policy.Input{Posture: policy.Posture{Signals: map[string]policy.Signal{}}}
	basis := "nobody of that name has logged in here; only what was given is supposed"
	switch live, err := s.cfg.Sessions.Input(device, app); {
	case err == nil && live.Subject != nil:
		in, basis = live, fmt.Sprintf("the live session %s on device %s", live.Session.ID, device)
	case err == nil:
		in, basis = live, fmt.Sprintf("device %s, connected, nobody logged in", device)
	case device != "":
		d, err := s.cfg.Store.Device(ctx, device)
		if err != nil {
			return nil, "", missing("device", device, err)
		}
		in.Device = policy.Device{ID: d.ID, Name: d.Name, Serial: d.Serial, OS: d.OS, KeyTier: d.KeyTier, EnrolledAt: d.EnrolledAt.UTC()}
		basis = fmt.Sprintf("device %s, not connected", device)
	}
	in.Time, in.Action = s.cfg.Now().UTC(), policy.ActionReach
	in.App = policy.AppRef{Name: app.Name, Protocol: app.Protocol}
	if err := s.override(in, q, subject); err != nil {
		return nil, "", err
	}
	return in, basis, nil
}

// find resolves who is asked about: the device with a live session of the
// Subject, else the device of the Subject's last one.
func (s *Server) find(ctx context.Context, q Why) (device string, subject *policy.Subject, err error) {
	if q.Subject == "" {
		if q.Device == "" {
			return "", nil, badQuestion("Name a --subject (ISS#SUB or a name) or a --device.")
		}
		return q.Device, nil, nil
	}
	latest, err := s.latest(ctx, q.Subject, q.Device)
	if err != nil {
		return "", nil, err
	}
	if latest == nil {
		return q.Device, nil, nil
	}
	return latest.DeviceID, &latest.Subject, nil
}

// latest finds the login of a person by ISS#SUB, name or e-mail address: one in
// force, else the last; nil when there was none. An empty device means any.
func (s *Server) latest(ctx context.Context, subject, device string) (latest *store.Session, err error) {
	all, err := s.cfg.Store.Sessions(ctx, store.SessionFilter{DeviceID: device})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b store.Session) int { return b.StartedAt.Compare(a.StartedAt) })
	names := map[string]bool{}
	for i, x := range all {
		iss := x.Subject.Key()
		if subject != iss && !strings.EqualFold(subject, x.Subject.Name) && !strings.EqualFold(subject, x.Subject.Email) {
			continue
		}
		names[iss] = true
		if latest == nil || (!latest.EndedAt.IsZero() && x.EndedAt.IsZero()) {
			latest = &all[i]
		}
	}
	if len(names) > 1 {
		return nil, badQuestion(fmt.Sprintf("%q names %d people; ask with one of: %s", subject, len(names), strings.Join(slices.Sorted(maps.Keys(names)), ", ")))
	}
	return latest, nil
}

// override puts what was given in the place of what is.
func (s *Server) override(in *policy.Input, q Why, known *policy.Subject) error {
	if q.At != nil {
		in.Time = q.At.UTC()
	}
	if q.Groups != nil {
		subject := policy.Subject{Issuer: "supposed", ID: q.Subject, Name: q.Subject, AuthenticatedAt: in.Time}
		switch {
		case in.Subject != nil:
			subject = *in.Subject
		case known != nil:
			subject = *known
		}
		subject.Groups = q.Groups
		in.Subject = &subject
		if in.Session == nil {
			in.Session = &policy.Session{ID: "supposed", OSUser: "supposed", StartedAt: in.Time, ExpiresAt: in.Time.Add(time.Hour)}
		}
	}
	if q.At != nil && in.Session != nil {
		// The question is about that time's rules, not about whether today's
		// login would still last then.
		session := *in.Session
		session.ExpiresAt = in.Time.Add(time.Hour)
		in.Session = &session
	}
	if len(q.Signals) > 0 {
		signals := maps.Clone(in.Posture.Signals)
		for name, state := range q.Signals {
			if !slices.Contains(wire.Signals, name) {
				return badQuestion(fmt.Sprintf("--signal: %q is not a signal; the signals are %s", name, strings.Join(wire.Signals, ", ")))
			}
			if state != wire.SignalPass && state != wire.SignalFail && state != wire.SignalUnknown {
				return badQuestion(fmt.Sprintf("--signal %s=%s: expected pass, fail or unknown", name, state))
			}
			signals[name] = policy.Signal{State: state, Value: "supposed"}
		}
		in.Posture.Signals = signals
		if in.Posture.ReceivedAt == nil {
			at := in.Time
			in.Posture.ReceivedAt = &at
		}
	}
	if q.From != "" {
		addr, err := netip.ParseAddr(q.From)
		if err != nil {
			return badQuestion(fmt.Sprintf("--from %q: expected an IP address", q.From))
		}
		in.Location = s.cfg.Locate(addr)
	}
	if q.Path != "" && !strings.HasPrefix(q.Path, "/") {
		return badQuestion(fmt.Sprintf("--path %q: expected a path that begins with /", q.Path))
	}
	if q.Method != "" || q.Path != "" {
		in.Action = policy.ActionRequest
		in.Request = &policy.Request{Method: strings.ToUpper(q.Method), Path: q.Path}
		if q.Method == "" {
			in.Request.Method = http.MethodGet
		}
		if q.Path == "" {
			in.Request.Path = "/"
		}
	}
	return nil
}
