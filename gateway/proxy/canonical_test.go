package proxy

import (
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestCanonicalRefuses(t *testing.T) {
	for _, raw := range []string{
		"", "*", "admin", "crm.test:443", "https://crm.test/",
		"/a/../admin", "/..", "/../", "/.", "/./a", "/a/.", "/a/..",
		"/a/%2e%2e/admin", "/%2e%2e", "/%2E%2e/", "/.%2e/", "/%2e/a", "/a/%2e", "/...", "/a/.../b", "/..%20/x", "/%20./x", "/. ./x",
		"//", "//admin", "/a//b", "///", "/a//", "//evil.test/x",
		"/admin%2fx", "/admin%2Fx", "/a%5cb", "/a%5Cb", "/a\\b", "/\\evil.test",
		"/a;x", "/a;x=1/b", "/a%3bx", "/..;/admin",
		"/a%00b", "/a%0ab", "/a%0d%0ab", "/a%09b", "/a%7fb", "/a\x00b", "/a\x01b", "/a b", "/a\tb",
		"/%", "/%4", "/a%zz", "/a%4gb", "/%u002e", "/a%",
		"/a#b", "/a#/../b", "/#", "/a\"b", "/<a>",
		"/%252f", "/a%252e%252e/b", "/a%25%32%66", "/%25%32e",
		"/%c0%af", "/%c0%ae%c0%ae/", "/%e0%80%af", "/%ff", "/%ed%a0%80", "/%c2%85", "/\xc3\xa5", "/å",
		"/%ef%bc%8f", "/%ef%bc%8e%ef%bc%8e/", "/%e2%80%a5/", "/%ef%bc%bc", "/%ef%bc%9b",
		"/a/%ef%b8%b0/b", "/a/%ef%b8%99/b", "/a%ef%b8%94x", "/a%cd%bejsessionid=1", "/a/..%c2%a0/b", "/%e2%80%83./b",
		"/a?x;y", "/a?x=%zz", "/a?%", "/a?x=%4", "/a?b c", "/a?x=\x00", "/a?x#y", "/a?\xff", "/a?b=%00", "/a?%00", "/a?b=c%00.pdf&d", "/?" + strings.Repeat("a&", 1000),
	} {
		if got, err := canonical(raw, kept{}); err == nil {
			t.Errorf("%q was taken as %+v", raw, got)
		}
	}
}

func TestCanonicalAccepts(t *testing.T) {
	for _, c := range []struct{ raw, path, escaped, query string }{
		{"/", "/", "/", ""},
		{"/a/b/", "/a/b/", "/a/b/", ""},
		{"/%61dmin", "/admin", "/admin", ""},
		{"/%41%2d%7E", "/A-~", "/A-~", ""},
		{"/a%20b", "/a b", "/a%20b", ""},
		{"/a+b", "/a+b", "/a+b", ""},
		{"/a%3Fb%23c", "/a?b#c", "/a%3Fb%23c", ""},
		{"/%c3%85sa", "/Åsa", "/%C3%85sa", ""},
		{"/100%25", "/100%", "/100%25", ""},
		{"/a|b[c]^{d}`", "/a|b[c]^{d}`", "/a%7Cb%5Bc%5D%5E%7Bd%7D%60", ""},
		{"/a%c2%a0b/%ef%bc%9f", "/a\u00a0b/？", "/a%C2%A0b/%EF%BC%9F", ""},
		{"/a.b/..c/d..", "/a.b/..c/d..", "/a.b/..c/d..", ""},
		{"/a:b@c=d,e!f$g&h'i(j)*", "/a:b@c=d,e!f$g&h'i(j)*", "/a:b@c=d,e!f$g&h'i(j)*", ""},
		{"/a%2Bb+c", "/a+b+c", "/a%2Bb+c", ""},
		{"/%21%24%26%27%28%29%2a%2b%2c%3a%3d%40", "/!$&'()*+,:=@", "/%21%24%26%27%28%29%2A%2B%2C%3A%3D%40", ""},
		{"/%5b%5D%3f%23", "/[]?#", "/%5B%5D%3F%23", ""},
		{"/a?", "/a", "/a", "?"},
		{"/a??", "/a", "/a", "??"},
		{"/%61?", "/a", "/a", "?"},
		{"/a?b=/../c&d=%2f%3B?e", "/a", "/a", "?b=/../c&d=%2f%3B?e"},
		{"/a?b=x%0d%0ay%09&c=%e5%c0%af%ff&%61=%2B+", "/a", "/a", "?b=x%0d%0ay%09&c=%e5%c0%af%ff&%61=%2B+"},
		{"/?" + strings.Repeat("a&", 999), "/", "/", "?" + strings.Repeat("a&", 999)},
	} {
		got, err := canonical(c.raw, kept{})
		if err != nil {
			t.Errorf("%q refused: %v", c.raw, err)
		} else if got != (target{c.path, c.escaped, c.query}) {
			t.Errorf("%q taken as %+v", c.raw, got)
		}
	}
}

// Apps that keep %2F or ";" get them as they came, in one spelling, and nothing
// that hides a dot segment or another host behind them.
func TestCanonicalKeeps(t *testing.T) {
	slash, params := kept{slash: true}, kept{params: true}
	both := kept{slash: true, params: true}
	for _, c := range []struct {
		keep               kept
		raw, path, escaped string // empty: refused
	}{
		{slash, "/a%2fb", "/a%2Fb", "/a%2Fb"},
		{slash, "/api/https:%2F%2Fgit.test%2Fx/y", "/api/https:%2F%2Fgit.test%2Fx/y", "/api/https:%2F%2Fgit.test%2Fx/y"},
		{slash, "/a%2F", "/a%2F", "/a%2F"},
		{slash, "/x/%2F", "/x/%2F", "/x/%2F"},
		{slash, "/a%25%2Fb", "/a%%2Fb", "/a%25%2Fb"},
		{slash, "/a%252fb", "", ""},
		{slash, "/%2F", "", ""},
		{slash, "/%2f%2fevil.test", "", ""},
		{slash, "/a/..%2fadmin", "", ""},
		{slash, "/a%2f..", "", ""},
		{slash, "/a%2F%2e%2E%2Fadmin", "", ""},
		{slash, "/a%2F./b", "", ""},
		{slash, "/a%5cb", "", ""},
		{slash, "/a%00b", "", ""},
		{slash, "/a\x00b", "", ""},
		{slash, "/a;b", "", ""},
		{slash, "/a%2Fb//c", "", ""},
		{params, "/a;b=1/c;d", "/a;b=1/c;d", "/a;b=1/c;d"},
		{params, "/a;", "/a;", "/a;"},
		{params, "/a%3bb", "", ""},
		{params, "/..;/admin", "", ""},
		{params, "/a/%2e%2e;x=1/admin", "", ""},
		{params, "/.;/a", "", ""},
		{params, "/;/a", "", ""},
		{params, "/a/;b", "", ""},
		{params, "/a;b%2Fc", "", ""},
		{params, "/a?b;c", "", ""},
		{both, "/a%2Fb;c", "/a%2Fb;c", "/a%2Fb;c"},
		{both, "/a;b%2F../c", "", ""},
		{both, "/a%2F..;x/c", "", ""},
	} {
		got, err := canonical(c.raw, c.keep)
		if got.path != c.path || got.escaped != c.escaped || (err == nil) != (c.path != "") {
			t.Errorf("%+v, %q: %+v, %v", c.keep, c.raw, got, err)
		}
	}
}

// The vector of docs/audit.md, which others check their own code with.
func TestDocumentedHash(t *testing.T) {
	doc, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	target, err := canonical("/customers/%c3%85sa%20%42%2b1?view=full&note=a%2fb", kept{})
	if err != nil {
		t.Fatal(err)
	}
	req := request{app: "crm", method: "GET", host: "crm.example.com", target: target}
	form := string(req.appendCanonical(nil))
	if !strings.Contains(string(doc), "\n```text\n"+form+"```\n") {
		t.Errorf("docs/audit.md does not show\n%s", form)
	}
	if !strings.Contains(string(doc), "\n`"+req.hash()+"`.\n") {
		t.Errorf("docs/audit.md does not name %s", req.hash())
	}
	seen := map[string]bool{req.hash(): true}
	for _, change := range []func(*request){
		func(r *request) { r.app = "crn" },
		func(r *request) { r.method = "HEAD" },
		func(r *request) { r.host = "crm.example.co" },
		func(r *request) { r.target.escaped = "/customers" },
		func(r *request) { r.target.query = "?view=full" },
		func(r *request) { r.target.query = "?" },
		func(r *request) { r.target.query = "" },
		func(r *request) { r.upgrade = "websocket" },
	} {
		other := req
		change(&other)
		if h := other.hash(); seen[h] || len(h) != 64 {
			t.Errorf("%+v has the hash of another request, %q", other, h)
		} else {
			seen[h] = true
		}
	}
	if h := (request{app: "crm", method: "GET", host: "crm.test", target: target}).hash(); h == "" || (request{method: "GET"}).hash() != "" {
		t.Error("what was not read has a hash, or what was has none")
	}
}

// FuzzCanonical: what is accepted reads the same to whoever decodes it once,
// to whoever decodes it twice, to Go's own parser, and when it is read again.
// Also of what apps may keep, a reader that splits first and decodes then gets
// the segments that policy saw.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"/", "/a/b%20c?x=1", "/%2e%2e/", "//", "/%25", "/a%3Fb", "/%c3%a5", "/a;b", "/a?b;c", "/%ef%bc%8f", "/a%2fb", "/a%25%2Fb;c"} {
		f.Add(s, false, false)
		f.Add(s, true, true)
	}
	f.Fuzz(func(t *testing.T, raw string, slash, params bool) {
		keep := kept{slash, params}
		got, err := canonical(raw, keep)
		if err != nil {
			return
		}
		once, err := url.PathUnescape(got.escaped)
		if err != nil || !slash && once != got.path || once != strings.ReplaceAll(got.path, "%2F", "/") {
			t.Fatalf("%q: the app decodes %q to %q (%v), policy saw %q", raw, got.escaped, once, err, got.path)
		}
		if twice, err := url.PathUnescape(once); err == nil && twice != once {
			t.Fatalf("%q: decoded twice it is %q, policy saw %q", raw, twice, got.path)
		}
		seen := strings.Split(got.path, "/")
		for i, s := range strings.Split(got.escaped, "/") {
			if s, err := url.PathUnescape(s); err != nil || s != strings.ReplaceAll(seen[i], "%2F", "/") {
				t.Fatalf("%q: segment %d is %q, policy saw %q", raw, i, s, seen[i])
			}
		}
		// RFC 3986, 6.2.2: only what is unreserved loses its encoding.
		rawPath, _, _ := strings.Cut(raw, "?")
		if want := normal(rawPath); got.escaped != want {
			t.Fatalf("%q: the app gets %q, which is not %q", raw, got.escaped, want)
		}
		if raw != rawPath+got.query || strings.Contains(got.query, "%00") {
			t.Fatalf("%q: the app gets the query %q", raw, got.query)
		}
		uri := got.escaped + got.query
		u, err := url.ParseRequestURI(uri)
		if err != nil || u.Path != once || u.Host != "" || u.RawQuery != strings.TrimPrefix(got.query, "?") || u.ForceQuery != (got.query == "?") || u.EscapedPath() != got.escaped {
			t.Fatalf("%q: net/url reads %q as %+v (%v)", raw, uri, u, err)
		}
		// Kept slashes may stand side by side; nothing else is there to clean.
		if joined := u.JoinPath(); !slash && strings.TrimSuffix(joined.Path, "/") != strings.TrimSuffix(got.path, "/") {
			t.Fatalf("%q: cleaning %q gives %q", raw, got.path, joined.Path)
		}
		again, err := canonical(uri, keep)
		if err != nil || again != got {
			t.Fatalf("%q: read again it is %+v (%v), before %+v", raw, again, err, got)
		}
	})
}

