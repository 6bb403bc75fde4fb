package localapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/agent/peeruser"
	"github.com/portvakt/portvakt/internal/wire"
)

// Caller is who called, as the kernel says.
type Caller struct {
	UID   uint32
	Known bool // false where the kernel does not say
}

// OSUser returns the caller as [wire.LoginRequest] wants it: "uid:name".
func (c Caller) OSUser() string {
	id := strconv.FormatUint(uint64(c.UID), 10)
	u, err := user.LookupId(id)
	if err != nil {
		return id + ":" + id
	}
	return id + ":" + u.Username
}

// UserOf returns the uid of the OS user whose the tunnel is: who logged in, or
// who finishes what is open after the login has ended.
func UserOf(s *wire.Session, f *wire.Finish) (uint32, bool) {
	switch {
	case s != nil:
		return OSUserID(s.OSUser)
	case f != nil:
		return OSUserID(f.OSUser)
	}
	return 0, false
}

// OSUserID returns the uid of an OS user as Sessions name it: UID:NAME.
func OSUserID(osUser string) (uint32, bool) {
	id, _, _ := strings.Cut(osUser, ":")
	n, err := strconv.ParseUint(id, 10, 32)
	return uint32(n), err == nil
}

// Config is what a Server answers with. Every func is the agent's.
type Config struct {
	// Path of the socket.
	Path string
	// OwnUID is the agent's own user. When it is root, every local user may
	// ask for the status and log in for themselves.
	OwnUID uint32
	Status func() Status
	Apps   func() []App
	Why    func(ctx context.Context, app string) (*wire.Denial, error)
	// Login runs a login of the caller to its end; page is called once.
	Login  func(ctx context.Context, who Caller, page func(*wire.LoginResponse) error) (*wire.State, error)
	Logout func(context.Context) error
	Log    *slog.Logger // nil discards
}

// Server answers the agent's commands.
type Server struct {
	cfg   Config
	ready chan struct{}
}

// New opens nothing.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg, ready: make(chan struct{})}
}

// Ready is closed once the socket takes calls.
func (s *Server) Ready() <-chan struct{} { return s.ready }

type callerKey struct{}

// Run serves until ctx is done, then ends what is under way and removes the
// socket.
func (s *Server) Run(ctx context.Context) error {
	ln, err := s.listen(ctx)
	if err != nil {
		return err
	}
	defer ln.Close()
	srv := &http.Server{
		Handler:           s.routes(),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			uid, err := peeruser.Unix(c)
			if err != nil {
				s.cfg.Log.Debug("the caller of the local API is not known", "err", err)
			}
			return context.WithValue(ctx, callerKey{}, Caller{UID: uid, Known: err == nil})
		},
		ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	var serving sync.WaitGroup
	failed := make(chan error, 1)
	serving.Go(func() { failed <- srv.Serve(ln) })
	defer serving.Wait()
	close(s.ready)
	select {
	case err := <-failed:
		return fmt.Errorf("serving the local API: %w", err)
	case <-ctx.Done():
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if srv.Shutdown(bye) != nil {
		srv.Close()
	}
	return nil
}

func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	path := s.cfg.Path
	// sun_path holds 108 bytes on Linux and 104 on macOS, with the zero.
	limit := 108
	if runtime.GOOS == "darwin" {
		limit = 104
	}
	if len(path) >= limit {
		return nil, fmt.Errorf("opening the local API: the path of the socket %s is too long for a Unix socket; name a shorter one with --socket", path)
	}
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("opening the local API: %w", err)
	case st.Mode()&fs.ModeSocket == 0 && runtime.GOOS != "windows":
		return nil, fmt.Errorf("opening the local API: %s exists and is not a socket; remove it or name another with --socket", path)
	default:
		// What a killed agent left behind refuses connections.
		if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("opening the local API: another agent answers at %s; stop it or name another socket with --socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("opening the local API: %w", err)
		}
	}
	ln, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("opening the local API: %w", err)
	}
	mode := fs.FileMode(0o600)
	if s.cfg.OwnUID == 0 {
		mode = 0o666 // every caller is judged by uid
	}
	if runtime.GOOS != "windows" {
		if err := os.Chmod(path, mode); err != nil {
			ln.Close()
			return nil, fmt.Errorf("opening the local API: %w", err)
		}
	}
	return ln, nil
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathStatus, s.status)
	mux.HandleFunc("GET "+PathApps, s.apps)
	mux.HandleFunc("GET "+PathWhy, s.why)
	mux.HandleFunc("POST "+PathLogin, s.login)
	mux.HandleFunc("POST "+PathLogout, s.logout)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.mayCall(caller(r)) {
			answer(w, http.StatusForbidden, &wire.Error{
				Code:    "not_your_agent",
				Message: "This agent belongs to another user of this laptop.", Remedy: "Run the command as the user who started the agent.",
			})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func caller(r *http.Request) Caller {
	c, _ := r.Context().Value(callerKey{}).(Caller)
	return c
}

// mayCall says who gets past the door at all.
func (s *Server) mayCall(c Caller) bool {
	if !c.Known {
		return runtime.GOOS == "windows" // the file's ACL stands in; see login
	}
	return s.cfg.OwnUID == 0 || c.UID == 0 || c.UID == s.cfg.OwnUID
}

// owns says whether the caller may see everything and end the login and what is
// being finished after it: the OS user whose it is, and root. While there is
// neither, there is nothing of anyone's to see.
func owns(c Caller, st Status) bool {
	if st.Session == nil && st.Finish == nil || c.Known && c.UID == 0 {
		return true
	}
	uid, ok := UserOf(st.Session, st.Finish)
	return ok && c.Known && uid == c.UID
}

func (s *Server) maySee(c Caller, st Status) bool {
	return owns(c, st) || c.Known && c.UID == s.cfg.OwnUID
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	answer(w, http.StatusOK, s.statusFor(caller(r)))
}

func (s *Server) statusFor(c Caller) Status {
	st := s.cfg.Status()
	st.InUse = st.Session != nil || st.Finish != nil
	if s.maySee(c, st) {
		return st
	}
	return Status{State: st.State, Version: st.Version, InUse: st.InUse, Limited: true, Since: st.Since, Trouble: st.Trouble}
}

var errNotYours = &wire.Error{
	Code: "not_your_session", Message: "Another user of this laptop is logged in, or finishes a call.",
	Remedy: "They (or an administrator of the laptop) can log out with: portvakt-agent logout",
}

func (s *Server) apps(w http.ResponseWriter, r *http.Request) {
	if !s.maySee(caller(r), s.cfg.Status()) {
		answer(w, http.StatusForbidden, errNotYours)
		return
	}
	items := s.cfg.Apps()
	if items == nil {
		items = []App{}
	}
	answer(w, http.StatusOK, Apps{Items: items})
}

func (s *Server) why(w http.ResponseWriter, r *http.Request) {
	if !s.maySee(caller(r), s.cfg.Status()) {
		answer(w, http.StatusForbidden, errNotYours)
		return
	}
	app := r.URL.Query().Get("app")
	if app == "" {
		answer(w, http.StatusBadRequest, &wire.Error{Code: "bad_request", Message: "No app is named."})
		return
	}
	d, err := s.cfg.Why(r.Context(), app)
	if err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, d)
}

