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
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
)

// asa is who holds the connections of these tests, at her connection.
var (
	asa = Holder{Inner: netip.MustParseAddr("100.64.0.9"), Device: "dev-1", Session: "s-1"}
	at  = netip.AddrPortFrom(asa.Inner, 40000)
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// script is an app that says what it says, whatever it is asked.
type script struct {
	io.Reader
	closed bool
}

func (*script) Write(b []byte) (int, error)      { return len(b), nil }
func (s *script) Close() error                   { s.closed = true; return nil }
func (*script) LocalAddr() net.Addr              { return nil }
func (*script) RemoteAddr() net.Addr             { return nil }
func (*script) SetDeadline(time.Time) error      { return nil }
func (*script) SetReadDeadline(time.Time) error  { return nil }
func (*script) SetWriteDeadline(time.Time) error { return nil }

type answer struct {
	head     Head
	body     []byte
	trailer  []Field
	interims int
	reusable bool
}

// read takes one answer as an exchange does.
func read(t testing.TB, method string, from io.Reader) (answer, error) {
	t.Helper()
	s := &script{Reader: from}
	p := NewPool(Options{Dial: func(context.Context) (net.Conn, error) { return s, nil }})
	defer p.Close()
	c, err := p.Dial(t.Context(), asa, at)
	if err != nil {
		t.Fatal(err)
	}
	var a answer
	defer func() {
		c.Release(true)
		if a.reusable == s.closed {
			t.Errorf("reusable %v, closed %v", a.reusable, s.closed)
		}
	}()
	if a.head, err = c.ReadHead(method, func(Head) error { a.interims++; return nil }); err != nil {
		return a, err
	}
	a.head.Fields = append([]Field(nil), a.head.Fields...)
	for {
		b, err := c.Next(nil)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return a, err
		}
		a.body = append(a.body, b...)
	}
	a.trailer = append(a.trailer, c.Trailer()...)
	a.reusable = c.over && c.framing.reusable && c.r == c.w && !c.end
	return a, nil
}

