package identity_test

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func wantCode(t *testing.T, err error, code string) *identity.Error {
	t.Helper()
	var e *identity.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want %s", err, code)
	}
	if e.Code != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
	if e.Message == "" || e.Remedy == "" {
		t.Errorf("no words for people in %+v", e)
	}
	for _, secret := range []string{"at-secret", "eyJ"} {
		if strings.Contains(e.Error()+e.Message+e.Remedy, secret) {
			t.Errorf("a token in %q", e.Error())
		}
	}
	return e
}

func TestLogin(t *testing.T) {
	i := newIDP(t)
	now := time.Now().Truncate(time.Second)
	i.claims = with(map[string]any{"iat": now.Unix(), "auth_time": now.Add(-time.Hour).Unix(), "employee": 12345678901234567, "dropped": "x"})
	p := provider(t, i, func(c *identity.Config) { c.KeepClaims = []string{"employee", "absent"} })
	u, expires, err := p.Begin(t.Context(), identity.Begin{DeviceID: "dev-1", OSUser: "1000:anna", RedirectURI: redirect})
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(expires); d < 9*time.Minute || d > 10*time.Minute {
		t.Errorf("expires in %v", d)
	}
	q, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	if got := q.Query().Get("scope"); got != "openid profile email groups" {
		t.Errorf("scope %q", got)
	}
	got, err := p.Finish(t.Context(), browse(t, u))
	if err != nil {
		t.Fatal(err)
	}
	want := identity.Login{OSUser: "1000:anna", IssuedAt: now.UTC(), Subject: policy.Subject{
		Issuer: i.srv.URL, ID: "anna-1", Name: "Anna Andersson", Email: "anna@example.com",
		Groups: []string{"agents", "support"}, Claims: map[string]any{"employee": json.Number("12345678901234567")},
		AuthenticatedAt: now.Add(-time.Hour).UTC(),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if i.auth != "none" {
		t.Errorf("a public client authenticated by %s", i.auth)
	}
}

func TestBeginRefusesRedirects(t *testing.T) {
	i := newIDP(t)
	p := provider(t, i, func(c *identity.Config) { c.RedirectPorts = []uint16{40123, 40124} })
	for _, uri := range []string{
		"", "http://127.0.0.1/callback", "https://127.0.0.1:40123/callback", "http://localhost:40123/callback",
		"http://127.0.0.1:40123/callback/", "http://127.0.0.1:40123/callback?x=1", "http://127.0.0.1:40123/callback#x",
		"http://127.0.0.1:40123/", "http://127.0.0.1:0/callback", "http://127.0.0.1:040123/callback",
		"http://127.0.0.1:+40123/callback", "http://127.0.0.1:70000/callback", "http://127.0.0.2:40123/callback",
		"http://[::1]:40123/callback", "http://u@127.0.0.1:40123/callback", "http://127.0.0.1:40123@evil/callback",
		"http://127.0.0.1:40123/x/callback", "HTTP://127.0.0.1:40123/callback", "http://127.0.0.1:40125/callback",
		"http://127.0.0.1.evil:40123/callback",
	} {
		_, _, err := p.Begin(t.Context(), identity.Begin{DeviceID: "d", RedirectURI: uri})
		if err == nil {
			t.Errorf("%q was accepted", uri)
			continue
		}
		wantCode(t, err, identity.CodeBadRedirect)
	}
	if _, _, err := p.Begin(t.Context(), identity.Begin{DeviceID: "d", RedirectURI: "http://127.0.0.1:40124/callback"}); err != nil {
		t.Error(err)
	}
}

// Each ID token is wrong in one way and must be refused.
func TestBadTokens(t *testing.T) {
	now := time.Now()
	unix := func(d time.Duration) int64 { return now.Add(d).Unix() }
	b64 := base64.RawURLEncoding.EncodeToString
	type tc struct {
		claims map[string]any
		del    string
		sign   func(*idp, []byte) string
		want   string
	}
	for name, c := range map[string]tc{
		"wrong nonce":       {claims: map[string]any{"nonce": "x"}, want: "nonce"},
		"no nonce":          {del: "nonce", want: "nonce"},
		"wrong aud":         {claims: map[string]any{"aud": "other"}, want: "audience"},
		"empty aud":         {claims: map[string]any{"aud": []string{}}, want: "audience"},
		"aud without azp":   {claims: map[string]any{"aud": []string{"portvakt", "other"}}, want: "azp"},
		"other azp":         {claims: map[string]any{"aud": []string{"portvakt", "other"}, "azp": "other"}, want: "azp"},
		"other azp, 1 aud":  {claims: map[string]any{"azp": "other"}, want: "azp"},
		"wrong iss":         {claims: map[string]any{"iss": "https://evil.example"}, want: "different provider"},
		"no iss":            {del: "iss", want: "different provider"},
		"iss with slash":    {claims: map[string]any{"iss": "+/"}, want: "different provider"},
		"expired":           {claims: map[string]any{"exp": unix(-61 * time.Second)}, want: "expired"},
		"no exp":            {del: "exp", want: "exp is missing"},
		"exp null":          {claims: map[string]any{"exp": nil}, want: "claims"},
		"exp huge":          {claims: map[string]any{"exp": 1e300}, want: "exp is missing"},
		"no iat":            {del: "iat", want: "iat is missing"},
		"iat in future":     {claims: map[string]any{"iat": unix(63 * time.Second)}, want: "iat"},
		"iat long ago":      {claims: map[string]any{"iat": unix(-time.Hour)}, want: "long before"},
		"nbf in future":     {claims: map[string]any{"nbf": unix(63 * time.Second)}, want: "nbf"},
		"nbf text":          {claims: map[string]any{"nbf": "soon"}, want: ""},
		"auth_time future":  {claims: map[string]any{"auth_time": unix(time.Hour)}, want: "auth_time"},
		"no sub":            {del: "sub", want: "sub"},
		"long sub":          {claims: map[string]any{"sub": strings.Repeat("a", 256)}, want: "sub"},
		"control in sub":    {claims: map[string]any{"sub": "a\nb"}, want: "sub"},
		"sub in two cases":  {claims: map[string]any{"ſub": "boss", "sub": "anna-1", "SUB": "boss"}, want: "two spellings"},
		"groups of numbers": {claims: map[string]any{"groups": []int{1}}, want: "groups"},
		"groups object":     {claims: map[string]any{"groups": map[string]any{"a": 1}}, want: "groups"},
		"groups null entry": {claims: map[string]any{"groups": []any{nil}}, want: "groups"},
		"1001 groups":       {claims: map[string]any{"groups": manyGroups(1001)}, want: "1001 groups"},
		"alg none": {sign: func(_ *idp, p []byte) string {
			return b64([]byte(`{"alg":"none"}`)) + "." + b64(p) + "."
		}, want: "malformed"},
		"HS256 with the public key": {sign: func(i *idp, p []byte) string {
			der, _ := x509.MarshalPKIXPublicKey(i.rsa.Public())
			return signed(jose.HS256, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), i.kid, p)
		}, want: "signature algorithm"},
		"alg not configured": {sign: func(i *idp, p []byte) string { return signed(jose.PS256, i.rsa, i.kid, p) }, want: "signature algorithm"},
		"alg unknown": {sign: func(_ *idp, p []byte) string {
			return b64([]byte(`{"alg":"XX999"}`)) + "." + b64(p) + "." + b64([]byte("x"))
		}, want: "signature algorithm"},
		"kid unknown": {sign: func(i *idp, p []byte) string { return signed(jose.RS256, i.rsa, "../../etc/passwd", p) }, want: "verify"},
		"key not the provider's, embedded": {sign: func(i *idp, p []byte) string {
			s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: otherKey()}, (&jose.SignerOptions{EmbedJWK: true}))
			if err != nil {
				panic(err)
			}
			j, err := s.Sign(p)
			if err != nil {
				panic(err)
			}
			out, _ := j.CompactSerialize()
			return out
		}, want: "verify"},
		"payload swapped": {sign: func(i *idp, p []byte) string {
			parts := strings.Split(signed(jose.RS256, i.rsa, i.kid, p), ".")
			return parts[0] + "." + b64([]byte(strings.Replace(string(p), "anna-1", "boss-1", 1))) + "." + parts[2]
		}, want: "verify"},
		"claim twice": {sign: func(i *idp, p []byte) string {
			return signed(jose.RS256, i.rsa, i.kid, []byte(strings.Replace(string(p), `"groups"`, `"groups":["admins"],"groups"`, 1)))
		}, want: `"groups" is there twice`},
		"not json":   {sign: func(i *idp, _ []byte) string { return signed(jose.RS256, i.rsa, i.kid, []byte("hello")) }, want: "claims"},
		"not a jwt":  {sign: func(*idp, []byte) string { return "hello" }, want: "malformed"},
		"no token":   {sign: func(*idp, []byte) string { return "" }, want: "no id_token"},
		"huge token": {sign: func(*idp, []byte) string { return strings.Repeat("a", 300<<10) }, want: "larger"},
		"unknown crit": {sign: func(i *idp, p []byte) string {
			s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: i.rsa},
				(&jose.SignerOptions{}).WithHeader("crit", []string{"x"}).WithHeader("x", 1).WithHeader("kid", i.kid))
			if err != nil {
				panic(err)
			}
			j, err := s.Sign(p)
			if err != nil {
				panic(err)
			}
			out, _ := j.CompactSerialize()
			return out
		}, want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIDP(t)
			i.now = func() time.Time { return now }
			p := provider(t, i, nil)
			i.claims = func(m map[string]any) {
				for k, v := range c.claims {
					if v == "+/" {
						v = i.srv.URL + "/"
					}
					m[k] = v
				}
				delete(m, c.del)
			}
			if c.sign != nil {
				i.sign = func(b []byte) string { return c.sign(i, b) }
			}
			l, err := p.Finish(t.Context(), begin(t, p))
			e := wantCode(t, err, identity.CodeTokenInvalid)
			if !strings.Contains(e.Error(), c.want) {
				t.Errorf("%q does not say %q", e, c.want)
			}
			if l.Subject.ID != "" {
				t.Errorf("a subject beside an error: %+v", l)
			}
		})
	}
}

