package proxy_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/policy"
)

func TestAllowedRequestReachesTheAppWithAnAssertion(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "h1", true: "h2"}[h2], func(t *testing.T) {
			e := newEcho(t)
			w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
			req, _ := http.NewRequest(http.MethodPost, "https://crm.test/a/b%20c?x=1&y=%3B", strings.NewReader("hello"))
			res, err := w.client(h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if want := map[bool]int{false: 1, true: 2}[h2]; res.ProtoMajor != want || res.StatusCode != 200 {
				t.Fatalf("HTTP/%d %d", res.ProtoMajor, res.StatusCode)
			}
			var s seen
			if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
				t.Fatal(err)
			}
			if s.Method != "POST" || s.URI != "/a/b%20c?x=1&y=%3B" || s.Host != "crm.test" || s.Body != "hello" {
				t.Errorf("the app saw %+v", s)
			}
			if got := s.Header["X-Forwarded-For"]; len(got) != 1 || got[0] != w.device.Addresses[0].String() {
				t.Errorf("X-Forwarded-For %q", got)
			}
			if got := s.Header.Get("X-Forwarded-Proto") + "://" + s.Header.Get("X-Forwarded-Host"); got != "https://crm.test" {
				t.Errorf("forwarded as %s", got)
			}
			verify(t, w, s.Header["Portvakt-Assertion"])
			r := w.records(audit.KindDecision, 1)[0]
			if r.Path != "/a/b c" || r.Method != "POST" || r.Host != "crm.test" || r.Allow == nil || !*r.Allow || r.Subject != "https://idp#u1" {
				t.Errorf("recorded %+v", r)
			}
		})
	}
}

func verify(t *testing.T, w *world, values []string) {
	t.Helper()
	if len(values) != 1 {
		t.Fatalf("%d assertions", len(values))
	}
	rec := httptest.NewRecorder()
	w.signer.JWKS().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil))
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(rec.Body.Bytes(), &set); err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(values[0], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	var c jwt.Claims
	more := map[string]any{}
	if err := token.Claims(set, &c, &more); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(jwt.Expected{Issuer: "https://gw.example", AnyAudience: jwt.Audience{"crm"}, Subject: "https://idp#u1"}); err != nil {
		t.Error(err)
	}
	if more["device"] != "dev-1" || more["session"] != w.session.ID || more["name"] != "Åsa" {
		t.Errorf("claims %v", more)
	}
}

func TestHostMustBeTheApps(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
	for _, c := range []struct{ host, want string }{
		{"crm.test", "200 "},
		{"CRM.Test", "200 "},
		{"crm.test:443", "200 "},
		{"kunder.test", "200 "},
		{"crm.test.", "421 misdirected"},
		{"crm.test:80", "421 misdirected"},
		{"crm.test:8443", "421 misdirected"},
		{"crm.test:443:443", "421 misdirected"},
		{"evil.test", "421 misdirected"},
		{"127.0.0.1", "421 misdirected"},
		{"[::1]", "421 misdirected"},
		{"crm.test.evil.test", "421 misdirected"},
		{"xcrm.test", "421 misdirected"},
		{"probe.test", "421 misdirected"},
		{"", "421 misdirected"},
	} {
		got := w.raw("crm.test", "GET / HTTP/1.1\r\nHost: "+c.host+"\r\n\r\n")
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("Host %q: %.60s, want %s", c.host, got, c.want)
		}
	}
	for _, c := range []struct{ target, want string }{
		{"https://crm.test/x", "200 "},
		{"HTTPS://CRM.test:443/x", "200 "},
		{"https://evil.test/x", "421 misdirected"},
		{"http://crm.test/x", "421 misdirected"},
		{"https://u@crm.test/x", "4"},
		{"ftp://crm.test/x", "4"},
		{"https://crm.test", "4"},
		{"https://crm.test?x", "4"},
		{"https:///x", "4"},
	} {
		got := w.raw("crm.test", "GET "+c.target+" HTTP/1.1\r\nHost: crm.test\r\n\r\n")
		if !strings.HasPrefix(got, c.want) {
			t.Errorf("target %q: %.60s, want %s", c.target, got, c.want)
		}
	}
	for _, s := range e.requests() {
		if s.Host != "crm.test" && s.Host != "kunder.test" {
			t.Errorf("the app was asked as %q", s.Host)
		}
	}
	if got := w.raw("crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nHost: evil.test\r\n\r\n"); !strings.HasPrefix(got, "400") {
		t.Errorf("two Hosts: %s", got)
	}
	res, _ := getHost(t, w.client(true), "https://crm.test/", "evil.test")
	if res.StatusCode != 421 {
		t.Errorf("HTTP/2 :authority evil.test: %d", res.StatusCode)
	}
	denied := 0
	for _, r := range w.records(audit.KindDecision, 1) {
		if r.Reason == string(policy.ReasonMisdirected) && r.Device == "dev-1" && r.Decision != "" {
			denied++
		}
	}
	if denied < 10 {
		t.Errorf("%d misdirected requests recorded", denied)
	}
}

