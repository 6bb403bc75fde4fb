package loopback_test

import (
	"bufio"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/portvakt/portvakt/agent/loopback"
	"github.com/portvakt/portvakt/internal/wire"
)

// ask sends one raw request head and reads the answer.
func ask(t *testing.T, s *loopback.Server, head string) (*http.Response, string) {
	t.Helper()
	c := dial(t, "tcp", proxyOf(s))
	io.WriteString(c, strings.ReplaceAll(strings.ReplaceAll(head, "\n", "\r\n"), "SELF", proxyOf(s))+"\r\n\r\n")
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r, string(body)
}

func TestHTTPRequests(t *testing.T) {
	g := newGateway(t)
	down := wire.App{Name: "down", Protocol: "http", Hosts: []string{"down.example.test"}, Addresses: addrs("10.99.0.40")}
	s := serve(t, loopback.Config{Dial: g.dial}, crm, desk, voice, down)
	_, port, _ := strings.Cut(proxyOf(s), ":")
	for name, c := range map[string]struct {
		head   string
		status int
		body   string // part of it
	}{
		"unknown host":             {"CONNECT intranet.example.test:443 HTTP/1.1\nHost: x", 403, "only approved apps"},
		"unknown host, plain":      {"GET http://intranet.example.test/ HTTP/1.1\nHost: crm.example.test", 403, "only approved apps"},
		"subdomain of an app":      {"CONNECT a.crm.example.test:443 HTTP/1.1\nHost: x", 403, "only approved apps"},
		"loopback":                 {"CONNECT 127.0.0.1:22 HTTP/1.1\nHost: x", 403, "only approved apps"},
		"other port of an app":     {"CONNECT crm.example.test:22 HTTP/1.1\nHost: x", 403, "port 22"},
		"gateway refuses":          {"CONNECT down.example.test:443 HTTP/1.1\nHost: x", 502, "portvakt-agent why down"},
		"gateway refuses, plain":   {"GET http://down.example.test/ HTTP/1.1\nHost: x", 502, "portvakt-agent why down"},
		"no port":                  {"CONNECT crm.example.test HTTP/1.1\nHost: x", 400, "HOST:PORT"},
		"port zero":                {"CONNECT crm.example.test:0 HTTP/1.1\nHost: x", 400, "HOST:PORT"},
		"path":                     {"CONNECT /x HTTP/1.1\nHost: x", 400, ""},
		"https without CONNECT":    {"GET https://crm.example.test/ HTTP/1.1\nHost: x", 400, "CONNECT"},
		"other scheme":             {"GET ftp://crm.example.test/ HTTP/1.1\nHost: x", 400, "http://"},
		"credentials in the URL":   {"GET http://a:b@crm.example.test/ HTTP/1.1\nHost: x", 400, "user name"},
		"HTTP to a TCP app":        {"GET http://desk.example.test:7000/ HTTP/1.1\nHost: x", 403, "does not speak HTTP"},
		"absolute form":            {"GET http://CRM.example.test./a%2e%2fb?x=1;y HTTP/1.1\nHost: evil.example", 200, "GET /a%2e%2fb?x=1;y host=CRM.example.test."},
		"absolute form by address": {"GET http://10.99.0.16/a HTTP/1.1\nHost: x", 200, "host=10.99.0.16"},
		"garbage":                  {"GET\nHost: x", 400, ""},
		"pac":                      {"GET /proxy.pac HTTP/1.1\nHost: SELF", 200, "FindProxyForURL"},
		"pac by localhost":         {"GET /proxy.pac HTTP/1.1\nHost: LocalHost:" + port, 200, "FindProxyForURL"},
		"pac, rebound name":        {"GET /proxy.pac HTTP/1.1\nHost: evil.example:" + port, 403, "own address"},
		"pac, app's name":          {"GET /proxy.pac HTTP/1.1\nHost: crm.example.test", 403, "own address"},
		"pac, without a port":      {"GET /proxy.pac HTTP/1.1\nHost: 127.0.0.1", 403, "own address"},
		"pac as a page's script":   {"GET /proxy.pac HTTP/1.1\nHost: SELF\nSec-Fetch-Site: cross-site", 403, "Web pages"},
		"pac from a page's origin": {"GET /proxy.pac HTTP/1.1\nHost: SELF\nOrigin: https://evil.example", 403, "Web pages"},
		"other path":               {"GET / HTTP/1.1\nHost: SELF", 404, "/proxy.pac"},
		"written to":               {"POST /proxy.pac HTTP/1.1\nHost: SELF\nContent-Length: 0", 405, "read"},
		"asterisk form":            {"OPTIONS * HTTP/1.1\nHost: SELF", 404, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r, body := ask(t, s, c.head)
			if r.StatusCode != c.status || !strings.Contains(body, c.body) {
				t.Errorf("got %d %q, want %d with %q", r.StatusCode, body, c.status, c.body)
			}
			if r.StatusCode/100 == 4 && strings.Contains(body, "crm") && name != "garbage" {
				t.Errorf("a refusal names an app: %q", body)
			}
		})
	}
}

