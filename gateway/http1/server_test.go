package http1

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// serving serves one end of a pipe and returns the other, and what waits until
// the server has let go of it.
func serving(s *Server) (net.Conn, func()) {
	here, there := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(context.Background(), there)
	}()
	return here, func() { <-done }
}

// over is serving, over loopback: a socket has a buffer and half-closes.
func over(t testing.TB, s *Server) *net.TCPConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Serve(context.Background(), there)
	}()
	t.Cleanup(func() { _ = here.Close(); <-done })
	_ = here.SetDeadline(time.Now().Add(20 * time.Second))
	return here.(*net.TCPConn)
}

func say(t testing.TB, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// answered reads one answer.
func answered(t testing.TB, br *bufio.Reader, method string) (*http.Response, string) {
	t.Helper()
	res, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func handler(h http.HandlerFunc) Handler {
	return func(w http.ResponseWriter, r *http.Request, why *Malformed) {
		if why != nil {
			http.Error(w, why.Why, why.Status)
			return
		}
		h(w, r)
	}
}

const simple = "GET / HTTP/1.1\r\nHost: x\r\n\r\n"

func TestOneWriteForASmallAnswer(t *testing.T) {
	var mu sync.Mutex
	var writes [][]byte
	s := &Server{Handler: handler(func(w http.ResponseWriter, r *http.Request) {
		n := 100
		if r.URL.Path == "/16k" {
			n = 16 << 10
		}
		w.Header().Set("Content-Length", fmt.Sprint(n))
		_, _ = w.Write(make([]byte, n))
	})}
	nc := &talker{script: script{Reader: strings.NewReader(simple + strings.Replace(simple, "/ ", "/16k ", 1) + simple)}}
	s.Serve(t.Context(), counting{nc, func(b []byte) { mu.Lock(); writes = append(writes, bytes.Clone(b)); mu.Unlock() }})
	if len(writes) != 3 {
		t.Errorf("%d writes for three answers", len(writes))
	}
}

type counting struct {
	*talker
	wrote func([]byte)
}

func (c counting) Write(b []byte) (int, error) { c.wrote(b); return len(b), nil }

// The timeouts, each from when it counts.
func TestTimeouts(t *testing.T) {
	for name, c := range map[string]struct {
		say  []string // a second apart
		want time.Duration
	}{
		"nothing":          {nil, 10 * time.Second},
		"one byte":         {[]string{"G"}, 10 * time.Second},
		"byte by byte":     {strings.Split("GET / HTTP/1.1\r\nHost", ""), 10 * time.Second},
		"a late beginning": {[]string{"", "", "", "G", "E"}, 13 * time.Second},
		"after an answer":  {[]string{simple}, 2 * time.Minute},
		"a second head":    {[]string{simple, "", "", "", "GET"}, 14 * time.Second},
		"a body":           {[]string{"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"}, 10 * time.Second}, // answered, and never sent
		"two requests":     {[]string{simple, "", "", "", simple}, 2*time.Minute + 4*time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &Server{Handler: handler(func(http.ResponseWriter, *http.Request) {})}
			begin := time.Now()
			conn, done := serving(s)
			var all sync.WaitGroup
			all.Go(func() { _, _ = io.Copy(io.Discard, conn) })
			all.Go(func() {
				for i, text := range c.say {
					if i > 0 {
						time.Sleep(time.Second)
					}
					if text == "" {
						continue
					}
					if _, err := io.WriteString(conn, text); err != nil {
						return
					}
				}
			})
			done()
			took := time.Since(begin)
			_ = conn.Close()
			all.Wait()
			// The last answer to a body that never came may linger.
			if took < c.want || took > c.want+lingers {
				t.Errorf("%s: ended after %v, want %v", name, took, c.want)
			}
		})
	}
}

// Whoever goes away while the handler says nothing ends what it does.
func TestGoneWhileNothingIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		leave   func(*net.TCPConn)
	}{
		"closed":              {simple, func(c *net.TCPConn) { _ = c.Close() }},
		"reset":               {simple, func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() }},
		"half closed":         {simple, func(c *net.TCPConn) { _ = c.CloseWrite() }},
		"with the next":       {simple + simple, func(c *net.TCPConn) { _ = c.Close() }},
		"after a body":        {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", func(c *net.TCPConn) { _ = c.Close() }},
		"after chunks":        {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", func(c *net.TCPConn) { _ = c.Close() }},
		"a part of the next":  {simple + "GET", func(c *net.TCPConn) { _ = c.Close() }},
		"while it is watched": {simple, func(c *net.TCPConn) { time.Sleep(2 * watchAfter); _, _ = io.WriteString(c, simple); _ = c.Close() }},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan struct{}, 2)
			gone := make(chan error, 2)
			conn := over(t, &Server{Handler: handler(func(_ http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				asked <- struct{}{}
				select {
				case <-r.Context().Done():
					gone <- nil
				case <-time.After(10 * time.Second):
					gone <- errors.New("nobody noticed")
				}
			})})
			say(t, conn, c.request)
			<-asked
			c.leave(conn)
			if err := <-gone; err != nil {
				t.Error(err)
			}
		})
	}
}

