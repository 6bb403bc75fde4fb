package identity_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/policy"
)

const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

// logoutClaims are those of a good token.
func (i *idp) logoutClaims(jti string) map[string]any {
	now := i.now()
	return map[string]any{
		"iss": i.srv.URL, "aud": "portvakt", "iat": now.Unix(), "exp": now.Add(2 * time.Minute).Unix(), "jti": jti,
		"events": map[string]any{logoutEvent: map[string]any{}}, "sub": "anna-1", "sid": "sid-1",
	}
}

func logoutToken(key any, alg jose.SignatureAlgorithm, kid, typ string, claims any) string {
	payload, err := json.Marshal(claims)
	if raw, ok := claims.(string); ok {
		payload, err = []byte(raw), nil
	}
	if err != nil {
		panic(err)
	}
	opt := (&jose.SignerOptions{}).WithHeader("kid", kid)
	if typ != "" {
		opt = opt.WithType(jose.ContentType(typ))
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

func TestLogoutTokens(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	p := provider(t, i, nil)
	good := func(change func(map[string]any)) string {
		m := i.logoutClaims(fmt.Sprintf("jti-%d", time.Now().UnixNano()))
		if change != nil {
			change(m)
		}
		return logoutToken(i.rsa, jose.RS256, i.kid, "logout+jwt", m)
	}
	without := func(name string) string { return good(func(m map[string]any) { delete(m, name) }) }
	put := func(name string, v any) string { return good(func(m map[string]any) { m[name] = v }) }
	ago := func(d time.Duration) int64 { return c.Now().Add(-d).Unix() }
	typed := func(typ string) string {
		return logoutToken(i.rsa, jose.RS256, i.kid, typ, i.logoutClaims("typ-"+typ))
	}
	unsigned := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(good(nil), ".")[1] + "."
	twice := strings.Replace(`{"iss":"ISS","aud":"portvakt","iat":IAT,"jti":"twice","events":{"`+logoutEvent+`":{}},"sub":"anna-1","sub":"bo-2"}`, "ISS", i.srv.URL, 1)
	twice = strings.Replace(twice, "IAT", fmt.Sprint(c.Now().Unix()), 1)

	for name, x := range map[string]struct{ token, refused string }{
		"both":                  {good(nil), ""},
		"sub alone":             {without("sid"), ""},
		"sid alone":             {without("sub"), ""},
		"no exp":                {without("exp"), ""},
		"several audiences":     {put("aud", []string{"other", "portvakt"}), ""},
		"typ JWT":               {typed("JWT"), ""},
		"no typ":                {typed(""), ""},
		"a media type":          {typed("application/logout+jwt"), ""},
		"ES256":                 {logoutToken(i.ec, jose.ES256, "ec", "logout+jwt", i.logoutClaims("ec")), ""},
		"five minutes old":      {good(func(m map[string]any) { m["iat"] = ago(5 * time.Minute); delete(m, "exp") }), ""},
		"empty":                 {"", "not a signed token"},
		"garbage":               {"a.b.c", "not a signed token"},
		"an access token":       {typed("at+jwt"), "typ"},
		"unsigned":              {unsigned, "signature"},
		"another's key":         {logoutToken(otherKey(), jose.RS256, i.kid, "logout+jwt", i.logoutClaims("k")), "verify"},
		"an algorithm too many": {logoutToken(i.rsa, jose.PS256, i.kid, "logout+jwt", i.logoutClaims("ps")), "algorithm"},
		"a shared secret":       {logoutToken([]byte(strings.Repeat("s", 32)), jose.HS256, i.kid, "logout+jwt", i.logoutClaims("hs")), "algorithm"},
		"another issuer":        {put("iss", "https://evil.example"), "provider"},
		"another audience":      {put("aud", "other"), "audience"},
		"no audience":           {without("aud"), "audience"},
		"audience spelled AUD":  {good(func(m map[string]any) { m["AUD"] = m["aud"]; delete(m, "aud") }), "two spellings"},
		"no events":             {without("events"), "events"},
		"another event":         {put("events", map[string]any{"http://schemas.openid.net/event/other": map[string]any{}}), "events"},
		"an event that is text": {put("events", map[string]any{logoutEvent: "x"}), "events"},
		"events in a list":      {put("events", []string{logoutEvent}), "events"},
		"a nonce":               {put("nonce", "n"), "nonce"},
		"an empty nonce":        {put("nonce", ""), "nonce"},
		"no iat":                {without("iat"), "iat"},
		"iat is text":           {put("iat", "now"), ""},
		"an old iat":            {put("iat", ago(7*time.Minute)), "issued at"},
		"an iat to come":        {put("iat", ago(-2*time.Minute)), "issued at"},
		"expired":               {put("exp", ago(2*time.Minute)), "expired"},
		"no jti":                {without("jti"), "jti"},
		"an empty jti":          {put("jti", ""), "jti"},
		"a long jti":            {put("jti", strings.Repeat("j", 256)), "jti"},
		"a jti that is 7":       {put("jti", 7), "jti"},
		"nobody":                {good(func(m map[string]any) { delete(m, "sub"); delete(m, "sid") }), "neither"},
		"an empty sid":          {put("sid", ""), "sid"},
		"a sid that is a list":  {put("sid", []string{"sid-1"}), "sid"},
		"a long sid":            {put("sid", strings.Repeat("s", 256)), "sid"},
		"sub twice":             {logoutToken(i.rsa, jose.RS256, i.kid, "logout+jwt", twice), "twice"},
		"sub spelled SUB":       {good(func(m map[string]any) { m["SUB"] = m["sub"]; delete(m, "sub") }), "spellings"},
		"too large":             {good(func(m map[string]any) { m["x"] = strings.Repeat("x", 300<<10) }), "larger"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := p.Logout(t.Context(), x.token)
			if name == "iat is text" { // go-oidc refuses it in its own words
				wantCode(t, err, identity.CodeTokenInvalid)
				return
			}
			if x.refused != "" {
				if e := wantCode(t, err, identity.CodeTokenInvalid); !strings.Contains(e.Error(), x.refused) {
					t.Errorf("refused with %v, want %q", e, x.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if l.Issuer != i.srv.URL || l.Subject+l.SessionID == "" {
				t.Errorf("%+v", l)
			}
			if _, err := p.Logout(t.Context(), x.token); err == nil {
				t.Error("it was good twice")
			}
			p.NotLoggedOut(l)
			if _, err := p.Logout(t.Context(), x.token); err != nil {
				t.Errorf("it could not be tried again: %v", err)
			}
		})
	}
}

// An ID token of a real login is no logout token.
func TestAnIDTokenLogsNobodyOut(t *testing.T) {
	i := newIDP(t)
	var id string
	i.sign = func(payload []byte) string {
		id = signed(jose.RS256, i.rsa, i.kid, payload)
		return id
	}
	p := provider(t, i, nil)
	if _, err := p.Finish(t.Context(), begin(t, p)); err != nil {
		t.Fatal(err)
	}
	_, err := p.Logout(t.Context(), id)
	wantCode(t, err, identity.CodeTokenInvalid)
}

// Of one token sent many times at once, one counts.
func TestALogoutTokenIsGoodOnce(t *testing.T) {
	i := newIDP(t)
	p := provider(t, i, nil)
	token := logoutToken(i.rsa, jose.RS256, i.kid, "logout+jwt", i.logoutClaims("once"))
	var took atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := p.Logout(t.Context(), token); err == nil {
				took.Add(1)
			}
		})
	}
	wg.Wait()
	if took.Load() != 1 {
		t.Errorf("it counted %d times", took.Load())
	}
}

func TestLogoutWhileTheProviderIsDown(t *testing.T) {
	i := newIDP(t)
	i.block = func(w http.ResponseWriter, _ *http.Request) bool {
		http.Error(w, "down", http.StatusBadGateway)
		return true
	}
	p := provider(t, i, nil)
	_, err := p.Logout(t.Context(), logoutToken(i.rsa, jose.RS256, i.kid, "", i.logoutClaims("down")))
	if e := wantCode(t, err, identity.CodeUnavailable); !e.Retry {
		t.Errorf("%+v", e)
	}
}

// A login whose session the provider ended while the answer was on its way is
// none, and one of another session is.
func TestALoginThatIsOverAlready(t *testing.T) {
	i := newIDP(t)
	c := newClock()
	i.now = c.Now
	sid := "sid-1"
	i.claims = func(m map[string]any) { m["sid"] = sid }
	p := provider(t, i, nil)
	before := begin(t, p)
	if _, err := p.Logout(t.Context(), logoutToken(i.rsa, jose.RS256, i.kid, "", i.logoutClaims("over"))); err != nil {
		t.Fatal(err)
	}
	_, err := p.Finish(t.Context(), before)
	wantCode(t, err, identity.CodeRefused)
	sid = "sid-2"
	if l, err := p.Finish(t.Context(), begin(t, p)); err != nil || l.SID != "sid-2" {
		t.Errorf("%+v %v", l, err)
	}
	of := func(sid string) identity.Login { return identity.Login{SID: sid} }
	if !p.LoggedOut(of("sid-1")) || p.LoggedOut(of("sid-2")) || p.LoggedOut(of("")) {
		t.Error("the wrong sessions are over")
	}
	c.Add(18 * time.Minute)
	if _, err := p.Logout(t.Context(), logoutToken(i.rsa, jose.RS256, i.kid, "", i.logoutClaims("later"))); err != nil {
		t.Fatal(err)
	}
	c.Add(18 * time.Minute)
	m := i.logoutClaims("other")
	m["sid"] = "sid-3"
	if _, err := p.Logout(t.Context(), logoutToken(i.rsa, jose.RS256, i.kid, "", m)); err != nil {
		t.Fatal(err)
	}
	if p.LoggedOut(of("sid-1")) {
		t.Error("it is remembered for ever")
	}
}

// A logout that names a person ends the logins of theirs that are under way: of
// those, the ones whose ID token is not newer than it.
func TestALogoutOfAPersonDuringTheirLogin(t *testing.T) {
	sid := func(m map[string]any) { m["sub"] = "anna-1" }
	for name, c := range map[string]struct {
		logout func(map[string]any)
		sid    string        // of the ID token, "" for none
		later  time.Duration // its iat after the logout's
		ended  bool
	}{
		"the person":                            {func(m map[string]any) { delete(m, "sid") }, "sid-9", -time.Second, true},
		"the person, in the same second":        {func(m map[string]any) { delete(m, "sid") }, "sid-9", 0, true},
		"the person, who logged in anew":        {func(m map[string]any) { delete(m, "sid") }, "sid-9", time.Second, false},
		"the person, no sid in the ID token":    {func(m map[string]any) { delete(m, "sid") }, "", 0, true},
		"somebody else":                         {func(m map[string]any) { delete(m, "sid"); m["sub"] = "bo-2" }, "sid-9", 0, false},
		"another session of the person":         {sid, "sid-9", 0, false},
		"perhaps this session":                  {sid, "", 0, true},
		"perhaps this session, logged in anew":  {sid, "", time.Second, false},
		"the session, and its token says later": {sid, "sid-1", time.Second, true},
	} {
		t.Run(name, func(t *testing.T) {
			i := newIDP(t)
			at := newClock()
			i.now = at.Now
			i.claims = func(m map[string]any) {
				m["iat"] = at.Now().Add(c.later).Unix()
				if c.sid != "" {
					m["sid"] = c.sid
				}
			}
			p := provider(t, i, func(cfg *identity.Config) { cfg.Now = at.Now })
			under := begin(t, p)
			claims := i.logoutClaims("jti")
			c.logout(claims)
			l, err := p.Logout(t.Context(), logoutToken(i.rsa, jose.RS256, i.kid, "", claims))
			if err != nil {
				t.Fatal(err)
			}
			p.NotLoggedOut(l) // it could not be stored: the person is logged out all the same
			login, err := p.Finish(t.Context(), under)
			if c.ended {
				wantCode(t, err, identity.CodeRefused)
				return
			}
			if err != nil || p.LoggedOut(login) || !login.IssuedAt.Equal(at.Now().Add(c.later).Truncate(time.Second)) {
				t.Errorf("%+v %v, logged out %v", login, err, p.LoggedOut(login))
			}
		})
	}
}

func TestWhomALogoutEnds(t *testing.T) {
	const iss = "https://idp.example"
	anna := policy.Subject{Issuer: iss, ID: "anna"}
	for name, c := range map[string]struct {
		l    identity.Logout
		s    policy.Subject
		sid  string
		want bool
	}{
		"the person":                       {identity.Logout{Issuer: iss, Subject: "anna"}, anna, "a", true},
		"another person":                   {identity.Logout{Issuer: iss, Subject: "bo"}, anna, "a", false},
		"another issuer":                   {identity.Logout{Issuer: "https://b", Subject: "anna"}, anna, "a", false},
		"the session":                      {identity.Logout{Issuer: iss, SessionID: "a"}, anna, "a", true},
		"another session":                  {identity.Logout{Issuer: iss, SessionID: "b"}, anna, "a", false},
		"a login without a session":        {identity.Logout{Issuer: iss, SessionID: "a"}, anna, "", false},
		"both":                             {identity.Logout{Issuer: iss, Subject: "anna", SessionID: "a"}, anna, "a", true},
		"another session of the person":    {identity.Logout{Issuer: iss, Subject: "anna", SessionID: "b"}, anna, "a", false},
		"the person, perhaps this session": {identity.Logout{Issuer: iss, Subject: "anna", SessionID: "a"}, anna, "", true},
		"the session of another":           {identity.Logout{Issuer: iss, Subject: "bo", SessionID: "a"}, anna, "a", false},
	} {
		if got := c.l.Ends(c.s, c.sid); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
