package proxy_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// kinds are the ways an app may speak. Each is an app of its own, whose host is
// KIND.test.
var kinds = []string{"http", "https", "h2"}

// newKinds starts one app of each kind. through, unless it is nil, makes of an
// app's address the one that the gateway dials.
func newKinds(t *testing.T, h http.Handler, through func(kind, address string) string) (apps []string, upstreams map[string]string) {
	upstreams = map[string]string{}
	for _, kind := range kinds {
		srv := httptest.NewUnstartedServer(h)
		yaml := strings.NewReplacer("name: crm", "name: "+kind, "[crm.test, kunder.test]", "["+kind+".test]", "{{crm}}", "{{"+kind+"}}").Replace(crmYAML)
		if kind == "http" {
			srv.Start()
		} else {
			srv.EnableHTTP2 = kind == "h2"
			srv.StartTLS()
			yaml += "upstream_ca_file: " + caFile(t, srv) + "\n"
		}
		t.Cleanup(func() { srv.CloseClientConnections(); srv.Close() })
		url := srv.URL
		if through != nil {
			scheme, address, _ := strings.Cut(url, "://")
			url = scheme + "://" + through(kind, address)
		}
		apps, upstreams[kind] = append(apps, yaml), url
	}
	return apps, upstreams
}

// road leads to an app and can stand still. What finds no room in its socket
// meanwhile waits at the gateway.
type road struct {
	address string
	passed  atomic.Int64 // bytes towards the app
	still   atomic.Pointer[chan struct{}]
	ended   chan roadEnd
}

// roadEnd is the end of a connection that stood still.
type roadEnd struct {
	late int64 // bytes that came after that
	err  error
}

// roadHolds is more than the sockets of a road hold of what it has not passed.
const roadHolds = 192 << 10

func newRoad(t *testing.T, to string) *road {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &road{address: l.Addr().String(), ended: make(chan roadEnd, 4)}
	var all sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); all.Wait() })
	all.Go(func() {
		for {
			gateway, err := l.Accept()
			if err != nil {
				return
			}
			_ = gateway.(*net.TCPConn).SetReadBuffer(64 << 10)
			app, err := net.Dial("tcp", to)
			if err != nil {
				_ = gateway.Close()
				continue
			}
			all.Go(func() { _, _ = io.Copy(gateway, app); _ = gateway.Close() })
			all.Go(func() { r.pass(app, gateway); _ = app.Close(); _ = gateway.Close() })
		}
	})
	return r
}

func (r *road) pass(app, gateway net.Conn) {
	var end roadEnd
	waited := false
	for buf := make([]byte, 16<<10); ; {
		if goOn := r.still.Load(); goOn != nil && !waited {
			<-*goOn
			waited = true
		}
		n, err := gateway.Read(buf)
		r.passed.Add(int64(n))
		if waited {
			end.late += int64(n)
		}
		if err != nil {
			end.err = err
			break
		}
		_, _ = app.Write(buf[:n])
	}
	if waited {
		r.ended <- end
	}
}

// stop makes the road stand still until goOn is called.
func (r *road) stop() (goOn func()) {
	c := make(chan struct{})
	r.still.Store(&c)
	return sync.OnceFunc(func() { r.still.Store(nil); close(c) })
}

// What waits at the gateway when its Flow is cut, because the road to the app
// stands still, does not leave when the road goes on.
func TestWhatWaitsForAnAppDies(t *testing.T) {
	app := http.NewServeMux()
	app.HandleFunc("/up", func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	app.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for err == nil {
			_, _, err = c.Read(r.Context())
		}
	})
	roads := map[string]*road{}
	apps, upstreams := newKinds(t, app, func(kind, address string) string {
		roads[kind] = newRoad(t, address)
		return roads[kind].address
	})
	w := newWorld(t, apps, upstreams)
	up := func(kind string, sent *atomic.Int64) {
		body := readerFunc(func(b []byte) (int, error) { sent.Add(int64(len(b))); return len(b), nil })
		c := w.client(false)
		c.Timeout = slack * 20 * time.Second
		res, err := c.Post("https://"+kind+".test/up", "application/octet-stream", io.LimitReader(body, 1<<30))
		if err == nil {
			_ = res.Body.Close()
			t.Errorf("the upload to %s was answered with %s", kind, res.Status)
		}
	}
	socket := func(kind string, sent *atomic.Int64) {
		c, _, err := websocket.Dial(t.Context(), "wss://"+kind+".test/ws", &websocket.DialOptions{HTTPClient: w.client(false)})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		for piece := make([]byte, 16<<10); c.Write(t.Context(), websocket.MessageBinary, piece) == nil; {
			sent.Add(int64(len(piece)))
		}
	}
	for name, send := range map[string]func(string, *atomic.Int64){"upload": up, "websocket": socket} {
		for _, kind := range kinds {
			t.Run(name+" "+kind, func(t *testing.T) {
				w.login()
				r := roads[kind]
				before := r.passed.Load()
				var sent atomic.Int64
				var sending sync.WaitGroup
				sending.Go(func() { send(kind, &sent) })
				until(t, "the road is in use", func() bool { return r.passed.Load() > before+1<<20 })
				goOn := r.stop()
				defer goOn()
				last, since := int64(0), time.Now()
				until(t, "everything on the way is full", func() bool {
					if n := sent.Load(); n != last {
						last, since = n, time.Now()
					}
					return last-(r.passed.Load()-before) > 2*roadHolds && time.Since(since) > slack*100*time.Millisecond
				})
				w.revoke()
				goOn()
				select {
				case end := <-r.ended:
					if end.late > roadHolds || end.err == io.EOF {
						t.Errorf("%d bytes came after the cut, and then %v", end.late, end.err)
					}
				case <-time.After(slack * 5 * time.Second):
					t.Error("the app's connection goes on after the cut")
				}
				sending.Wait()
			})
		}
	}
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// until waits for what must come, for as long as a busy machine may take.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(slack * 10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come to this: %s", what)
		}
	}
}
