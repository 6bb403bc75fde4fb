package proxy_test

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/tools/txtar"

	"github.com/portvakt/portvakt/gateway/audit"
)

// TestCorpora sends everything of testdata that tries to be taken for something
// else, over HTTP/1.1 and HTTP/2, to apps in Go and Python and through nginx. The
// apps tell what arrived: each request that did has exactly one record that
// allows it, by the hash of what arrived, and each that did not has one that
// does not.
func TestCorpora(t *testing.T) {
	for name, start := range witnesses {
		t.Run(name, func(t *testing.T) {
			app := start(t)
			c := &corpus{t: t, app: app, w: newWorld(t, []string{crmYAML + app.yaml}, map[string]string{"crm": app.url}), reach: map[string]int{}, broken: map[string]bool{}}
			c.tasks.SetLimit(48) // below what one device may have waiting
			c.h2 = newRawH2(t, c.w)
			c.paths()
			c.smuggling()
			c.identity()
			_ = c.tasks.Wait()
			c.account()
		})
	}
}

type corpus struct {
	t   *testing.T
	app witness
	w   *world
	h2  *rawH2

	// tasks are what goes over HTTP/1.1, each on a connection of its own, which
	// may take its time to close: some at once.
	tasks errgroup.Group

	mu      sync.Mutex     // guards what follows
	reach   map[string]int // requests that the app must get, by what distinguishes them
	broken  map[string]bool
	refused int // requests that must have a record of their refusal
	reset   int // those that may: HTTP/2's framing refuses some by itself
}

func (c *corpus) expect(id string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, twice := c.reach[id]; twice {
		c.t.Errorf("%q is there twice", id)
	}
	c.reach[id] = n
}

// expectBroken is for a request whose head may arrive and whose body does not.
func (c *corpus) expectBroken(id string) {
	c.expect(id, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken[id] = true
}

// entries are the lines of a file that begin with one of marks and a space.
func entries(t testing.TB, file, marks string) (all []string) {
	t.Helper()
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSuffix(line, "\n"); len(line) > 1 && strings.Contains(marks, line[:1]) && line[1] == ' ' {
			all = append(all, line)
		}
	}
	return all
}

var statusLine = regexp.MustCompile(`(?m)^HTTP/1\.[01] ([2-5]\d\d) `)

// talk sends text on a connection of its own, and returns the final statuses of
// all that is answered until the gateway closes it.
func (c *corpus) talk(text string) (statuses []string) {
	c.t.Helper()
	conn := c.w.tls("crm.test")
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(slack * 5 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		return nil
	}
	answer, err := io.ReadAll(conn)
	if err != nil && !isReset(err) {
		c.t.Errorf("%.60q: the connection stays open: %v", text, err)
	}
	for _, m := range statusLine.FindAllStringSubmatch(string(answer), -1) {
		statuses = append(statuses, m[1])
	}
	return statuses
}

// refuse checks the answers to a request that must not reach the app.
func (c *corpus) refuse(what string, statuses []string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refused++
	if len(statuses) != 1 || statuses[0] < "400" || statuses[0] >= "500" {
		c.t.Errorf("%q: answered %v", what, statuses)
	}
}

func (c *corpus) refuseH2(what, status string) {
	c.t.Helper()
	if status != "reset" {
		c.refuse(what, []string{status})
		return
	}
	c.behind()
}

// behind is for what may have a record because HTTP/2's framing refuses it: a
// request, or what comes behind one that was answered.
func (c *corpus) behind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset++
}

// paths: whatever is marked "+" arrives, whatever is marked "-" does not.
func (c *corpus) paths() {
	lines := entries(c.t, "paths.txt", "+-")
	if len(lines) < 80 {
		c.t.Errorf("%d paths", len(lines))
	}
	check := func(target string, passes bool, got []string) {
		switch {
		case !passes:
			c.refuse(target, got)
		case !slices.Equal(got, []string{"200"}):
			c.t.Errorf("%q: answered %v", target, got)
		}
	}
	for i, line := range lines {
		target, passes := unescapeGo(c.t, line[2:]), line[0] == '+'
		for _, proto := range []string{"h1", "h2"} {
			id := fmt.Sprintf("path-%s-%d", proto, i)
			c.expect(id, strings.Count(line[:1], "+"))
			if proto == "h1" {
				c.tasks.Go(func() error {
					check(target, passes, c.talk("GET "+target+" HTTP/1.1\r\nHost: crm.test\r\nX-Case: "+id+"\r\nConnection: close\r\n\r\n"))
					return nil
				})
				continue
			}
			got := c.h2.get(target, [2]string{"x-case", id})
			if passes {
				check(target, passes, []string{got})
			} else {
				c.refuseH2(target, got)
			}
		}
	}
}