func manyGroups(n int) []string {
	g := make([]string, n)
	for i := range g {
		g[i] = fmt.Sprintf("group-%04d", i)
	}
	return g
}

// What is odd but right must pass, and what is missing must be nothing.
func TestGoodTokens(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		claims map[string]any
		del    []string
		alg    jose.SignatureAlgorithm
		check  func(policy.Subject) bool
	}{
		"one group as text":   {claims: map[string]any{"groups": "support"}, check: func(s policy.Subject) bool { return slices.Equal(s.Groups, []string{"support"}) }},
		"no groups":           {del: []string{"groups"}, check: func(s policy.Subject) bool { return s.Groups != nil && len(s.Groups) == 0 }},
		"groups null":         {claims: map[string]any{"groups": nil}, check: func(s policy.Subject) bool { return s.Groups != nil && len(s.Groups) == 0 }},
		"groups twice":        {claims: map[string]any{"groups": []string{"a", "a"}}, check: func(s policy.Subject) bool { return slices.Equal(s.Groups, []string{"a"}) }},
		"1000 groups":         {claims: map[string]any{"groups": manyGroups(1000)}, check: func(s policy.Subject) bool { return len(s.Groups) == 1000 }},
		"email not verified":  {claims: map[string]any{"email_verified": false}, check: func(s policy.Subject) bool { return s.Email == "" }},
		"email verified text": {claims: map[string]any{"email_verified": "true"}, check: func(s policy.Subject) bool { return s.Email == "" }},
		"email unsaid":        {del: []string{"email_verified"}, check: func(s policy.Subject) bool { return s.Email == "" }},
		"expired 59 s ago":    {claims: map[string]any{"exp": now.Add(-59 * time.Second).Unix()}},
		"iat 59 s ahead":      {claims: map[string]any{"iat": now.Add(59 * time.Second).Unix()}},
		"aud list":            {claims: map[string]any{"aud": []string{"portvakt"}}},
		"aud list and azp":    {claims: map[string]any{"aud": []string{"other", "portvakt"}, "azp": "portvakt"}},
		"ES256":               {alg: jose.ES256},
		"no name":             {claims: map[string]any{"preferred_username": "anna"}, del: []string{"name"}, check: func(s policy.Subject) bool { return s.Name == "anna" }},
		"strange name":        {claims: map[string]any{"name": "A\x1b[2J\u202eB"}, check: func(s policy.Subject) bool { return s.Name == "A [2J B" }},
		"no auth_time":        {check: func(s policy.Subject) bool { return s.AuthenticatedAt.Unix() == now.Unix() }},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIDP(t)
			i.now = func() time.Time { return now }
			p := provider(t, i, nil)
			i.claims = func(m map[string]any) {
				with(c.claims)(m)
				for _, k := range c.del {
					delete(m, k)
				}
			}
			if c.alg != "" {
				i.sign = func(b []byte) string { return signed(c.alg, i.ec, "ec", b) }
			}
			l, err := p.Finish(t.Context(), begin(t, p))
			if err != nil {
				t.Fatal(err)
			}
			if c.check != nil && !c.check(l.Subject) {
				t.Errorf("%+v", l.Subject)
			}
		})
	}
}

