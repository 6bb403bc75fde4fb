package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/proxy"
)

const (
	tooQuiet = 100 * time.Millisecond
	longer   = 300 * time.Millisecond
)

func attentive(c *proxy.Config) { c.Timeouts.Read = tooQuiet }

// newStoppingApp counts the uploads that it has whole. What it answers stops in
// the middle, but for /ok; /events, /grpc and /early are quiet for a while and go on.
func newStoppingApp(t *testing.T, kind string) (apps []string, url string, whole *atomic.Int64) {
	done := make(chan struct{})
	whole = &atomic.Int64{}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		say := func(text string) { _, _ = io.WriteString(w, text); _ = http.NewResponseController(w).Flush() }
		switch r.URL.Path {
		case "/ok":
			return
		case "/up":
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				whole.Add(1)
			}
			return
		case "/early":
			_ = http.NewResponseController(w).EnableFullDuplex()
			say("begun, ")
			_, _ = io.Copy(io.Discard, r.Body)
			say("done")
			return
		case "/events", "/grpc":
			w.Header().Set("Content-Type", map[string]string{"/events": "text/event-stream; charset=utf-8", "/grpc": "application/grpc+proto"}[r.URL.Path])
			_ = http.NewResponseController(w).EnableFullDuplex()
			say("begun, ")
			time.Sleep(longer)
			_, _ = io.Copy(io.Discard, r.Body)
			say("done")
			return
		case "/sized":
			w.Header().Set("Content-Length", "100000")
		}
		say("the beginning")
		select {
		case <-done:
		case <-r.Context().Done():
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
	return apps, srv.URL, whole
}

var appKinds = []string{"http", "https", "h2"}

// A device that begins a body and does not go on holds neither the exchange nor
// the app, which takes no part for the whole.
func TestDevicesThatStopWithinABody(t *testing.T) {
	for _, kind := range appKinds {
		t.Run(kind, func(t *testing.T) {
			apps, url, whole := newStoppingApp(t, kind)
			w := newWorld(t, apps, map[string]string{"crm": url}, attentive)
			ended := 0
			recorded := func(what string) {
				t.Helper()
				w.over()
				ended++
				if rs := w.records(audit.KindFlowClose, ended); len(rs) != ended || rs[ended-1].Outcome != "device_stalled" {
					t.Errorf("%s: recorded %d ends, the last as %q", what, len(rs), rs[len(rs)-1].Outcome)
				}
			}
			for _, body := range []string{
				"Content-Length: 100\r\n\r\n", "Content-Length: 100\r\n\r\nx", "Content-Length: 100000\r\n\r\nx",
				"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n", "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nTrailer: ",
				"Content-Type: application/grpc\r\nContent-Length: 100000\r\n\r\nx", // which HTTP/1.1 does not speak
				"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n",
			} {
				c := w.tls("crm.test")
				fmt.Fprint(c, "POST /up HTTP/1.1\r\nHost: crm.test\r\n"+body)
				recorded(body)
				_ = c.SetReadDeadline(time.Now().Add(slack * 10 * time.Second))
				if _, err := io.Copy(io.Discard, c); !isReset(err) {
					t.Errorf("%q: the device's connection ended with %v", body, err)
				}
			}
			h := newRawH2(t, w)
			h.open()
			for _, length := range []string{"100", "100000", ""} {
				fields := [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "crm.test"}, {":path", "/up"}}
				if length != "" {
					fields = append(fields, [2]string{"content-length", length})
				}
				_ = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: h.stream, EndHeaders: true, BlockFragment: h.block(fields)})
				_ = h.framer.WriteData(h.stream, false, []byte("x"))
				_ = h.conn.SetDeadline(time.Now().Add(slack * 20 * time.Second))
				h.isReset(t, h.stream)
				recorded("HTTP/2, length " + length)
				h.stream += 2
				if s := h.get("/ok"); s != "200" {
					t.Errorf("the next stream: %s", s)
				}
			}
			if n := whole.Load(); n != 0 {
				t.Errorf("the app took %d parts for the whole", n)
			}
		})
	}
}

