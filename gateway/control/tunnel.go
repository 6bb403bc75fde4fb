package control

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

func hostOf(remote string) string {
	if h, _, err := net.SplitHostPort(remote); err == nil {
		return h
	}
	return remote
}

func (a *API) state(w http.ResponseWriter, r *http.Request, id string) {
	st, err := a.cfg.Sessions.State(id, language(r))
	if err != nil {
		a.internal(w, "reading a device's state", err)
		return
	}
	a.answer(w, st)
}

// events streams the device's state, whole, after every change. The write
// deadline bounds how long a reader that stopped reading is waited for.
func (a *API) events(w http.ResponseWriter, r *http.Request, id string) {
	watch, err := a.cfg.Sessions.Watch(id)
	if err != nil {
		a.internal(w, "watching a device", err)
		return
	}
	defer watch.Close()
	w.Header().Set("Content-Type", "application/x-ndjson")
	rc := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	lang := language(r)
	send := func(e wire.Event) bool {
		_ = rc.SetWriteDeadline(time.Now().Add(2 * wire.EventHeartbeat)) // not every writer can; then TCP's own timeouts hold
		return enc.Encode(e) == nil && rc.Flush() == nil
	}
	beat := time.NewTicker(wire.EventHeartbeat)
	defer beat.Stop()
	for {
		e := wire.Event{Type: wire.EventHeartBeat}
		select {
		case <-r.Context().Done():
			return
		case <-beat.C:
		case <-watch.C:
			if dec, gone := watch.Gone(); gone {
				send(wire.Event{Type: wire.EventRevoked, Denial: session.Denial(dec.In(lang))})
				return
			}
			st, err := a.cfg.Sessions.State(id, lang)
			if err != nil {
				return
			}
			e = wire.Event{Type: wire.EventState, State: &st}
		}
		if !send(e) {
			return
		}
	}
}

func (a *API) registration(w http.ResponseWriter, r *http.Request, id string) {
	until := a.cfg.Now().Add(RegistrationLifetime)
	if err := a.cfg.Sessions.Extend(r.Context(), id, until); err != nil {
		a.internal(w, "extending a registration", err)
		return
	}
	if err := a.cfg.Store.TouchDevice(r.Context(), id, a.cfg.Now()); err != nil {
		a.log.Warn("noting that a device was seen", "device", id, "err", err)
	}
	a.answer(w, wire.RegistrationResponse{ExpiresAt: until.UTC()})
}

func (a *API) login(w http.ResponseWriter, r *http.Request, id string) {
	var req wire.LoginRequest
	if !a.read(w, r, &req, nil) {
		return
	}
	if req.OSUser == "" || len(req.OSUser) > 128 || clean(req.OSUser, 128) != req.OSUser {
		a.fail(w, http.StatusBadRequest, &wire.Error{Code: "bad_request", Message: `os_user is required, as "uid:name".`})
		return
	}
	url, expires, err := a.cfg.Identity.Begin(r.Context(), identity.Begin{DeviceID: id, OSUser: req.OSUser, RedirectURI: req.RedirectURI})
	if err != nil {
		a.loginFailed(w, r, id, err)
		return
	}
	a.answer(w, wire.LoginResponse{URL: url, ExpiresAt: expires.UTC()})
}

func (a *API) loginComplete(w http.ResponseWriter, r *http.Request, id string) {
	var req wire.LoginComplete
	if !a.read(w, r, &req, nil) {
		return
	}
	login, err := a.cfg.Identity.Finish(r.Context(), identity.Finish{
		DeviceID: id, State: req.State, Code: req.Code, Issuer: req.Issuer, Error: req.Error, ErrorDescription: req.ErrorDescription,
	})
	if err != nil {
		a.loginFailed(w, r, id, err)
		return
	}
	now := a.cfg.Now()
	s, err := a.cfg.Sessions.Login(r.Context(), store.Session{
		DeviceID: id, OSUser: login.OSUser, Subject: login.Subject, SID: login.SID, StartedAt: now, LastSeen: now, ExpiresAt: now.Add(a.cfg.SessionLifetime),
	})
	if err != nil {
		a.internal(w, "logging in", err)
		return
	}
	if a.cfg.Identity.LoggedOut(login) { // while it was being put in force
		err := a.cfg.Sessions.EndSession(context.WithoutCancel(r.Context()), store.End{SessionID: s.ID, Reason: endBackChannel, By: byProvider, At: now}, policy.ReasonSessionRevoked)
		if err != nil && !errors.Is(err, session.ErrSessionOver) {
			a.log.Error("ending a login that the identity provider ended", "session", s.ID, "err", err)
		}
	}
	a.state(w, r, id)
}

// loginFailed records a refused login and tells the person what the identity
// package says for people.
func (a *API) loginFailed(w http.ResponseWriter, r *http.Request, id string, err error) {
	var e *identity.Error
	if !errors.As(err, &e) {
		a.internal(w, "logging in", err)
		return
	}
	a.log.Info("a login was refused", "device", id, "reason", e.Code, "err", err)
	a.cfg.Sessions.NoteRefusal(id, audit.Record{Kind: audit.KindLoginRefused, Reason: e.Code, Message: e.Message})
	status := http.StatusForbidden
	switch {
	case e.Code == "bad_redirect":
		status = http.StatusBadRequest
	case e.Retry:
		status = http.StatusServiceUnavailable
	}
	said := policy.Decision{Reason: policy.Reason(e.Code), Message: e.Message, Remedy: e.Remedy}.In(language(r)) // where the table has it
	a.fail(w, status, &wire.Error{Code: e.Code, Message: said.Message, Remedy: said.Remedy, Retry: e.Retry})
}

