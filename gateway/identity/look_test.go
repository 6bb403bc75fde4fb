package identity_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/policy"
)

const discoveryDoc = "/.well-known/openid-configuration"

// hole is a listener that can take connections and keep silent about them, like
// a machine that hangs.
type hole struct {
	net.Listener
	dark  atomic.Bool
	taken chan net.Conn
}

func (h *hole) Accept() (net.Conn, error) {
	for {
		c, err := h.Listener.Accept()
		if err != nil || !h.dark.Load() {
			return c, err
		}
		h.taken <- c
	}
}

// dark is a provider with TLS that was found, and whose machine hangs now.
func dark(t *testing.T, c *clock) (*idp, *hole, *identity.Provider) {
	t.Helper()
	i := newIDP(t)
	i.now = c.Now
	srv := httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	h := &hole{Listener: srv.Listener, taken: make(chan net.Conn, 10)}
	srv.Listener = h
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	i.srv = srv
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	p := provider(t, i, func(cfg *identity.Config) { cfg.CAFile = file })
	if err := begun(p, "d"); err != nil {
		t.Fatal(err)
	}
	h.dark.Store(true)
	c.Add(4 * time.Second)
	return i, h, p
}

// A provider that died after it was found is said at the login, not at a dead
// page, and the login works as soon as it is back.
func TestDeadAfterDiscovery(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	var said bytes.Buffer
	p := provider(t, i, func(cfg *identity.Config) { cfg.Log = slog.New(slog.NewTextHandler(&said, nil)) })
	if err := begun(p, "d"); err != nil {
		t.Fatal(err)
	}
	i.set(func() {
		i.block = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true }
	})
	c.Add(4 * time.Second)
	for range 3 {
		e := wantCode(t, begun(p, "d"), identity.CodeUnavailable)
		if want := policy.Reasons[policy.ReasonIDPUnavailable]["en"]; !e.Retry || e.Message != want.Message || e.Remedy != want.Remedy || !strings.Contains(e.Error(), "502") {
			t.Errorf("%+v", e)
		}
	}
	if n := i.count(discoveryDoc); n != 2 {
		t.Errorf("%d requests in four logins, want 2", n)
	}
	if err := p.Healthy(); err == nil || !strings.Contains(err.Error(), "502") {
		t.Errorf("its health: %v", err)
	}
	i.set(func() { i.block = nil })
	c.Add(3 * time.Second)
	if err := begun(p, "d"); err != nil {
		t.Errorf("it is back: %v", err)
	}
	if err := p.Healthy(); err != nil {
		t.Error(err)
	}
	if text := said.String(); strings.Count(text, "does not answer; nobody can log in") != 1 || strings.Count(text, "answers again") != 1 {
		t.Errorf("it said:\n%s", text)
	}
	i.srv.Close()
	c.Add(3 * time.Second)
	if e := wantCode(t, begun(p, "d"), identity.CodeUnavailable); !strings.Contains(e.Error(), "refused") {
		t.Error(e)
	}
}

// A machine that hangs is no reason to wait for longer than a look takes, and a
// second click waits for the first one's.
func TestHangsAfterDiscovery(t *testing.T) {
	c := newClock()
	i, h, p := dark(t, c)
	over := make(chan struct{})
	p.SetBound(func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		go func() { <-over; cancel() }()
		return ctx, cancel
	})
	// Who gives up takes nobody along.
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _, err := p.Begin(ctx, identity.Begin{DeviceID: "d", OSUser: "u", RedirectURI: redirect})
		wantCode(t, err, identity.CodeUnavailable)
	})
	select {
	case held := <-h.taken:
		defer held.Close()
	case <-time.After(30 * time.Second):
		t.Fatal("nobody asked whether it answers")
	}
	wg.Go(func() { wantCode(t, begun(p, "d"), identity.CodeUnavailable) })
	leave()
	close(over)
	wg.Wait()
	wantCode(t, begun(p, "d"), identity.CodeUnavailable)
	if n := len(h.taken); n != 0 {
		t.Errorf("%d more looks at once", n)
	}
	h.dark.Store(false)
	p.SetBound(func(ctx context.Context) (context.Context, context.CancelFunc) { return ctx, func() {} })
	c.Add(3 * time.Second)
	if err := begun(p, "d"); err != nil {
		t.Errorf("it is back: %v", err)
	}
	if n := i.count(discoveryDoc); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

// A provider that takes connections and is slow is there: the login goes on.
// What it says is not looked at either; what is known of it stays known.
func TestSlowAfterDiscovery(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	p := provider(t, i, nil)
	if err := begun(p, "d"); err != nil {
		t.Fatal(err)
	}
	asked, over := make(chan struct{}), make(chan struct{})
	defer close(over)
	i.set(func() {
		i.block = func(http.ResponseWriter, *http.Request) bool {
			select {
			case asked <- struct{}{}:
			case <-over:
			}
			<-over
			return false
		}
	})
	p.SetBound(func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		go func() {
			select {
			case <-asked:
				cancel()
			case <-ctx.Done():
			}
		}()
		return ctx, cancel
	})
	c.Add(4 * time.Second)
	for range 2 {
		if err := begun(p, "d"); err != nil {
			t.Errorf("a slow one: %v", err)
		}
	}
	if n := i.count(discoveryDoc); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
	i.set(func() {
		i.block = func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}
	})
	c.Add(4 * time.Second)
	if err := begun(p, "d"); err != nil {
		t.Errorf("one that answers something else: %v", err)
	}
}