func (s *Server) login(w http.ResponseWriter, r *http.Request) {
	who := caller(r)
	switch {
	case !who.Known:
		answer(w, http.StatusForbidden, &wire.Error{
			Code: "caller_unknown", Message: "This system does not say which user is asking, so nobody can log in.",
			Remedy: "Logging in works on Linux.",
		})
		return
	case s.cfg.OwnUID != 0 && who.UID != s.cfg.OwnUID: // root, who may call but is not the one who works here
		answer(w, http.StatusForbidden, &wire.Error{
			Code: "not_your_agent", Message: "This agent belongs to another user of this laptop.",
			Remedy: "Run the command as the user who started the agent.",
		})
		return
	case !owns(who, s.cfg.Status()):
		answer(w, http.StatusForbidden, errNotYours)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(w)
	flush := http.NewResponseController(w)
	st, err := s.cfg.Login(r.Context(), who, func(p *wire.LoginResponse) error {
		if err := out.Encode(LoginEvent{URL: p.URL, ExpiresAt: &p.ExpiresAt}); err != nil {
			return err
		}
		return flush.Flush()
	})
	switch {
	case err != nil:
		var refused *wire.Error
		isRefusal := errors.As(err, &refused) && !refused.Retry
		out.Encode(LoginEvent{Error: asError(err), Refused: isRefusal})
	default:
		out.Encode(LoginEvent{Session: st.Session})
	}
}

func (s *Server) logout(w http.ResponseWriter, r *http.Request) {
	who := caller(r)
	if !who.Known || !owns(who, s.cfg.Status()) {
		answer(w, http.StatusForbidden, errNotYours)
		return
	}
	if err := s.cfg.Logout(r.Context()); err != nil {
		fail(w, err)
		return
	}
	answer(w, http.StatusOK, s.statusFor(who))
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v) // an error here means that the caller is gone
}

func asError(err error) *wire.Error {
	var e *wire.Error
	if errors.As(err, &e) {
		return e
	}
	t := control.Diagnose(err)
	if t.Code == "error" { // not about the gateway: the error speaks for itself
		return &wire.Error{Code: "failed", Message: err.Error()}
	}
	return &wire.Error{Code: t.Code, Message: t.Message, Remedy: t.Remedy, Retry: true}
}

func fail(w http.ResponseWriter, err error) {
	e := asError(err)
	status := http.StatusBadGateway
	var s *control.StatusError
	if errors.As(err, &s) {
		status = s.Status
	}
	answer(w, status, e)
}