func TestConnectCarries(t *testing.T) {
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, crm, desk)
	for authority, prefix := range map[string]string{
		"crm.example.test:443": "crm:", "CRM2.example.test.:443": "crm:", "10.99.0.16:443": "crm:", "[fd99::10]:443": "crm:",
		"desk.example.test:7000": "desk:",
	} {
		t.Run(authority, func(t *testing.T) { wantEcho(t, connectTo(t, s, authority), prefix) })
	}
	t.Run("bytes sent before the answer", func(t *testing.T) {
		c := dial(t, "tcp", proxyOf(s))
		io.WriteString(c, "CONNECT crm.example.test:443 HTTP/1.1\r\nHost: x\r\n\r\nearly\n")
		r := bufio.NewReader(c)
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if line, _ := r.ReadString('\n'); line != "crm:early\n" {
			t.Errorf("got %q", line)
		}
	})
}

// What speaks about the hop to this proxy stays on it, credentials above all.
func TestHopByHopHeaders(t *testing.T) {
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, crm)
	r, body := ask(t, s, `GET http://crm.example.test/ HTTP/1.1
Host: x
Proxy-Authorization: Basic c2VjcmV0
Proxy-Connection: keep-alive
Connection: keep-alive, X-Mine
X-Mine: 1
Keep-Alive: 5
X-Stays: 1`)
	if want := "GET / host=crm.example.test\nX-Stays: 1\r\n"; strings.ReplaceAll(body, "Connection: keep-alive\r\n", "") != want {
		t.Errorf("the app saw %q, want %q", body, want)
	}
	for _, h := range []string{"Proxy-Authenticate", "X-Hop"} {
		if r.Header.Get(h) != "" {
			t.Errorf("the answer carries %s", h)
		}
	}
}

// A keep-alive proxy connection outlives the app; its next request does not
// reach it.
func TestKeepAliveAfterTheAppIsGone(t *testing.T) {
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, crm)
	tr := &http.Transport{Proxy: http.ProxyURL(&url.URL{Scheme: "http", Host: proxyOf(s)})}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	for i, want := range []int{200, 200, 403} {
		if i == 2 {
			s.SetApps(nil)
		}
		r, err := client.Get("http://crm.example.test/")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
		if r.StatusCode != want {
			t.Errorf("request %d: %d, want %d", i, r.StatusCode, want)
		}
	}
	if n := g.count("tcp 10.99.0.16:80"); n != 1 {
		t.Errorf("%d connections to the app for two requests, want one kept alive", n)
	}
}

func TestSOCKS(t *testing.T) {
	g := newGateway(t)
	down := wire.App{Name: "down", Protocol: "http", Hosts: []string{"down.example.test"}, Addresses: addrs("10.99.0.40")}
	s := serve(t, loopback.Config{Dial: g.dial}, crm, desk, voice, down)
	name := func(host string, port uint16) string {
		return string([]byte{3, byte(len(host))}) + host + string([]byte{byte(port >> 8), byte(port)})
	}
	for label, c := range map[string]struct {
		request string // after VER CMD RSV
		cmd     byte
		reply   byte
		prefix  string
	}{
		"domain":           {name("crm.example.test", 443), 1, 0, "crm:"},
		"domain, spelling": {name("CRM.Example.test.", 443), 1, 0, "crm:"},
		"IPv4":             {"\x01\x0a\x63\x00\x10\x01\xbb", 1, 0, "crm:"},
		"IPv6":             {"\x04\xfd\x99" + strings.Repeat("\x00", 13) + "\x10\x01\xbb", 1, 0, "crm:"},
		"IP as a domain":   {name("10.99.0.16", 443), 1, 0, "crm:"},
		"TCP app":          {name("desk.example.test", 7000), 1, 0, "desk:"},
		"unknown host":     {name("intranet.example.test", 443), 1, 2, ""},
		"unknown IP":       {"\x01\x7f\x00\x00\x01\x00\x16", 1, 2, ""},
		"other port":       {name("crm.example.test", 22), 1, 2, ""},
		"empty domain":     {name("", 443), 1, 2, ""},
		"NUL in a domain":  {name("crm.example.test\x00x", 443), 1, 2, ""},
		"refused":          {name("down.example.test", 443), 1, 5, ""},
		"UDP associate":    {name("crm.example.test", 443), 3, 7, ""},
		"bind":             {name("crm.example.test", 443), 2, 7, ""},
		"address type":     {"\x05xxxx\x01\xbb", 1, 8, ""},
	} {
		t.Run(label, func(t *testing.T) {
			conn := dial(t, "tcp", proxyOf(s))
			io.WriteString(conn, "\x05\x02\x02\x00"+"\x05"+string(c.cmd)+"\x00"+c.request)
			answer := make([]byte, 12)
			if _, err := io.ReadFull(conn, answer); err != nil {
				t.Fatal(err)
			}
			if want := []byte{5, 0, 5, c.reply, 0, 1, 0, 0, 0, 0, 0, 0}; !cmp.Equal(answer, want) {
				t.Fatalf("got % x, want % x", answer, want)
			}
			if c.prefix != "" {
				wantEcho(t, conn, c.prefix)
			}
		})
	}
	t.Run("password wanted", func(t *testing.T) {
		conn := dial(t, "tcp", proxyOf(s))
		io.WriteString(conn, "\x05\x01\x02")
		if b, err := io.ReadAll(conn); err != nil || string(b) != "\x05\xff" {
			t.Errorf("got % x, %v", b, err)
		}
	})
}

