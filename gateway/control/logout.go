package control

import (
	"context"
	"encoding/json"
	"errors"
	"mime"
	"net/http"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
)

// PathBackChannelLogout is where the identity provider says that a person's
// session is over (OpenID Connect Back-Channel Logout 1.0).
const PathBackChannelLogout = "/backchannel-logout"

// What is recorded of logins that the provider ended.
const (
	endBackChannel = "backchannel_logout"
	byProvider     = "identity_provider"
)

// backChannelLogout ends the logins that a logout token names. Only the token
// proves who calls. That nothing was logged in is a success too.
func (a *API) backChannelLogout(w http.ResponseWriter, r *http.Request) {
	refused := func(status int, code, text string) {
		a.strangers.Note(audit.Record{Kind: audit.KindLogoutRefused, Reason: code, Message: text, Remote: hostOf(r.RemoteAddr)})
		a.logoutFailed(w, status, text)
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/x-www-form-urlencoded" {
		refused(http.StatusBadRequest, "bad_request", "The body is a form with logout_token.")
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, wire.MaxBody)
	if err := r.ParseForm(); err != nil || len(r.PostForm["logout_token"]) != 1 {
		refused(http.StatusBadRequest, "bad_request", "The body is a form with one logout_token of at most 64 KiB.")
		return
	}
	l, err := a.cfg.Identity.Logout(r.Context(), r.PostForm.Get("logout_token"))
	var e *identity.Error
	switch {
	case errors.As(err, &e) && e.Retry:
		a.log.Warn("a back-channel logout could not be verified now", "err", err)
		refused(http.StatusServiceUnavailable, e.Code, "The gateway cannot verify the token now.")
		return
	case err != nil:
		a.log.Info("a back-channel logout was refused", "remote", hostOf(r.RemoteAddr), "err", err)
		text := "The logout token does not hold"
		if e != nil && e.Err != nil {
			text += ": " + e.Err.Error()
		}
		refused(http.StatusBadRequest, identity.CodeTokenInvalid, clean(text, 400)+".")
		return
	}
	// A provider that hangs up now has still logged out.
	n, err := a.cfg.Sessions.EndSessions(context.WithoutCancel(r.Context()), func(s store.Session) bool { return l.Ends(s.Subject, s.SID) },
		store.End{Reason: endBackChannel, By: byProvider, At: a.cfg.Now()})
	if err != nil {
		a.cfg.Identity.NotLoggedOut(l) // so that it may be tried again
		a.log.Error("a back-channel logout is in force but not stored", "subject", l.Subject, "sid", l.SessionID, "err", err)
		a.logoutFailed(w, http.StatusServiceUnavailable, "What is connected is logged out, but storing that failed; send it again.")
		return
	}
	a.log.Info("the identity provider logged somebody out", "subject", l.Subject, "sid", l.SessionID, "sessions", n)
	w.WriteHeader(http.StatusOK)
}

// logoutFailed answers in the form of section 2.8.
func (a *API) logoutFailed(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	err := json.NewEncoder(w).Encode(map[string]string{"error": "invalid_request", "error_description": text})
	if err != nil {
		a.log.Debug("answering a back-channel logout", "err", err)
	}
}