func TestAnswers(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	for _, c := range []struct {
		name, method, text string
		body               string
		reusable           bool
	}{
		{"sized", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", true},
		{"empty", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "", true},
		{"no reason", "GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "", true},
		{"empty reason", "GET", "HTTP/1.1 299 \r\nContent-Length: 0\r\n\r\n", "", true},
		{"large", "GET", fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long), long, true},
		{"large head", "GET", "HTTP/1.1 200 OK\r\nX: " + long + "\r\nContent-Length: 1\r\n\r\ny", "y", true},
		{"chunks", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", "hello", true},
		{"chunks, upper case", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\nA\r\n0123456789\r\n0\r\n\r\n", "0123456789", true},
		{"large chunk", "GET", fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(long), long), long, true},
		{"trailer", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n", "x", true},
		{"close", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive, Close\r\n\r\nx", "x", false},
		{"until close", "GET", "HTTP/1.1 200 OK\r\n\r\nall there is", "all there is", false},
		{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\nx", "x", false},
		{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", "", true},
		{"HEAD of chunks", "HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "", true},
		{"HEAD with a body", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "", false},
		{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "", true},
		{"304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "", true},
		{"interim", "GET", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", "x", true},
		{"two answers", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\ny", "x", false},
		{"a byte too many", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\n", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, from := range map[string]io.Reader{
				"whole": strings.NewReader(c.text), "byte by byte": iotest.OneByteReader(strings.NewReader(c.text)),
			} {
				a, err := read(t, c.method, from)
				if err != nil || string(a.body) != c.body {
					t.Errorf("%s: %.40q %v", name, a.body, err)
				}
				// What comes after an answer and later is seen by Idle.
				if name == "whole" && a.reusable != c.reusable {
					t.Errorf("%s: reusable %v", name, a.reusable)
				}
			}
		})
	}
}

func TestAnswersRefused(t *testing.T) {
	const chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	for name, text := range map[string]string{
		"nothing":                "",
		"another protocol":       "SSH-2.0-x\r\n\r\n",
		"HTTP/2":                 "HTTP/2 200\r\n\r\n",
		"HTTP/1.2":               "HTTP/1.2 200 OK\r\n\r\n",
		"lower case":             "http/1.1 200 OK\r\n\r\n",
		"status with a sign":     "HTTP/1.1 +20 OK\r\n\r\n",
		"status of four":         "HTTP/1.1 2000\r\n\r\n",
		"status below 100":       "HTTP/1.1 099 x\r\n\r\n",
		"control in the reason":  "HTTP/1.1 200 O\x00K\r\n\r\n",
		"leading empty line":     "\r\nHTTP/1.1 200 OK\r\n\r\n",
		"CL and TE":              "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
		"two lengths":            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
		"the same length twice":  "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
		"a list of lengths":      "HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\nx",
		"signed length":          "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
		"hexadecimal length":     "HTTP/1.1 200 OK\r\nContent-Length: 0x1\r\n\r\nx",
		"no length":              "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n",
		"huge length":            "HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
		"another encoding":       "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		"chunked twice":          "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"space before the colon": "HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		"TE in HTTP/1.0":         "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bare LF":                "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
		"bare LF at the end":     "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\n",
		"bare LF in a header":    "HTTP/1.1 200 OK\r\nA: b\nContent-Length: 0\r\n\r\n",
		"bare CR":                "HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 0\r\n\r\n",
		"folded":                 "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
		"no colon":               "HTTP/1.1 200 OK\r\nA\r\nContent-Length: 0\r\n\r\n",
		"NUL in a value":         "HTTP/1.1 200 OK\r\nA: \x00\r\nContent-Length: 0\r\n\r\n",
		"switched unasked":       "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
		"interim with a body":    "HTTP/1.1 103 x\r\nContent-Length: 1\r\n\r\nxHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"204 with a body":        "HTTP/1.1 204 x\r\nContent-Length: 1\r\n\r\nx",
		"204 with chunks":        "HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"interim flood":          strings.Repeat("HTTP/1.1 103 x\r\n\r\n", maxInterim+1) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"large interim answers":  strings.Repeat("HTTP/1.1 103 x\r\nX: "+strings.Repeat("y", 60<<10)+"\r\n\r\n", 5) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"head of 10 MiB":         "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 10<<20) + "\r\n\r\n",
		"many lines":             "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", maxFields+1) + "\r\n",
		"cut head":               "HTTP/1.1 200 OK\r\nContent-Le",
		"cut body":               "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
		"cut chunk":              chunks + "5\r\nhell",
		"no last chunk":          chunks + "5\r\nhello\r\n",
		"cut trailer":            chunks + "0\r\nA: b\r\n",
		"chunk extension":        chunks + "1;a=b\r\nx\r\n0\r\n\r\n",
		"chunk with a space":     chunks + "1 \r\nx\r\n0\r\n\r\n",
		"chunk with 0x":          chunks + "0x1\r\nx\r\n0\r\n\r\n",
		"chunk without a size":   chunks + "\r\nx\r\n0\r\n\r\n",
		"negative chunk":         chunks + "-1\r\nx\r\n0\r\n\r\n",
		"huge chunk":             chunks + "ffffffffffffffff\r\nx\r\n0\r\n\r\n",
		"endless size":           chunks + strings.Repeat("0", 1000),
		"chunk with bare LF":     chunks + "1\nx\r\n0\r\n\r\n",
		"chunk that is longer":   chunks + "1\r\nxy\r\n0\r\n\r\n",
		"bad trailer":            chunks + "0\r\nA\r\n\r\n",
		"trailers without end":   chunks + "0\r\n" + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 100) + "\r\n",
		"trailer of 1 MiB":       chunks + "0\r\nA: " + strings.Repeat("b", 1<<20) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			for _, from := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text[:min(len(text), 64<<10)]))} {
				a, err := read(t, "GET", from)
				if err == nil {
					t.Errorf("taken: %+v", a.head)
				}
			}
		})
	}
}

// FuzzAnswer: what is taken as whole and leaves the connection usable is read
// in the same way, to the same byte, by another parser.
func FuzzAnswer(f *testing.F) {
	for _, seed := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.1 103 x\r\nLink: a\r\n\r\nHTTP/1.1 204 x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nx",
		"HTTP/1.0 304 x\r\nContent-Length: 3\r\n\r\n",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, text string, get bool) {
		method := map[bool]string{true: "GET", false: "HEAD"}[get]
		a, err := read(t, method, strings.NewReader(text))
		slow, slowErr := read(t, method, iotest.OneByteReader(strings.NewReader(text)))
		if err == nil && (slowErr != nil || !bytes.Equal(a.body, slow.body) || a.head.Status != slow.head.Status) {
			t.Fatalf("byte by byte it is another answer: %+v %+v %v", a, slow, slowErr)
		}
		if err != nil || !a.reusable {
			return
		}
		br := bufio.NewReader(strings.NewReader(text))
		for range a.interims + strings.Count(text, "HTTP/1.1 100") + strings.Count(text, "HTTP/1.0 100") + 1 {
			res, err := http.ReadResponse(br, &http.Request{Method: method})
			if err != nil {
				t.Fatalf("net/http refuses what was taken: %v", err)
			}
			if res.StatusCode < 200 {
				continue
			}
			body, err := io.ReadAll(res.Body)
			if err != nil || res.StatusCode != a.head.Status || !bytes.Equal(body, a.body) || lines(res.Trailer) > len(a.trailer) || res.Close {
				t.Fatalf("net/http reads %d %q %v, here it is %d %q", res.StatusCode, body, err, a.head.Status, a.body)
			}
			if rest, _ := io.ReadAll(br); len(rest) > 0 {
				t.Fatalf("net/http leaves %q", rest)
			}
			return
		}
	})
}

