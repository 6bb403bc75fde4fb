package proxy_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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

// upgrading are the lines that ask for a WebSocket.
const upgrading = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"

// The gateway stands still while an app shakes hands: the request was decided
// and recorded, and nothing of it has left.
func TestNoRequestLeavesAfterALapse(t *testing.T) {
	for _, kind := range []string{"https", "h2"} {
		for name, lines := range map[string]string{"request": "", "websocket": upgrading} {
			t.Run(kind+" "+name, func(t *testing.T) {
				shaking, goOn := make(chan struct{}, 10), make(chan struct{})
				got := make(chan string, 10)
				srv := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got <- r.RequestURI }))
				srv.EnableHTTP2 = kind == "h2"
				srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
					shaking <- struct{}{}
					<-goOn
					return nil, nil
				}}
				srv.StartTLS()
				defer srv.Close()
				w := newWorld(t, secureApp(t, srv, ""), nil)
				w.lasts = time.Minute
				w.login()
				c := w.tls("crm.test")
				_ = c.SetDeadline(time.Now().Add(slack * 10 * time.Second))
				fmt.Fprintf(c, "GET /secret HTTP/1.1\r\nHost: crm.test\r\n%s\r\n", lines)
				<-shaking
				w.ahead.Add(int64(2 * time.Minute))
				close(goOn)
				if answer, err := io.ReadAll(c); len(answer) > 0 || !isReset(err) {
					t.Errorf("the device got %q, and then %v", answer, err)
				}
				srv.CloseClientConnections()
				srv.Close() // and with it all that the app was asked
				if len(got) > 0 {
					t.Errorf("the app got %q", <-got)
				}
			})
		}
	}
}

// Nor is an app asked once more that has dropped a request meanwhile.
func TestNothingIsAskedAgainAfterALapse(t *testing.T) {
	for _, kind := range kinds {
		for name, lines := range map[string]string{"request": "", "websocket": upgrading} {
			t.Run(kind+" "+name, func(t *testing.T) {
				app, apps, upstreams := newFickle(t, kind)
				w := newWorld(t, apps, upstreams)
				w.lasts = time.Minute
				w.login()
				app.drop = func() { w.ahead.Add(int64(2 * time.Minute)) }
				for try := 0; ; try++ {
					id := fmt.Sprint(try)
					got := w.raw("crm.test", "GET / HTTP/1.1\r\nHost: crm.test\r\nX-Case: "+id+"\r\n"+lines+"\r\n")
					app.mu.Lock()
					arrived, dropped := app.arrived[id], app.dropped[id]
					app.mu.Unlock()
					if !dropped && try < 100 { // the first, or the other connection was not free yet
						continue
					}
					if arrived != 1 || !dropped || got != "" {
						t.Errorf("it arrived %d times, and was answered %.40q", arrived, got)
					}
					return
				}
			})
		}
	}
}