func TestState(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	p := provider(t, i, nil)

	f := begin(t, p)
	other := f
	other.DeviceID = "dev-2"
	_, err := p.Finish(t.Context(), other)
	wantCode(t, err, identity.CodeUnknownState)
	if i.count("/token") != 0 {
		t.Error("another device's attempt reached the provider")
	}
	wrong := f
	wrong.State += "x"
	_, err = p.Finish(t.Context(), wrong)
	wantCode(t, err, identity.CodeUnknownState)
	wrong.State = ""
	_, err = p.Finish(t.Context(), wrong)
	wantCode(t, err, identity.CodeUnknownState)

	if _, err := p.Finish(t.Context(), f); err != nil {
		t.Fatalf("another device's attempt used up the login: %v", err)
	}
	_, err = p.Finish(t.Context(), f)
	wantCode(t, err, identity.CodeUnknownState)

	late := begin(t, p)
	c.Add(10 * time.Minute)
	_, err = p.Finish(t.Context(), late)
	wantCode(t, err, identity.CodeUnknownState)
}

// A state is good for one of many at once.
func TestStateRace(t *testing.T) {
	i := newIDP(t)
	p := provider(t, i, nil)
	f := begin(t, p)
	var won atomic.Int32
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			if _, err := p.Finish(context.Background(), f); err == nil {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || i.count("/token") != 1 {
		t.Errorf("%d won, %d token requests", won.Load(), i.count("/token"))
	}
}

func TestCodeReuse(t *testing.T) {
	i := newIDP(t)
	p := provider(t, i, nil)
	first, second := begin(t, p), begin(t, p)
	if _, err := p.Finish(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	second.Code = first.Code
	_, err := p.Finish(t.Context(), second)
	e := wantCode(t, err, identity.CodeRefused)
	if !strings.Contains(e.Message, "invalid_grant: no such code") || strings.Contains(e.Message, "\x1b") {
		t.Errorf("%q", e.Message)
	}
}

// The code of one login with the state of another fails at the provider: the
// verifier does not fit.
func TestCodeInjection(t *testing.T) {
	i := newIDP(t)
	p := provider(t, i, nil)
	victim, attacker := begin(t, p), begin(t, p)
	attacker.Code = victim.Code
	_, err := p.Finish(t.Context(), attacker)
	if e := wantCode(t, err, identity.CodeRefused); !strings.Contains(e.Message, "wrong verifier") {
		t.Errorf("%q", e.Message)
	}
}

func TestAnswerOfProvider(t *testing.T) {
	for name, c := range map[string]struct {
		change     func(*identity.Finish)
		advertised bool
		code, want string
	}{
		"refused":           {change: func(f *identity.Finish) { f.Error, f.ErrorDescription = "access_denied", "no\x00 way\n" }, code: identity.CodeRefused, want: "access_denied: no  way"},
		"long refusal":      {change: func(f *identity.Finish) { f.Error, f.ErrorDescription = "x", strings.Repeat("é", 5000) }, code: identity.CodeRefused, want: "é…"},
		"no code":           {change: func(f *identity.Finish) { f.Code = "" }, code: identity.CodeRefused, want: "no code"},
		"other iss":         {change: func(f *identity.Finish) { f.Issuer = "https://evil.example" }, code: identity.CodeTokenInvalid, want: "another identity provider"},
		"other iss refused": {change: func(f *identity.Finish) { f.Issuer, f.Error = "https://evil.example", "x" }, code: identity.CodeTokenInvalid, want: "another identity provider"},
		"iss missing":       {change: func(f *identity.Finish) { f.Issuer = "" }, advertised: true, code: identity.CodeTokenInvalid, want: "another identity provider"},
		"iss absent":        {change: func(f *identity.Finish) { f.Issuer = "" }},
		"iss there":         {change: func(*identity.Finish) {}, advertised: true},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIDP(t)
			if c.advertised {
				i.meta = with(map[string]any{"authorization_response_iss_parameter_supported": true})
			}
			p := provider(t, i, nil)
			f := begin(t, p)
			c.change(&f)
			_, err := p.Finish(t.Context(), f)
			if c.code == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			e := wantCode(t, err, c.code)
			if !strings.Contains(e.Message, c.want) || len(e.Message) > 1000 {
				t.Errorf("%q", e.Message)
			}
			_, err = p.Finish(t.Context(), f)
			wantCode(t, err, identity.CodeUnknownState)
			if n := i.count("/token"); n != 0 {
				t.Errorf("%d token requests", n)
			}
		})
	}
}

