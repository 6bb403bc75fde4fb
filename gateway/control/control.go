// Package control is the gateway's side of the API that agents speak:
// enroll, renew and connect on the public TLS port, and everything else on the
// gateway's own address inside the tunnel. docs/protocol.md is its description
// for people without an agent.
package control

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// Config is what the control API needs; every field but Log and Now is
// required.
type Config struct {
	CA       *certs.CA
	Store    *store.Store
	Audit    *audit.Log
	Sessions *session.Manager
	Identity *identity.Provider
	// Tunnel is what connect tells every device about the gateway's end.
	Tunnel wire.GatewayTunnel
	MTU    int
	// DNSSuffixes are the domains under which app hosts live, for agents that
	// set up split DNS.
	DNSSuffixes func() []string
	// RedirectPorts are the loopback ports the identity provider accepts.
	RedirectPorts []uint16
	// SessionLifetime is how long a login lasts.
	SessionLifetime time.Duration
	// WebSocket carries a device's datagrams over the request, upgraded, until it
	// ends. An error says that it did not answer and takes none now.
	WebSocket func(w http.ResponseWriter, r *http.Request, device string) error
	// JWKS serves the keys that verify assertions.
	JWKS http.Handler
	Now  func() time.Time
	Log  *slog.Logger
}

// Limits of connecting and of staying away.
const (
	// A connect costs two writes; a laptop that changes networks all the time needs
	// one every few seconds.
	connectBurst = 30
	connectEvery = 2 * time.Second
	// A renewal costs a signature, two records and a write. An agent needs one in
	// 16 hours, and some at once when it was started several times.
	renewBurst = 10
	renewEvery = 10 * time.Minute
	// RegistrationLifetime is how long a tunnel key is good for without renewal.
	RegistrationLifetime = 12 * time.Hour
	// UnseenLimit is how long a device may stay away and still renew an expired
	// certificate without a human.
	UnseenLimit = 45 * 24 * time.Hour
)

// API serves both surfaces.
type API struct {
	cfg Config
	log *slog.Logger

	// registerMu keeps the store's and the sessions' idea of a device's newest
	// registration the same when one device connects twice at once.
	registerMu sync.Mutex

	// connects and renewals bound how often each device does that.
	connects, renewals *paces

	// strangers, revoked and known bound what refusals on the public port write.
	strangers, revoked *audit.Refusals
	known              *refusals
}

// New returns an API. It opens nothing.
func New(cfg Config) *API {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &API{
		cfg: cfg, log: cfg.Log,
		connects: newPaces(connectEvery, connectBurst, cfg.Now), renewals: newPaces(renewEvery, renewBurst, cfg.Now),
		strangers: audit.NewRefusals(cfg.Audit, cfg.Now), revoked: audit.NewRefusals(cfg.Audit, cfg.Now),
		known: &refusals{log: cfg.Audit, now: cfg.Now, of: map[string]*audit.Refusals{}},
	}
}

// paces bounds how often each device does one thing: one limiter per device that
// ever did it to this process.
type paces struct {
	every time.Duration
	burst int
	now   func() time.Time

	mu sync.Mutex
	of map[string]*rate.Limiter // guarded by mu
}

func newPaces(every time.Duration, burst int, now func() time.Time) *paces {
	return &paces{every: every, burst: burst, now: now, of: map[string]*rate.Limiter{}}
}

func (p *paces) allow(device string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.of[device]
	if l == nil {
		l = rate.NewLimiter(rate.Every(p.every), p.burst)
		p.of[device] = l
	}
	return l.AllowN(p.now(), 1)
}

// Public returns the handler of the public TLS port.
func (a *API) Public() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+wire.PathEnroll, a.enroll)
	mux.HandleFunc("POST "+wire.PathRenew, a.renew)
	mux.HandleFunc("POST "+wire.PathConnect, a.connect)
	mux.HandleFunc("GET "+wire.PathTunnel, a.tunnel)
	mux.Handle("GET "+wire.PathJWKS, a.cfg.JWKS)
	mux.HandleFunc("POST "+PathBackChannelLogout, a.backChannelLogout)
	return plain(mux)
}

