package identity_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/portvakt/portvakt/gateway/identity"
)

// idp is a small OpenID provider that checks what a relying party sends, and
// that a test can make misbehave by setting a hook.
type idp struct {
	srv *httptest.Server
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey
	now func() time.Time

	mu     sync.Mutex
	hits   map[string]int
	codes  map[string]url.Values // code -> authorization request
	n      int
	kid    string                                        // of the RSA key, in tokens and in the key document
	auth   string                                        // how the last token request authenticated: none, basic, post
	secret string                                        // "" means that clients are public
	meta   func(map[string]any)                          // changes the discovery document
	claims func(map[string]any)                          // changes the claims
	sign   func(payload []byte) string                   // replaces the signing
	block  func(http.ResponseWriter, *http.Request) bool // true: it answered itself
}

var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newIDP(t *testing.T) *idp {
	t.Helper()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &idp{rsa: testKey(), ec: ec, now: time.Now, kid: "k1", hits: map[string]int{}, codes: map[string]url.Values{}}
	i.srv = httptest.NewServer(http.HandlerFunc(i.serve))
	t.Cleanup(i.srv.Close)
	return i
}

func (i *idp) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func (i *idp) count(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.hits[path]
}

func (i *idp) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	i.hits[r.URL.Path]++
	block := i.block
	i.mu.Unlock()
	if block != nil && block(w, r) {
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		m := map[string]any{
			"issuer": i.srv.URL, "authorization_endpoint": i.srv.URL + "/authorize", "token_endpoint": i.srv.URL + "/token",
			"jwks_uri": i.srv.URL + "/keys", "id_token_signing_alg_values_supported": []string{"RS256", "HS256", "none"},
		}
		if i.meta != nil {
			i.meta(m)
		}
		_ = json.NewEncoder(w).Encode(m)
	case "/keys":
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{
			{Key: i.rsa.Public(), KeyID: i.kid, Algorithm: "RS256", Use: "sig"},
			{Key: i.ec.Public(), KeyID: "ec", Algorithm: "ES256", Use: "sig"},
		}})
	case "/authorize":
		i.authorize(w, r)
	case "/token":
		i.token(w, r)
	default:
		http.NotFound(w, r)
	}
}

func (i *idp) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	for k, want := range map[string]string{"response_type": "code", "client_id": "portvakt", "code_challenge_method": "S256"} {
		if q.Get(k) != want {
			http.Error(w, fmt.Sprintf("%s is %q", k, q.Get(k)), http.StatusBadRequest)
			return
		}
	}
	for _, k := range []string{"state", "nonce", "code_challenge"} {
		if b, err := base64.RawURLEncoding.DecodeString(q.Get(k)); err != nil || len(b) < 32 {
			http.Error(w, k+" has not 256 bits", http.StatusBadRequest)
			return
		}
	}
	i.n++
	code := fmt.Sprintf("code-%d", i.n)
	i.codes[code] = q
	back := url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {i.srv.URL}}
	w.Header().Set("Location", q.Get("redirect_uri")+"?"+back.Encode())
	w.WriteHeader(http.StatusFound)
}

func (i *idp) token(w http.ResponseWriter, r *http.Request) {
	fail := func(code, text string) {
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": code, "error_description": text})
	}
	id, secret, basic := r.BasicAuth()
	i.auth = "none"
	if basic {
		i.auth = "basic"
	} else if id, secret = r.FormValue("client_id"), r.FormValue("client_secret"); secret != "" {
		i.auth = "post"
	}
	if id != "portvakt" || secret != i.secret {
		fail("invalid_client", "wrong client")
		return
	}
	req, ok := i.codes[r.FormValue("code")]
	delete(i.codes, r.FormValue("code"))
	sum := sha256.Sum256([]byte(r.FormValue("code_verifier")))
	switch {
	case !ok:
		fail("invalid_grant", "no such code\x1b[31m")
		return
	case r.FormValue("redirect_uri") != req.Get("redirect_uri"):
		fail("invalid_grant", "another redirect_uri")
		return
	case base64.RawURLEncoding.EncodeToString(sum[:]) != req.Get("code_challenge"):
		fail("invalid_grant", "wrong verifier")
		return
	}
	now := i.now()
	c := map[string]any{
		"iss": i.srv.URL, "sub": "anna-1", "aud": "portvakt", "nonce": req.Get("nonce"),
		"iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"name": "Anna Andersson", "email": "anna@example.com", "email_verified": true,
		"groups": []string{"support", "agents"},
	}
	if i.claims != nil {
		i.claims(c)
	}
	payload, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	sign := i.sign
	if sign == nil {
		sign = func(p []byte) string { return signed(jose.RS256, i.rsa, i.kid, p) }
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"access_token": "at-secret", "token_type": "Bearer", "expires_in": 300, "id_token": sign(payload),
	})
}

func signed(alg jose.SignatureAlgorithm, key any, kid string, payload []byte) string {
	opt := (&jose.SignerOptions{}).WithType("JWT")
	if kid != "" {
		opt = opt.WithHeader("kid", kid)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opt)
	if err != nil {
		panic(err)
	}
	j, err := s.Sign(payload)
	if err != nil {
		panic(err)
	}
	out, err := j.CompactSerialize()
	if err != nil {
		panic(err)
	}
	return out
}

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now()} }
func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

const redirect = "http://127.0.0.1:40123/callback"

func provider(t *testing.T, i *idp, change func(*identity.Config)) *identity.Provider {
	t.Helper()
	cfg := identity.Config{Issuer: i.srv.URL, ClientID: "portvakt", Now: i.now}
	if change != nil {
		change(&cfg)
	}
	p, err := identity.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// browse opens the login page as the person's browser would and returns the
// answer that arrives at the agent.
func browse(t *testing.T, authURL string) identity.Finish {
	t.Helper()
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer c.CloseIdleConnections()
	resp, err := c.Get(authURL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	loc, err := resp.Location()
	if err != nil {
		t.Fatalf("%s: no redirect (%s)", authURL, resp.Status)
	}
	q := loc.Query()
	return identity.Finish{DeviceID: "dev-1", State: q.Get("state"), Code: q.Get("code"), Issuer: q.Get("iss")}
}

func begin(t *testing.T, p *identity.Provider) identity.Finish {
	t.Helper()
	u, _, err := p.Begin(context.Background(), identity.Begin{DeviceID: "dev-1", OSUser: "1000:anna", RedirectURI: redirect})
	if err != nil {
		t.Fatal(err)
	}
	return browse(t, u)
}

func with(m map[string]any) func(map[string]any) {
	return func(c map[string]any) { maps.Copy(c, m) }
}

var otherKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})