// An app that begins an answer and does not go on is given up, and the device
// does not take the part for the whole.
func TestAppsThatStopWithinAnAnswer(t *testing.T) {
	for _, kind := range appKinds {
		t.Run(kind, func(t *testing.T) {
			apps, url, _ := newStoppingApp(t, kind)
			w := newWorld(t, apps, map[string]string{"crm": url}, attentive)
			ended := 0
			for _, h2 := range []bool{false, true} {
				for _, path := range []string{"/sized", "/chunked"} {
					c := w.client(h2)
					c.Timeout = slack * 20 * time.Second
					res, err := c.Get("https://crm.test" + path)
					if err == nil { // the head is there
						_, err = io.Copy(io.Discard, res.Body)
						_ = res.Body.Close()
					}
					if err == nil || os.IsTimeout(err) {
						t.Errorf("h2 %v, %s: %v", h2, path, err)
					}
					w.over()
					ended++
					rs := w.records(audit.KindUpstreamError, ended)
					if r := rs[len(rs)-1]; len(rs) != ended || r.Outcome != "upstream_timeout" || r.Status != 200 {
						t.Errorf("h2 %v, %s: recorded %d times, the last %q %d", h2, path, len(rs), r.Outcome, r.Status)
					}
				}
			}
		})
	}
}

// Events may be silent for as long as the flow has leases, and gRPC both ways.
func TestWhatMayBeSilent(t *testing.T) {
	for _, kind := range appKinds {
		t.Run(kind, func(t *testing.T) {
			apps, url, _ := newStoppingApp(t, kind)
			w := newWorld(t, apps, map[string]string{"crm": url}, attentive)
			for _, h2 := range []bool{false, true} {
				for _, path := range []string{"/events", "/grpc"} {
					if _, body := get(t, w.client(h2), "https://crm.test"+path); body != "begun, done" {
						t.Errorf("h2 %v, %s: %q", h2, path, body)
					}
				}
			}
			if kind == "http" {
				return // gRPC is HTTP/2 all the way
			}
			from, to := io.Pipe()
			go func() {
				_, _ = io.WriteString(to, "a message")
				time.Sleep(2 * longer)
				_ = to.Close()
			}()
			res, err := w.client(true).Post("https://crm.test/grpc", "application/grpc", from)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(res.Body)
			if err != nil || string(b) != "begun, done" {
				t.Errorf("messages both ways: %q, %v", b, err)
			}
			_ = res.Body.Close()
		})
	}
}

// A device that goes on, however slowly, is waited for, and so is an app that
// says nothing more until it has it all.
func TestWhatIsSlowGoesOn(t *testing.T) {
	var all sync.WaitGroup
	for _, kind := range appKinds {
		apps, url, _ := newStoppingApp(t, kind)
		w := newWorld(t, apps, map[string]string{"crm": url}, func(c *proxy.Config) { c.Timeouts.Read = slack * time.Second })
		c := w.tls("crm.test")
		_ = c.SetDeadline(time.Now().Add(slack * 60 * time.Second))
		all.Go(func() {
			fmt.Fprint(c, "POST /early HTTP/1.1\r\nHost: crm.test\r\nTransfer-Encoding: chunked\r\n\r\n")
			for range 10 {
				time.Sleep(slack * 200 * time.Millisecond)
				fmt.Fprint(c, "1\r\nx\r\n")
			}
			fmt.Fprint(c, "0\r\n\r\n")
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Errorf("%s: %v", kind, err)
				return
			}
			if b, err := io.ReadAll(res.Body); err != nil || string(b) != "begun, done" {
				t.Errorf("%s: %q, %v", kind, b, err)
			}
		})
	}
	all.Wait()
}
