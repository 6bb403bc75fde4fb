package localapi_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/internal/wire"
)

// TestMain is also the other user's process: with PORTVAKT_TEST_CALL set it
// makes the calls it names and prints the answers.
func TestMain(m *testing.M) {
	if call := os.Getenv("PORTVAKT_TEST_CALL"); call != "" {
		for one := range strings.SplitSeq(call, ",") {
			fmt.Println(callAs(one, os.Getenv("PORTVAKT_TEST_SOCKET")))
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func callAs(call, socket string) string {
	c := localapi.NewClient(socket)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var err error
	switch call {
	case "status":
		var st *localapi.Status
		if st, err = c.Status(ctx); err == nil {
			return fmt.Sprintf("limited=%v session=%v device=%q", st.Limited, st.Session != nil, st.DeviceID)
		}
	case "apps":
		_, err = c.Apps(ctx)
	case "why":
		_, err = c.Why(ctx, "crm")
	case "login":
		_, err = c.Login(ctx, func(localapi.LoginEvent) error { return nil })
	case "logout":
		_, err = c.Logout(ctx)
	}
	var refused *localapi.RefusedError
	var e *wire.Error
	switch {
	case errors.As(err, &refused):
		return "refused " + refused.Err.Code
	case errors.As(err, &e):
		return "error " + e.Code
	case err != nil:
		return "failed " + err.Error()
	}
	return "ok"
}

type fixture struct {
	path    string
	session *wire.Session
	finish  *wire.Finish
	callers chan localapi.Caller
	login   func(context.Context, func(*wire.LoginResponse) error) (*wire.State, error)
}

// serve starts a server whose agent runs as own.
func serve(t *testing.T, own uint32, f *fixture) {
	t.Helper()
	dir, err := os.MkdirTemp("", "pv") // a short path: Unix sockets have a limit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f.path = filepath.Join(dir, "agent.sock")
	f.callers = make(chan localapi.Caller, 10)
	ctx, cancel := context.WithCancel(t.Context())
	s := localapi.New(localapi.Config{
		Path: f.path, OwnUID: own,
		Status: func() localapi.Status {
			return localapi.Status{State: localapi.StateConnected, DeviceID: "dev-1", Session: f.session, Finish: f.finish, Since: time.Now()}
		},
		Apps: func() []localapi.App { return nil },
		Why: func(_ context.Context, app string) (*wire.Denial, error) {
			return &wire.Denial{Reason: "login_required", App: app}, nil
		},
		Login: func(ctx context.Context, who localapi.Caller, page func(*wire.LoginResponse) error) (*wire.State, error) {
			f.callers <- who
			if f.login != nil {
				return f.login(ctx, page)
			}
			return &wire.State{}, nil
		},
		Logout: func(context.Context) error { return nil },
	})
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(f.path); !errors.Is(err, os.ErrNotExist) {
			t.Error("the socket is left behind")
		}
	})
}

func TestOwnUser(t *testing.T) {
	me := uint32(os.Geteuid())
	f := &fixture{session: &wire.Session{OSUser: fmt.Sprintf("%d:me", me)}}
	serve(t, me, f)
	for call, want := range map[string]string{
		"status": `limited=false session=true device="dev-1"`, "apps": "ok", "why": "ok", "login": "ok", "logout": "ok",
	} {
		if got := callAs(call, f.path); got != want {
			t.Errorf("%s: %s", call, got)
		}
	}
	who := <-f.callers
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("%d:%s", me, u.Username); !who.Known || who.OSUser() != want {
		t.Errorf("the kernel named %+v, %q", who, who.OSUser())
	}
	if apps, err := localapi.NewClient(f.path).Apps(t.Context()); err != nil || apps.Items == nil {
		t.Error("an empty list must be [] and not null", err)
	}
}

func TestLoginStreams(t *testing.T) {
	me := uint32(os.Geteuid())
	seen := make(chan struct{})
	f := &fixture{login: func(ctx context.Context, page func(*wire.LoginResponse) error) (*wire.State, error) {
		if err := page(&wire.LoginResponse{URL: "https://idp/?a=1&b=2"}); err != nil {
			return nil, err
		}
		select {
		case <-seen: // the page arrived while the login goes on
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return &wire.State{Session: &wire.Session{Name: "Anna"}}, nil
	}}
	serve(t, me, f)
	s, err := localapi.NewClient(f.path).Login(t.Context(), func(e localapi.LoginEvent) error {
		if e.URL != "https://idp/?a=1&b=2" {
			t.Errorf("page %q", e.URL)
		}
		close(seen)
		return nil
	})
	if err != nil || s.Name != "Anna" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestLoginIsGivenUp(t *testing.T) {
	ended := make(chan struct{})
	f := &fixture{login: func(ctx context.Context, page func(*wire.LoginResponse) error) (*wire.State, error) {
		defer close(ended)
		if err := page(&wire.LoginResponse{URL: "https://idp/"}); err != nil {
			return nil, err
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	serve(t, uint32(os.Geteuid()), f)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := localapi.NewClient(f.path).Login(ctx, func(localapi.LoginEvent) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the agent goes on with a login nobody waits for")
	}
}

func TestLoginErrors(t *testing.T) {
	for _, tc := range []struct {
		err     error
		refused bool
		code    string
	}{
		{&wire.Error{Code: "idp_refused", Message: "no"}, true, "idp_refused"},
		{&wire.Error{Code: "idp_unavailable", Message: "down", Retry: true}, false, "idp_unavailable"},
		{errors.New("nobody finished"), false, "failed"},
		{&net.DNSError{Name: "g", IsNotFound: true}, false, "dns"},
	} {
		f := &fixture{login: func(context.Context, func(*wire.LoginResponse) error) (*wire.State, error) { return nil, tc.err }}
		serve(t, uint32(os.Geteuid()), f)
		_, err := localapi.NewClient(f.path).Login(t.Context(), nil)
		var refused *localapi.RefusedError
		var e *wire.Error
		if errors.As(err, &refused) != tc.refused || !errors.As(err, &e) || e.Code != tc.code {
			t.Errorf("%v: %v", tc.err, err)
		}
	}
}

func TestSocketPath(t *testing.T) {
	dir, err := os.MkdirTemp("", "pv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stale := filepath.Join(dir, "stale")
	ln, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	live := filepath.Join(dir, "live")
	ln, err = net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for path, want := range map[string]string{
		file: "is not a socket", stale: "", live: "another agent answers", filepath.Join(dir, strings.Repeat("x", 120)): "too long",
	} {
		err := localapi.New(localapi.Config{Path: path, OwnUID: uint32(os.Geteuid())}).Run(ended)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestNotRunning(t *testing.T) {
	if _, err := localapi.NewClient(filepath.Join(t.TempDir(), "none")).Status(t.Context()); !errors.Is(err, localapi.ErrNotRunning) {
		t.Errorf("got %v", err)
	}
}

func TestUnknownPath(t *testing.T) {
	f := &fixture{}
	serve(t, uint32(os.Geteuid()), f)
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", f.path)
	}}}
	for _, tc := range []struct {
		method, path string
		want         int
	}{{"GET", "/", 404}, {"GET", localapi.PathLogin, 405}, {"GET", localapi.PathLogout, 405}, {"GET", localapi.PathWhy, 400}} {
		req, err := http.NewRequest(tc.method, "http://agent"+tc.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != tc.want {
			t.Errorf("%s %s: %d", tc.method, tc.path, res.StatusCode)
		}
	}
}
