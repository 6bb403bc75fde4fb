package proxy_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/proxy"
)

// newSocketApp echoes messages; "big" is answered with 2,000 bytes, "bad" with
// what is no frame.
func newSocketApp(t *testing.T, mode websocket.CompressionMode) *httptest.Server {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/bad" {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.Header().Set("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
			w.WriteHeader(http.StatusSwitchingProtocols)
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "\x81\x02ok"+"HTTP/1.1 200 OK\r\n\r\n")
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
			return
		}
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{CompressionMode: mode, InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(-1)
		for {
			kind, b, err := c.Read(r.Context())
			if string(b) == "big" {
				b = []byte(strings.Repeat("b", 2000))
			}
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func bounded(message int64, ping time.Duration) option {
	return func(c *proxy.Config) { c.Limits.Message, c.Timeouts.Ping = message, ping }
}

// end is what the record of a WebSocket's end says.
func (w *world) end() string {
	w.t.Helper()
	return w.records(audit.KindFlowClose, 1)[0].Outcome
}

func TestMessagesAreBounded(t *testing.T) {
	for name, last := range map[string]string{"from the device": strings.Repeat("x", 1001), "from the app": "big"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []string{crmYAML}, map[string]string{"crm": newSocketApp(t, websocket.CompressionDisabled).URL}, bounded(1000, 0))
			c, _, err := websocket.Dial(t.Context(), "wss://crm.test/", &websocket.DialOptions{HTTPClient: w.client(false)})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			for _, text := range []string{strings.Repeat("y", 1000), "", "z", last} {
				if err := c.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
					t.Fatal(err)
				}
				_, b, err := c.Read(t.Context())
				if text == last {
					if websocket.CloseStatus(err) != websocket.StatusMessageTooBig {
						t.Errorf("%d bytes, %v", len(b), err)
					}
				} else if err != nil || string(b) != text {
					t.Fatalf("%d bytes came back as %d: %v", len(text), len(b), err)
				}
			}
			if got := w.end(); got != "message_too_large" {
				t.Errorf("ended with %q", got)
			}
		})
	}
}

// What a browser does: compressed messages pass, in both directions, and the
// bound is on what is on the wire.
func TestCompressedMessagesPass(t *testing.T) {
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": newSocketApp(t, websocket.CompressionContextTakeover).URL}, bounded(10_000, 0))
	c, res, err := websocket.Dial(t.Context(), "wss://crm.test/", &websocket.DialOptions{HTTPClient: w.client(false), CompressionMode: websocket.CompressionContextTakeover})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	if !strings.Contains(res.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate") {
		t.Fatal("nothing is compressed")
	}
	c.SetReadLimit(-1)
	for _, size := range []int{10, 1000, 1_000_000} {
		text := strings.Repeat("w", size)
		if err := c.Write(t.Context(), websocket.MessageText, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, b, err := c.Read(t.Context()); err != nil || string(b) != text {
			t.Fatalf("%d bytes came back as %d: %v", size, len(b), err)
		}
	}
}

const handshake = "GET / HTTP/1.1\r\nHost: crm.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// socket opens a WebSocket that understands nothing.
func (w *world) socket(path string) (net.Conn, *bufio.Reader) {
	w.t.Helper()
	c := w.tls("crm.test")
	_ = c.SetDeadline(time.Now().Add(slack * 10 * time.Second))
	if _, err := io.WriteString(c, strings.Replace(handshake, "GET /", "GET "+path, 1)); err != nil {
		w.t.Fatal(err)
	}
	br := bufio.NewReader(c)
	if res, err := http.ReadResponse(br, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		w.t.Fatal(res, err)
	}
	return c, br
}

// What is no frame, or not in its direction, reaches nobody.
func TestFramesAreChecked(t *testing.T) {
	app := newSocketApp(t, websocket.CompressionDisabled)
	for name, c := range map[string]struct{ path, send, want string }{
		"no mask":       {"/", "\x81\x80\x00\x00\x00\x00\x81\x02hi", "\x81\x00"},
		"a bit too far": {"/", "\xc1\x80\x00\x00\x00\x00", ""},
		"HTTP":          {"/", "GET /smuggled HTTP/1.1\r\nHost: crm.test\r\n\r\n", ""},
		"from the app":  {"/bad", "", "\x81\x02ok"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []string{crmYAML}, map[string]string{"crm": app.URL})
			conn, br := w.socket(c.path)
			if _, err := io.WriteString(conn, c.send); err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(br)
			// The close frame of a protocol error, 1002. An echo may be cut off by it.
			if rest, ok := strings.CutSuffix(string(got), "\x88\x02\x03\xea"); !ok || !strings.HasPrefix(c.want, rest) || c.path == "/bad" && rest != c.want {
				t.Errorf("the device got %q", got)
			}
			if got := w.end(); got != "malformed_frames" {
				t.Errorf("ended with %q", got)
			}
		})
	}
}

// A device that answers nothing is found; one that has nothing to say stays.
func TestSilentDeviceIsFound(t *testing.T) {
	app := newSocketApp(t, websocket.CompressionDisabled)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": app.URL}, bounded(0, slack*250*time.Millisecond))
	_, br := w.socket("/")
	got, err := io.ReadAll(br)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || string(got) != "\x89\x00\x89\x00" {
		t.Errorf("it was asked with %q, and then %v", got, err)
	}
	if got := w.end(); got != "device_silent" {
		t.Errorf("ended with %q", got)
	}

	c, _, err := websocket.Dial(t.Context(), "wss://crm.test/", &websocket.DialOptions{HTTPClient: w.client(false)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	go func() {
		time.Sleep(slack * 1200 * time.Millisecond) // four pings
		_ = c.Write(context.Background(), websocket.MessageText, []byte("still here"))
	}()
	if _, b, err := c.Read(t.Context()); err != nil || string(b) != "still here" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestWebSocketEcho(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"v1"}, OriginPatterns: []string{"crm.test"}})
		if err != nil {
			return
		}
		defer c.CloseNow()
		c.SetReadLimit(1 << 20)
		for {
			kind, b, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, b) != nil {
				return
			}
		}
	}))
	defer srv.Close()
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": srv.URL})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, _, err := websocket.Dial(ctx, "wss://crm.test/", &websocket.DialOptions{
		HTTPClient: w.client(false), Subprotocols: []string{"v1"}, HTTPHeader: http.Header{"Origin": {"https://crm.test"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.SetReadLimit(1 << 20)
	for _, size := range []int{0, 1, 125, 126, 65535, 65536, 500_000} {
		want := strings.Repeat("w", size)
		if err := c.Write(ctx, websocket.MessageText, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != want {
			t.Fatalf("%d: %d bytes, %v", size, len(got), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("closing: %v", err)
	}
	if r := w.records(audit.KindFlowClose, 1)[0]; r.BytesIn < 500_000 || r.BytesOut < 500_000 || r.Status != 101 {
		t.Errorf("closed with %+v", r)
	}
	sum := sha256.Sum256([]byte("portvakt-request-2\ncrm\nGET\nwss://crm.test:443/\n"))
	if r := w.records(audit.KindFlowOpen, 1)[0]; r.RequestHash != hex.EncodeToString(sum[:]) {
		t.Errorf("opened with %q", r.RequestHash)
	}
}
