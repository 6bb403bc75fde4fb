package identity_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/portvakt/portvakt/gateway/identity"
)

func begun(p *identity.Provider, device string) error {
	_, _, err := p.Begin(context.Background(), identity.Begin{DeviceID: device, OSUser: "u", RedirectURI: redirect})
	return err
}

// The provider is down when the gateway starts: the failure is remembered for
// a few seconds, and then it is asked again.
func TestDownThenUp(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	down := func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, "<html>\x1b[2J"+strings.Repeat("x", 10000))
		return true
	}
	i.set(func() { i.block = down })
	p := provider(t, i, nil)
	const doc = "/.well-known/openid-configuration"
	for range 3 {
		e := wantCode(t, begun(p, "d"), identity.CodeUnavailable)
		if !e.Retry || len(e.Error()) > 1000 || strings.Contains(e.Error(), "\x1b") {
			t.Errorf("%+v", e)
		}
	}
	if n := i.count(doc); n != 1 {
		t.Errorf("%d requests in three tries", n)
	}
	i.set(func() { i.block = nil })
	wantCode(t, begun(p, "d"), identity.CodeUnavailable)
	c.Add(4 * time.Second)
	if err := begun(p, "d"); err != nil {
		t.Fatal(err)
	}
	// Once known it stays known through an outage, for a login that is under way.
	c.Add(58 * time.Minute)
	f := begin(t, p)
	i.set(func() {
		i.block = func(w http.ResponseWriter, r *http.Request) bool { return r.URL.Path == doc && down(w, r) }
	})
	before := i.count(doc)
	c.Add(5 * time.Minute)
	if _, err := p.Finish(t.Context(), f); err != nil {
		t.Errorf("an outage after discovery: %v", err)
	}
	if n := i.count(doc) - before; n != 1 {
		t.Errorf("%d requests, want 1", n)
	}
}

// A provider that is away is known, and said once, before somebody wants to log
// in.
func TestSilenceIsKnownBeforeALogin(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	i.set(func() {
		i.block = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true }
	})
	var said bytes.Buffer
	p := provider(t, i, func(cfg *identity.Config) { cfg.Log = slog.New(slog.NewTextHandler(&said, nil)) })
	if err := p.Healthy(); err != nil {
		t.Errorf("before it was asked: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	for end := time.Now().Add(30 * time.Second); p.Healthy() == nil; time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("its silence is not known")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if text := p.Healthy().Error(); !strings.HasPrefix(text, i.srv.URL+" does not answer; nobody can log in: ") || !strings.Contains(text, "502") || strings.Contains(text, "Your company") {
		t.Error(text)
	}
	// A provider that has come up since keeps nobody waiting.
	i.set(func() { i.block = nil })
	if err := begun(p, "d"); err != nil {
		t.Error(err)
	}
	if err := p.Healthy(); err != nil {
		t.Error(err)
	}
	text := said.String()
	if strings.Count(text, `level=WARN msg="the identity provider does not answer; nobody can log in" url=`+i.srv.URL) != 1 || strings.Count(text, "answers again") != 1 {
		t.Errorf("it said:\n%s", text)
	}
}

func TestConnectionRefused(t *testing.T) {
	i := newIDP(t)
	p := provider(t, i, nil)
	f := begin(t, p)
	i.srv.Close()
	_, err := p.Finish(t.Context(), f)
	if e := wantCode(t, err, identity.CodeUnavailable); e.Retry {
		t.Error("the state is used up, but Retry is set")
	}
	q := provider(t, i, nil)
	if e := wantCode(t, begun(q, "d"), identity.CodeUnavailable); !strings.Contains(e.Error(), "refused") {
		t.Error(e)
	}
}

// A hanging provider holds a caller no longer than the caller waits, and gets
// one request for all of them.
func TestSlowSingleFlight(t *testing.T) {
	i := newIDP(t)
	release := make(chan struct{})
	i.set(func() {
		i.block = func(http.ResponseWriter, *http.Request) bool { <-release; return false }
	})
	p := provider(t, i, nil)
	var wg sync.WaitGroup
	for n := range 50 {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
			defer cancel()
			start := time.Now()
			_, _, err := p.Begin(ctx, identity.Begin{DeviceID: fmt.Sprint(n), RedirectURI: redirect})
			var e *identity.Error
			if !errors.As(err, &e) || e.Code != identity.CodeUnavailable || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("waited %v", d)
			}
		})
	}
	wg.Wait()
	close(release)
	if err := begun(p, "d"); err != nil {
		t.Error(err)
	}
	if n := i.count("/.well-known/openid-configuration"); n > 2 {
		t.Errorf("%d requests", n)
	}
}

func TestBadDiscovery(t *testing.T) {
	for name, c := range map[string]struct {
		meta map[string]any
		want string
	}{
		"other issuer":   {map[string]any{"issuer": "https://evil.example"}, `calls itself "https://evil.example"`},
		"token http":     {map[string]any{"token_endpoint": "http://idp.example/token"}, "token_endpoint"},
		"keys http":      {map[string]any{"jwks_uri": "http://idp.example/keys"}, "jwks_uri"},
		"no keys":        {map[string]any{"jwks_uri": ""}, "jwks_uri"},
		"auth is script": {map[string]any{"authorization_endpoint": "javascript:alert(1)"}, "authorization_endpoint"},
		"auth is file":   {map[string]any{"authorization_endpoint": "file:///etc/passwd"}, "authorization_endpoint"},
		"auth http":      {map[string]any{"authorization_endpoint": "http://idp.example/a"}, "authorization_endpoint"},
		"wrong types":    {map[string]any{"token_endpoint": 5}, "configuration"},
		"huge":           {map[string]any{"x": strings.Repeat("x", 2<<20)}, "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIDP(t)
			i.meta = with(c.meta)
			if e := wantCode(t, begun(provider(t, i, nil), "d"), identity.CodeUnavailable); !strings.Contains(e.Error(), c.want) {
				t.Errorf("%q does not say %q", e, c.want)
			}
		})
	}
}

