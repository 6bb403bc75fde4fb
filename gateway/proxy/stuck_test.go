package proxy_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http2"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/proxy"
)

// An app that reads nothing of an upload holds the exchange no longer than
// it may take nothing, also when the device has left meanwhile.
func TestAnAppThatReadsNothing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // and with it what nobody accepted
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": "http://" + l.Addr().String()}, func(c *proxy.Config) { c.Timeouts.Write = 300 * time.Millisecond })
	c := w.tls("crm.test")
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: crm.test\r\nContent-Length: 100000000\r\n\r\n")
	_ = c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	for b := make([]byte, 64<<10); ; {
		if _, err := c.Write(b); err != nil {
			break
		}
	}
	_ = c.NetConn().(*net.TCPConn).SetLinger(0)
	_ = c.NetConn().Close()
	for end := time.Now().Add(10 * time.Second); w.manager.Counts().Flows != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the exchange goes on, with nobody at either end")
		}
	}
}

func impatient(c *proxy.Config) {
	c.Timeouts.Write, c.Timeouts.WriteTCP = 400*time.Millisecond, 400*time.Millisecond
}

// flood writes until that fails.
func flood(c io.Writer, piece []byte) {
	for {
		if _, err := c.Write(piece); err != nil {
			return
		}
	}
}

// over waits until no flow is open.
func (w *world) over() {
	w.t.Helper()
	for end := time.Now().Add(slack * 10 * time.Second); w.manager.Counts().Flows != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("the exchange goes on")
		}
	}
}

// newStuckApp takes uploads at /up and reads nothing of them, and answers others
// with what has no end. kind is http, https or h2.
func newStuckApp(t *testing.T, kind string) (apps []string, url string) {
	done := make(chan struct{})
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/up":
			select {
			case <-done:
			case <-r.Context().Done():
			}
		case "/ok":
		case "/ws":
			c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
			if err != nil {
				return
			}
			defer c.CloseNow()
			if r.URL.RawQuery != "send" {
				<-done
				return
			}
			piece := make([]byte, 64<<10)
			for c.Write(r.Context(), websocket.MessageBinary, piece) == nil {
			}
		default:
			flood(w, make([]byte, 64<<10))
		}
	}))
	apps = []string{crmYAML}
	if kind == "http" {
		srv.Start()
	} else {
		srv.EnableHTTP2 = kind == "h2"
		srv.StartTLS()
		apps = secureApp(t, srv, "")
	}
	t.Cleanup(func() { close(done); srv.CloseClientConnections(); srv.Close() })
	return apps, srv.URL
}

