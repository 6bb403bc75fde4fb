package admin

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

const maxInvite = 30 * 24 * time.Hour

func (s *Server) invite(w http.ResponseWriter, r *http.Request) {
	var req Invite
	if err := decode(w, r, &req); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	if req.Expires == 0 {
		req.Expires = 24 * time.Hour
	}
	if req.Expires < 0 || req.Expires > maxInvite {
		s.fail(w, http.StatusBadRequest, "bad_request", "A code lasts at least a moment and at most 30 days (720h).")
		return
	}
	code := wire.NewCode(s.cfg.CA.SPKIHash())
	now := s.cfg.Now()
	inv := store.Invite{
		SecretHash: code.SecretHash(), Name: req.Name, Serial: req.Serial, CreatedBy: actor(r), CreatedAt: now, ExpiresAt: now.Add(req.Expires),
	}
	err := s.cfg.Audit.Append(&audit.Record{
		Kind: audit.KindInvite, Actor: actor(r), Device: store.DeviceOf(inv.SecretHash),
		Detail: map[string]string{"name": req.Name, "serial": req.Serial, "expires": inv.ExpiresAt.UTC().Format(time.RFC3339)},
	})
	if err == nil {
		err = s.cfg.Store.CreateInvite(r.Context(), inv)
	}
	if err != nil {
		s.failed(w, "making an enrolment code", err)
		return
	}
	s.answer(w, Invited{Code: code.String(), URL: s.cfg.URL, ExpiresAt: inv.ExpiresAt.UTC()})
}

func (s *Server) devices(w http.ResponseWriter, r *http.Request) {
	all, err := s.cfg.Store.Devices(r.Context())
	if err != nil {
		s.failed(w, "listing devices", err)
		return
	}
	out := Items[Device]{Items: []Device{}}
	for _, d := range all {
		out.Items = append(out.Items, s.deviceOf(d))
	}
	s.looked(r, "devices")
	s.answer(w, out)
}

func (s *Server) device(w http.ResponseWriter, r *http.Request) {
	d, err := s.named(r.Context(), r.PathValue("id"))
	if err != nil {
		s.failed(w, "device "+r.PathValue("id"), err)
		return
	}
	s.looked(r, "device "+d.ID)
	s.answer(w, s.deviceOf(d))
}

// named finds a device by its ID, or by a name that only one enrolled device
// has: whoever is told "Anna's laptop was stolen" has the name.
func (s *Server) named(ctx context.Context, idOrName string) (store.Device, error) {
	d, err := s.cfg.Store.Device(ctx, idOrName)
	if !errors.Is(err, store.ErrNotFound) {
		return d, err
	}
	all, err := s.cfg.Store.Devices(ctx)
	if err != nil {
		return store.Device{}, err
	}
	all = slices.DeleteFunc(all, func(d store.Device) bool { return d.Name != idOrName || d.Revoked() })
	switch len(all) {
	case 0:
		return store.Device{}, notFound{"device", idOrName}
	case 1:
		return all[0], nil
	}
	return store.Device{}, errAmbiguous
}

func (s *Server) deviceOf(d store.Device) Device {
	out := Device{
		ID: d.ID, Name: d.Name, Serial: d.Serial, OS: d.OS, KeyTier: d.KeyTier, Status: "enrolled",
		EnrolledAt: d.EnrolledAt.UTC(), LastSeen: d.LastSeen.UTC(), Addresses: []string{d.Addresses[0].String(), d.Addresses[1].String()},
	}
	if d.Revoked() {
		at := d.RevokedAt.UTC()
		out.Status, out.RevokedAt, out.RevokedBy, out.Reason = "revoked", &at, d.RevokedBy, d.RevokedReason
		return out
	}
	st, ok := s.cfg.Sessions.Status(d.ID)
	if !ok {
		return out
	}
	out.Status, out.Flows, out.LastSeen = "connected", st.Flows, s.cfg.Now().UTC()
	out.Location = &wire.Location{Address: st.Location.Address, Country: st.Location.Country}
	for name, sig := range st.Posture.Signals {
		out.Posture = append(out.Posture, wire.Signal{Name: name, State: sig.State, Value: sig.Value})
	}
	slices.SortFunc(out.Posture, func(a, b wire.Signal) int { return cmp.Compare(a.Name, b.Name) })
	if st.Session != nil {
		sess := s.sessionOf(*st.Session)
		out.Session = &sess
	}
	return out
}

// revokeDevice cuts first: what takes away waits for nothing. The store comes
// next, so that a restart does not bring the device back, and the record last.
func (s *Server) revokeDevice(w http.ResponseWriter, r *http.Request) {
	var req Revoke
	if err := decode(w, r, &req); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	now := s.cfg.Now()
	d, err := s.named(r.Context(), r.PathValue("id"))
	if err != nil {
		s.failed(w, "device "+r.PathValue("id"), err)
		return
	}
	id := d.ID
	d.RevokedAt, d.RevokedReason = now, req.Reason
	dec := session.RevokedDecision(d, now)
	s.cfg.Sessions.Remove(id, dec)
	// An administrator who hangs up now has still revoked.
	d, err = s.cfg.Store.RevokeDevice(context.WithoutCancel(r.Context()), store.Revocation{DeviceID: id, Reason: req.Reason, By: actor(r), At: now})
	rec := audit.Record{Kind: audit.KindRevoke, Decision: dec.ID, Device: id, Actor: actor(r), Outcome: req.Reason}
	if err != nil {
		rec.Detail = map[string]string{"stored": "no: " + err.Error()}
	}
	s.cfg.Audit.Note(rec)
	// A connect that was stored before the revocation and came into force
	// after the cut above ends here.
	s.cfg.Sessions.Remove(id, dec)
	if err != nil {
		s.failed(w, "the device is cut off, but storing that failed, so a restart of the gateway would let it back: try again", err)
		return
	}
	s.answer(w, s.deviceOf(d))
}

