package proxy_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// telling is an app that says something secret, in the part of an answer that
// the path names, when it is told to.
type telling struct{ asked, more chan struct{} }

func (a *telling) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	flush := func() { _ = http.NewResponseController(w).Flush() }
	h := w.Header()
	switch r.URL.Path {
	case "/trailer", "/end": // has said something before
		if r.URL.Path == "/trailer" {
			h.Set("Trailer", "X-Secret")
		}
		_, _ = io.WriteString(w, "one")
		flush()
	}
	a.asked <- struct{}{}
	<-a.more
	h.Set("X-Secret", "two")
	switch r.URL.Path {
	case "/head":
		_, _ = io.WriteString(w, "two")
	case "/empty":
		w.WriteHeader(http.StatusNoContent)
	case "/stream":
		h.Set("Content-Type", "text/event-stream")
		flush()
		<-r.Context().Done()
	case "/interim":
		w.WriteHeader(http.StatusEarlyHints)
		<-r.Context().Done()
	case "/switch":
		if c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}); err == nil {
			defer c.CloseNow()
			_, _, _ = c.Read(r.Context())
		}
	case "/drop": // the gateway would have to say something itself
		panic(http.ErrAbortHandler)
	}
}

// heard is all that a device got.
type heard struct {
	mu   sync.Mutex // guards what follows
	text []string
}

func (h *heard) add(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, fmt.Sprintf(format, args...))
}

func (h *heard) all() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Join(h.text, ", ")
}

// listen asks an app and returns what came of its answer. begun is called when
// a piece of the body has, which is no news; nil if that is not to be.
func listen(ctx context.Context, c *http.Client, method, url string, begun func()) string {
	var got heard
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{Got1xxResponse: func(status int, h textproto.MIMEHeader) error {
		got.add("%d %v", status, h)
		return nil
	}})
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return err.Error()
	}
	if strings.HasSuffix(url, "/switch") {
		req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}
	}
	res, err := c.Do(req)
	if err != nil {
		return got.all()
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols || begun == nil {
		got.add("a head %s %v", res.Status, res.Header)
		return got.all()
	}
	if _, err := io.ReadFull(res.Body, make([]byte, len("one"))); err != nil {
		got.add("%v", err)
		return got.all()
	}
	begun()
	rest, err := io.ReadAll(res.Body)
	if len(rest) > 0 || err == nil {
		got.add("%q, and then %v", rest, err)
	}
	for name, values := range res.Trailer {
		if len(values) > 0 {
			got.add("a trailer %s: %q", name, values)
		}
	}
	return got.all()
}

// Nor does anything of an answer reach the device: no head, also of what has no
// body, nothing before it, no trailer, and no end that would make a whole of a
// part.
func TestNoAnswerPassesAfterALapse(t *testing.T) {
	app := &telling{asked: make(chan struct{}, 10), more: make(chan struct{}, 1)}
	apps, upstreams := newKinds(t, app, nil)
	w := newWorld(t, apps, upstreams)
	w.lasts = time.Minute
	for _, kind := range kinds {
		for _, what := range []string{"GET /head", "HEAD /head", "GET /empty", "GET /stream", "GET /interim", "GET /switch", "GET /trailer", "GET /end", "GET /drop"} {
			for version, h2 := range map[string]bool{"HTTP 1.1": false, "HTTP 2": true} {
				method, path, _ := strings.Cut(what, " ")
				if h2 && path == "/switch" {
					continue // no upgrade there (RFC 9113, 8.6)
				}
				t.Run(kind+" "+what+" "+version, func(t *testing.T) {
					w.login()
					c := w.client(h2)
					c.Timeout = slack * 10 * time.Second
					ready, got := app.asked, make(chan string, 1)
					var begun func()
					if path == "/trailer" || path == "/end" {
						begins := make(chan struct{}, 1)
						begun = func() { begins <- <-app.asked }
						ready = begins
					}
					go func() { got <- listen(t.Context(), c, method, "https://"+kind+".test"+path, begun) }()
					select {
					case <-ready:
					case early := <-got:
						t.Fatalf("the device got %s", early)
					}
					w.ahead.Add(int64(2 * time.Minute))
					app.more <- struct{}{}
					if got := <-got; got != "" {
						t.Errorf("the device got %s", got)
					}
					w.over()
				})
			}
		}
	}
}