func (a *API) logout(w http.ResponseWriter, r *http.Request, id string) {
	s, ok := a.cfg.Sessions.SessionOf(id)
	if !ok { // nobody finishes a call after they logged out
		s, ok = a.cfg.Sessions.Finishing(id)
	}
	if ok {
		err := a.cfg.Sessions.EndSession(context.WithoutCancel(r.Context()), store.End{SessionID: s.ID, Reason: "logout", By: "subject", At: a.cfg.Now()}, policy.ReasonLoginRequired)
		if err != nil {
			a.internal(w, "logging out", err)
			return
		}
	}
	a.state(w, r, id)
}

func (a *API) why(w http.ResponseWriter, r *http.Request, id string) {
	app := r.URL.Query().Get("app")
	if app == "" || len(app) > 128 {
		a.fail(w, http.StatusBadRequest, &wire.Error{Code: "bad_request", Message: "Name an app: ?app=NAME."})
		return
	}
	dec, err := a.cfg.Sessions.WhyDevice(id, clean(app, 128))
	if err != nil {
		a.internal(w, "explaining", err)
		return
	}
	a.answer(w, session.Denial(dec.In(language(r))))
}

// posture takes a report: signed by the device's key, for this nonce, this
// device, this boot.
func (a *API) posture(w http.ResponseWriter, r *http.Request, id string) {
	var signed wire.SignedReport
	note := func(code, message string) {
		a.cfg.Sessions.NoteRefusal(id, audit.Record{Kind: audit.KindPostureRefused, Reason: code, Message: message})
	}
	if !a.read(w, r, &signed, note) {
		return
	}
	refused := func(status int, code, message, nonce string) {
		note(code, message)
		a.fail(w, status, &wire.Error{Code: code, Message: message, PostureNonce: nonce})
	}
	d, err := a.cfg.Store.Device(r.Context(), id)
	if err != nil {
		a.internal(w, "looking a device up", err)
		return
	}
	if !verify(d.PublicKey, signed) {
		refused(http.StatusForbidden, "bad_signature", "The posture report is not signed with the device's key.", "")
		return
	}
	var rep wire.Report
	if err := wire.DecodeStrict(signed.Report, &rep); err != nil {
		refused(http.StatusBadRequest, "bad_report", "The posture report is not what a report looks like: "+err.Error()+".", "")
		return
	}
	if rep.DeviceID != id {
		refused(http.StatusForbidden, "bad_report", "The posture report is of another device.", "")
		return
	}
	signals, msg := signalsOf(rep)
	if msg != "" {
		refused(http.StatusBadRequest, "bad_report", msg, "")
		return
	}
	next, err := a.cfg.Sessions.Posture(id, rep.Nonce, rep.BootID, signals)
	switch {
	case errors.Is(err, session.ErrNonce):
		refused(http.StatusConflict, "bad_nonce", "The posture report's nonce is used or was never given; use the one in this answer.", next)
	case errors.Is(err, session.ErrUnknownDevice):
		a.internal(w, "taking a posture report", err)
	case err != nil:
		refused(http.StatusForbidden, "bad_report", "The posture report is of another boot of the device than its connection.", next)
	default:
		a.answer(w, wire.PostureResponse{Nonce: next})
	}
}

func verify(der []byte, signed wire.SignedReport) bool {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return false
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok {
		return false
	}
	sum := sha256.Sum256(signed.Report)
	return ecdsa.VerifyASN1(key, sum[:], signed.Signature)
}

// maxSignalAge is how old a signal may be within a report and still count, in
// seconds. With the report's own age it bounds how late a change is felt.
const maxSignalAge = 30

// signalsOf checks a report's signals. A report with one bad signal is refused
// whole: half a report would let a fact be left out.
func signalsOf(rep wire.Report) (map[string]policy.Signal, string) {
	out := map[string]policy.Signal{}
	for _, s := range rep.Signals {
		if !slices.Contains(wire.Signals, s.Name) {
			return nil, "The posture report has a signal this gateway does not know: " + clean(s.Name, 64) + "."
		}
		if _, twice := out[s.Name]; twice {
			return nil, "The posture report has a signal twice: " + s.Name + "."
		}
		sig := policy.Signal{State: s.State, Value: clean(s.Value, 200)}
		switch s.State {
		case wire.SignalPass, wire.SignalFail, wire.SignalUnknown:
		default:
			return nil, "The posture report's " + s.Name + " is neither pass, fail nor unknown."
		}
		if s.AgeSeconds < 0 {
			return nil, "The posture report's " + s.Name + " is of the future."
		}
		if s.AgeSeconds > maxSignalAge {
			sig = policy.Signal{State: wire.SignalUnknown, Value: "collected too long before the report"}
		}
		out[s.Name] = sig
	}
	return out, ""
}