func (s *Server) sessions(w http.ResponseWriter, r *http.Request) {
	all, err := s.cfg.Store.Sessions(r.Context(), store.SessionFilter{Active: r.URL.Query().Get("all") == ""})
	if err != nil {
		s.failed(w, "listing sessions", err)
		return
	}
	out := Items[Session]{Items: []Session{}}
	for _, x := range all {
		out.Items = append(out.Items, s.sessionOf(x))
	}
	s.looked(r, "sessions")
	s.answer(w, out)
}

func (s *Server) session(w http.ResponseWriter, r *http.Request) {
	x, err := s.cfg.Store.Session(r.Context(), r.PathValue("id"))
	if err != nil {
		s.failed(w, "session "+r.PathValue("id"), missing("session", r.PathValue("id"), err))
		return
	}
	s.looked(r, "session "+x.ID)
	s.answer(w, s.sessionOf(x))
}

func (s *Server) sessionOf(x store.Session) Session {
	out := Session{
		ID: x.ID, Subject: x.Subject.Key(), Name: x.Subject.Name, Groups: x.Subject.Groups, Device: x.DeviceID, OSUser: x.OSUser,
		StartedAt: x.StartedAt.UTC(), ExpiresAt: x.ExpiresAt.UTC(), EndReason: x.EndReason, EndedBy: x.EndedBy,
		Active: x.EndedAt.IsZero() && s.cfg.Now().Before(x.ExpiresAt),
	}
	if out.Groups == nil {
		out.Groups = []string{}
	}
	if !x.EndedAt.IsZero() {
		at := x.EndedAt.UTC()
		out.EndedAt = &at
	}
	return out
}

func (s *Server) revokeSession(w http.ResponseWriter, r *http.Request) {
	var req Revoke
	if err := decode(w, r, &req); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	id := r.PathValue("id")
	reason := req.Reason
	if reason == "" {
		reason = "revoked"
	}
	err := s.cfg.Sessions.EndSession(context.WithoutCancel(r.Context()), store.End{SessionID: id, Reason: reason, By: actor(r), At: s.cfg.Now()}, policy.ReasonSessionRevoked)
	if errors.Is(err, session.ErrSessionOver) {
		s.fail(w, http.StatusConflict, "session_over", "That session has ended already.")
		return
	}
	if err != nil {
		s.failed(w, "ending session "+id, missing("session", id, err))
		return
	}
	x, err := s.cfg.Store.Session(r.Context(), id)
	if err != nil {
		s.failed(w, "session "+id, err)
		return
	}
	s.answer(w, s.sessionOf(x))
}

func (s *Server) apps(w http.ResponseWriter, _ *http.Request) {
	out := Items[App]{Items: []App{}}
	if rev := s.cfg.Engine.Active(); rev != nil {
		for _, a := range rev.Apps() {
			addrs := s.cfg.Sessions.AppAddresses(a.Name)
			app := App{
				Name: a.Name, Title: a.Title, Protocol: a.Protocol, Hosts: a.Hosts, Ports: session.PortsOf(a),
				Addresses: []string{addrs[0].String(), addrs[1].String()}, Upstream: a.Upstream, Visibility: a.Visibility, Durability: a.Durability, OnLoss: a.OnLoss.String(),
			}
			if app.Hosts == nil {
				app.Hosts = []string{}
			}
			out.Items = append(out.Items, app)
		}
	}
	s.answer(w, out)
}

func (s *Server) flows(w http.ResponseWriter, r *http.Request) {
	q, out := r.URL.Query(), Items[Flow]{Items: []Flow{}}
	device := q.Get("device")
	if device != "" {
		d, err := s.named(r.Context(), device)
		if err != nil {
			s.failed(w, "device "+device, err)
			return
		}
		device = d.ID
	}
	for _, f := range s.cfg.Sessions.Flows() {
		if device != "" && f.Device.ID != device || q.Get("app") != "" && f.App.Name != q.Get("app") || q.Get("draining") != "" && f.DrainUntil.IsZero() {
			continue
		}
		item := Flow{
			ID: f.ID, App: f.App.Name, Protocol: f.App.Protocol, Device: f.Device.ID, DeviceName: f.Device.Name, OpenedAt: f.OpenedAt.UTC(), State: "open",
		}
		if f.Subject != nil {
			item.Subject, item.Name = f.Subject.Key(), f.Subject.Name
		}
		if f.Session != nil {
			item.Session = f.Session.ID
		}
		if !f.DrainUntil.IsZero() {
			until := f.DrainUntil.UTC()
			item.State, item.DrainUntil, item.Reason = "draining", &until, string(f.Reason)
		}
		out.Items = append(out.Items, item)
	}
	s.looked(r, "flows")
	s.answer(w, out)
}