func TestConfidentialClient(t *testing.T) {
	for name, c := range map[string]struct {
		methods []string
		want    string
	}{
		"unsaid": {nil, "basic"},
		"basic":  {[]string{"client_secret_post", "client_secret_basic"}, "basic"},
		"post":   {[]string{"client_secret_post"}, "post"},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIDP(t)
			i.secret = "s3cret"
			if c.methods != nil {
				i.meta = with(map[string]any{"token_endpoint_auth_methods_supported": c.methods})
			}
			file := filepath.Join(t.TempDir(), "secret")
			if err := os.WriteFile(file, []byte("s3cret\n"), 0o640); err != nil {
				t.Fatal(err)
			}
			p := provider(t, i, func(cfg *identity.Config) { cfg.ClientSecretFile = file })
			if _, err := p.Finish(t.Context(), begin(t, p)); err != nil {
				t.Fatal(err)
			}
			if i.auth != c.want || i.count("/token") != 1 {
				t.Errorf("authenticated by %s in %d requests", i.auth, i.count("/token"))
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		change func(*identity.Config)
		want   string
	}{
		"no issuer":      {func(c *identity.Config) { c.Issuer = "" }, "plain URL"},
		"http issuer":    {func(c *identity.Config) { c.Issuer = "http://idp.example" }, "must be https"},
		"ftp issuer":     {func(c *identity.Config) { c.Issuer = "ftp://idp.example" }, "https://"},
		"user in issuer": {func(c *identity.Config) { c.Issuer = "https://u:p@idp.example" }, "plain URL"},
		"no client":      {func(c *identity.Config) { c.ClientID = "" }, "client id"},
		"none":           {func(c *identity.Config) { c.Algorithms = []string{"none"} }, `"none"`},
		"HS256":          {func(c *identity.Config) { c.Algorithms = []string{"RS256", "HS256"} }, `"HS256"`},
		"port 0":         {func(c *identity.Config) { c.RedirectPorts = []uint16{0} }, "redirect port"},
		"secret gone":    {func(c *identity.Config) { c.ClientSecretFile = filepath.Join(dir, "gone") }, "no such file"},
		"secret empty":   {func(c *identity.Config) { c.ClientSecretFile = file("empty", " \n", 0o600) }, "is empty"},
		"secret open":    {func(c *identity.Config) { c.ClientSecretFile = file("open", "s3cret", 0o644) }, "chmod o="},
		"roots gone":     {func(c *identity.Config) { c.CAFile = filepath.Join(dir, "gone") }, "no such file"},
		"roots garbled":  {func(c *identity.Config) { c.CAFile = file("ca", "x", 0o644) }, "no PEM certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := identity.Config{Issuer: "https://idp.example", ClientID: "portvakt"}
			c.change(&cfg)
			if _, err := identity.New(cfg); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("error %v, want one that says %q", err, c.want)
			}
		})
	}
}

func TestPrivateRoots(t *testing.T) {
	i := newIDP(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	i.srv = srv
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := identity.Begin{DeviceID: "d", RedirectURI: redirect}
	p := provider(t, i, func(c *identity.Config) { c.CAFile = file })
	if _, _, err := p.Begin(t.Context(), begin); err != nil {
		t.Error(err)
	}
	p = provider(t, i, nil)
	_, _, err := p.Begin(t.Context(), begin)
	if e := wantCode(t, err, identity.CodeUnavailable); !strings.Contains(e.Error(), "certificate") {
		t.Error(e)
	}
}
