package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// lapsing is an app that tells what it gets, and says "one" and, when it is told
// to, "two".
type lapsing struct {
	began, more chan struct{}
	got         chan string // all that came, when it has ended
}

func (l *lapsing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		l.socket(w, r)
		return
	}
	if r.Method == http.MethodPost {
		all, buf := "", make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				all += string(buf[:n])
				l.began <- struct{}{}
			}
			if err != nil {
				l.got <- all
				return
			}
		}
	}
	_, _ = io.WriteString(w, "one")
	_ = http.NewResponseController(w).Flush()
	select {
	case <-l.more:
		_, _ = io.WriteString(w, "two")
		_ = http.NewResponseController(w).Flush()
	case <-r.Context().Done():
	}
}

func (l *lapsing) socket(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer c.CloseNow()
	if r.URL.Path == "/down" {
		_ = c.Write(r.Context(), websocket.MessageText, []byte("one"))
		<-l.more
		_ = c.Write(r.Context(), websocket.MessageText, []byte("two"))
		return
	}
	for all := ""; ; {
		_, b, err := c.Read(r.Context())
		if err != nil {
			l.got <- all
			return
		}
		all += string(b)
		l.began <- struct{}{}
	}
}

// Where a gateway stood still for longer than the lease, nothing passes before
// it is decided again: not the first byte, in no direction, on no road. Nobody
// but who has the byte in hand looks at the lease here.
func TestNothingPassesAfterALapse(t *testing.T) {
	app := &lapsing{began: make(chan struct{}, 10), more: make(chan struct{}, 1), got: make(chan string, 1)}
	apps, upstreams := newKinds(t, app, nil)
	w := newWorld(t, apps, upstreams)
	w.lasts = time.Minute
	lapse := func() { w.ahead.Add(int64(2 * time.Minute)) }
	begun := func(t *testing.T) {
		t.Helper()
		select {
		case <-app.began:
		case <-time.After(slack * 10 * time.Second):
			t.Fatal("nothing reaches the app")
		}
	}
	arrived := func(t *testing.T) {
		t.Helper()
		select {
		case got := <-app.got:
			if got != "one" {
				t.Errorf("the app got %q", got)
			}
		case <-time.After(slack * 10 * time.Second):
			t.Error("the app's end stays open")
		}
	}
	ways := map[string]func(t *testing.T, host string){
		"up": func(t *testing.T, host string) {
			c := w.tls(host)
			_ = c.SetDeadline(time.Now().Add(slack * 10 * time.Second))
			fmt.Fprintf(c, "POST /up HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n", host)
			begun(t)
			lapse()
			_, _ = io.WriteString(c, "3\r\ntwo\r\n0\r\n\r\n")
			arrived(t)
		},
		"down": func(t *testing.T, host string) {
			c := w.tls(host)
			_ = c.SetDeadline(time.Now().Add(slack * 10 * time.Second))
			fmt.Fprintf(c, "GET /down HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
			until(t, "the answer begins", func() bool {
				buf := make([]byte, 4096)
				n, err := c.Read(buf)
				return err != nil || strings.Contains(string(buf[:n]), "one")
			})
			lapse()
			app.more <- struct{}{}
			if rest, err := io.ReadAll(c); !isReset(err) || strings.Contains(string(rest), "two") {
				t.Errorf("the device got %q, and then %v", rest, err)
			}
		},
		"websocket up": func(t *testing.T, host string) {
			c := dialSocket(t, w, host, "/up")
			_ = c.Write(t.Context(), websocket.MessageText, []byte("one"))
			begun(t)
			lapse()
			_ = c.Write(t.Context(), websocket.MessageText, []byte("two"))
			arrived(t)
		},
		"websocket down": func(t *testing.T, host string) {
			c := dialSocket(t, w, host, "/down")
			if _, b, err := c.Read(t.Context()); string(b) != "one" {
				t.Fatalf("%q, %v", b, err)
			}
			lapse()
			app.more <- struct{}{}
			if _, b, err := c.Read(t.Context()); err == nil {
				t.Errorf("the device got %q", b)
			}
		},
	}
	for way, run := range ways {
		for _, kind := range kinds {
			t.Run(way+" "+kind, func(t *testing.T) {
				w.login()
				run(t, kind+".test")
				w.over()
			})
		}
	}
}

func dialSocket(t *testing.T, w *world, host, path string) *websocket.Conn {
	t.Helper()
	c, _, err := websocket.Dial(t.Context(), "wss://"+host+path, &websocket.DialOptions{HTTPClient: w.client(false)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseNow() })
	return c
}
