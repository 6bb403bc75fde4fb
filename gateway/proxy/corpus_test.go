package proxy_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/portvakt/portvakt/gateway/audit"
)

// The paths of testdata/paths.txt go through both protocols. Whatever reaches
// the app is, decoded once, what policy saw; whatever is marked "-" reaches it
// not at all; and every one has a record.
func TestPathCorpus(t *testing.T) {
	data, err := os.ReadFile("testdata/paths.txt")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSuffix(line, "\n"); line != "" && !strings.HasPrefix(line, "//#") {
			lines = append(lines, line)
		}
	}
	if len(lines) < 80 {
		t.Fatalf("%d paths", len(lines))
	}
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
	h2 := newRawH2(t, w)
	sent, paths := 0, []string(nil) // requests that must be recorded; decoded paths the app got
	for _, proto := range []string{"h1", "h2"} {
		for _, line := range lines {
			target, before := unescapeGo(t, line[2:]), len(e.requests())
			var status string
			if proto == "h1" {
				status = w.raw("crm.test", "GET "+target+" HTTP/1.1\r\nHost: crm.test\r\n\r\n")
			} else {
				status = h2.get(target)
			}
			got := e.requests()[before:]
			if line[0] == '-' {
				if status != "reset" { // refused by HTTP/2's own framing otherwise
					sent++
				}
				if len(got) != 0 || (status != "reset" && !strings.HasPrefix(status, "4")) || (status == "reset" && proto == "h1") {
					t.Errorf("%s %q: answered %.40s, %d requests at the app", proto, target, status, len(got))
				}
				continue
			}
			sent++
			if len(got) != 1 || !strings.HasPrefix(status, "200") {
				t.Errorf("%s %q: answered %.60s, %d requests at the app", proto, target, status, len(got))
				continue
			}
			path, _, _ := strings.Cut(got[0].URI, "?")
			once, err := url.PathUnescape(path)
			if err != nil || (target == "/%61dmin" && path != "/admin") {
				t.Errorf("%s %q: the app got %q", proto, target, got[0].URI)
			}
			paths = append(paths, once)
		}
	}
	var decided []string
	all := w.records(audit.KindDecision, sent)
	for _, r := range all {
		if *r.Allow {
			decided = append(decided, r.Path)
		}
	}
	if len(all) != sent {
		t.Errorf("%d records for %d requests", len(all), sent)
	}
	if d := cmp.Diff(decided, paths); d != "" {
		t.Errorf("what policy saw (-) and what the app received (+):\n%s", d)
	}
}

func unescapeGo(t *testing.T, s string) string {
	t.Helper()
	var out string
	if _, err := fmt.Sscanf(`"`+s+`"`, "%q", &out); err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return out
}

// rawH2 sends :path values that no client library would.
type rawH2 struct {
	t      *testing.T
	w      *world
	conn   *tls.Conn
	framer *http2.Framer
	buf    strings.Builder
	enc    *hpack.Encoder
	stream uint32
}

func newRawH2(t *testing.T, w *world) *rawH2 { return &rawH2{t: t, w: w} }

func (h *rawH2) open() {
	h.conn = h.w.tls("crm.test", "h2")
	_, _ = io.WriteString(h.conn, http2.ClientPreface)
	h.framer = http2.NewFramer(h.conn, h.conn)
	h.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = h.framer.WriteSettings()
	h.buf.Reset()
	h.enc, h.stream = hpack.NewEncoder(&h.buf), 1
}

func (h *rawH2) get(target string) string {
	return h.request([2]string{":method", "GET"}, [2]string{":scheme", "https"}, [2]string{":authority", "crm.test"}, [2]string{":path", target})
}

func (h *rawH2) request(fields ...[2]string) string {
	if h.conn == nil {
		h.open()
	}
	h.buf.Reset()
	for _, f := range fields {
		_ = h.enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	id := h.stream
	h.stream += 2
	if err := h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte(h.buf.String()), EndHeaders: true, EndStream: true}); err != nil {
		h.conn = nil
		return "reset"
	}
	status := "reset"
	for {
		f, err := h.framer.ReadFrame()
		if err != nil {
			h.conn = nil
			return status
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = h.framer.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			if f.LastStreamID < id {
				h.conn = nil
				return status
			}
		case *http2.MetaHeadersFrame:
			if f.StreamID == id {
				status = f.PseudoValue("status")
				if f.StreamEnded() {
					return status
				}
			}
		case *http2.DataFrame:
			if f.StreamID == id && f.StreamEnded() {
				if strings.HasPrefix(status, "4") {
					h.conn.Close() // it is being closed: GOAWAY follows
					h.conn = nil
				}
				return status
			}
		case *http2.RSTStreamFrame:
			if f.StreamID == id {
				return "reset"
			}
		}
	}
}

// What HTTP/2 can carry and HTTP/1 cannot must not become HTTP/1.
func TestH2Oddities(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
	h := newRawH2(t, w)
	base := func(more ...[2]string) [][2]string {
		return append([][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", "/"}}, more...)
	}
	if got := h.request(base()...); got != "200" {
		t.Fatalf("a plain request: %s", got)
	}
	before := len(e.requests())
	for name, fields := range map[string][][2]string{
		"CR LF in a value":     base([2]string{"x", "a\r\nPortvakt-Assertion: forged"}),
		"NUL in a value":       base([2]string{"x", "a\x00b"}),
		"colon in a name":      base([2]string{"x:y", "a"}),
		"upper case name":      base([2]string{"X-Upper", "a"}),
		"space in a name":      base([2]string{"x y", "a"}),
		"connection":           base([2]string{"connection", "x-a"}),
		"transfer-encoding":    base([2]string{"transfer-encoding", "chunked"}),
		"upgrade":              base([2]string{"upgrade", "websocket"}),
		"te not trailers":      base([2]string{"te", "gzip"}),
		"path without slash":   {{":method", "GET"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", "admin"}},
		"path empty":           {{":method", "GET"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", ""}},
		"path star":            {{":method", "OPTIONS"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", "*"}},
		"authority and host":   base([2]string{"host", "evil.test"}),
		"no authority":         {{":method", "GET"}, {":scheme", "https"}, {":path", "/"}, {"host", "evil.test"}},
		"CONNECT":              {{":method", "CONNECT"}, {":authority", "crm.test:443"}},
		"extended CONNECT":     {{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", "/"}},
		"method with a space":  {{":method", "GET /admin"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", "/"}},
		"two paths":            base([2]string{":path", "/admin"}),
		"length without body":  base([2]string{"content-length", "5"}),
		"lengths that differ":  base([2]string{"content-length", "0"}, [2]string{"content-length", "5"}),
		"userinfo":             {{":method", "GET"}, {":scheme", "https"}, {":authority", "u@crm.test"}, {":path", "/"}},
		"absolute form inside": {{":method", "GET"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", "https://evil.test/"}},
	} {
		if got := h.request(fields...); got == "200" {
			if name == "authority and host" {
				// RFC 9113, 8.3.1: :authority counts. It must be what the app is asked as.
				all := e.requests()
				if last := all[len(all)-1]; last.Host == "crm.test" && last.Header.Get("Host") == "" {
					before++
					continue
				}
			}
			t.Errorf("%s: answered %s", name, got)
		}
		if n := len(e.requests()); n != before {
			t.Errorf("%s: %d requests reached the app: %+v", name, n-before, e.requests()[before:])
			before = n
		}
	}
	if res, _ := get(t, w.client(true), "https://crm.test/"); res.StatusCode != http.StatusOK {
		t.Errorf("afterwards: %d", res.StatusCode)
	}
}
