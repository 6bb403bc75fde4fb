package proxy_test

import (
	"context"
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

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/policy"
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

// cutWithin is how long after an event about one session the last of its bytes
// may arrive. The race detector makes all of it several times slower.
const cutWithin = slack * 250 * time.Millisecond

// busy is an app that sends and receives without end.
type busy struct {
	uploads atomic.Int32 // that are open
	reached sync.Map     // what has reached it, by its query: only that was decided on
}

func (b *busy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/ws":
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		defer c.CloseNow()
		for r.Context().Err() == nil {
			if c.Write(r.Context(), websocket.MessageText, []byte("tick")) != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	case "/down":
		b.reached.Store(r.URL.RawQuery, true)
		chunk := make([]byte, 16<<10)
		for r.Context().Err() == nil {
			if _, err := w.Write(chunk); err != nil {
				return
			}
			if r.URL.RawQuery != "flood" {
				time.Sleep(time.Millisecond) // the cut is measured, not a saturated machine
			}
		}
	case "/up":
		b.uploads.Add(1)
		defer b.uploads.Add(-1)
		for buf := make([]byte, 32<<10); ; {
			_, err := r.Body.Read(buf)
			b.reached.Store(r.URL.RawQuery, true)
			if err != nil {
				return
			}
		}
	}
}

// part is something that is open when the session ends.
type part struct {
	name  string
	first chan struct{} // closed at its first byte
	once  sync.Once
	late  atomic.Int64 // bytes after the cut
	ended time.Time
}

// parts begin and end together.
type parts struct {
	cutAt atomic.Int64 // UnixNano
	each  []*part
	all   sync.WaitGroup
}

// begin starts one. run calls got with the bytes it gets, and returns at the
// end.
func (ps *parts) begin(name string, run func(got func(n int))) {
	p := &part{name: name, first: make(chan struct{})}
	ps.each = append(ps.each, p)
	ps.all.Go(func() {
		run(func(n int) {
			if n == 0 {
				return
			}
			p.once.Do(func() { close(p.first) })
			if at := ps.cutAt.Load(); at != 0 && time.Now().UnixNano() > at+int64(cutWithin) {
				p.late.Add(int64(n))
			}
		})
		p.ended = time.Now()
	})
}

func readOn(r io.Reader, got func(int)) {
	for buf := make([]byte, 32<<10); ; {
		n, err := r.Read(buf)
		got(n)
		if err != nil {
			return
		}
	}
}

// open opens one of everything there is at an app.
func (ps *parts) open(t *testing.T, w *world, host string, app *busy) {
	ps.begin("websocket", func(got func(int)) {
		c, _, err := websocket.Dial(context.Background(), "wss://"+host+"/ws", &websocket.DialOptions{HTTPClient: w.client(false)})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.CloseNow()
		for err == nil {
			var b []byte
			ctx, cancel := context.WithTimeout(context.Background(), slack*10*time.Second)
			_, b, err = c.Read(ctx)
			cancel()
			got(len(b))
		}
	})
	for name, h2 := range map[string]bool{"h1": false, "h2": true} {
		query := name + host
		ps.begin("download "+name, func(got func(int)) {
			res, err := w.client(h2).Get("https://" + host + "/down")
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			readOn(res.Body, got)
		})
		ps.begin("upload "+name, func(got func(int)) {
			r, wr := io.Pipe()
			go func() {
				for {
					if _, err := wr.Write(make([]byte, 8<<10)); err != nil {
						return
					}
					if _, ok := app.reached.Load(query); ok {
						got(1)
					}
					time.Sleep(time.Millisecond)
				}
			}()
			res, err := w.client(h2).Post("https://"+host+"/up?"+query, "", r)
			if err == nil {
				res.Body.Close()
				t.Errorf("the upload %s ended with %s", name, res.Status)
			}
			r.Close()
		})
	}
	ps.begin("tcp", func(got func(int)) {
		c := w.dial("desk", 7000)
		_ = c.SetDeadline(time.Now().Add(slack * 10 * time.Second)) // a flow that is not cut fails the test, not hangs it
		go func() {
			for {
				if _, err := c.Write([]byte("tick")); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		}()
		readOn(c, got)
	})
}

// Everything that is open when a session ends is cut within the bound, and not
// a byte of it arrives afterwards, at either end, whatever the app speaks.
func TestCut(t *testing.T) {
	app := &busy{}
	apps, upstreams := newKinds(t, app, nil)
	deskEnded := make(chan error, 1)
	upstreams["desk"] = tcpEcho(t, deskEnded)
	w := newWorld(t, append(apps, deskYAML), upstreams)
	for i, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			w.login()
			host := kind + ".test"
			var open parts
			open.open(t, w, host, app)
			stalled := w.tls(host) // reads nothing: its bytes wait in every buffer on the way
			_, _ = io.WriteString(stalled, "GET /down?flood HTTP/1.1\r\nHost: "+host+"\r\n\r\n")
			for _, p := range open.each {
				select {
				case <-p.first:
				case <-time.After(slack * 5 * time.Second):
					t.Fatalf("%s did not begin", p.name)
				}
			}
			until(t, "the connection that nobody reads begins", func() bool { _, ok := app.reached.LoadAndDelete("flood"); return ok })
			time.Sleep(50 * time.Millisecond)

			before := time.Now()
			open.cutAt.Store(before.UnixNano())
			w.revoke()
			open.all.Wait()
			for _, p := range open.each {
				if took := p.ended.Sub(before); took > cutWithin {
					t.Errorf("%s was cut after %v", p.name, took)
				}
				if p.late.Load() != 0 {
					t.Errorf("%s: %d bytes arrived later", p.name, p.late.Load())
				}
			}
			// Who reads nothing has bytes waiting at the gateway. Only a reset discards
			// them, and it needs no reader to be seen.
			until(t, "a connection that nobody reads is reset", func() bool { _, err := stalled.NetConn().Write([]byte{0}); return err != nil })
			select {
			case <-deskEnded:
			case <-time.After(cutWithin):
				t.Error("the desk's connection goes on")
			}
			until(t, "the uploads end at the app", func() bool { return app.uploads.Load() == 0 })
			want := 7 * (i + 1)
			if cuts := w.records(audit.KindFlowCut, want); len(cuts) != want {
				t.Errorf("%d cuts recorded, want %d", len(cuts), want)
			}
			res, _ := get(t, w.client(false), "https://"+host+"/")
			if res.StatusCode != 403 || res.Header.Get("Portvakt-Reason") != string(policy.ReasonSessionRevoked) {
				t.Errorf("afterwards: %d %s", res.StatusCode, res.Header.Get("Portvakt-Reason"))
			}
		})
	}
}
