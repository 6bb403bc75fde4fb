package proxy_test

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/portvakt/portvakt/gateway/audit"
)

// A request that names two hosts names none, also when one of them is the
// app's: which of them counts is what two readers disagree about.
func TestTwoHostsAreRefused(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL})
	for target, host := range map[string]string{
		"https://crm.test/x":     "evil.test",
		"https://crm.test:443/x": "crm.test:8443",
	} {
		if got := w.raw("crm.test", "GET "+target+" HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); !strings.HasPrefix(got, "421 misdirected") {
			t.Errorf("%s beside Host: %s: %s", target, host, got)
		}
	}
	if got := w.raw("crm.test", "GET https://evil.test/x HTTP/1.1\r\nHost: evil.test\r\n\r\n"); !strings.HasPrefix(got, "421 misdirected") {
		t.Errorf("another host in both: %s", got)
	}
	for name, c := range map[string]struct {
		authority string
		hosts     []string
		want      string
	}{
		"the other in host":      {"crm.test", []string{"evil.test"}, "421"},
		"two hosts":              {"crm.test", []string{"crm.test", "evil.test"}, "421"},
		"two hosts, no other":    {"", []string{"crm.test", "evil.test"}, "421"},
		"the same in both":       {"crm.test", []string{"crm.test"}, "200"},
		"no authority":           {"", []string{"crm.test"}, "200"},
		"the other in authority": {"evil.test", []string{"crm.test"}, "421"},
	} {
		fields := []hpack.HeaderField{{Name: ":method", Value: "GET"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: "/x"}}
		if c.authority != "" {
			fields = append(fields, hpack.HeaderField{Name: ":authority", Value: c.authority})
		}
		for _, h := range c.hosts {
			fields = append(fields, hpack.HeaderField{Name: "host", Value: h})
		}
		if got := w.h2Status(fields); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	if n := len(e.requests()); n != 2 {
		t.Errorf("the app saw %d requests", n)
	}
}

// A request for the app by plain http is not the one that is served, also when
// it comes over TLS; its record says so and has no hash.
func TestAnotherSchemeIsRefused(t *testing.T) {
	for name, start := range map[string]func(*testing.T) witness{"http": witnesses["go"], "h2": witnesses["h2"]} {
		t.Run(name, func(t *testing.T) {
			app := start(t)
			w := newWorld(t, []string{crmYAML + app.yaml}, map[string]string{"crm": app.url})
			h := newRawH2(t, w)
			for i, c := range []struct{ scheme, want string }{{"https", "200"}, {"http", "421"}, {"https", "200"}, {"ftp", "reset"}} {
				got := h.send(nil, nil, [2]string{":method", "GET"}, [2]string{":scheme", c.scheme}, [2]string{":authority", "crm.test"}, [2]string{":path", "/" + strconv.Itoa(i)})
				if got != c.want {
					t.Errorf("request %d, %s: %s, want %s", i, c.scheme, got, c.want)
				}
			}
			var uris []string
			for _, s := range app.requests() {
				uris = append(uris, s.URI)
			}
			if want := []string{"/0", "/2"}; !slices.Equal(uris, want) {
				t.Errorf("the app saw %q, want %q", uris, want)
			}
			for _, r := range w.records(audit.KindDecision, 4) {
				if r.Reason == "misdirected" && (r.Fact == nil || r.Fact.Name != "scheme" || r.Fact.Value != "http" || r.RequestHash != "") {
					t.Errorf("recorded as %+v with fact %+v", r, r.Fact)
				}
			}
		})
	}
}

// h2Status sends one HTTP/2 request as it is, which no client would, and
// returns its status.
func (w *world) h2Status(fields []hpack.HeaderField) string {
	w.t.Helper()
	c := w.tls("crm.test", "h2")
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		if err := enc.WriteField(f); err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		w.t.Fatal(err)
	}
	fr := http2.NewFramer(c, c)
	if err := fr.WriteSettings(); err != nil {
		w.t.Fatal(err)
	}
	if err := fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true}); err != nil {
		w.t.Fatal(err)
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return err.Error()
		}
		h, ok := f.(*http2.HeadersFrame)
		if !ok {
			continue
		}
		got, err := hpack.NewDecoder(4096, nil).DecodeFull(h.HeaderBlockFragment())
		if err != nil {
			w.t.Fatal(err)
		}
		for _, f := range got {
			if f.Name == ":status" {
				return f.Value
			}
		}
	}
}
