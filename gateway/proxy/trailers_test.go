package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/proxy"
)

// heads is an app that tells what it got around a body.
type heads chan *http.Request

func (got heads) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	got <- r
}

// Of a device's trailers an app gets those that may be some, whichever kind it
// is; and nothing that the device's Connection header names.
func TestTrailersToApps(t *testing.T) {
	refused := []string{
		"Authorization", "Host", "Connection", "Content-Type", "Te", "Upgrade", "Proxy-Connection", "Proxy-Authorization", "Keep-Alive", "If-Match", "Range",
		"Cookie", "X-Named", "X-Forwarded-For", "X_Forwarded_For", "Portvakt-Assertion",
	}
	names := append([]string{"X-Ok"}, refused...)
	got := make(heads, 1)
	apps, upstreams := newKinds(t, got, nil)
	w := newWorld(t, apps, upstreams)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			m := "POST /x HTTP/1.1\r\nHost: " + kind + ".test\r\nTransfer-Encoding: chunked\r\nConnection: close, x-named\r\nX-Named: a\r\nX-Ok: a\r\nTrailer: " + strings.Join(names, ", ") + "\r\n\r\n1\r\na\r\n0\r\n"
			for _, name := range names {
				m += name + ": b\r\n"
			}
			if answer := w.raw(kind+".test", m+"\r\n"); !strings.HasPrefix(answer, "200 ") {
				t.Fatalf("the device got %.80q", answer)
			}
			r := <-got
			if all := slices.Sorted(maps.Keys(r.Trailer)); !slices.Equal(all, []string{"X-Ok"}) || r.Trailer.Get("X-Ok") != "b" {
				t.Errorf("the app got the trailers %v", r.Trailer)
			}
			if r.Header.Get("X-Ok") != "a" || r.Header.Get("X-Named") != "" {
				t.Errorf("the app got the headers %v", r.Header)
			}
		})
	}
}

// What the device's Connection header names is looked up as often as there are
// trailers, so that both may be many: read anew each time, these would take minutes.
func TestManyNominations(t *testing.T) {
	got := make(heads, 1)
	apps, upstreams := newKinds(t, got, nil)
	w := newWorld(t, apps, upstreams, func(c *proxy.Config) { c.Limits.HeaderBytes = 8 << 20 })
	var names strings.Builder
	for i := range 120_000 {
		fmt.Fprintf(&names, ", X-%x", 1<<20+i)
	}
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			c := w.tls(kind + ".test")
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(slack * 20 * time.Second))
			fmt.Fprintf(c, "POST /x HTTP/1.1\r\nHost: %s.test\r\nTransfer-Encoding: chunked\r\nConnection: close%[2]s\r\nTrailer: X-Ok%[2]s\r\n\r\n1\r\na\r\n0\r\nX-Ok: b\r\nX-100000: b\r\n\r\n", kind, &names)
			if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != http.StatusOK {
				t.Fatal(res, err)
			}
			if r := <-got; len(r.Trailer) != 1 || r.Trailer.Get("X-Ok") != "b" {
				t.Errorf("the app got %d trailers", len(r.Trailer))
			}
		})
	}
}

// Of an answer before the real one a device gets, over whichever version and from
// whichever app, nothing that is about the app's connection.
func TestHopsOfEarlyAnswers(t *testing.T) {
	head := "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: keep-alive, x-named\r\nX-Named: a\r\n"
	for _, name := range []string{"Keep-Alive", "Proxy-Authenticate", "Proxy-Connection", "Te", "Trailer", "Upgrade", "Portvakt-Reason"} {
		head += name + ": a\r\n"
	}
	app := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		_, _ = io.WriteString(rw, head+"\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		_ = rw.Flush()
	})
	for _, secure := range []bool{false, true} {
		srv, apps := httptest.NewUnstartedServer(app), []string{crmYAML}
		t.Cleanup(srv.Close)
		if secure {
			srv.StartTLS()
			apps = secureApp(t, srv, "")
		} else {
			srv.Start()
		}
		w := newWorld(t, apps, map[string]string{"crm": srv.URL})
		for version, h2 := range map[string]bool{"HTTP 1.1": false, "HTTP 2": true} {
			t.Run(fmt.Sprintf("TLS %v %s", secure, version), func(t *testing.T) {
				var got []http.Header
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(_ int, h textproto.MIMEHeader) error {
					got = append(got, http.Header(h))
					return nil
				}})
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://crm.test/", nil)
				if err != nil {
					t.Fatal(err)
				}
				res, err := w.client(h2).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				if body, err := io.ReadAll(res.Body); string(body) != "ok" || err != nil {
					t.Errorf("%q, %v", body, err)
				}
				if want := []http.Header{{"Link": {"</a>"}}}; !reflect.DeepEqual(got, want) {
					t.Errorf("the device got %v early", got)
				}
			})
		}
	}
}

// Nor does a device get of an app's what only the gateway says, or what is about
// the app's connection.
func TestTrailersOfApps(t *testing.T) {
	for _, kind := range kinds {
		for version, h2 := range map[string]bool{"HTTP 1.1": false, "HTTP 2": true} {
			t.Run(kind+" "+version, func(t *testing.T) {
				fields := []string{"X-Ok", "X-Late", "Portvakt-Reason", "Alt-Svc", "Set-Cookie"}
				app := func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Trailer", "X-Ok, Portvakt-Reason, Alt-Svc")
					_, _ = io.WriteString(w, "one")
					_ = http.NewResponseController(w).Flush()
					for _, name := range fields {
						w.Header().Set(http.TrailerPrefix+name, "b")
					}
				}
				if kind != "h2" { // says more than Go would
					fields = append(fields, "X-Named", "Upgrade", "Connection", "Content-Type")
					app = func(w http.ResponseWriter, _ *http.Request) {
						c, rw, err := http.NewResponseController(w).Hijack()
						if err != nil {
							return
						}
						defer c.Close()
						fmt.Fprintf(rw, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: x-named\r\nX-Named: a\r\nTrailer: X-Ok, X-Named, Portvakt-Reason, Alt-Svc, Upgrade\r\n\r\n3\r\none\r\n0\r\n")
						for _, name := range fields {
							fmt.Fprintf(rw, "%s: b\r\n", name)
						}
						_, _ = io.WriteString(rw, "\r\n")
						_ = rw.Flush()
					}
				}
				srv := httptest.NewUnstartedServer(http.HandlerFunc(app))
				defer srv.Close()
				apps := []string{crmYAML}
				if kind == "http" {
					srv.Start()
				} else {
					srv.EnableHTTP2 = kind == "h2"
					srv.StartTLS()
					apps = secureApp(t, srv, "")
				}
				w := newWorld(t, apps, map[string]string{"crm": srv.URL})
				res, body := get(t, w.client(h2), "https://crm.test/")
				if body != "one" || res.Header.Get("X-Named") != "" {
					t.Errorf("the device got %q, %v", body, res.Header)
				}
				all := slices.Sorted(maps.Keys(res.Trailer))
				if !slices.Equal(all, []string{"X-Late", "X-Ok"}) || res.Trailer.Get("X-Ok") != "b" || res.Trailer.Get("X-Late") != "b" {
					t.Errorf("the device got the trailers %v", res.Trailer)
				}
			})
		}
	}
}