func TestNoRedirects(t *testing.T) {
	i := newIDP(t)
	p := provider(t, i, nil)
	f := begin(t, p)
	var stolen sync.Map
	i.set(func() {
		i.block = func(w http.ResponseWriter, r *http.Request) bool {
			switch r.URL.Path {
			case "/token":
				http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
				return true
			case "/elsewhere":
				stolen.Store(r.FormValue("code"), true)
			}
			return false
		}
	})
	_, err := p.Finish(t.Context(), f)
	wantCode(t, err, identity.CodeUnavailable)
	stolen.Range(func(code, _ any) bool { t.Errorf("code %v followed a redirect", code); return true })
}

func TestTokenEndpointTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter)
		code   string
	}{
		"500":      {func(w http.ResponseWriter) { http.Error(w, "at-secret", 500) }, identity.CodeUnavailable},
		"404":      {func(w http.ResponseWriter) { http.Error(w, "at-secret", 404) }, identity.CodeUnavailable},
		"html":     {func(w http.ResponseWriter) { fmt.Fprint(w, "<html>at-secret") }, identity.CodeUnavailable},
		"huge":     {func(w http.ResponseWriter) { fmt.Fprint(w, strings.Repeat("x", 2<<20)) }, identity.CodeUnavailable},
		"hangs up": {func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, identity.CodeUnavailable},
		"no tokens": {func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"id_token":"eyJ"}`)
		}, identity.CodeUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIDP(t)
			p := provider(t, i, nil)
			f := begin(t, p)
			i.set(func() {
				i.block = func(w http.ResponseWriter, r *http.Request) bool {
					if r.URL.Path == "/token" {
						c.answer(w)
						return true
					}
					return false
				}
			})
			_, err := p.Finish(t.Context(), f)
			wantCode(t, err, c.code)
		})
	}
}

// A key document of any size costs a mebibyte, and its failure is short.
func TestHugeKeys(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	p := provider(t, i, nil)
	i.set(func() {
		i.block = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path != "/keys" {
				return false
			}
			chunk := []byte(strings.Repeat(" ", 1<<20))
			for range 100 {
				if _, err := w.Write(chunk); err != nil {
					return true
				}
			}
			return true
		}
	})
	start := time.Now()
	_, err := p.Finish(t.Context(), begin(t, p))
	wantCode(t, err, identity.CodeUnavailable)
	if d := time.Since(start); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	i.set(func() { i.block = nil })
	c.Add(4 * time.Second)
	if _, err := p.Finish(t.Context(), begin(t, p)); err != nil {
		t.Error(err)
	}
}

// Tokens with unknown key ids cost the provider two fetches, then one a
// minute; a new key is found at once, and a removed one dies in five minutes.
func TestKeyRotation(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	p := provider(t, i, nil)
	login := func() error {
		_, err := p.Finish(context.Background(), begin(t, p))
		return err
	}
	if err := login(); err != nil {
		t.Fatal(err)
	}
	i.set(func() { i.kid = "k2" })
	if err := login(); err != nil {
		t.Fatalf("a new key: %v", err)
	}
	i.set(func() { i.sign = func(b []byte) string { return signed(jose.RS256, otherKey(), "nobody's", b) } })
	for range 20 {
		wantCode(t, login(), identity.CodeTokenInvalid)
	}
	if n := i.count("/keys"); n != 2 {
		t.Errorf("%d fetches, want 2", n)
	}
	c.Add(61 * time.Second)
	for range 20 {
		wantCode(t, login(), identity.CodeTokenInvalid)
	}
	if n := i.count("/keys"); n != 3 {
		t.Errorf("%d fetches, want 3", n)
	}
	// The provider forgets its RSA key; tokens it signed still turn up.
	old := i.rsa
	i.set(func() {
		i.rsa, i.kid = otherKey(), "k3"
		i.sign = func(b []byte) string { return signed(jose.RS256, old, "k2", b) }
	})
	if err := login(); err != nil {
		t.Errorf("a cached key: %v", err)
	}
	c.Add(5 * time.Minute)
	wantCode(t, login(), identity.CodeTokenInvalid)
}

func TestManyPending(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	p := provider(t, i, nil)

	var all []identity.Finish
	for range 6 {
		all = append(all, begin(t, p))
	}
	_, err := p.Finish(t.Context(), all[0])
	wantCode(t, err, identity.CodeUnknownState)
	for _, f := range all[1:] {
		if _, err := p.Finish(t.Context(), f); err != nil {
			t.Error(err)
		}
	}
	n := 0
	for ; n < 20_000; n++ {
		if err := begun(p, fmt.Sprintf("dev-%d", n/5)); err != nil {
			e := wantCode(t, err, identity.CodeTooMany)
			if !e.Retry {
				t.Error("not to be tried again")
			}
			break
		}
	}
	if n != 10_000 {
		t.Errorf("%d logins were kept, want 10000", n)
	}
	c.Add(10 * time.Minute)
	if err := begun(p, "late"); err != nil {
		t.Errorf("after they ran out: %v", err)
	}
}
