package proxy

import (
	"net/http"
	"net/url"
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
		"/a?x;y", "/a?x=%zz", "/a?%", "/a?x=%4", "/a?b c", "/a?x=\x00", "/a?x#y", "/a?\xff", "/?" + strings.Repeat("a&", 1000),
	} {
		if got, err := canonical(raw); err == nil {
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
		{"/a.b/..c/d..", "/a.b/..c/d..", "/a.b/..c/d..", ""},
		{"/a:b@c=d,e!f$g&h'i(j)*", "/a:b@c=d,e!f$g&h'i(j)*", "/a:b@c=d,e!f$g&h'i(j)*", ""},
		{"/a?", "/a", "/a", ""},
		{"/a?b=/../c&d=%2f%3B?e", "/a", "/a", "b=/../c&d=%2f%3B?e"},
		{"/?" + strings.Repeat("a&", 999), "/", "/", strings.Repeat("a&", 999)},
	} {
		got, err := canonical(c.raw)
		if err != nil {
			t.Errorf("%q refused: %v", c.raw, err)
		} else if got != (target{c.path, c.escaped, c.query}) {
			t.Errorf("%q taken as %+v", c.raw, got)
		}
	}
}

// FuzzCanonical: what is accepted reads the same to whoever decodes it once,
// to whoever decodes it twice, to Go's own parser, and when it is read again.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"/", "/a/b%20c?x=1", "/%2e%2e/", "//", "/%25", "/a%3Fb", "/%c3%a5", "/a;b", "/a?b;c", "/%ef%bc%8f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := canonical(raw)
		if err != nil {
			return
		}
		once, err := url.PathUnescape(got.escaped)
		if err != nil || once != got.path {
			t.Fatalf("%q: the app decodes %q to %q (%v), policy saw %q", raw, got.escaped, once, err, got.path)
		}
		if twice, err := url.PathUnescape(once); err == nil && twice != once {
			t.Fatalf("%q: decoded twice it is %q, policy saw %q", raw, twice, got.path)
		}
		uri := got.escaped
		if got.query != "" {
			uri += "?" + got.query
		}
		u, err := url.ParseRequestURI(uri)
		if err != nil || u.Path != got.path || u.Host != "" || u.RawQuery != got.query || u.EscapedPath() != got.escaped {
			t.Fatalf("%q: net/url reads %q as %+v (%v)", raw, uri, u, err)
		}
		if joined := u.JoinPath(); strings.TrimSuffix(joined.Path, "/") != strings.TrimSuffix(got.path, "/") {
			t.Fatalf("%q: cleaning %q gives %q", raw, got.path, joined.Path)
		}
		again, err := canonical(uri)
		if err != nil || again != got {
			t.Fatalf("%q: read again it is %+v (%v), before %+v", raw, again, err, got)
		}
	})
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
