package idp_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/deploy/demo/idp"
	"github.com/portvakt/portvakt/deploy/idplogin"
)

// start serves a provider and returns its issuer.
func start(t *testing.T, secret string, redirects ...string) (issuer string) {
	t.Helper()
	srv := httptest.NewUnstartedServer(nil)
	issuer = "http://" + srv.Listener.Addr().String() + "/dex"
	ctx, cancel := context.WithCancel(context.Background())
	h, err := idp.New(ctx, idp.Config{
		Issuer: issuer, ClientID: "portvakt", ClientSecret: secret, RedirectURIs: redirects,
		People: []idp.Person{
			{Name: "Anna", Email: "anna@demo.example", Password: "right", Groups: []string{"sales"}},
			{Name: "Ben", Email: "ben@demo.example", Password: "other", Groups: []string{"support", "leads"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Config.Handler = h
	srv.Start()
	t.Cleanup(func() { cancel(); srv.Close() })
	return issuer
}

const verifier = "a-code-verifier-of-at-least-43-characters-for-the-test"

func authURL(issuer, redirect string) string {
	sum := sha256.Sum256([]byte(verifier))
	return issuer + "/auth?" + url.Values{
		"client_id": {"portvakt"}, "redirect_uri": {redirect}, "response_type": {"code"},
		"scope": {"openid profile email groups"}, "state": {"the-state"}, "nonce": {"the-nonce"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}.Encode()
}

func getJSON(t *testing.T, u string, v any) {
	t.Helper()
	resp, err := http.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		t.Fatalf("GET %s: %s: %v", u, resp.Status, err)
	}
}

func TestLoginYieldsATokenWithGroups(t *testing.T) {
	for _, tc := range []struct {
		name, secret, email, password string
		redirects                     []string
		groups                        []string
	}{
		{name: "public client, any loopback port", email: "anna@demo.example", password: "right", groups: []string{"sales"}},
		{name: "confidential client", secret: "s3cret", redirects: []string{"http://127.0.0.1:4711/callback"}, email: "ben@demo.example", password: "other", groups: []string{"support", "leads"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			issuer := start(t, tc.secret, tc.redirects...)
			const redirect = "http://127.0.0.1:4711/callback"
			callback, err := idplogin.Login(t.Context(), authURL(issuer, redirect), tc.email, tc.password)
			if err != nil {
				t.Fatal(err)
			}
			u, err := url.Parse(callback)
			if err != nil || !strings.HasPrefix(callback, redirect+"?") || u.Query().Get("state") != "the-state" || u.Query().Get("code") == "" {
				t.Fatalf("callback %q: want %s with state and code", callback, redirect)
			}

			form := url.Values{"grant_type": {"authorization_code"}, "code": {u.Query().Get("code")}, "redirect_uri": {redirect}, "code_verifier": {verifier}, "client_id": {"portvakt"}}
			if tc.secret != "" {
				form.Set("client_secret", tc.secret)
			}
			resp, err := http.PostForm(issuer+"/token", form)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			var tok struct {
				IDToken string `json:"id_token"`
				Error   string `json:"error_description"`
			}
			if err := json.NewDecoder(resp.Body).Decode(&tok); err != nil || tok.IDToken == "" {
				t.Fatalf("token endpoint: %s %s %v", resp.Status, tok.Error, err)
			}
			var doc struct {
				JWKS string `json:"jwks_uri"`
			}
			getJSON(t, issuer+"/.well-known/openid-configuration", &doc)
			var keys jose.JSONWebKeySet
			getJSON(t, doc.JWKS, &keys)
			parsed, err := jwt.ParseSigned(tok.IDToken, []jose.SignatureAlgorithm{jose.RS256})
			if err != nil {
				t.Fatal(err)
			}
			type claims struct {
				Issuer string   `json:"iss"`
				Nonce  string   `json:"nonce"`
				Email  string   `json:"email"`
				Groups []string `json:"groups"`
			}
			var got claims
			if err := parsed.Claims(&keys, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(claims{issuer, "the-nonce", tc.email, tc.groups}, got); diff != "" {
				t.Errorf("claims (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLoginErrors(t *testing.T) {
	issuer := start(t, "")
	for _, tc := range []struct {
		name, url, email, password string
		is                         error
		says                       string
	}{
		{name: "wrong password", url: authURL(issuer, "http://127.0.0.1:1/callback"), email: "anna@demo.example", password: "wrong", is: idplogin.ErrRefused},
		{name: "unknown person", url: authURL(issuer, "http://127.0.0.1:1/callback"), email: "eve@demo.example", password: "right", is: idplogin.ErrRefused},
		{name: "redirect that is not loopback", url: authURL(issuer, "https://evil.example/callback"), says: "redirect_uri"},
		{name: "unknown path", url: issuer + "/nothing?redirect_uri=http://127.0.0.1:1/callback", says: "404"},
		{name: "no redirect", url: issuer + "/auth", says: "redirect_uri"},
		{name: "nobody there", url: "http://127.0.0.1:1/auth?redirect_uri=http://127.0.0.1:1/callback", says: "refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			callback, err := idplogin.Login(t.Context(), tc.url, tc.email, tc.password)
			switch {
			case err == nil:
				t.Fatalf("got callback %q, want an error", callback)
			case tc.is != nil && !errors.Is(err, tc.is):
				t.Errorf("error %v, want %v", err, tc.is)
			case !strings.Contains(err.Error(), tc.says):
				t.Errorf("error %q does not say %q", err, tc.says)
			}
		})
	}
}

// A client that leaves PKCE out gets its error back at the redirect, which
// Login returns like any other answer.
func TestLoginReturnsTheProvidersError(t *testing.T) {
	issuer := start(t, "")
	u, err := url.Parse(authURL(issuer, "http://127.0.0.1:1/callback"))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("response_type", "nonsense")
	u.RawQuery = q.Encode()
	callback, err := idplogin.Login(t.Context(), u.String(), "anna@demo.example", "right")
	if err != nil {
		t.Fatal(err)
	}
	if cb, _ := url.Parse(callback); cb.Query().Get("error") == "" || cb.Query().Get("code") != "" {
		t.Errorf("callback %q, want an error and no code", callback)
	}
}