// Tunnel returns the handler of the gateway's own inner address. Every call
// must come from a connected device's address, carry that device's control
// token, and not come from a web page.
func (a *API) Tunnel() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request, string)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if id, ok := a.caller(w, r); ok {
				h(w, r, id)
			}
		})
	}
	handle("GET "+wire.PathState, a.state)
	handle("GET "+wire.PathEvents, a.events)
	handle("POST "+wire.PathRegistration, a.registration)
	handle("POST "+wire.PathLogin, a.login)
	handle("POST "+wire.PathLoginComplete, a.loginComplete)
	handle("POST "+wire.PathLogout, a.logout)
	handle("POST "+wire.PathPosture, a.posture)
	handle("GET "+wire.PathWhy, a.why)
	return plain(mux)
}

// plain sets the headers every answer has.
func plain(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		next.ServeHTTP(w, r)
	})
}

// caller proves who calls inside the tunnel. The answers of all its refusals
// are the same in shape, and tell nothing about other devices.
func (a *API) caller(w http.ResponseWriter, r *http.Request) (id string, ok bool) {
	if r.Header.Get("Origin") != "" || r.Header.Get("Sec-Fetch-Site") != "" {
		a.fail(w, http.StatusForbidden, &wire.Error{Code: "from_a_web_page", Message: "The control API does not answer web pages."})
		return "", false
	}
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	token := r.Header.Get(wire.TokenHeader)
	if err == nil && token != "" {
		id, ok = a.cfg.Sessions.TokenDevice(peer.Addr(), sha256.Sum256([]byte(token)))
	}
	if !ok {
		a.fail(w, http.StatusUnauthorized, &wire.Error{
			Code: "bad_token", Message: "The control token is missing or not this connection's.",
			Remedy: "Connect again; every connect gives a new token.",
		})
	}
	return id, ok
}

// read decodes a bounded body strictly; on failure it has answered. Where that is
// to be recorded, refused does it, without the words of the caller.
func (a *API) read(w http.ResponseWriter, r *http.Request, v any, refused func(code, message string)) bool {
	fail := func(status int, message, more string) {
		e := &wire.Error{Code: "bad_request", Message: message + more + "."}
		if refused != nil {
			refused(e.Code, message+".")
		}
		a.fail(w, status, e)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wire.MaxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		fail(http.StatusRequestEntityTooLarge, "The body is larger than 64 KiB", "")
		return false
	case err != nil:
		return false // the caller is gone
	}
	if err := wire.DecodeStrict(body, v); err != nil {
		fail(http.StatusBadRequest, "The body is not the JSON this call takes", ": "+err.Error())
		return false
	}
	return true
}

func (a *API) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		a.log.Debug("answering a control call", "err", err)
	}
}

func (a *API) fail(w http.ResponseWriter, status int, e *wire.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(e); err != nil {
		a.log.Debug("answering a control call", "err", err)
	}
}

// internal answers a fault of the gateway itself; its cause is for the log.
func (a *API) internal(w http.ResponseWriter, task string, err error) {
	if !errors.Is(err, context.Canceled) {
		a.log.Error(task, "err", err)
	}
	a.fail(w, http.StatusServiceUnavailable, &wire.Error{
		Code: "unavailable", Message: "The gateway could not do this now.",
		Remedy: "Try again in a moment; your IT support finds the cause in the gateway's log.", Retry: true,
	})
}

// language is the one a device asks to be answered in.
func language(r *http.Request) string {
	return policy.Language(strings.Join(r.Header["Accept-Language"], ","))
}

// refuse answers with a Reason of the table.
func (a *API) refuse(w http.ResponseWriter, r *http.Request, status int, dec policy.Decision) {
	dec = dec.In(language(r))
	a.fail(w, status, &wire.Error{Code: string(dec.Reason), Message: dec.Message, Remedy: dec.Remedy, Denial: session.Denial(dec)})
}