// An app that takes nothing of an upload is given up on every road, and the
// device is told so.
func TestAppsThatTakeNothing(t *testing.T) {
	for _, kind := range []string{"http", "https", "h2"} {
		t.Run(kind, func(t *testing.T) {
			apps, url := newStuckApp(t, kind)
			w := newWorld(t, apps, map[string]string{"crm": url}, impatient)
			for _, h2 := range []bool{false, true} {
				c := w.client(h2)
				c.Timeout = slack * 20 * time.Second
				res, err := c.Post("https://crm.test/up", "application/octet-stream", io.LimitReader(endless{}, 1<<30))
				if err == nil {
					_ = res.Body.Close()
				}
				if err != nil || res.StatusCode != http.StatusGatewayTimeout {
					t.Errorf("h2 %v: %v, %v", h2, res, err)
				}
				c.CloseIdleConnections()
				w.over()
			}
			for _, r := range w.records(audit.KindUpstreamError, 2) {
				if r.Outcome != "upstream_timeout" {
					t.Errorf("recorded as %q", r.Outcome)
				}
			}
		})
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestAWebSocketAppThatTakesNothing(t *testing.T) {
	for _, kind := range []string{"http", "https"} {
		apps, url := newStuckApp(t, kind)
		w := newWorld(t, apps, map[string]string{"crm": url}, impatient)
		c, _, err := websocket.Dial(t.Context(), "wss://crm.test/ws", &websocket.DialOptions{HTTPClient: w.client(false)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.CloseNow()
		for c.Write(t.Context(), websocket.MessageBinary, make([]byte, 64<<10)) == nil {
		}
		w.over()
		if r := w.records(audit.KindUpstreamError, 1)[0]; r.Outcome != "upstream_timeout" {
			t.Errorf("%s: recorded as %q", kind, r.Outcome)
		}
	}
}

// A device that takes nothing of an answer is given up on every road.
func TestDevicesThatTakeNothing(t *testing.T) {
	apps, url := newStuckApp(t, "http")
	w := newWorld(t, apps, map[string]string{"crm": url}, impatient)
	ended := 0
	recorded := func(t *testing.T) {
		t.Helper()
		w.over()
		ended++
		if rs := w.records(audit.KindFlowClose, ended); len(rs) != ended || rs[ended-1].Outcome != "device_stalled" {
			t.Errorf("recorded: %d ends, the last as %q", len(rs), rs[len(rs)-1].Outcome)
		}
	}
	t.Run("http/1.1", func(t *testing.T) {
		c := w.tls("crm.test")
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: crm.test\r\n\r\n")
		_, _ = c.Read(make([]byte, 1))
		recorded(t)
	})
	t.Run("http/2", func(t *testing.T) {
		h := newRawH2(t, w)
		h.open()
		_ = h.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30})
		_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: h.block(h2Get("/"))})
		_, _ = h.conn.Read(make([]byte, 1))
		recorded(t)
	})
	// The device reads all there is, but lets nothing more come on the stream:
	// that alone ends, and others go on.
	t.Run("a stream of http/2", func(t *testing.T) {
		h := newRawH2(t, w)
		h.open()
		_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: h.block(h2Get("/"))})
		_ = h.conn.SetDeadline(time.Now().Add(slack * 20 * time.Second))
		h.isReset(t, 1)
		recorded(t)
		h.stream = 3
		if s := h.get("/ok"); s != "200" {
			t.Errorf("the next stream: %s", s)
		}
	})
	t.Run("a refusal on a stream without a window", func(t *testing.T) {
		h := newRawH2(t, w)
		h.open()
		_ = h.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true, BlockFragment: h.block(h2Get("/%2e%2e/"))})
		_ = h.conn.SetDeadline(time.Now().Add(slack * 20 * time.Second))
		h.isReset(t, 1)
	})
	t.Run("a websocket", func(t *testing.T) {
		c := w.tls("crm.test")
		fmt.Fprint(c, "GET /ws?send HTTP/1.1\r\nHost: crm.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		_, _ = c.Read(make([]byte, 1))
		recorded(t)
	})
}

func h2Get(path string) [][2]string {
	return [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", path}}
}

// A tcp app, or a device that speaks to one, has to take something as well.
func TestTCPConnectionsThatAreNotRead(t *testing.T) {
	for name, c := range map[string]struct{ app, outcome, kind string }{
		"app":    {"silent", "upstream_timeout", "upstream_error"},
		"device": {"floods", "device_stalled", "flow_close"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if c.app == "floods" {
					flood(conn, make([]byte, 64<<10))
				}
				t.Cleanup(func() { _ = conn.Close() })
			}()
			w := newWorld(t, []string{deskYAML}, map[string]string{"desk": l.Addr().String()}, impatient)
			conn := w.dial("desk", 7000)
			if c.app == "silent" {
				flood(conn, make([]byte, 64<<10))
			} else if _, err := conn.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			w.over()
			if r := w.records(audit.Kind(c.kind), 1)[0]; r.Outcome != c.outcome {
				t.Errorf("recorded as %q", r.Outcome)
			}
		})
	}
}

// isReset reads until the gateway has reset a stream.
func (h *rawH2) isReset(t *testing.T, stream uint32) {
	t.Helper()
	for {
		f, err := h.framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		if r, ok := f.(*http2.RSTStreamFrame); ok && r.StreamID == stream {
			return
		}
	}
}
