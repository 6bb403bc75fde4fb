package proxy_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"testing"
)

// cookieApp sets cookies, those of the gateway among them, before its answer and
// with it.
func cookieApp(t *testing.T, secure, h2 bool) witness {
	e := &echo{}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h["Set-Cookie"] = []string{"early=1", "__Host-portvakt=0; Secure; Path=/"}
		w.WriteHeader(http.StatusEarlyHints)
		h["Set-Cookie"] = []string{"portvakt_s=1; Path=/", "sid=2; HttpOnly", "__HOST-Portvakt-Console=3", "lang=portvakt_s", "=portvakt_s=4"}
		e.serve(w, r)
	}))
	e.EnableHTTP2 = h2
	yaml := ""
	if secure {
		e.StartTLS()
		yaml = "upstream_ca_file: " + caFile(t, e.Server) + "\n"
	} else {
		e.Start()
	}
	t.Cleanup(e.Close)
	return witness{url: e.URL, requests: e.requests, yaml: yaml}
}

// The gateway's cookies reach no app, however they are spelt and sent, and no app
// sets one. Those of the app pass.
func TestGatewayCookiesReachNoApp(t *testing.T) {
	for name, app := range map[string]witness{"http": cookieApp(t, false, false), "https": cookieApp(t, true, false), "h2": cookieApp(t, true, true)} {
		w := newWorld(t, []string{crmYAML + app.yaml}, map[string]string{"crm": app.url})
		var want []string
		h := newRawH2(t, w)
		for _, c := range []struct {
			sent []string
			want string
		}{
			{[]string{"sid=1; lang=sv"}, "sid=1; lang=sv"},
			{[]string{"sid=1; portvakt_s=secret; lang=sv"}, "sid=1; lang=sv"},
			{[]string{"__Host-portvakt=secret"}, ""},
			{[]string{"__host-PORTVAKT-x=secret;sid=1"}, "sid=1"},
			{[]string{"sid=1", " Portvakt_s = secret", "lang=sv"}, "sid=1; lang=sv"},
			{[]string{"sid=1,portvakt_s=secret", "__Secure-portvakt=secret;;lang=sv; "}, "sid=1; lang=sv"},
		} {
			got := w.raw("crm.test", "GET /h1 HTTP/1.1\r\nHost: crm.test\r\ncookie: "+strings.Join(c.sent, "\r\nCOOKIE:")+"\r\nConnection: close\r\n\r\n")
			if !strings.Contains(got, "200 ") {
				t.Errorf("%s, %q: %.80s", name, c.sent, got)
			}
			var crumbs [][2]string // RFC 9113, 8.2.3
			for _, s := range c.sent {
				crumbs = append(crumbs, [2]string{"cookie", strings.TrimSpace(s)})
			}
			if got := h.get("/h2", crumbs...); got != "200" {
				t.Errorf("%s, %q over HTTP/2: %s", name, c.sent, got)
			}
			want = append(want, c.want, c.want)
		}
		var got []string
		for _, s := range app.requests() {
			got = append(got, strings.Join(s.Header["Cookie"], "; "))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: the app got\n%q, want\n%q", name, got, want)
		}
		for _, h2 := range []bool{false, true} {
			var early []string
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
				early = append(early, h["Set-Cookie"]...)
				return nil
			}})
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://crm.test/set", nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := w.client(h2).Do(req)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if set := res.Header["Set-Cookie"]; !slices.Equal(set, []string{"sid=2; HttpOnly", "lang=portvakt_s"}) || !slices.Equal(early, []string{"early=1"}) {
				t.Errorf("%s, h2 %v: the app set %q, and %q before", name, h2, set, early)
			}
		}
	}
}