// A device that ends its direction with its request is answered, and what it
// sends while it waits is not lost.
func TestSlowAnswers(t *testing.T) {
	release := make(chan struct{})
	s := &Server{Handler: handler(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			<-release
		}
		_, _ = io.WriteString(w, r.URL.Path)
	})}
	conn := over(t, s)
	say(t, conn, "GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
	_ = conn.CloseWrite()
	if b, err := io.ReadAll(conn); err != nil || !strings.HasSuffix(string(b), "\r\n\r\n/quick") {
		t.Errorf("half closed: %q %v", b, err)
	}
	conn = over(t, s)
	say(t, conn, "GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
	long := "GET /" + strings.Repeat("n", 40<<10) + " HTTP/1.1\r\nHost: x\r\n\r\n" // more than is read ahead
	go func() {
		time.Sleep(2 * watchAfter)
		_, _ = io.WriteString(conn, "G")
		time.Sleep(watchAfter)
		_, _ = io.WriteString(conn, "ET /next HTTP/1.1\r\nHost: x\r\n\r\n"+long)
		time.Sleep(watchAfter)
		close(release)
	}()
	br := bufio.NewReader(conn)
	for _, want := range []string{"/slow", "/next", "/" + strings.Repeat("n", 40<<10)} {
		if _, body := answered(t, br, "GET"); body != want {
			t.Errorf("answered %.20q, want %.20q", body, want)
		}
	}
}

func TestDrain(t *testing.T) {
	s := &Server{}
	asked, release := make(chan struct{}), make(chan struct{})
	s.Handler = handler(func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-release
		_, _ = io.WriteString(w, "done")
	})
	fresh, busy, waits := over(t, s), over(t, s), over(t, s)
	say(t, waits, simple)
	<-asked
	release <- struct{}{}
	if _, body := answered(t, bufio.NewReader(waits), "GET"); body != "done" {
		t.Fatal(body)
	}
	say(t, busy, simple)
	<-asked
	s.Drain()
	for name, c := range map[string]net.Conn{"new": fresh, "idle": waits} {
		if b, err := io.ReadAll(c); err != nil || len(b) > 0 {
			t.Errorf("%s: %q %v", name, b, err)
		}
	}
	release <- struct{}{}
	res, body := answered(t, bufio.NewReader(busy), "GET")
	if body != "done" || !res.Close {
		t.Errorf("in flight: %q, closed %v", body, res.Close)
	}
	late := over(t, s)
	if b, err := io.ReadAll(late); err != nil || len(b) > 0 {
		t.Errorf("afterwards: %q %v", b, err)
	}
}