// smuggling sends the sections of smuggling.txtar as they say, and those of
// HTTP/1.1 once more as the body of a request over HTTP/2.
func (c *corpus) smuggling() {
	archive, err := txtar.ParseFile("testdata/smuggling.txtar")
	if err != nil {
		c.t.Fatal(err)
	}
	if len(archive.Files) < 60 {
		c.t.Errorf("%d payloads", len(archive.Files))
	}
	for _, f := range archive.Files {
		_, rest, _ := strings.Cut(string(f.Data), "\n= ")
		want, rest, ok := strings.Cut(rest, "\n")
		if !ok {
			c.t.Fatalf("%s does not say what is wanted", f.Name)
		}
		if strings.HasPrefix(f.Name, "h2_") {
			c.frames(f.Name, want, rest)
			continue
		}
		var text strings.Builder
		for line := range strings.Lines(rest) {
			text.WriteString(unescapeGo(c.t, strings.TrimSuffix(line, "\n")))
		}
		c.tasks.Go(func() error { c.bytes(f.Name, want, text.String()); return nil })
		id := "carried_" + f.Name
		c.expect(id, 1)
		status := c.h2.send([]string{text.String()}, nil, [2]string{":method", "POST"}, [2]string{":scheme", "https"}, [2]string{":authority", "crm.test"}, [2]string{":path", "/" + id})
		if status != "200" {
			c.t.Errorf("%s as a body over HTTP/2: %s", f.Name, status)
		}
	}
}

func (c *corpus) bytes(name, want, text string) {
	got := c.talk(text + "GET /" + name + "/end HTTP/1.1\r\nHost: crm.test\r\nConnection: close\r\n\r\n")
	switch want {
	case "refused":
		c.expect(name, 0)
		c.refuse(name, got)
	case "refused, then 1":
		c.expect(name, 1)
		c.refuse(name, got[:min(1, len(got))])
		if len(got) != 2 || got[1] != "200" {
			c.t.Errorf("%s: answered %v", name, got)
		}
	case "broken":
		c.expectBroken(name)
		if slices.Contains(got, "200") {
			c.t.Errorf("%s: answered %v", name, got)
		}
	default:
		n, err := strconv.Atoi(want)
		if err != nil {
			c.t.Fatalf("%s wants %q", name, want)
		}
		c.expect(name, n)
		if len(got) != n || slices.ContainsFunc(got, func(s string) bool { return s != "200" }) {
			c.t.Errorf("%s: answered %v, want %d times 200", name, got, n)
		}
	}
}

func (c *corpus) frames(name, want, text string) {
	var fields, trailers [][2]string
	var data []string
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if d, ok := strings.CutPrefix(line, "DATA "); ok {
			data = append(data, unescapeGo(c.t, d))
			continue
		}
		field, trailer := strings.CutPrefix(line, "TRAILER ")
		name, value, ok := strings.Cut(field, ": ")
		if !ok {
			c.t.Fatalf("%s: a field without a value: %s", name, line)
		}
		pair := [2]string{unescapeGo(c.t, name), unescapeGo(c.t, value)}
		if trailer {
			trailers = append(trailers, pair)
		} else {
			fields = append(fields, pair)
		}
	}
	got := c.h2.send(data, trailers, fields...)
	if len(data) > 0 {
		c.behind()
	}
	switch {
	case want == "broken":
		c.expectBroken(name)
	case want != "refused":
		c.expect(name, 1)
		if got != "200" {
			c.t.Errorf("%s: answered %s", name, got)
		}
	default:
		c.expect(name, 0)
		c.refuseH2(name, got)
	}
}

