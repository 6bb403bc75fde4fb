package proxy_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// fickle is an app that gets requests and answers none on a connection that
// served one before. Each request has a name, X-Case.
type fickle struct {
	mu      sync.Mutex // guards what follows
	before  map[string]bool
	arrived map[string]int
	dropped map[string]bool
	drop    func() // called before it drops one, nil for none
}

// newFickle starts one that speaks HTTP/1.1, without TLS and with it, or HTTP/2.
func newFickle(t *testing.T, kind string) (app *fickle, apps []string, upstreams map[string]string) {
	app = &fickle{before: map[string]bool{}, arrived: map[string]int{}, dropped: map[string]bool{}}
	srv := httptest.NewUnstartedServer(app)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
	apps = []string{crmYAML}
	if kind == "http" {
		srv.Start()
	} else {
		if kind == "h2" {
			srv.TLS = &tls.Config{NextProtos: []string{"h2", "http/1.1"}}
			srv.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": func(_ *http.Server, c *tls.Conn, _ http.Handler) { app.serveH2(c) }}
		}
		srv.StartTLS()
		apps = secureApp(t, srv, "")
	}
	return app, apps, map[string]string{"crm": srv.URL}
}

func (f *fickle) drops(remote, id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.arrived[id]++
	drop := f.before[remote]
	f.before[remote] = true
	f.dropped[id] = f.dropped[id] || drop
	if drop && f.drop != nil {
		f.drop()
	}
	return drop
}

// ServeHTTP speaks HTTP/1.1.
func (f *fickle) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !f.drops(r.RemoteAddr, r.Header.Get("X-Case")) {
		return
	}
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		_ = c.Close()
	}
}

// serveH2 speaks HTTP/2, and resets as if the request had been malformed.
func (f *fickle) serveH2(c net.Conn) {
	if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	framer := http2.NewFramer(c, c)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	_ = framer.WriteSettings()
	var ok bytes.Buffer
	_ = hpack.NewEncoder(&ok).WriteField(hpack.HeaderField{Name: ":status", Value: "200"})
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				_ = framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				_ = framer.WritePing(true, frame.Data)
			}
		case *http2.MetaHeadersFrame:
			id := ""
			for _, field := range frame.RegularFields() {
				if field.Name == "x-case" {
					id = field.Value
				}
			}
			if f.drops(c.RemoteAddr().String(), id) {
				_ = framer.WriteRSTStream(frame.StreamID, http2.ErrCodeProtocol)
			} else {
				_ = framer.WriteHeaders(http2.HeadersFrameParam{StreamID: frame.StreamID, BlockFragment: ok.Bytes(), EndHeaders: true, EndStream: true})
			}
		}
	}
}

// A record is of one request: what an app may have got is not sent to it again,
// whatever the device says of it. A GET is, once.
func TestOneRecordOneRequest(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			app, apps, upstreams := newFickle(t, kind)
			w := newWorld(t, apps, upstreams)
			for name, c := range map[string]struct {
				request string
				times   int
			}{
				"POST":            {"POST / HTTP/1.1\r\nContent-Length: 0\r\n", 1},
				"Idempotency-Key": {"POST / HTTP/1.1\r\nContent-Length: 0\r\nIdempotency-Key: 1\r\n", 1},
				"its older name":  {"DELETE / HTTP/1.1\r\nX-Idempotency-Key: 1\r\n", 1},
				"GET":             {"GET / HTTP/1.1\r\n", 2},
			} {
				for try := 0; ; try++ {
					id := fmt.Sprintf("%s %d", name, try)
					got := w.raw("crm.test", c.request+"Host: crm.test\r\nConnection: close\r\nX-Case: "+id+"\r\n\r\n")
					app.mu.Lock()
					arrived, dropped := app.arrived[id], app.dropped[id]
					app.mu.Unlock()
					if !dropped && try < 100 { // a new connection, because the other was not free yet
						continue
					}
					if arrived != c.times || c.times == 1 && !strings.HasPrefix(got, "502 upstream_unavailable") {
						t.Errorf("%s: it arrived %d times, and was answered %.40q", name, arrived, got)
					}
					break
				}
			}
		})
	}
}
