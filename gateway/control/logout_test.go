package control_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/control"
	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// issuer is an identity provider that only signs.
type issuer struct {
	url string
	key *rsa.PrivateKey
	n   int
	// exchange answers at the token endpoint.
	exchange http.HandlerFunc
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{key: key}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Algorithm: "RS256", Use: "sig"}}})
			return
		}
		if r.URL.Path == "/t" && i.exchange != nil {
			i.exchange(w, r)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"issuer": i.url, "authorization_endpoint": i.url + "/a", "token_endpoint": i.url + "/t", "jwks_uri": i.url + "/keys"})
	}))
	t.Cleanup(srv.Close)
	i.url = srv.URL
	return i
}

func (i *issuer) token(t *testing.T, at time.Time, claims map[string]any) string {
	t.Helper()
	i.n++
	m := map[string]any{
		"iss": i.url, "aud": "portvakt", "iat": at.Unix(), "exp": at.Add(2 * time.Minute).Unix(), "jti": fmt.Sprint("jti-", i.n),
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	}
	for k, v := range claims {
		m[k] = v
	}
	return i.sign(t, "logout+jwt", m)
}

func (i *issuer) sign(t *testing.T, typ jose.ContentType, claims map[string]any) string {
	t.Helper()
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: i.key}, (&jose.SignerOptions{}).WithType(typ).WithHeader("kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	j, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	out, err := j.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// form posts as an identity provider does.
func (g *gw) form(contentType, body string) (int, http.Header, string) {
	g.t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(g.ca.RootPEM())
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: wire.InternalName, MinVersion: tls.VersionTLS13, Time: g.clock}}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodPost, g.public.URL+control.PathBackChannelLogout, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

const formType = "application/x-www-form-urlencoded"

func (g *gw) logoutBy(token string) int {
	g.t.Helper()
	status, h, body := g.form(formType, url.Values{"logout_token": {token}}.Encode())
	if h.Get("Cache-Control") != "no-store" || (status == http.StatusOK) != (body == "") {
		g.t.Errorf("%d, Cache-Control %q, body %q", status, h.Get("Cache-Control"), body)
	}
	return status
}