func TestHijack(t *testing.T) {
	conn := over(t, &Server{Handler: handler(func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(2 * watchAfter) // so that it is watched
		nc, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		_, _ = brw.WriteString("HTTP/1.1 101 Switching Protocols\r\n\r\n")
		_ = brw.Flush()
		if _, err := w.Write([]byte("x")); !errors.Is(err, http.ErrHijacked) {
			t.Errorf("a write afterwards: %v", err)
		}
		_, _ = io.Copy(nc, nc)
	})})
	say(t, conn, simple+"early") // before it was switched
	br := bufio.NewReader(conn)
	if line, err := br.ReadString('\n'); err != nil || !strings.Contains(line, "101") {
		t.Fatal(line, err)
	}
	_, _ = br.ReadString('\n')
	say(t, conn, "late")
	_ = conn.CloseWrite()
	if b, err := io.ReadAll(br); err != nil || string(b) != "earlylate" {
		t.Errorf("%q %v", b, err)
	}
}

// 100 Continue is said when the body is wanted, and not before.
func TestContinue(t *testing.T) {
	head := "POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
	wanted := make(chan struct{})
	conn := over(t, &Server{Handler: handler(func(w http.ResponseWriter, r *http.Request) {
		<-wanted
		_, _ = io.Copy(w, r.Body)
	})})
	br := bufio.NewReader(conn)
	for range 2 {
		say(t, conn, head)
		_ = conn.SetReadDeadline(time.Now().Add(2 * watchAfter))
		if b, err := br.Peek(1); err == nil {
			t.Fatalf("said %q before", b)
		}
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		wanted <- struct{}{}
		if res, _ := answered(t, br, "POST"); res.StatusCode != http.StatusContinue {
			t.Fatalf("said %s", res.Status)
		}
		say(t, conn, "hello")
		if res, body := answered(t, br, "POST"); body != "hello" || res.Close {
			t.Errorf("%q, closed %v", body, res.Close)
		}
	}
}

// A body belongs to its handler: whoever reads it afterwards gets nothing, and
// takes nothing from what follows.
func TestBodyAfterwards(t *testing.T) {
	var kept io.Reader
	reading := make(chan error, 1)
	conn := over(t, &Server{Handler: handler(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/keep":
			kept = r.Body
		case "/read":
			body, started := r.Body, make(chan struct{})
			go func() {
				close(started)
				_, err := io.ReadAll(body) // goes on when the handler has returned
				reading <- err
			}()
			<-started
			time.Sleep(10 * time.Millisecond)
		default:
			if n, err := kept.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("read %d bytes of a body that was over, %v", n, err)
			}
			_, _ = io.Copy(w, r.Body)
		}
	})})
	br := bufio.NewReader(conn)
	say(t, conn, "POST /keep HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nworld")
	answered(t, br, "POST")
	say(t, conn, "POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
	if _, body := answered(t, br, "POST"); body != "hello" {
		t.Errorf("the next body is %q", body)
	}
	say(t, conn, "POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe")
	res, _ := answered(t, br, "POST")
	if err := <-reading; err == nil || !res.Close {
		t.Errorf("a read that outlived the handler ended with %v, closed %v", err, res.Close)
	}
	if b, err := io.ReadAll(br); err != nil || len(b) > 0 {
		t.Errorf("afterwards %q %v", b, err)
	}
}

