package http1

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// talker is a device that says what it says, whatever it is answered.
type talker struct {
	script
	answers bytes.Buffer
}

func (t *talker) Write(b []byte) (int, error) { return t.answers.Write(b) }
func (*talker) RemoteAddr() net.Addr          { return &net.TCPAddr{} }

// message is one that was taken.
type message struct {
	method, target, host, body string
	header, trailer            http.Header
}

// hear serves what is said and tells which requests were taken, why the last one
// was not, and what was answered.
func hear(text string, slow bool) (taken []message, refused *Malformed, answers string, broken error) {
	var src io.Reader = strings.NewReader(text)
	if slow {
		src = iotest.OneByteReader(src)
	}
	nc := &talker{script: script{Reader: src}}
	s := Server{Handler: func(w http.ResponseWriter, r *http.Request, why *Malformed) {
		if why != nil {
			refused = why
			w.WriteHeader(why.Status)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			broken = err
			panic(http.ErrAbortHandler)
		}
		taken = append(taken, message{r.Method, r.RequestURI, r.Host, string(body), r.Header.Clone(), maps.Clone(r.Trailer)})
	}}
	s.Serve(context.Background(), nc)
	return taken, refused, nc.answers.String(), broken
}

const next = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

func TestRequestsRefused(t *testing.T) {
	const chunks = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, c := range []struct{ name, text string }{
		{"CL and TE", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next},
		{"TE and CL", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + next},
		{"CL zero and TE", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next},
		{"two CL", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + next},
		{"two equal CL", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nabcd" + next},
		{"CL list", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 4, 4\r\n\r\nabcd" + next},
		{"CL signed", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: +4\r\n\r\nabcd" + next},
		{"CL negative", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: -4\r\n\r\nabcd" + next},
		{"CL hex", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x4\r\n\r\nabcd" + next},
		{"CL empty", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: \r\n\r\nabcd" + next},
		{"CL huge", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nabcd" + next},
		{"CL underscore digits", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 1_0\r\n\r\nabcd" + next},
		{"TE twice", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next},
		{"TE list", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + next},
		{"TE identity", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + next},
		{"TE xchunked", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + next},
		{"TE with tab", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + next},
		{"TE quoted", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n" + next},
		{"TE in HTTP/1.0", "POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + next},
		{"space before colon", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + next},
		{"folded", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n" + next},
		{"folded first", "GET /a HTTP/1.1\r\n Host: x\r\n\r\n"},
		{"bare LF", "GET /a HTTP/1.1\nHost: x\n\n" + next},
		{"bare LF in the head", "GET /a HTTP/1.1\r\nHost: x\nTransfer-Encoding: chunked\r\n\r\n" + next},
		{"bare LF at the end", "GET /a HTTP/1.1\r\nHost: x\r\n\n" + next},
		{"bare CR", "GET /a HTTP/1.1\r\nHost: x\rTransfer-Encoding: chunked\r\n\r\n" + next},
		{"bare CR in a name", "GET /a HTTP/1.1\r\nHost: x\r\nX\rY: a\r\n\r\n" + next},
		{"bare CR in the target", "GET /a\rb HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"CR CR LF", "GET /a HTTP/1.1\r\nHost: x\r\r\n\r\n" + next},
		{"NUL in a value", "GET /a HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n" + next},
		{"NUL in a name", "GET /a HTTP/1.1\r\nHost: x\r\nX\x00Y: a\r\n\r\n" + next},
		{"no colon", "GET /a HTTP/1.1\r\nHost: x\r\nNonsense\r\n\r\n" + next},
		{"empty name", "GET /a HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n" + next},
		{"two hosts", "GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n" + next},
		{"no host", "GET /a HTTP/1.1\r\n\r\n" + next},
		{"a Host that is none", "GET /a HTTP/1.1\r\nHost: x/y\r\n\r\n" + next},
		{"another in the target", "GET https://y/a HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"empty line first", "\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"two spaces", "GET  /a HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"space in target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"bad escape in target", "GET /a%zz HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"tab", "GET\t/a HTTP/1.1\r\nHost: x\r\n\r\n" + next},
		{"HTTP/0.9", "GET /a\r\n\r\n" + next},
		{"HTTP/2.0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + next},
		{"HTTP/1.2", "GET /a HTTP/1.2\r\nHost: x\r\n\r\n" + next},
		{"http/1.1", "GET /a http/1.1\r\nHost: x\r\n\r\n" + next},
		{"chunk with extension", chunks + "1;a=b\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size and bare LF", chunks + "1\nx\r\n0\r\n\r\n" + next},
		{"chunk data and bare LF", chunks + "1\r\nx\n0\r\n\r\n" + next},
		{"chunk size signed", chunks + "+1\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size 0x", chunks + "0x1\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size too large", chunks + "10000000000000001\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size empty", chunks + "\r\nx\r\n0\r\n\r\n" + next},
		{"chunk size with space", chunks + "1 \r\nx\r\n0\r\n\r\n" + next},
		{"chunk longer than said", chunks + "1\r\nxyz\r\n0\r\n\r\n" + next},
		{"trailer with a bare LF", chunks + "0\r\nA: b\nC: d\r\n\r\n" + next},
		{"trailer that is folded", chunks + "0\r\nA: b\r\n c\r\n\r\n" + next},
		{"trailer of a length", "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\n\r\n" + next},
		{"many lines", "GET /a HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", maxFields) + "\r\n" + next},
		{"large head", "GET /a HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 64<<10) + "\r\n\r\n" + next},
		{"endless line", "GET /" + strings.Repeat("a", 1<<20)},
		{"cut body", "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcd"},
		{"cut chunks", chunks + "4\r\nabcd\r\n"},
	} {
		for _, slow := range []bool{false, true} {
			taken, refused, answers, broken := hear(c.text, slow)
			if len(taken) != 0 || refused == nil && broken == nil {
				t.Errorf("%s (slow %v): taken %q, refused %v, broken %v", c.name, slow, taken, refused, broken)
			}
			if refused == nil {
				if answers != "" {
					t.Errorf("%s (slow %v): answered %q", c.name, slow, answers)
				}
				continue
			}
			if want := fmt.Sprintf("HTTP/1.1 %d ", refused.Status); !strings.HasPrefix(answers, want) || strings.Count(answers, "HTTP/1.1") != 1 || !strings.Contains(answers, "\r\nConnection: close\r\n") {
				t.Errorf("%s (slow %v): answered %q, want one %s", c.name, slow, answers, want)
			}
		}
	}
	for text, status := range map[string]int{
		"GET https://y/a HTTP/1.1\r\nHost: x\r\n\r\n":                                                   http.StatusMisdirectedRequest,
		"GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("b", 64<<10) + "\r\n\r\n":                   http.StatusRequestHeaderFieldsTooLarge,
		"GET / HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", maxFields) + "\r\n":                http.StatusRequestHeaderFieldsTooLarge,
		"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n": http.StatusBadRequest,
	} {
		if _, why, _, _ := hear(text, false); why == nil || why.Status != status {
			t.Errorf("%.40q: %v, want %d", text, why, status)
		}
	}
}

func TestMessagesAreKeptApart(t *testing.T) {
	text := "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n" +
		"POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" +
		"POST /3 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\nTrailer: T\r\n\r\n3\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: v\r\n\r\n" +
		"POST /4 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" +
		"POST /5 HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("y", 100000) +
		"POST /6 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n186a0\r\n" + strings.Repeat("z", 100000) + "\r\n0\r\n\r\n" +
		"GET /7 HTTP/1.1\r\nHost: x\r\nX-Empty:\r\nX-Tab: a\tb\r\nX-Two: 1\r\nx-two:  2 \r\n\r\n" +
		"GET /8 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + next
	want := []string{"", "hello", "abc0123456789", "", strings.Repeat("y", 100000), strings.Repeat("z", 100000), "", ""}
	for _, slow := range []bool{false, true} {
		taken, refused, answers, broken := hear(text, slow)
		if len(taken) != len(want) || refused != nil || broken != nil {
			t.Fatalf("slow %v: %d taken, refused %v, broken %v", slow, len(taken), refused, broken)
		}
		for i := range want {
			if taken[i].target != fmt.Sprintf("/%d", i+1) || taken[i].body != want[i] || taken[i].host != "x" {
				t.Errorf("slow %v: message %d is %.60q", slow, i+1, taken[i])
			}
		}
		if got := taken[2].trailer.Get("T"); got != "v" {
			t.Errorf("slow %v: the trailer is %q", slow, got)
		}
		h := taken[6].header
		if h.Get("X-Tab") != "a\tb" || !slices.Equal(h["X-Two"], []string{"1", "2"}) || len(h) != 3 || h["X-Empty"][0] != "" {
			t.Errorf("slow %v: header %q", slow, h)
		}
		if n := strings.Count(answers, "HTTP/1.1 200 OK\r\n"); n != len(want) {
			t.Errorf("slow %v: %d answers", slow, n)
		}
	}
}

// FuzzRequest: what is taken is the same however the bytes arrive, and what
// net/http reads, to the same byte.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(next + next))
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc" + next))
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n" + next))
	f.Add([]byte("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n" + next))
	f.Add([]byte("GET https://x/a%20b?c HTTP/1.1\r\nHost: x:443\r\nTrailer: y\r\n\r\nCONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4<<10 {
			return
		}
		fast, why, _, broken := hear(string(data), false)
		slow, slowWhy, _, slowBroken := hear(string(data), true)
		if fmt.Sprint(fast) != fmt.Sprint(slow) || (why == nil) != (slowWhy == nil) || (broken == nil) != (slowBroken == nil) {
			t.Fatalf("at once %q %v %v, byte by byte %q %v %v", fast, why, broken, slow, slowWhy, slowBroken)
		}
		br := bufio.NewReader(bytes.NewReader(data))
		for i, m := range fast {
			r, err := http.ReadRequest(br)
			if err != nil {
				if m.method == http.MethodConnect {
					return // its target is the handler's business here
				}
				t.Fatalf("message %d: net/http refuses what was taken, %q: %v", i, m, err)
			}
			body, err := io.ReadAll(r.Body)
			if err != nil || r.Method != m.method || r.RequestURI != m.target || r.Host != m.host || string(body) != m.body {
				t.Fatalf("message %d: net/http reads %s %q for %q with %q (%v), here it is %q", i, r.Method, r.RequestURI, r.Host, body, err, m)
			}
			for name, values := range r.Header {
				if mine := m.header[name]; !slices.Equal(mine, values) && name != "Cache-Control" { // which it makes of Pragma
					t.Fatalf("message %d: %s is %q, net/http has %q", i, name, mine, values)
				}
			}
			if len(m.header) > len(r.Header) || len(m.trailer) != len(r.Trailer) {
				t.Fatalf("message %d: %q %q, net/http has %q %q", i, m.header, m.trailer, r.Header, r.Trailer)
			}
		}
	})
}