func (g *gw) loginOf(l *laptop, iss, sub, sid string) store.Session {
	g.t.Helper()
	s, err := g.sessions.Login(g.t.Context(), store.Session{
		DeviceID: l.id, OSUser: "1000:" + sub, SID: sid, Subject: policy.Subject{Issuer: iss, ID: sub, Name: sub}, StartedAt: g.clock(), LastSeen: g.clock(), ExpiresAt: g.clock().Add(time.Hour),
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return s
}

func TestBackChannelLogout(t *testing.T) {
	i := newIssuer(t)
	g := newGatewayOf(t, i.url)
	first, second, other, away := g.ready(), g.ready(), g.ready(), g.ready()
	login := func() map[string]store.Session {
		return map[string]store.Session{
			"first": g.loginOf(first, i.url, "anna", "sid-1"), "second": g.loginOf(second, i.url, "anna", "sid-2"), "other": g.loginOf(other, i.url, "bo", "sid-3"),
		}
	}
	for name, c := range map[string]struct {
		claims map[string]any
		ended  string
	}{
		"one session":     {map[string]any{"sid": "sid-1"}, "first"},
		"a person":        {map[string]any{"sub": "anna"}, "first second"},
		"both":            {map[string]any{"sub": "anna", "sid": "sid-2"}, "second"},
		"nobody":          {map[string]any{"sub": "carl"}, ""},
		"somebody else's": {map[string]any{"sub": "bo", "sid": "sid-1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			all := login()
			f, err := g.sessions.Begin(session.Begin{Peer: netip.AddrPortFrom(mustDevice(t, g, first.id).Addresses[0], 4000), App: &policy.App{Name: "crm"}, Action: policy.ActionFlow})
			if err != nil {
				t.Fatal(err)
			}
			defer f.End(session.Result{})
			if status := g.logoutBy(i.token(t, g.clock(), c.claims)); status != http.StatusOK {
				t.Fatalf("answered %d", status)
			}
			for who, s := range all {
				stored, err := g.store.Session(t.Context(), s.ID)
				if err != nil {
					t.Fatal(err)
				}
				_, inForce := g.sessions.SessionOf(s.DeviceID)
				over := strings.Contains(c.ended, who)
				if inForce == over || stored.EndedAt.IsZero() == over || over && (stored.EndedBy != "identity_provider" || stored.EndReason != "backchannel_logout") {
					t.Errorf("%s: in force %v, stored %+v", who, inForce, stored)
				}
			}
		})
	}

	// A login of a device that is away ends too: it cannot be taken along.
	s := g.loginOf(away, i.url, "dora", "sid-4")
	g.sessions.Remove(away.id, policy.Decision{})
	if status := g.logoutBy(i.token(t, g.clock(), map[string]any{"sid": "sid-4"})); status != http.StatusOK {
		t.Fatalf("answered %d", status)
	}
	if stored, err := g.store.Session(t.Context(), s.ID); err != nil || stored.EndedAt.IsZero() || stored.SID != "sid-4" {
		t.Errorf("%+v %v", stored, err)
	}
	if ends := g.refusals(audit.KindSessionEnd); !strings.Contains(strings.Join(ends, " "), "session_revoked") {
		t.Errorf("recorded ends: %v", ends)
	}
}

// The provider logs somebody out while its answer to their login is under way:
// whatever the logout names them by, the login is none.
func TestBackChannelLogoutDuringALogin(t *testing.T) {
	for name, claims := range map[string]map[string]any{
		"the session": {"sid": "sid-9"}, "both": {"sub": "anna", "sid": "sid-9"}, "the person": {"sub": "anna"},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIssuer(t)
			g := newGatewayOf(t, i.url)
			l := g.ready()
			var begun wire.LoginResponse
			if status, e := g.call(http.MethodPost, wire.PathLogin, l.conn.Addresses[0], l.token(), wire.LoginRequest{RedirectURI: "http://127.0.0.1:1234/callback", OSUser: "1000:anna"}, &begun); status != http.StatusOK {
				t.Fatal(status, e)
			}
			page, err := url.Parse(begun.URL)
			if err != nil {
				t.Fatal(err)
			}
			i.exchange = func(w http.ResponseWriter, _ *http.Request) {
				id := i.sign(t, "JWT", map[string]any{
					"iss": i.url, "aud": "portvakt", "sub": "anna", "sid": "sid-9", "name": "Anna", "nonce": page.Query().Get("nonce"),
					"iat": g.clock().Unix(), "exp": g.clock().Add(5 * time.Minute).Unix(),
				})
				if status := g.logoutBy(i.token(t, g.clock(), claims)); status != http.StatusOK {
					t.Errorf("the logout was answered %d", status)
				}
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "x", "token_type": "Bearer", "id_token": id})
			}
			var st wire.State
			status, e := g.call(http.MethodPost, wire.PathLoginComplete, l.conn.Addresses[0], l.token(), wire.LoginComplete{State: page.Query().Get("state"), Code: "c"}, &st)
			if status != http.StatusForbidden || e.Code != identity.CodeRefused {
				t.Errorf("answered %d %+v", status, e)
			}
			if s, ok := g.sessions.SessionOf(l.id); ok {
				t.Errorf("in force: %+v", s)
			}
		})
	}
}

