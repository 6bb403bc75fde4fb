package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// A device that leaves while an app says nothing ends the app's exchange, by
// every protocol and road.
func TestLeavingASilentApp(t *testing.T) {
	asked, left := make(chan struct{}), make(chan error)
	silent := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
			_ = http.NewResponseController(w).Flush()
		}
		asked <- struct{}{}
		select {
		case <-r.Context().Done():
			left <- nil
		case <-time.After(10 * time.Second):
			left <- fmt.Errorf("the app was not told")
		}
	}
	plain, secure := httptest.NewServer(http.HandlerFunc(silent)), httptest.NewTLSServer(http.HandlerFunc(silent))
	defer plain.Close()
	defer secure.Close()
	yaml := strings.NewReplacer("name: crm", "name: tls", "[crm.test, kunder.test]", "[tls.test]", "{{crm}}", "{{tls}}").Replace(crmYAML)
	w := newWorld(t, []string{crmYAML, yaml + "upstream_ca_file: " + caFile(t, secure) + "\n"}, map[string]string{"crm": plain.URL, "tls": secure.URL})
	for _, h2 := range []bool{false, true} {
		for _, url := range []string{"https://crm.test/", "https://crm.test/events", "https://tls.test/"} {
			for _, body := range []string{"", "hello"} {
				ctx, leave := context.WithCancel(context.Background())
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				c := w.client(h2)
				go func() {
					if res, err := c.Do(req); err == nil {
						_, _ = io.Copy(io.Discard, res.Body)
						res.Body.Close()
					}
				}()
				<-asked
				leave()
				c.CloseIdleConnections()
				if err := <-left; err != nil {
					t.Errorf("h2 %v, %s, body %q: %v", h2, url, body, err)
				}
			}
		}
	}
}

// What an app has sent of an answer reaches the device before the rest is there,
// also where the length is known.
func TestAnswersAreNotHeldBack(t *testing.T) {
	next := make(chan struct{})
	url := rawApp(t, func(c net.Conn, _ *http.Request) bool {
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
		<-next
		_, _ = io.WriteString(c, "two")
		return true
	})
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": url})
	for _, h2 := range []bool{false, true} {
		res, err := w.client(h2).Get("https://crm.test/")
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 3)
		if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "one" {
			t.Errorf("h2 %v: %q %v", h2, b, err)
		}
		next <- struct{}{}
		if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "two" {
			t.Errorf("h2 %v: then %q %v", h2, rest, err)
		}
		res.Body.Close()
		if ct, there := res.Header["Content-Type"]; there {
			t.Errorf("h2 %v: the gateway guessed %q", h2, ct)
		}
	}
}

// Answers of every size arrive as they are: as one TLS record, several in one
// write, and several writes.
func TestAnswerSizes(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n int
		_, _ = fmt.Sscan(r.URL.Query().Get("n"), &n)
		if r.URL.Path == "/sized" {
			w.Header().Set("Content-Length", fmt.Sprint(n))
		}
		_, _ = io.WriteString(w, pattern(n))
	}))
	defer srv.Close()
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": srv.URL})
	for _, h2 := range []bool{false, true} {
		c := w.client(h2)
		for _, n := range []int{0, 1, 100, 16<<10 - 400, 16 << 10, 16<<10 + 1, 24 << 10, 32 << 10, 64 << 10, 64<<10 + 1, 200_000, 3 << 20} {
			for _, path := range []string{"sized", "chunks"} {
				res, body := get(t, c, fmt.Sprintf("https://crm.test/%s?n=%d", path, n))
				if res.StatusCode != 200 || body != pattern(n) {
					t.Errorf("h2 %v, %s, %d bytes: %d, %d bytes", h2, path, n, res.StatusCode, len(body))
				}
			}
		}
	}
}

// pattern is text in which a piece that is missing or moved shows.
func pattern(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d,", i)
	}
	return b.String()[:n]
}