func getHost(t *testing.T, c *http.Client, url, host string) (*http.Response, string) {
	t.Helper()
	req, _ := http.NewRequest(http.MethodGet, url, nil)
	req.Host = host
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res, string(b)
}

func TestMethodsAndUpgrades(t *testing.T) {
	e := newEcho(t)
	plain := strings.NewReplacer("name: crm", "name: plain", "[crm.test, kunder.test]", "[plain.test]", "title: Customer register", "title: Plain", "websocket: true", "websocket: false").Replace(crmYAML)
	w := newWorld(t, []string{crmYAML, plain}, map[string]string{"crm": e.URL})
	ws := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	for _, c := range []struct{ name, host, text, want string }{
		{"GET", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\n\r\n", "200"},
		{"PATCH", "crm.test", "PATCH / HTTP/1.1\r\nHost: crm.test\r\nContent-Length: 0\r\n\r\n", "200"},
		{"OPTIONS", "crm.test", "OPTIONS /x HTTP/1.1\r\nHost: crm.test\r\n\r\n", "200"},
		{"OPTIONS *", "crm.test", "OPTIONS * HTTP/1.1\r\nHost: crm.test\r\n\r\n", "400 bad_request"},
		{"TRACE", "crm.test", "TRACE / HTTP/1.1\r\nHost: crm.test\r\n\r\n", "405 bad_request"},
		{"CONNECT", "crm.test", "CONNECT crm.test:443 HTTP/1.1\r\nHost: crm.test\r\n\r\n", "405 bad_request"},
		{"CONNECT with a path", "crm.test", "CONNECT / HTTP/1.1\r\nHost: crm.test\r\n\r\n", "4"},
		{"unknown", "crm.test", "ADMIN / HTTP/1.1\r\nHost: crm.test\r\n\r\n", "405 bad_request"},
		{"lower case", "crm.test", "get / HTTP/1.1\r\nHost: crm.test\r\n\r\n", "405 bad_request"},
		{"PRI", "crm.test", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400 bad_request"},
		{"HTTP/1.0", "crm.test", "GET / HTTP/1.0\r\nHost: crm.test\r\n\r\n", "400 bad_request"},
		{"another expectation", "crm.test", "POST / HTTP/1.1\r\nHost: crm.test\r\nExpect: payment\r\nContent-Length: 0\r\n\r\n", "417 bad_request"},
		{"h2c", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n", "400 bad_request"},
		{"h2c unnamed", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nHTTP2-Settings: AAMAAABk\r\n\r\n", "400 bad_request"},
		{"other token", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nConnection: Upgrade\r\nUpgrade: tcp-tunnel\r\n\r\n", "400 bad_request"},
		{"two tokens", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nConnection: Upgrade\r\nUpgrade: websocket, h2c\r\n\r\n", "400 bad_request"},
		{"upgrade without connection", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nUpgrade: websocket\r\n\r\n", "400 bad_request"},
		{"connection without upgrade", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nConnection: upgrade\r\n\r\n", "400 bad_request"},
		{"websocket POST", "crm.test", "POST / HTTP/1.1\r\nHost: crm.test\r\nContent-Length: 0\r\n" + ws + "\r\n", "400 bad_request"},
		{"websocket with a body", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nContent-Length: 1\r\n" + ws + "\r\nx", "400 bad_request"},
		{"websocket off", "plain.test", "GET / HTTP/1.1\r\nHost: plain.test\r\n" + ws + "\r\n", "400 bad_request"},
		{"websocket refused by the app", "crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\n" + ws + "\r\n", "200"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(e.requests())
			got := w.raw(c.host, c.text)
			if !strings.HasPrefix(got, c.want) {
				t.Errorf("answered %.80s, want %s", got, c.want)
			}
			if reached := len(e.requests()) - before; (reached == 1) != (c.want == "200") || reached > 1 {
				t.Errorf("%d requests reached the app", reached)
			}
		})
	}
}

func TestCrossSite(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
	ws := "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	nav := "Sec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"
	for _, c := range []struct {
		name, method, path, headers string
		ok                          bool
	}{
		{"no browser", "POST", "/", "", true},
		{"own origin", "POST", "/", "Origin: https://crm.test\r\nSec-Fetch-Site: same-origin\r\n", true},
		{"another name of the app", "POST", "/", "Origin: https://kunder.test\r\n", true},
		{"named origin", "POST", "/", "Origin: https://portal.test\r\nSec-Fetch-Site: cross-site\r\n", true},
		{"foreign origin", "POST", "/", "Origin: https://evil.test\r\n", false},
		{"foreign origin PUT", "PUT", "/", "Origin: https://evil.test\r\n", false},
		{"own host over http", "POST", "/", "Origin: http://crm.test\r\n", false},
		{"own host other port", "POST", "/", "Origin: https://crm.test:8443\r\n", false},
		{"null", "POST", "/", "Origin: null\r\n", false},
		{"null GET", "GET", "/", "Origin: null\r\n", false},
		{"two origins", "POST", "/", "Origin: https://crm.test\r\nOrigin: https://evil.test\r\n", false},
		{"origin list", "POST", "/", "Origin: https://crm.test, https://evil.test\r\n", false},
		{"preflight", "OPTIONS", "/", "Origin: https://evil.test\r\nAccess-Control-Request-Method: PUT\r\n", false},
		{"preflight of a named origin", "OPTIONS", "/", "Origin: https://portal.test\r\nSec-Fetch-Site: cross-site\r\n", true},
		{"GET with foreign origin, no fetch metadata", "GET", "/", "Origin: https://evil.test\r\n", true},
		{"navigation", "GET", "/", "Sec-Fetch-Site: cross-site\r\n" + nav, true},
		{"navigation from a sibling", "GET", "/", "Sec-Fetch-Site: same-site\r\n" + nav, true},
		{"address bar", "GET", "/", "Sec-Fetch-Site: none\r\n" + nav, true},
		{"form from elsewhere", "POST", "/", "Sec-Fetch-Site: cross-site\r\n" + nav, false},
		{"frame", "GET", "/", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: iframe\r\n", false},
		{"image", "GET", "/", "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n", false},
		{"sibling's script", "GET", "/", "Sec-Fetch-Site: same-site\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n", false},
		{"invented site", "GET", "/", "Sec-Fetch-Site: friendly\r\n", false},
		{"two sites", "GET", "/", "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\n", false},
		{"path that accepts it", "POST", "/saml/acs", "Origin: https://idp.test\r\nSec-Fetch-Site: cross-site\r\n" + nav, true},
		{"path below it", "POST", "/saml/acs/x", "Origin: https://idp.test\r\nSec-Fetch-Site: cross-site\r\n" + nav, false},
		{"websocket from elsewhere", "GET", "/", ws + "Origin: https://evil.test\r\n", false},
		{"websocket from elsewhere on such a path", "GET", "/saml/acs", ws + "Origin: https://evil.test\r\n", false},
		{"websocket of its own", "GET", "/", ws + "Origin: https://crm.test\r\n", true},
		{"websocket of no browser", "GET", "/", ws, true},
		{"websocket cross-site without origin", "GET", "/", ws + "Sec-Fetch-Site: cross-site\r\n" + nav, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(e.requests())
			body := ""
			if c.method == "POST" || c.method == "PUT" {
				body = "Content-Length: 0\r\n"
			}
			got := w.raw("crm.test", c.method+" "+c.path+" HTTP/1.1\r\nHost: crm.test\r\n"+c.headers+body+"\r\n")
			if ok := strings.HasPrefix(got, "200"); ok != c.ok || (!ok && !strings.HasPrefix(got, "403 cross_site")) {
				t.Errorf("answered %.80s", got)
			}
			if reached := len(e.requests()) - before; (reached == 1) != c.ok {
				t.Errorf("%d requests reached the app", reached)
			}
		})
	}
}

func TestPlainHTTPOnlyRedirects(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
	c := w.client(false)
	res, _ := get(t, c, "http://crm.test/a%20b?q=1")
	if res.StatusCode != http.StatusPermanentRedirect || res.Header.Get("Location") != "https://crm.test/a%20b?q=1" {
		t.Errorf("%d to %q", res.StatusCode, res.Header.Get("Location"))
	}
	res, _ = getHost(t, c, "http://crm.test/", "evil.test")
	if res.StatusCode != 421 || res.Header.Get("Location") != "" {
		t.Errorf("another host: %d to %q", res.StatusCode, res.Header.Get("Location"))
	}
	for target, want := range map[string]string{ // where it leads, or what is answered
		"//evil.test/":     "400",
		"/..//evil.test":   "400",
		"/%5cevil.test":    "400",
		"http://crm.test/": "https://crm.test/",
		"http://crm.test:80/a?b=http://crm.test:80/c": "https://crm.test/a?b=http://crm.test:80/c",
		"/login?next=http://crm.test/x":               "https://crm.test/login?next=http://crm.test/x",
		"/a/http://crm.test/x":                        "400",
		"http://crm.test/http://crm.test/x":           "400",
		"http://evil.test/":                           "421",
		"https://crm.test/":                           "https://crm.test/",
	} {
		host := "crm.test"
		if strings.HasPrefix(target, "http://crm.test:80/") {
			host += ":80"
		}
		conn := w.dial("crm", 80)
		_, _ = io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(target, err)
		}
		_ = res.Body.Close()
		got := res.Header.Get("Location")
		if res.StatusCode != http.StatusPermanentRedirect {
			got += strconv.Itoa(res.StatusCode)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	if n := len(e.requests()); n != 0 {
		t.Errorf("%d requests reached the app over plain http", n)
	}
}

// Of what kind a body is, the app says or nobody: a browser that is told to guess
// nothing must not be given a guess of the gateway's.
func TestKindsOfBodiesAreNotGuessed(t *testing.T) {
	apps, upstreams := newKinds(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = io.WriteString(w, "<html><script>")
	}), nil)
	w := newWorld(t, apps, upstreams)
	for _, kind := range kinds {
		for version, h2 := range map[string]bool{"HTTP 1.1": false, "HTTP 2": true} {
			t.Run(kind+" "+version, func(t *testing.T) {
				res, body := get(t, w.client(h2), "https://"+kind+".test/")
				if said, is := res.Header["Content-Type"]; is || body != "<html><script>" {
					t.Errorf("%q is %q", body, said)
				}
			})
		}
	}
}