func lines(h http.Header) (n int) {
	for _, values := range h {
		n += len(values)
	}
	return n
}

// tcp is a pool to a real listener, whose connections come out of the channel.
func tcp(t *testing.T, opt Options) (*Pool, chan net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 16)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	}()
	opt.Dial = func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
	}
	p := NewPool(opt)
	t.Cleanup(func() { p.Close(); l.Close(); <-done })
	return p, conns
}

// once makes one exchange in which the app says text, and gives c back.
func once(t *testing.T, c *Conn, app net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(app, text); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReadHead("GET", func(Head) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := c.Next(nil); err != nil {
			break
		}
	}
	c.Release(true)
}

const fine = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func TestReuse(t *testing.T) {
	for name, after := range map[string]func(app net.Conn){
		"quiet":         nil,
		"closed":        func(app net.Conn) { app.Close() },
		"half closed":   func(app net.Conn) { app.(*net.TCPConn).CloseWrite() },
		"reset":         func(app net.Conn) { app.(*net.TCPConn).SetLinger(0); app.Close() },
		"second answer": func(app net.Conn) { io.WriteString(app, fine) },
	} {
		t.Run(name, func(t *testing.T) {
			p, conns := tcp(t, Options{})
			c, err := p.Dial(t.Context(), asa, at)
			if err != nil {
				t.Fatal(err)
			}
			app := <-conns
			defer app.Close()
			once(t, c, app, fine)
			if after != nil {
				after(app)
				time.Sleep(20 * time.Millisecond) // for it to arrive
			}
			again := p.Idle(asa, at)
			if again == nil || !again.Reused() || again.Answered() {
				t.Fatalf("idle connection %+v", again)
			}
			begun, err := again.Send([]byte("GET"), false, time.Minute)
			if after != nil {
				if !errors.Is(err, ErrStale) || !begun.IsZero() {
					t.Errorf("sent at %v: %v", begun, err)
				}
				again.Release(false)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			once(t, again, app, fine)
		})
	}
}

func TestPoolIsBounded(t *testing.T) {
	p, conns := tcp(t, Options{PerDevice: 2, IdleTimeout: 50 * time.Millisecond})
	var held []*Conn
	var apps []net.Conn
	for range 4 {
		c, err := p.Dial(t.Context(), asa, at)
		if err != nil {
			t.Fatal(err)
		}
		held, apps = append(held, c), append(apps, <-conns)
	}
	for i, c := range held {
		once(t, c, apps[i], fine)
	}
	open := func() (n int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.waiting
	}
	if n := open(); n != 2 {
		t.Errorf("%d wait", n)
	}
	for _, app := range apps { // each is closed in the end, the last two for waiting too long
		_ = app.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadAll(app); err != nil {
			t.Error(err)
		}
		_ = app.Close()
	}
	if n := open(); n != 0 {
		t.Errorf("%d wait still", n)
	}
	// A pool that was closed keeps nothing.
	c, err := p.Dial(t.Context(), asa, at)
	if err != nil {
		t.Fatal(err)
	}
	app := <-conns
	defer app.Close()
	p.Close()
	once(t, c, app, fine)
	if p.Idle(asa, at) != nil {
		t.Error("a closed pool gave a connection")
	}
}

func TestReleaseInDoubtCloses(t *testing.T) {
	for name, sent := range map[string]bool{"request not sent": false, "answer not read": true} {
		t.Run(name, func(t *testing.T) {
			p, conns := tcp(t, Options{})
			c, err := p.Dial(t.Context(), asa, at)
			if err != nil {
				t.Fatal(err)
			}
			app := <-conns
			defer app.Close()
			if _, err := io.WriteString(app, fine); err != nil {
				t.Fatal(err)
			}
			if _, err := c.ReadHead("GET", nil); err != nil {
				t.Fatal(err)
			}
			if !sent {
				for err == nil {
					_, err = c.Next(nil)
				}
			}
			c.Release(sent)
			if p.Idle(asa, at) != nil {
				t.Error("it is used again")
			}
		})
	}
}