// identity sends each name in every way there is to send one.
func (c *corpus) identity() {
	lines := entries(c.t, "identity_headers.txt", "+-")
	if len(lines) < 30 {
		c.t.Errorf("%d spellings", len(lines))
	}
	ways := []string{
		"GET /%s HTTP/1.1\r\nHost: crm.test\r\n%s: forged\r\nConnection: close\r\n\r\n",
		"GET /%s HTTP/1.1\r\nHost: crm.test\r\n%[2]s: forged\r\n%[2]s: forged too\r\nConnection: close\r\n\r\n",
		"GET /%s HTTP/1.1\r\nHost: crm.test\r\n%[2]s: forged\r\nConnection: close, %[2]s, portvakt-assertion, x-forwarded-for\r\n\r\n",
		"POST /%s HTTP/1.1\r\nHost: crm.test\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: %[2]s\r\n\r\n0\r\n%[2]s: forged\r\n\r\n",
	}
	for i, line := range lines {
		name := unescapeGo(c.t, line[2:])
		passes := line[0] == '+'
		for way, text := range ways {
			c.tasks.Go(func() error {
				id := fmt.Sprintf("identity-%d-%d", i, way)
				got := c.talk(fmt.Sprintf(text, id, name))
				switch {
				case passes:
					c.expect(id, 1)
					if !slices.Equal(got, []string{"200"}) {
						c.t.Errorf("%q, way %d: answered %v", name, way, got)
					}
				case way == 3: // what breaks the body comes after the head
					c.expectBroken(id)
				default:
					c.expect(id, 0)
					c.refuse(name, got)
				}
				return nil
			})
		}
		id, lower := fmt.Sprintf("identity-h2-%d", i), strings.ToLower(name)
		got := c.h2.get("/"+id, [2]string{lower, "forged"}, [2]string{lower, "forged too"})
		c.expect(id, strings.Count(line[:1], "+"))
		switch {
		case passes && got != "200":
			c.t.Errorf("%q over HTTP/2: answered %s", name, got)
		case !passes:
			c.refuseH2(name, got)
		default: // as a trailer
			id += "-trailer"
			c.expect(id, 1)
			got := c.h2.send([]string{"body"}, [][2]string{{lower, "forged"}},
				[2]string{":method", "POST"}, [2]string{":scheme", "https"}, [2]string{":authority", "crm.test"}, [2]string{":path", "/" + id})
			c.behind()
			if got != "200" {
				c.t.Errorf("%q as a trailer over HTTP/2: answered %s", name, got)
			}
		}
	}
}

// caseOf tells by the app's view of a request which one it was.
func caseOf(s seen) string {
	for _, key := range []string{"X-Case", "X_CASE"} {
		if v := s.Header[key]; len(v) == 1 {
			return v[0]
		}
	}
	id, _, _ := strings.Cut(strings.TrimPrefix(s.URI, "/"), "/")
	return id
}

