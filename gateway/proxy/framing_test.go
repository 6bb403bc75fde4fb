package proxy_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/proxy"
)

// noted waits for a record of what HTTP/2's framing refused.
func (w *world) noted(what string) bool {
	w.t.Helper()
	for end := time.Now().Add(slack * 5 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		found := false
		_ = audit.Scan(w.log.Path(), func(_ []byte, r *audit.Record) bool {
			found = found || r.Fact != nil && r.Fact.Name == "http2" && strings.Contains(r.Fact.Value, what) &&
				r.Device == "dev-1" && r.App == "crm" && r.Allow != nil && !*r.Allow && r.Reason == "bad_request"
			return true
		})
		if found {
			return true
		}
	}
	return false
}

// discard takes what is answered, which nobody waits for.
func discard(h *rawH2) {
	conn := h.conn
	go func() { _, _ = io.Copy(io.Discard, conn) }()
}

// What HTTP/2's framing refuses by itself leaves a record, as what a handler
// refuses does.
func TestWhatFramingRefusesIsRecorded(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/400":
			w.WriteHeader(http.StatusBadRequest)
		case "/431":
			w.WriteHeader(http.StatusRequestHeaderFieldsTooLarge)
		}
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { time.Sleep(1500 * time.Millisecond) }) // net/http waits for a second after a GOAWAY, which is no leak
	headers := func(id uint32, fields ...[2]string) func(h *rawH2) {
		return func(h *rawH2) {
			_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, EndHeaders: true, EndStream: true, BlockFragment: h.block(fields)})
		}
	}
	large := h2Get("/")
	for range 100 {
		large = append(large, [2]string{"x-large", strings.Repeat("x", 90)})
	}
	for name, c := range map[string]struct {
		do   func(h *rawH2)
		what string
	}{
		"no path":             {headers(1, h2Get("/")[:3]...), "a stream: PROTOCOL_ERROR"},
		"a field in capital":  {headers(1, append(h2Get("/"), [2]string{"X-Capital", "1"})...), "a stream: PROTOCOL_ERROR"},
		"a stream of ours":    {headers(2, h2Get("/")...), "the connection: PROTOCOL_ERROR"},
		"too many fields":     {headers(1, large...), "a field section that is too large"},
		"an upgrade":          {headers(1, append(h2Get("/"), [2]string{"upgrade", "websocket"})...), "a field that is about a connection"},
		"chunks":              {headers(1, append(h2Get("/"), [2]string{"transfer-encoding", "chunked"})...), "a field that is about a connection"},
		"codings of trailers": {headers(1, append(h2Get("/"), [2]string{"te", "gzip"})...), "a field that is about a connection"},
		"no fields at all": {func(h *rawH2) {
			_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: []byte{0xff, 0xff, 0xff}})
		}, "the connection: COMPRESSION_ERROR"},
		"a window beyond all": {func(h *rawH2) { _ = h.framer.WriteWindowUpdate(0, 1<<31-1) }, "the connection: FLOW_CONTROL_ERROR"},
		// Written at once, and more than once: a client as slow as the handlers
		// floods nobody.
		"a flood of resets": {func(h *rawH2) {
			for range 6 {
				h := newRawH2(h.t, h.w)
				h.open()
				discard(h)
				var flood bytes.Buffer
				h.framer = http2.NewFramer(&flood, nil)
				for id := uint32(1); id < 4000; id += 2 {
					headers(id, h2Get("/")...)(h)
					_ = h.framer.WriteRSTStream(id, http2.ErrCodeCancel)
				}
				_, _ = h.conn.Write(flood.Bytes())
			}
		}, "the connection: ENHANCE_YOUR_CALM"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []string{crmYAML}, map[string]string{"crm": srv.URL}, func(c *proxy.Config) { c.Limits.Streams, c.Limits.HeaderBytes = 2, 8<<10 })
			h := newRawH2(t, w)
			h.open()
			discard(h)
			c.do(h)
			if !w.noted(c.what) {
				t.Errorf("no record says %q", c.what)
			}
			_ = h.conn.Close()
		})
	}
	t.Run("nothing of it", func(t *testing.T) {
		w := newWorld(t, []string{crmYAML}, map[string]string{"crm": srv.URL})
		c := w.client(true)
		for _, path := range []string{"/431", "/400", "/", "/400", "/431"} {
			get(t, c, "https://crm.test"+path)
		}
		for _, r := range w.records(audit.KindDecision, 5) {
			if r.Fact != nil && r.Fact.Name == "http2" {
				t.Errorf("noted: %q", r.Fact.Value)
			}
		}
	})
}
