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
	"os"
	"os/user"
	"path/filepath"
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

// Config is what a Server needs; all but Now and Log is required.
type Config struct {
	Socket   string // path of the Unix socket
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
	cfg Config
	log *slog.Logger
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
// data directory, so a socket that is there is a dead one's.
func (s *Server) Run(ctx context.Context) error {
	if err := os.Remove(s.cfg.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the old admin socket: %w", err)
	}
	ln, err := listenPrivate(ctx, s.cfg.Socket)
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

// listenPrivate makes the socket unreachable for others from its first moment:
// it is made inside a directory of mode 0700 and its own mode set before use.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if dir.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is open to others; run: chmod 700 %s", filepath.Dir(path), filepath.Dir(path))
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
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
	mux.HandleFunc("GET /v1/lockdowns", s.lockdowns)
	mux.HandleFunc("POST /v1/lockdowns", s.lockdown)
	mux.HandleFunc("POST /v1/lockdowns/{id}/off", s.liftLockdown)
	mux.HandleFunc("POST /v1/why", s.why)
	mux.HandleFunc("GET /v1/audit", s.auditTail)
	mux.HandleFunc("GET /v1/audit/{id}", s.auditShow)
	mux.HandleFunc("GET /v1/export", s.export)
	mux.HandleFunc("GET /v1/policy/bundle", s.bundle)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if actor(r) == "" {
			s.fail(w, http.StatusForbidden, "unknown_caller", "The system does not say who calls.")
			return
		}
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

// failed answers an error; what was not found is the administrator's to mend,
// the rest the gateway's.
func (s *Server) failed(w http.ResponseWriter, what string, err error) {
	if errors.Is(err, store.ErrNotFound) {
		s.fail(w, http.StatusNotFound, "not_found", what+": there is no such thing; the list shows the IDs.")
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
