package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// client returns a Client whose tunnel ends at h.
func client(t *testing.T, h http.HandlerFunc) *control.Client {
	t.Helper()
	s := httptest.NewServer(h)
	c := control.NewClient(control.ClientConfig{
		Dial: func(ctx context.Context, addr netip.AddrPort) (net.Conn, error) {
			if want := netip.MustParseAddrPort("[fd00::1]:80"); addr != want {
				t.Errorf("dialled %v and not the gateway", addr)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
		},
		Gateway: netip.MustParseAddr("fd00::1"), Token: "tok", Silence: 200 * time.Millisecond,
	})
	t.Cleanup(func() { c.Close(); s.CloseClientConnections(); s.Close() })
	return c
}

func TestEveryCallCarriesTheToken(t *testing.T) {
	calls := map[string]func(*control.Client) error{
		"GET /v1/state": func(c *control.Client) error { _, err := c.State(t.Context()); return err },
		"GET /v1/events": func(c *control.Client) error {
			c.Events(t.Context(), func(wire.Event) error { return nil })
			return nil
		},
		"POST /v1/registration": func(c *control.Client) error { _, err := c.Registration(t.Context()); return err },
		"POST /v1/login":        func(c *control.Client) error { _, err := c.Login(t.Context(), wire.LoginRequest{}); return err },
		"POST /v1/login/complete": func(c *control.Client) error {
			_, err := c.LoginComplete(t.Context(), wire.LoginComplete{})
			return err
		},
		"POST /v1/logout":       func(c *control.Client) error { _, err := c.Logout(t.Context()); return err },
		"POST /v1/posture":      func(c *control.Client) error { _, err := c.Posture(t.Context(), wire.SignedReport{}); return err },
		"GET /v1/why?app=a%26b": func(c *control.Client) error { _, err := c.Why(t.Context(), "a&b"); return err },
	}
	for want, call := range calls {
		got := make(chan string, 10)
		c := client(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get(wire.TokenHeader) != "tok" || r.Header.Get("Origin") != "" || r.Host != "[fd00::1]" {
				t.Errorf("%s: host %q, headers %v", want, r.Host, r.Header)
			}
			got <- r.Method + " " + r.URL.RequestURI()
			io.WriteString(w, "{}")
		})
		if err := call(c); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if g := <-got; g != want {
			t.Errorf("%s is called as %s", want, g)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		code   string // "" means that the error is not the gateway's
		status int
	}{
		"an Error": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(403)
			io.WriteString(w, `{"error":"login_required","message":"M.","remedy":"R.","new_member":1}`)
		}, "login_required", 403},
		"HTML":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502); io.WriteString(w, "<html>") }, "bad_answer", 502},
		"nothing": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, "bad_answer", 500},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://evil.example/", http.StatusTemporaryRedirect)
		}, "bad_answer", 307},
		"no JSON":      {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }, "", 0},
		"endless":      {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, strings.Repeat(" ", 2<<20)) }, "", 0},
		"broken off":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "", 0},
		"wrong member": {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"epoch":"x"}`) }, "", 0},
	} {
		_, err := client(t, tc.answer).State(t.Context())
		var e *wire.Error
		var s *control.StatusError
		switch {
		case err == nil:
			t.Errorf("%s: no error", name)
		case tc.code == "" && errors.As(err, &e):
			t.Errorf("%s: %v", name, err)
		case tc.code != "" && (!errors.As(err, &e) || e.Code != tc.code || !errors.As(err, &s) || s.Status != tc.status):
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEvents(t *testing.T) {
	stop := errors.New("enough")
	for name, tc := range map[string]struct {
		lines string
		hold  bool // the stream stays open
		seen  int
		is    error
	}{
		"a stream that ends":   {"{\"type\":\"heartbeat\"}\n\n{\"type\":\"state\",\"state\":{\"epoch\":3}}\n", false, 2, io.EOF},
		"a stream gone quiet":  {"{\"type\":\"heartbeat\"}\n", true, 1, control.ErrSilent},
		"quiet from the start": {"", true, 0, control.ErrSilent},
		"enough":               {"{\"type\":\"revoked\"}\n", true, 1, stop},
		"garbled":              {"{\"type\":\n", true, 0, nil},
		"too long a line":      {strings.Repeat("x", 5<<20), true, 0, nil},
	} {
		c := client(t, func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, tc.lines)
			w.(http.Flusher).Flush()
			if tc.hold {
				<-r.Context().Done()
			}
		})
		seen := 0
		err := c.Events(t.Context(), func(e wire.Event) error {
			seen++
			if e.Type == wire.EventRevoked {
				return stop
			}
			return nil
		})
		if err == nil || seen != tc.seen || tc.is != nil && !errors.Is(err, tc.is) {
			t.Errorf("%s: %d events, %v", name, seen, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	c := client(t, func(w http.ResponseWriter, r *http.Request) { w.(http.Flusher).Flush(); cancel(); <-r.Context().Done() })
	if err := c.Events(ctx, nil); err != nil {
		t.Errorf("cancelled: %v", err)
	}
	c = client(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(401)
		io.WriteString(w, `{"error":"bad_token"}`)
	})
	var e *wire.Error
	if err := c.Events(t.Context(), nil); !errors.As(err, &e) || e.Code != "bad_token" {
		t.Errorf("refused: %v", err)
	}
}

func TestDiagnose(t *testing.T) {
	for want, err := range map[string]error{
		"dns":         &net.OpError{Op: "dial", Err: &net.DNSError{Name: "g.example"}},
		"refused":     fmt.Errorf("x: %w", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}),
		"unreachable": syscall.ENETUNREACH,
		"timeout":     context.DeadlineExceeded,
		"silent":      control.ErrSilent,
		"clock":       &control.ClockError{},
		"untrusted":   &control.UntrustedError{Cause: "c"},
		"gateway":     &wire.Error{Code: "x", Message: "M."},
		"error":       errors.New("e"),
	} {
		got := control.Diagnose(err)
		if got.Code != want || got.Message == "" || want != "gateway" && got.Remedy == "" {
			t.Errorf("%v: %+v", err, got)
		}
	}
}

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"https://Gateway.Example.com": "https://gateway.example.com", "gateway.example.com": "https://gateway.example.com",
		" https://g:8443/ ": "https://g:8443", "https://[2001:db8::1]:443": "https://[2001:db8::1]:443", "https://127.0.0.1:1": "https://127.0.0.1:1",
		"http://g": "", "https://g/x": "", "https://u@g": "", "": "", "https://": "", "mailto:x": "",
	} {
		u, err := control.ParseURL(in)
		if (err == nil) != (want != "") || err == nil && u.String() != want {
			t.Errorf("%q: %v, %v", in, u, err)
		}
	}
}