// Much passes through a fixed memory, to a reader that is slow.
func TestStreams(t *testing.T) {
	const size = 64 << 20
	conn := over(t, &Server{Handler: handler(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 0 {
			w.Header().Set("Content-Length", fmt.Sprint(r.ContentLength))
		}
		buf := make([]byte, 64<<10)
		if n, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r.Body}, buf); n != size || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	})})
	block := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	for _, chunks := range []bool{false, true} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		go func() {
			head, begin, end := fmt.Sprintf("Content-Length: %d\r\n\r\n", size), "", ""
			if chunks {
				head, begin, end = "Transfer-Encoding: chunked\r\n\r\n", fmt.Sprintf("%x\r\n", len(block)), "\r\n"
			}
			_, _ = io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\n"+head)
			for range size / len(block) {
				if _, err := io.WriteString(conn, begin+string(block)+end); err != nil {
					return
				}
			}
			if chunks {
				_, _ = io.WriteString(conn, "0\r\n\r\n")
			}
		}()
		res, err := http.ReadResponse(bufio.NewReaderSize(slowly{conn, 0}, 64<<10), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, n := make([]byte, 48<<10), 0
		for {
			k, err := res.Body.Read(got)
			for i := 0; i < k; i += 997 {
				if got[i] != block[(n+i)%16] {
					t.Fatalf("byte %d is another", n+i)
				}
			}
			n += k
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		runtime.ReadMemStats(&after)
		// The test's own strings are as large as the stream.
		if grown := int64(after.HeapSys) - int64(before.HeapSys); n != size || grown > 32<<20 {
			t.Errorf("chunks %v: %d bytes, the heap grew by %d", chunks, n, grown)
		}
	}
}

// slowly pauses once in a while.
type slowly struct {
	r io.Reader
	n int
}

func (s slowly) Read(b []byte) (int, error) {
	if s.n++; s.n%100 == 0 {
		time.Sleep(time.Millisecond)
	}
	return s.r.Read(b)
}

// A connection that waits holds neither buffer nor goroutine but its own, and
// nothing of what it was asked.
func TestIdleConnectionsHoldLittle(t *testing.T) {
	t.Run("small", func(t *testing.T) { idleConnections(t, simple) })
	t.Run("large", func(t *testing.T) {
		idleConnections(t, strings.TrimSuffix(simple, "\r\n")+strings.Repeat("A: "+strings.Repeat("b", 119)+"\r\n", 500)+"\r\n")
	})
	t.Run("many names", func(t *testing.T) {
		var head strings.Builder
		head.WriteString(strings.TrimSuffix(simple, "\r\n"))
		for i := range 500 {
			fmt.Fprintf(&head, "A%d: %s\r\n", i, strings.Repeat("b", 110))
		}
		idleConnections(t, head.String()+"\r\n")
	})
}

func idleConnections(t *testing.T, head string) {
	s := &Server{Handler: handler(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })}
	var conns []net.Conn
	var dones []func()
	open := func() {
		c, done := serving(s)
		conns, dones = append(conns, c), append(dones, done)
		var asked sync.WaitGroup
		asked.Go(func() { _, _ = io.WriteString(c, head) })
		answered(t, bufio.NewReaderSize(c, 512), "GET")
		asked.Wait()
	}
	for range 16 {
		open()
	}
	memory := func() (int64, int) {
		runtime.GC()
		runtime.GC()
		time.Sleep(20 * time.Millisecond)
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()
	}
	before, goroutines := memory()
	const more = 500
	for range more {
		open()
	}
	after, now := memory()
	for until := time.Now().Add(10 * time.Second); now-goroutines > more && time.Now().Before(until); {
		after, now = memory() // a slow machine's watchers are on their way out
	}
	if each := (after - before) / more; each > 16<<10 {
		t.Errorf("%d bytes for a connection that waits", each)
	}
	if now-goroutines > more {
		t.Errorf("%d goroutines for %d connections", now-goroutines, more)
	}
	for i, c := range conns {
		_ = c.Close()
		dones[i]()
	}
}

func TestPanic(t *testing.T) {
	said := make(chan any, 1)
	conn := over(t, &Server{
		Handler:  handler(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "half"); panic("a bug") }),
		Panicked: func(v any, _ []byte) { said <- v },
	})
	say(t, conn, simple)
	if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
		t.Errorf("%q %v", b, err)
	}
	if v := <-said; v != "a bug" {
		t.Errorf("told %v", v)
	}
}
