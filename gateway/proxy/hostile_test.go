package proxy_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/proxy"
)

// rawApp is an app that answers each request with the bytes its path asks for.
// talk may hold the connection; it is closed when talk returns false.
func rawApp(t *testing.T, talk func(c net.Conn, r *http.Request) bool) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	open.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			open.Go(func() {
				defer c.Close()
				br := bufio.NewReader(c)
				for {
					r, err := http.ReadRequest(br)
					if err != nil || !talk(c, r) {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		open.Wait()
	})
	return "http://" + l.Addr().String()
}

func sized(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

// TestHostileApp: whatever an app says, the device gets an answer to its own
// request that is whole, or none, and the next one as well.
func TestHostileApp(t *testing.T) {
	answers := map[string]struct {
		text string
		want string // "502", "broken", or the body
	}{
		"CL-TE":         {"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", "502"},
		"two-lengths":   {"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "502"},
		"bare-LF":       {"HTTP/1.1 200 OK\nContent-Length: 0\n\n", "502"},
		"early-101":     {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "502"},
		"interim-flood": {strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 5000), "502"},
		"huge-head":     {"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 10<<20) + "\r\n\r\n", "502"},
		"two-answers":   {sized("mine") + sized("stray"), "mine"},
		"more-than-CL":  {"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nminestray", "mine"},
		"bad-chunks":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nmine\r\n1;x=y\r\nz\r\n0\r\n\r\n", "broken"},
		"ours":          {"HTTP/1.1 200 OK\r\nPortvakt-Decision: d-forged\r\nAlt-Svc: h3=\":443\"\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 4\r\n\r\nmine", "mine"},
		"our-trailer":   {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Portvakt-Decision\r\n\r\n4\r\nmine\r\n0\r\nX-Sum: 7\r\nPortvakt-Decision: d-forged\r\n\r\n", "mine"},
		"HTTP-1.0":      {"HTTP/1.0 200 OK\r\n\r\nmine", "mine"},
		"empty-204":     {"HTTP/1.1 204 No Content\r\n\r\n", ""},
		"early-hints":   {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nPortvakt-Reason: x\r\n\r\n" + sized("mine"), "mine"},
	}
	url := rawApp(t, func(c net.Conn, r *http.Request) bool {
		a, ok := answers[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			_, _ = io.WriteString(c, sized(r.URL.Query().Get("id")))
			return true
		}
		_, _ = io.WriteString(c, a.text)
		return !strings.HasPrefix(a.text, "HTTP/1.0")
	})
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": url})
	for _, h2 := range []bool{false, true} {
		c := w.client(h2)
		for name, a := range answers {
			for i := range 3 {
				res, err := c.Get("https://crm.test/" + name)
				if err != nil && a.want == "broken" {
					continue // broken off before its head was on its way
				}
				if err != nil {
					t.Fatal(name, err)
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				switch {
				case a.want == "502":
					if res.StatusCode != http.StatusBadGateway || res.Header.Get("Portvakt-Reason") != "upstream_unavailable" {
						t.Errorf("h2 %v, %s: %d %.60q", h2, name, res.StatusCode, body)
					}
				case a.want == "broken":
					if err == nil {
						t.Errorf("h2 %v, %s: ended clean after %q", h2, name, body)
					}
				case err != nil || string(body) != a.want || res.Header.Get("Portvakt-Decision") != "" || res.Header.Get("Alt-Svc") != "" || res.Header.Get("X-Hop") != "" || res.Trailer.Get("Portvakt-Decision") != "":
					t.Errorf("h2 %v, %s: %d %q %v %v (%v)", h2, name, res.StatusCode, body, res.Header, res.Trailer, err)
				}
				if name == "our-trailer" && res.Trailer.Get("X-Sum") != "7" {
					t.Errorf("h2 %v: the app's own trailer is lost: %v", h2, res.Trailer)
				}
				id := fmt.Sprintf("%s-%d", name, i)
				if res, body := get(t, c, "https://crm.test/fine?id="+id); res.StatusCode != 200 || body != id {
					t.Errorf("h2 %v, after %s: %d %q, want %q", h2, name, res.StatusCode, body, id)
				}
			}
		}
	}
}

// TestNoStrayAnswers: an app that answers twice, at once or later, and many
// devices' requests at the same time: nobody gets another's.
func TestNoStrayAnswers(t *testing.T) {
	var n atomic.Int64
	url := rawApp(t, func(c net.Conn, r *http.Request) bool {
		answer := sized(r.URL.Query().Get("id"))
		if n.Add(1)%3 == 0 {
			answer += sized("stray")
		}
		_, err := io.WriteString(c, answer)
		return err == nil
	})
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": url})
	var all sync.WaitGroup
	for worker := range 8 {
		c := w.client(worker%2 == 0)
		all.Go(func() {
			for i := range 60 {
				id := fmt.Sprintf("%d-%d", worker, i)
				res, err := c.Get("https://crm.test/?id=" + id)
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode == 200 && string(body) != id {
					t.Errorf("asked %s, got %q (%v)", id, body, err)
				}
			}
		})
	}
	all.Wait()
}

// TestDeadIdleConnection: an app that closes an idle connection just as it is
// used again costs a GET nothing, and a POST is not sent twice.
func TestDeadIdleConnection(t *testing.T) {
	var posts atomic.Int64
	var die atomic.Bool
	url := rawApp(t, func(c net.Conn, r *http.Request) bool {
		if r.Method == http.MethodPost {
			posts.Add(1)
		}
		if die.CompareAndSwap(true, false) {
			return false // took the request, and says nothing
		}
		_, err := io.WriteString(c, sized("ok"))
		return err == nil
	})
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": url})
	c := w.client(false)
	get(t, c, "https://crm.test/")
	die.Store(true)
	if res, body := get(t, c, "https://crm.test/"); res.StatusCode != 200 || body != "ok" {
		t.Errorf("GET: %d %q", res.StatusCode, body)
	}
	die.Store(true)
	res, err := c.Post("https://crm.test/", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusBadGateway || posts.Load() != 1 {
		t.Errorf("POST: %d, sent %d times", res.StatusCode, posts.Load())
	}
	w.records(audit.KindUpstreamError, 1)
}

// TestClosedIdleConnection: an app that closed an idle connection before it is
// used again costs a POST nothing either.
func TestClosedIdleConnection(t *testing.T) {
	var posts atomic.Int64
	closed := make(chan struct{}, 8)
	url := rawApp(t, func(c net.Conn, r *http.Request) bool {
		if r.Method == http.MethodPost {
			posts.Add(1)
		}
		_, _ = io.WriteString(c, sized("ok"))
		_ = c.Close()
		closed <- struct{}{}
		return false
	})
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": url})
	c := w.client(false)
	for range 2 {
		get(t, c, "https://crm.test/")
		<-closed
		res, err := c.Post("https://crm.test/", "text/plain", strings.NewReader("x"))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			t.Errorf("POST: %d", res.StatusCode)
		}
		<-closed
	}
	if posts.Load() != 2 {
		t.Errorf("POST was sent %d times", posts.Load())
	}
}

// TestSlowAppIsAskedOnce: an app that takes too long on a connection it answered
// on before is not asked again.
func TestSlowAppIsAskedOnce(t *testing.T) {
	var asked atomic.Int64
	url := rawApp(t, func(c net.Conn, r *http.Request) bool {
		if r.URL.Path == "/slow" {
			asked.Add(1)
			return true
		}
		_, err := io.WriteString(c, sized("ok"))
		return err == nil
	})
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": url}, func(c *proxy.Config) { c.Timeouts.ResponseHeader = 100 * time.Millisecond })
	c := w.client(false)
	get(t, c, "https://crm.test/")
	if res, _ := get(t, c, "https://crm.test/slow"); res.StatusCode != http.StatusGatewayTimeout || asked.Load() != 1 {
		t.Errorf("%d, asked %d times", res.StatusCode, asked.Load())
	}
}

// TestEarlyAnswer: an app may answer before it has all of a body, and what it
// says reaches the device.
func TestEarlyAnswer(t *testing.T) {
	url := rawApp(t, func(c net.Conn, r *http.Request) bool {
		switch r.URL.Path {
		case "/refuse":
			_, _ = io.WriteString(c, "HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
			return false
		case "/talk": // answers each piece as it comes
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
			b := make([]byte, 64)
			for {
				n, err := r.Body.Read(b)
				if n > 0 {
					fmt.Fprintf(c, "%x\r\n%s\r\n", n, b[:n])
				}
				if errors.Is(err, io.EOF) {
					_, _ = io.WriteString(c, "0\r\n\r\n")
					return true
				}
				if err != nil {
					return false
				}
			}
		}
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(c, sized(fmt.Sprint(len(body), r.Trailer.Get("X-Sum"), r.Trailer.Get("Portvakt-Subject"))))
		return true
	})
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": url})
	for _, h2 := range []bool{false, true} {
		c := w.client(h2)
		t.Run(fmt.Sprint("h2 ", h2), func(t *testing.T) {
			for _, size := range []int{1, 16 << 10, 16<<10 + 1, 3 << 20} {
				for _, chunks := range []bool{false, true} {
					var body io.Reader = strings.NewReader(strings.Repeat("x", size))
					if chunks {
						body = io.MultiReader(body)
					}
					req, _ := http.NewRequest(http.MethodPost, "https://crm.test/", body)
					want := fmt.Sprint(size)
					if chunks {
						req.Trailer = http.Header{"X-Sum": {"7"}, "Portvakt-Subject": {"root"}}
						want += "7"
					}
					res, err := c.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					got, _ := io.ReadAll(res.Body)
					res.Body.Close()
					if string(got) != want {
						t.Errorf("%d bytes, chunks %v: the app saw %q, want %q", size, chunks, got, want)
					}
				}
			}
			pr, pw := io.Pipe()
			req, _ := http.NewRequest(http.MethodPost, "https://crm.test/talk", pr)
			go func() { _, _ = io.WriteString(pw, "one") }()
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 16)
			for _, word := range []string{"one", "two", "three"} {
				if word != "one" {
					_, _ = io.WriteString(pw, word)
				}
				if n, err := res.Body.Read(b); err != nil || string(b[:n]) != word {
					t.Fatalf("said %s, heard %q %v", word, b[:n], err)
				}
			}
			pw.Close()
			if rest, err := io.ReadAll(res.Body); len(rest) != 0 || err != nil {
				t.Errorf("at the end %q %v", rest, err)
			}
			res.Body.Close()

			pr, pw = io.Pipe() // a device that never finishes
			defer pw.Close()
			req, _ = http.NewRequest(http.MethodPost, "https://crm.test/refuse", pr)
			go func() { _, _ = io.WriteString(pw, strings.Repeat("x", 100<<10)) }()
			begin := time.Now()
			if res, err = c.Do(req); err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if res.StatusCode != http.StatusRequestEntityTooLarge || string(got) != "no" || time.Since(begin) > slack*2*time.Second {
				t.Errorf("%d %q after %v", res.StatusCode, got, time.Since(begin))
			}
		})
	}
}

// TestDeadAppIsLeftAlone: whoever asks for an app that cannot be reached is told
// so, with a record, also while nobody tries any more; other apps go on.
func TestDeadAppIsLeftAlone(t *testing.T) {
	e := newEcho(t)
	dead := strings.NewReplacer("name: crm", "name: dead", "[crm.test, kunder.test]", "[dead.test]", "{{crm}}", "http://127.0.0.1:1").Replace(crmYAML)
	w := newWorld(t, []string{crmYAML, dead}, map[string]string{"crm": e.URL})
	c := w.client(false)
	const n = 9 // of which five try
	for range n {
		if res, _ := get(t, c, "https://dead.test/"); res.StatusCode != http.StatusBadGateway || res.Header.Get("Portvakt-Reason") != "upstream_unavailable" {
			t.Fatalf("%d %v", res.StatusCode, res.Header)
		}
		if res, _ := get(t, c, "https://crm.test/"); res.StatusCode != http.StatusOK {
			t.Fatalf("another app: %d", res.StatusCode)
		}
	}
	if got := w.proxy.Unreachable(); len(got) != 1 || got[0] != "dead" {
		t.Errorf("unreachable: %q", got)
	}
	for _, r := range w.records(audit.KindUpstreamError, n) {
		if r.App != "dead" || r.Outcome != "upstream_unavailable" {
			t.Errorf("%+v", r)
		}
	}
}
