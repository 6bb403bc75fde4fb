package assertion_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/gateway/assertion"
)

func open(t *testing.T, file string, now time.Time) *assertion.Signer {
	t.Helper()
	s, err := assertion.Open(assertion.Config{KeyFile: file, Issuer: "https://gw.example", Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func keySet(t *testing.T, s *assertion.Signer) jose.JSONWebKeySet {
	t.Helper()
	rec := httptest.NewRecorder()
	s.JWKS().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil))
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(rec.Body.Bytes(), &set); err != nil {
		t.Fatal(err)
	}
	for _, k := range set.Keys {
		if !k.IsPublic() {
			t.Fatal("the key set shows a private key")
		}
	}
	return set
}

func TestSignedAssertionVerifiesAgainstKeySet(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).UTC()
	s := open(t, filepath.Join(t.TempDir(), "key.pem"), now)
	raw, err := s.Sign(assertion.Claims{
		Audience: "crm", Subject: "https://idp#u1", Name: "Åsa", Email: "asa@example.com",
		Groups: []string{"sales"}, Device: "d1", Session: "s1",
	})
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var std jwt.Claims
	all := map[string]any{}
	if err := token.Claims(keySet(t, s), &std, &all); err != nil {
		t.Fatalf("does not verify against the published key: %v", err)
	}
	if err := std.ValidateWithLeeway(jwt.Expected{Issuer: "https://gw.example", AnyAudience: jwt.Audience{"crm"}, Time: now}, 0); err != nil {
		t.Error(err)
	}
	if err := std.ValidateWithLeeway(jwt.Expected{Time: now.Add(61 * time.Second)}, 0); err == nil {
		t.Error("still valid after 61 s")
	}
	if all["jti"] == "" || all["jti"] == nil {
		t.Error("no jti")
	}
	delete(all, "jti")
	want := map[string]any{
		"iss": "https://gw.example", "aud": "crm", "sub": "https://idp#u1", "name": "Åsa", "email": "asa@example.com",
		"groups": []any{"sales"}, "device": "d1", "session": "s1",
		"iat": float64(now.Unix()), "nbf": float64(now.Unix()), "exp": float64(now.Unix() + 60),
	}
	// go-jose writes one audience as a list; both forms are RFC 7519.
	if l, ok := all["aud"].([]any); ok && len(l) == 1 {
		all["aud"] = l[0]
	}
	if d := cmp.Diff(want, all); d != "" {
		t.Errorf("claims (-want +got):\n%s", d)
	}
}

func sign(t *testing.T, s *assertion.Signer, c assertion.Claims) (raw string, id string) {
	t.Helper()
	raw, err := s.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var std jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&std); err != nil {
		t.Fatal(err)
	}
	return raw, std.ID
}

// The same claims get the same assertion for a while, any others one of their
// own: nobody is ever asserted to be somebody else.
func TestAssertionsAreReusedForTheSameClaimsOnly(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s, err := assertion.Open(assertion.Config{KeyFile: filepath.Join(t.TempDir(), "key.pem"), Issuer: "https://gw.example", Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	base := assertion.Claims{Audience: "crm", Subject: "i#u", Name: "n", Email: "e", Groups: []string{"ab", "c"}, Device: "d", Session: "s"}
	first, id := sign(t, s, base)
	seen := map[string]bool{id: true}
	for name, change := range map[string]func(*assertion.Claims){
		"audience": func(c *assertion.Claims) { c.Audience = "desk" },
		"subject":  func(c *assertion.Claims) { c.Subject = "i#v" },
		"name":     func(c *assertion.Claims) { c.Name = "m" },
		"email":    func(c *assertion.Claims) { c.Email = "" },
		"groups":   func(c *assertion.Claims) { c.Groups = []string{"a", "bc"} },
		"order":    func(c *assertion.Claims) { c.Groups = []string{"c", "ab"} },
		"no group": func(c *assertion.Claims) { c.Groups = nil },
		"device":   func(c *assertion.Claims) { c.Device = "d2" },
		"session":  func(c *assertion.Claims) { c.Session = "" },
		"shift":    func(c *assertion.Claims) { c.Device, c.Session = "ds", "" },
	} {
		c := base
		change(&c)
		if _, id := sign(t, s, c); seen[id] {
			t.Errorf("%s: another's assertion", name)
		} else {
			seen[id] = true
		}
	}
	now = now.Add(assertion.Reuse - time.Second)
	if again, _ := sign(t, s, base); again != first {
		t.Error("not reused within Reuse")
	}
	now = now.Add(time.Second)
	if _, id := sign(t, s, base); seen[id] {
		t.Error("reused after Reuse")
	}
	now = now.Add(-time.Hour)
	if _, id := sign(t, s, base); seen[id] {
		t.Error("an assertion of the future, after the clock was set back")
	}
}

func TestNoAudienceIsRefused(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "key.pem"), time.Now())
	if _, err := s.Sign(assertion.Claims{Device: "d"}); err == nil {
		t.Fatal("signed an assertion for nobody")
	}
}

func TestKeyIsKeptAndMadeOnce(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "key.pem")
	ids := make([]string, 16)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			s, err := assertion.Open(assertion.Config{KeyFile: file, Issuer: "x"})
			if err != nil {
				t.Error(err)
				return
			}
			ids[i] = keySet(t, s).Keys[0].KeyID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("openers at the same time got keys %v", ids)
		}
	}
	st, err := os.Stat(file)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v, %v", st.Mode(), err)
	}
	left, _ := os.ReadDir(dir)
	if len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestBadKeyFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good.pem")
	open(t, good, time.Now())
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
		mode os.FileMode
		want string
	}{
		{"readable by the group", data, 0o640, "0600"},
		{"not PEM", []byte("hello"), 0o600, "PEM"},
		{"cut short", data[:60], 0o600, "PEM"},
		{"empty", nil, 0o600, "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := filepath.Join(t.TempDir(), "key.pem")
			if err := os.WriteFile(f, c.data, c.mode); err != nil {
				t.Fatal(err)
			}
			_, err := assertion.Open(assertion.Config{KeyFile: f, Issuer: "x"})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}

func TestJWKSAnswersOnlyReads(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "key.pem"), time.Now())
	rec := httptest.NewRecorder()
	s.JWKS().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/", nil))
	if rec.Code != http.StatusMethodNotAllowed {
		t.Fatalf("POST: %d", rec.Code)
	}
}

func BenchmarkSign(b *testing.B) {
	s, err := assertion.Open(assertion.Config{KeyFile: filepath.Join(b.TempDir(), "key.pem"), Issuer: "https://gw.example"})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Sign(assertion.Claims{Audience: "crm", Subject: "i#s", Groups: []string{"a", "b"}, Device: "d", Session: "s"}); err != nil {
			b.Fatal(err)
		}
	}
}