// Neither SOCKS nor HTTP: closed without a word.
func TestOtherPrefaces(t *testing.T) {
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, crm)
	for _, begin := range []string{"\x04\x01\x01\xbb\x0a\x63\x00\x10x\x00", "\x16\x03\x01", "\x00", "get / HTTP/1.1\r\n\r\n"} {
		conn := dial(t, "tcp", proxyOf(s))
		io.WriteString(conn, begin)
		if b, _ := io.ReadAll(conn); len(b) != 0 {
			t.Errorf("%q was answered with %q", begin, b)
		}
	}
}

func TestPAC(t *testing.T) {
	odd := wire.App{Name: "odd", Protocol: "http", Hosts: []string{`x"; alert(1); "`, "</script>", "é.example", "Odd.Example.Test."}, Addresses: addrs("::ffff:10.99.0.50")}
	proxy := netip.MustParseAddrPort("127.0.0.1:8118")
	for file, apps := range map[string][]wire.App{"empty.pac": nil, "apps.pac": {crm, desk, voice, odd}} {
		got := loopback.PAC(apps, proxy)
		want, err := os.ReadFile("testdata/" + file)
		if os.Getenv("UPDATE") != "" {
			os.WriteFile("testdata/"+file, []byte(got), 0o644)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("%s: %s", file, d)
		}
	}
}

func TestNormalHost(t *testing.T) {
	for in, want := range map[string]string{
		"CRM.Example.Test": "crm.example.test", "crm.": "crm", "10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1",
		"[FD99::0010]": "fd99::10", "fe80::1%eth0": "", "": "", ".": "", "a b": "", "a/b": "", "é": "", "a:1": "", "a..": "", strings.Repeat("a", 254): "",
	} {
		got, ok := loopback.NormalHost(in)
		if ok != (want != "") || ok && got != want {
			t.Errorf("NormalHost(%q) = %q, %v; want %q", in, got, ok, want)
		}
	}
}

func FuzzSOCKS(f *testing.F) {
	f.Add([]byte("\x05\x01\x00\x05\x01\x00\x03\x10crm.example.test\x01\xbb"))
	f.Fuzz(func(t *testing.T, in []byte) {
		var out strings.Builder
		host, port, err := loopback.ReadSOCKS(struct {
			io.Reader
			io.Writer
		}{strings.NewReader(string(in)), &out})
		if out.Len() != 0 && out.Len() != 2 {
			t.Fatalf("the greeting was answered with %q", out.String())
		}
		if err != nil {
			return
		}
		if out.String() != "\x05\x00" || in[0] != 5 || len(host) > 255 {
			t.Fatalf("accepted %q", in)
		}
		if app, _ := loopback.Find([]wire.App{crm, desk}, host, port); app != "" {
			n, _ := loopback.NormalHost(host)
			if app == "crm" && n != "crm.example.test" && n != "crm2.example.test" && n != "10.99.0.16" && n != "fd99::10" {
				t.Fatalf("%q leads to crm", host)
			}
		}
	})
}

// FuzzAuthority: what is read must be spelt the same again, so that what is
// looked up is what was asked for.
func FuzzAuthority(f *testing.F) {
	f.Add("crm.example.test:443")
	f.Add("[fd99::10]:443")
	f.Fuzz(func(t *testing.T, s string) {
		host, port, err := loopback.SplitAuthority(s, 0)
		if err != nil {
			return
		}
		if port == 0 || host == "" {
			t.Fatalf("%q gave %q port %d", s, host, port)
		}
		n, ok := loopback.NormalHost(host)
		if !ok {
			return
		}
		if again, ok := loopback.NormalHost(n); !ok && n != "" || again != n {
			t.Fatalf("NormalHost is not stable: %q -> %q -> %q", host, n, again)
		}
	})
}

// FuzzPreface sends raw bytes as the start of a connection: no dial may come of
// them but to an app, and the server must survive.
func FuzzPreface(f *testing.F) {
	f.Add([]byte("GET http://intranet.example.test/ HTTP/1.1\r\nHost: crm.example.test\r\n\r\n"))
	f.Add([]byte("CONNECT 127.0.0.1:22 HTTP/1.1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		g := &gateway{dials: map[string]int{}}
		s := serve(t, loopback.Config{Dial: g.dial}, crm)
		c := dial(t, "tcp", proxyOf(s))
		c.Write(in)
		c.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, c)
		g.mu.Lock()
		defer g.mu.Unlock()
		for key := range g.dials {
			if key != "tcp 10.99.0.16:443" && key != "tcp 10.99.0.16:80" {
				t.Fatalf("%q caused a dial of %s", in, key)
			}
		}
	})
}
