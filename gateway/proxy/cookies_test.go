package proxy

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestTheirCookies(t *testing.T) {
	for _, c := range []struct{ in, want string }{ // headers, joined by |
		{"sid=1", "sid=1"},
		{"sid=1; lang=sv;theme=dark", "sid=1; lang=sv;theme=dark"},
		{"back=https://portvakt.example/portvakt_x; x=portvakt_y", "back=https://portvakt.example/portvakt_x; x=portvakt_y"},
		{"my_portvakt_x=1; _portvakt=2; xportvakt_=3; port=4; __Host-sid=5", "my_portvakt_x=1; _portvakt=2; xportvakt_=3; port=4; __Host-sid=5"},
		{"portvakt_s=1", ""},
		{"__Host-portvakt=1", ""},
		{"__Host-portvakt-console=1; sid=2", "sid=2"},
		{"__Secure-portvakt_s=1;__Http-portvakt_s=1;__Host-Http-portvakt_s=1; a=b", "a=b"},
		{"__HOST-PortVakt=1; PORTVAKT_S=2; a=b", "a=b"},
		{"a=b; portvakt_s=1; c=d", "a=b; c=d"},
		{"a=b;portvakt_s=1;c=d", "a=b; c=d"},
		{"a=b;\t  portvakt_s = 1 ;; c=d;", "a=b; c=d"},
		{"a=b; portvakt_s", "a=b"},
		{"a=b; =portvakt_s=1; ==portvakt_s; c=d", "a=b; c=d"},
		{"a=1,2; portvakt_s=1,2; c=3,4", "a=1,2; c=3,4"},
		{"a=1, portvakt_s=secret; c=3", "a=1; c=3"},
		{"portvakt_s=1, a=1", ""},
		{`a="x; portvakt_s=1"; c=3`, `a="x; c=3`},
		{"a=b|portvakt_s=1|c=d", "a=b|c=d"},
		{"portvakt_s=1|__host-portvakt=2", ""},
		{"", ""},
		{";; ;", ";; ;"},
	} {
		in := strings.Split(c.in, "|")
		before := slices.Clone(in)
		if got := strings.Join(theirCookies(in), "|"); got != c.want {
			t.Errorf("%q became %q, want %q", c.in, got, c.want)
		}
		if !slices.Equal(in, before) {
			t.Errorf("%q was changed in place", c.in)
		}
	}
	plain := []string{strings.Repeat("session=0123456789abcdef; ", 40), "a=b, c=d"}
	if n := testing.AllocsPerRun(100, func() { _ = theirCookies(plain) }); n != 0 {
		t.Errorf("%v allocations for cookies that are all an app's", n)
	}
}

func TestDropOurCookies(t *testing.T) {
	h := http.Header{"Set-Cookie": {"sid=1; Path=/", "portvakt_s=1", " __Host-Portvakt=; Max-Age=0", "=__Host-portvakt=x", "x=portvakt_s", "a=b, portvakt_s=1"}}
	dropOurCookies(h)
	if want := []string{"sid=1; Path=/", "x=portvakt_s", "a=b, portvakt_s=1"}; !slices.Equal(h["Set-Cookie"], want) {
		t.Errorf("left are %q, want %q", h["Set-Cookie"], want)
	}
	h = http.Header{"Set-Cookie": {"portvakt_s=1"}, "X-Other": {"portvakt_s=1"}}
	if dropOurCookies(h); len(h) != 1 || h["X-Other"] == nil {
		t.Errorf("left is %v", h)
	}
	if trailerAllowed("Cookie", nil) || trailerAllowed("Set-Cookie", nil) || !trailerAllowed("X-Cookie", nil) {
		t.Error("cookies pass as trailers, or others do not")
	}
}

// FuzzTheirCookies: no reader finds one of ours in what is left, every cookie of
// the app's is there in its order, and what holds none of ours is left alone.
func FuzzTheirCookies(f *testing.F) {
	for _, s := range []string{"a=b; c=d", "portvakt_s=1; a=b", "a=b;__HOST-PORTVAKT=1", "a=1,portvakt_s=2; c", "=portvakt_s; ;", `a="; portvakt"`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, v string) {
		in := []string{v}
		out := theirCookies(in)
		if !strings.Contains(strings.ToLower(v), ourCookies) && !slices.Equal(in, out) {
			t.Fatalf("%q became %q", v, out)
		}
		again := theirCookies(out)
		if !slices.Equal(again, out) {
			t.Fatalf("%q became %q, and that %q", v, out, again)
		}
		names := func(values []string) (all []string) {
			for _, c := range (&http.Request{Header: http.Header{"Cookie": values}}).Cookies() {
				all = append(all, c.Name)
			}
			return all
		}
		left := names(out)
		for _, name := range names(in) {
			if isOurCookie(name) {
				continue
			}
			i := slices.Index(left, name)
			if i < 0 {
				t.Fatalf("%q became %q, without %q", v, out, name)
			}
			left = left[i+1:]
		}
		for _, o := range out {
			for _, pair := range strings.FieldsFunc(o, func(r rune) bool { return r == ';' || r == ',' }) {
				if strings.HasPrefix(strings.ToLower(strings.TrimLeft(pair, " \t=")), ourCookies) {
					t.Fatalf("%q became %q, in which some read %q", v, out, pair)
				}
			}
		}
	})
}

func BenchmarkTheirCookies(b *testing.B) {
	values := []string{"sid=0123456789abcdef0123456789abcdef; lang=sv; _ga=GA1.1.1234567890.1700000000; csrftoken=abcdefghijklmnopqrstuvwxyz0123456789"}
	b.ReportAllocs()
	for b.Loop() {
		_ = theirCookies(values)
	}
}

func TestNominations(t *testing.T) {
	got := nominations([]string{"close, x-A,, \tX-b ", "Keep-Alive", "TE,upgrade", "x-a"})
	if want := (nominated{"Close": true, "X-A": true, "X-B": true}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if nominations([]string{"keep-alive"}) != nil || hopByHop["Close"] {
		t.Error("what most clients say costs something, or a field is taken that nobody named")
	}
}