// account compares what arrived with what is recorded.
func (c *corpus) account() {
	t := c.t
	want := 0
	for id, n := range c.reach {
		if !c.broken[id] {
			want += n
		}
	}
	for end := time.Now().Add(slack * 5 * time.Second); len(c.app.requests()) < want && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(200 * time.Millisecond) // for what should not come
	all := c.app.requests()
	arrived, paths := map[string]int{}, map[string]string{}
	got := map[string]int{}
	for _, s := range all {
		hash := s.requestHash("crm")
		arrived[hash]++
		path, _, _ := strings.Cut(s.URI, "?")
		decoded, err := url.PathUnescape(path)
		if err != nil {
			t.Errorf("the app got %q", s.URI)
		}
		paths[hash] = decoded
		id := caseOf(s)
		got[id]++
		if n, known := c.reach[id]; !known || got[id] > n {
			t.Errorf("the app got %s %q for %q, which is one too many", s.Method, s.URI, id)
		}
		assertions := 0
		for name, values := range s.Header { // CGI's spelling is one of it
			if strings.EqualFold(strings.ReplaceAll(name, "_", "-"), "Portvakt-Assertion") {
				assertions += len(values)
			}
		}
		if assertions != 1 && s.Header != nil {
			t.Errorf("%s: %d assertions arrived", id, assertions)
		}
		if strings.Contains(fmt.Sprint(s.Header, s.Trailer), "forged") {
			t.Errorf("%s: a forged header arrived: %v %v", id, s.Header, s.Trailer)
		}
		if strings.Contains(fmt.Sprint(s.Header), "muggled") {
			t.Errorf("%s: a smuggled header arrived: %v", id, s.Header)
		}
	}
	for id, n := range c.reach {
		if got[id] != n && !c.broken[id] {
			t.Errorf("%s: %d requests reached the app, want %d", id, got[id], n)
		}
	}
	denied, vanished := 0, 0
	for _, r := range c.w.records(audit.KindDecision, len(all)+c.refused) {
		switch {
		case !*r.Allow:
			denied++
			if r.RequestHash != "" {
				t.Errorf("%s %q was refused as unreadable and has a hash", r.Method, r.Path)
			}
		case arrived[r.RequestHash] == 0:
			if vanished++; !c.broken[strings.TrimPrefix(r.Path, "/")] {
				t.Errorf("%s %q was allowed and is not at the app", r.Method, r.Path)
			}
		default:
			arrived[r.RequestHash]--
			if r.Path != paths[r.RequestHash] {
				t.Errorf("policy saw %q, the app %q", r.Path, paths[r.RequestHash])
			}
		}
	}
	for hash, n := range arrived {
		if n != 0 {
			t.Errorf("%d requests for %q have no record that allows them", n, paths[hash])
		}
	}
	if denied < c.refused || denied > c.refused+c.reset {
		t.Errorf("%d refusals are recorded, want %d and perhaps %d more", denied, c.refused, c.reset)
	}
	t.Logf("%d requests arrived, each with its record; %d were refused, each with its own; %d were broken off before they arrived", len(all), denied, vanished)
}

// TestKept: an app gets what is encoded as it came, in one spelling, on each
// road; one that keeps encoded slashes and parameters gets these too, each as a
// part of the segment that the rules matched.
func TestKept(t *testing.T) {
	for name, start := range witnesses {
		t.Run(name, func(t *testing.T) {
			app := start(t)
			w := newWorld(t, []string{crmYAML + "    paths: [/x/*, /y/a%2Fb]\nencoded_slash: keep\npath_parameters: keep\n" + app.yaml}, map[string]string{"crm": app.url})
			var want []string
			for _, c := range []struct{ target, want, reaches string }{
				{"/x/a%2fb", "200", "/x/a%2Fb"},
				{"/x/https:%2F%2Fgit.test%2Fr", "200", "/x/https:%2F%2Fgit.test%2Fr"},
				{"/x/a;v=1", "200", "/x/a;v=1"},
				{"/y/a%2Fb", "200", "/y/a%2Fb"},
				{"/x/a%2bb+%26%3d%40%3A", "200", "/x/a%2Bb+%26%3D%40%3A"},
				{"/x/a%2Fb?", "200", "/x/a%2Fb?"},
				{"/x/%7e%41?", "200", "/x/~A?"},
				{"/x/q?a=%2f%0d%0a%e5?b", "200", "/x/q?a=%2f%0d%0a%e5?b"},
				{"/x/a%2Fb/c", "403 path_not_allowed", ""},
				{"/x%2Fa", "403 path_not_allowed", ""},
				{"/y/a/b", "403 path_not_allowed", ""},
				{"/y;v/a%2Fb", "403 path_not_allowed", ""},
				{"/x/..%2Fadmin", "400 bad_request", ""},
				{"/x/..;/admin", "400 bad_request", ""},
				{"/x/%252fa", "400 bad_request", ""},
				{"/x/a?b=%00", "400 bad_request", ""},
			} {
				if got := w.raw("crm.test", "GET "+c.target+" HTTP/1.1\r\nHost: crm.test\r\n\r\n"); !strings.HasPrefix(got, c.want) {
					t.Errorf("%s: answered %.60s, want %s", c.target, got, c.want)
				}
				if c.reaches != "" {
					want = append(want, c.reaches)
				}
			}
			for end := time.Now().Add(slack * 5 * time.Second); len(app.requests()) < len(want) && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			var got []string
			for _, s := range app.requests() {
				got = append(got, s.URI)
			}
			if !slices.Equal(got, want) {
				t.Errorf("the app got %q, want %q", got, want)
			}
		})
	}
}
