package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os/user"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// Config is what a Server needs; all but Group, Now and Log is required.
type Config struct {
	Socket string // path of the Unix socket
	// Group, when not empty, names the group whose members may use the socket;
	// its directory is then the socket's alone.
	Group    string
	URL      string // of the gateway, printed beside a code
	CA       *certs.CA
	Store    *store.Store
	Audit    *audit.Log
	Sessions *session.Manager
	Engine   *policy.Engine
	Locate   func(netip.Addr) policy.Location
	// Bundles is the directory of the bundles of every revision that was active.
	Bundles string
	Now     func() time.Time
	Log     *slog.Logger
}

// Server answers administrators.
type Server struct {
	cfg   Config
	log   *slog.Logger
	glass glass
}

// New returns a Server. It opens nothing.
func New(cfg Config) *Server {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, log: cfg.Log}
}

type actorKey struct{}

// Run listens on the socket until ctx is done. The caller holds the lock of the
// data directory.
func (s *Server) Run(ctx context.Context) error {
	ln, err := s.listen(ctx)
	if err != nil {
		return fmt.Errorf("listening for administrators: %w", err)
	}
	srv := &http.Server{
		Handler:           s.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, actorKey{}, actorOf(c))
		},
	}
	var g errgroup.Group
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	g.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serving administrators: %w", err)
		}
		return nil
	})
	return g.Wait()
}

// actorOf names the caller: os:UID:NAME, or "" when the kernel does not say.
func actorOf(c net.Conn) string {
	uid, err := peerUID(c)
	if err != nil {
		return ""
	}
	name := "?"
	if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
		name = u.Username
	}
	return fmt.Sprintf("os:%d:%s", uid, name)
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/invites", s.invite)
	mux.HandleFunc("GET /v1/devices", s.devices)
	mux.HandleFunc("GET /v1/devices/{id}", s.device)
	mux.HandleFunc("POST /v1/devices/{id}/revoke", s.revokeDevice)
	mux.HandleFunc("GET /v1/sessions", s.sessions)
	mux.HandleFunc("GET /v1/sessions/{id}", s.session)
	mux.HandleFunc("POST /v1/sessions/{id}/revoke", s.revokeSession)
	mux.HandleFunc("GET /v1/apps", s.apps)
	mux.HandleFunc("GET /v1/flows", s.flows)
	mux.HandleFunc("GET /v1/lockdowns", s.lockdowns)
	mux.HandleFunc("POST /v1/lockdowns", s.lockdown)
	mux.HandleFunc("POST /v1/lockdowns/{id}/off", s.liftLockdown)
	mux.HandleFunc("GET /v1/approvals", s.approvals)
	mux.HandleFunc("POST /v1/approvals/{id}/approve", s.approve)
	mux.HandleFunc("POST /v1/approvals/{id}/reject", s.reject)
	mux.HandleFunc("POST /v1/break-glass", s.breakGlass)
	mux.HandleFunc("POST /v1/why", s.why)
	mux.HandleFunc("GET /v1/audit", s.auditTail)
	mux.HandleFunc("GET /v1/audit/{id}", s.auditShow)
	mux.HandleFunc("POST /v1/audit/erase", s.eraseAudit)
	mux.HandleFunc("POST /v1/audit/trust-clock", s.trustClock)
	mux.HandleFunc("GET /v1/export", s.export)
	mux.HandleFunc("GET /v1/policy/bundle", s.bundle)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if actor(r) == "" {
			s.fail(w, http.StatusForbidden, "unknown_caller", "The system does not say who calls.")
			return
		}
		s.announce(w)
		mux.ServeHTTP(w, r)
	})
}

func actor(r *http.Request) string {
	a, _ := r.Context().Value(actorKey{}).(string)
	return a
}

func (s *Server) answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		s.log.Debug("answering an administrator", "err", err)
	}
}

func (s *Server) fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(wire.Error{Code: code, Message: message}); err != nil {
		s.log.Debug("answering an administrator", "err", err)
	}
}

// errAmbiguous is a name that several devices have.
var errAmbiguous = errors.New("several devices have that name; use the ID that the list shows")

// notFound is something an administrator named that is not there.
type notFound struct{ kind, name string }

func (n notFound) Error() string {
	list := map[string]string{"device": "devices list", "session": "sessions list --all", "lockdown": "lockdown list", "act": "approvals list"}[n.kind]
	called := "has the ID"
	if n.kind == "device" {
		called = "is called"
	}
	return fmt.Sprintf("no %s %s %q; see: portvakt-gateway %s", n.kind, called, n.name, list)
}

func (notFound) Unwrap() error { return store.ErrNotFound }

// missing says of what the store did not find what it was and where to look.
func missing(kind, name string, err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return notFound{kind, name}
	}
	return err
}

// failed answers an error; what was not found is the administrator's to mend,
// the rest the gateway's.
func (s *Server) failed(w http.ResponseWriter, what string, err error) {
	var none notFound
	if errors.As(err, &none) {
		s.fail(w, http.StatusNotFound, "not_found", none.Error())
		return
	}
	if errors.Is(err, store.ErrNotFound) {
		s.fail(w, http.StatusNotFound, "not_found", what+": there is no such thing.")
		return
	}
	if errors.Is(err, errAmbiguous) {
		s.fail(w, http.StatusConflict, "ambiguous", fmt.Sprintf("%s: %v.", what, err))
		return
	}
	s.log.Error("an administrator's call failed", "err", fmt.Errorf("%s: %w", what, err))
	s.fail(w, http.StatusInternalServerError, "failed", fmt.Sprintf("%s: %v.", what, err))
}

// asked is failed for what may be a mistake of the one who asked.
func (s *Server) asked(w http.ResponseWriter, what string, err error) {
	var bad badQuestion
	if errors.As(err, &bad) {
		s.fail(w, http.StatusBadRequest, "bad_request", bad.Error())
		return
	}
	s.failed(w, what, err)
}

func decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, wire.MaxBody))
	d.DisallowUnknownFields()
	return d.Decode(v)
}

// looked records that somebody looked at what is recorded about people.
func (s *Server) looked(r *http.Request, at string) {
	s.cfg.Audit.Note(audit.Record{Kind: audit.KindAdmin, Actor: actor(r), Outcome: "looked", Detail: map[string]string{"at": at}})
}