// The hash of an ordinary request costs less than a microsecond.
func BenchmarkRequestHash(b *testing.B) {
	t, err := canonical("/customers/4711/notes?view=full&sort=date", kept{})
	if err != nil {
		b.Fatal(err)
	}
	r := request{app: "crm", method: "GET", host: "crm.example.com", target: t}
	b.ReportAllocs()
	for b.Loop() {
		_ = r.hash()
	}
}

var triplet = regexp.MustCompile(`%[0-9A-Fa-f]{2}|.`)

// normal is RFC 3986, 6.2.2.1 and 6.2.2.2, and encodes what no path may hold.
func normal(path string) string {
	return triplet.ReplaceAllStringFunc(path, func(s string) string {
		if strings.Contains("/!$&'()*+,;=:@", s) {
			return s
		}
		if len(s) == 1 {
			return url.QueryEscape(s)
		}
		one, _ := url.PathUnescape(s)
		if plain := url.QueryEscape(one); plain == one { // of single bytes, exactly what is unreserved
			return plain
		}
		return strings.ToUpper(s)
	})
}

// What is read in one way has its fast way where there is nothing to decode, and
// costs less than a microsecond otherwise.
func BenchmarkCanonical(b *testing.B) {
	for name, raw := range map[string]string{
		"plain":   "/customers/4711/notes?view=full&sort=date",
		"escaped": "/customers/4711/%c3%85sa%20notes%2B1?view=full&sort=date&q=%C3%85sa",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := canonical(raw, kept{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestReserved(t *testing.T) {
	for name, want := range map[string]bool{
		"Portvakt-Assertion": true, "portvakt_x": true, "X-Forwarded-For": true, "x_forwarded_port": true, "X-FORWARDED": true, "Forwarded": true,
		"X-Real_IP": true, "Proxy": true, "X.Original.Url": true,
		"X-Forward": false, "Proxy-Connection": false, "Portvakt": false, "X-Requested-With": false, "Authorization": false, "Cookie": false, "My-Portvakt-X": false,
	} {
		if reserved(name) != want {
			t.Errorf("reserved(%q) = %v", name, !want)
		}
	}
}

func TestOrdinaryNamesAreNotReserved(t *testing.T) {
	for name := range ordinary {
		if reserved(name) || hopByHop[name] || ours(name) || http.CanonicalHeaderKey(name) != name {
			t.Errorf("%s passes unexamined and must not", name)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain": "plain", "a\r\nb": "a\ufffd\ufffdb", "\x1b[31m": "\ufffd[31m", "\xff": "\ufffd", "a\u202eb": "a\ufffdb", strings.Repeat("x", 300): strings.Repeat("x", 256) + "...",
	} {
		if got := printable(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
}