func mustDevice(t *testing.T, g *gw, id string) store.Device {
	t.Helper()
	d, err := g.store.Device(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What is no logout token ends nothing, and is recorded.
func TestBadBackChannelLogouts(t *testing.T) {
	i := newIssuer(t)
	g := newGatewayOf(t, i.url)
	l := g.ready()
	g.loginOf(l, i.url, "anna", "sid-1")
	anna := map[string]any{"sub": "anna"}
	with := func(name string, v any) string {
		return i.token(t, g.clock(), map[string]any{"sub": "anna", name: v})
	}
	used := i.token(t, g.clock(), map[string]any{"sub": "carl"})
	if status := g.logoutBy(used); status != http.StatusOK {
		t.Fatalf("answered %d", status)
	}
	old := i.token(t, g.clock().Add(-time.Hour), anna)
	form := func(token string) string { return url.Values{"logout_token": {token}}.Encode() }
	good := i.token(t, g.clock(), anna)
	for name, c := range map[string]struct{ typ, body, want string }{
		"replayed":         {formType, form(used), "used already"},
		"old":              {formType, form(old), "issued at"},
		"another issuer":   {formType, form(with("iss", "https://evil.example")), "does not hold"},
		"another audience": {formType, form(with("aud", "other")), "audience"},
		"no event":         {formType, form(with("events", map[string]any{})), "events"},
		"an ID token":      {formType, form(with("nonce", "n")), "nonce"},
		"JSON":             {"application/json", `{"logout_token":"` + good + `"}`, "form"},
		"no type":          {"", form(good), "form"},
		"none":             {formType, "", "one logout_token"},
		"two":              {formType, form(good) + "&" + form(good), "one logout_token"},
		"too large":        {formType, form(strings.Repeat("x", 70<<10)), "64 KiB"},
		"not a token":      {formType, form("<script>\x1b"), "not a signed token"},
	} {
		status, h, body := g.form(c.typ, c.body)
		var said struct {
			Error string `json:"error"`
			Text  string `json:"error_description"`
		}
		if err := json.Unmarshal([]byte(body), &said); err != nil || status != http.StatusBadRequest || said.Error != "invalid_request" || !strings.Contains(said.Text, c.want) || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s %v", name, status, body, err)
		}
		if _, ok := g.sessions.SessionOf(l.id); !ok {
			t.Fatalf("%s: it ended a login", name)
		}
	}
	if got := len(g.refusals(audit.KindLogoutRefused)); got != 12 {
		t.Errorf("%d refusals are recorded, want 12", got)
	}
	// In the query it is none, and a GET is nothing.
	if status, _, _ := g.form(formType, ""); status != http.StatusBadRequest {
		t.Error(status)
	}
	if status, _ := g.send(http.MethodPost, control.PathBackChannelLogout+"?"+form(good), nil, "", new(any)); status != http.StatusBadRequest {
		t.Errorf("in the query: %d", status)
	}
	if status := g.logoutBy(good); status != http.StatusOK {
		t.Errorf("the good one: %d", status)
	}
	if _, ok := g.sessions.SessionOf(l.id); ok {
		t.Error("the good one ended nothing")
	}
}

// sql changes the store's file behind its back.
func (g *gw) sql(query string) {
	g.t.Helper()
	db, err := sql.Open("sqlite", g.db)
	if err != nil {
		g.t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(query); err != nil {
		g.t.Fatal(err)
	}
}

// A logout that cannot be stored is in force, and can be sent again.
func TestBackChannelLogoutWithoutAStore(t *testing.T) {
	i := newIssuer(t)
	g := newGatewayOf(t, i.url)
	l := g.ready()
	g.loginOf(l, i.url, "anna", "sid-1")
	token := i.token(t, g.clock(), map[string]any{"sid": "sid-1"})
	g.sql(`CREATE TRIGGER broken BEFORE UPDATE ON sessions BEGIN SELECT RAISE(ABORT, 'the disk is gone'); END`)
	if status := g.logoutBy(token); status != http.StatusServiceUnavailable {
		t.Errorf("answered %d", status)
	}
	if _, ok := g.sessions.SessionOf(l.id); ok {
		t.Error("it is not in force")
	}
	g.sql(`DROP TRIGGER broken`)
	if status := g.logoutBy(token); status != http.StatusOK {
		t.Errorf("sent again: %d", status)
	}
	if open, err := g.store.Sessions(t.Context(), store.SessionFilter{Open: true}); err != nil || len(open) != 0 {
		t.Errorf("%+v %v", open, err)
	}
}
