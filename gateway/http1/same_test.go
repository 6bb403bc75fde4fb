package http1

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What well-formed messages are answered is what net/http's server answers them,
// but for the type it guesses.
func TestAnswersAreThoseOfNetHTTP(t *testing.T) {
	cases := map[string]struct {
		request string
		handler http.HandlerFunc
	}{
		"nothing": {simple, func(http.ResponseWriter, *http.Request) {}},
		"small":   {simple, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }},
		"two writes": {simple, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "a")
			_, _ = io.WriteString(w, "b")
		}},
		"unknown length": {simple, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 5000)) }},
		"large":          {simple, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 300_000)) }},
		"flushed": {simple, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "b")
		}},
		"flushed empty": {simple, func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() }},
		"HEAD": {"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "7")
			_, _ = io.WriteString(w, "1234567")
		}},
		"HEAD, no length": {"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(200) }},
		"204": {simple, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(204)
		}},
		"304": {simple, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Etag", `"a"`); w.WriteHeader(304) }},
		"404": {simple, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); _, _ = io.WriteString(w, "no") }},
		"299": {simple, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(299) }},
		"sized": {simple, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "3")
			_, _ = io.WriteString(w, "abc")
		}},
		"sized, too much": {simple, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "3")
			_, _ = io.WriteString(w, "abc")
			_, _ = io.WriteString(w, "d")
		}},
		"own date": {simple, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Date", "Mon, 02 Mar 2026 09:00:00 GMT") }},
		"many values": {simple, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["X-A"] = []string{"1", "2"}
			w.Header()["X-B"] = nil
		}},
		"line in a value": {simple, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-A", "1\r\nX-B: 2") }},
		"bad name": {simple, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["X A"] = []string{"1"}
			w.Header()["X\r\nB"] = []string{"1"}
		}},
		"closing":        {simple, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") }},
		"asked to close": {"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a") }},
		"HTTP/1.0": {"GET / HTTP/1.0\r\nHost: x\r\n\r\n", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "a")
			w.(http.Flusher).Flush()
			_, _ = io.WriteString(w, "b")
		}},
		"interim": {simple, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "</a>")
			w.WriteHeader(103)
			w.WriteHeader(200)
		}},
		"trailer": {simple, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-A, X-B")
			_, _ = io.WriteString(w, "a")
			w.Header().Set("X-A", "1")
		}},
		"unnamed trailer": {simple, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			w.Header().Set(http.TrailerPrefix+"X-A", "1")
		}},
		"echo": {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }},
		"echo of chunks": {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: T\r\n\r\n5\r\nhello\r\n0\r\nT: v\r\n\r\n", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(w, r.Body)
			fmt.Fprint(w, r.Trailer, r.ContentLength, r.TransferEncoding)
		}},
		"body not read":   {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a") }},
		"large, not read": {"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + strings.Repeat("x", 300_000), func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a") }},
		"what is asked": {"GET http://x:80/a%20b?c=d HTTP/1.1\r\nhost: x:80\r\nx-a:  1 \r\nX-A: 2\r\nTrailer: n\r\n\r\n", func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Method, r.URL.Path, r.URL.RawPath, r.URL.RawQuery, r.Host, r.Header, r.Proto, r.ProtoMajor, r.ProtoMinor, r.ContentLength, r.Close, r.RequestURI)
		}},
		"expects":          {"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }},
		"expects, refused": {"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) }},
		"panics":           {simple, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
	}
	for name, c := range cases {
		h := func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Content-Type"] = nil
			c.handler(w, r)
		}
		ours := over(t, &Server{Handler: handler(h)})
		srv := &http.Server{Handler: http.HandlerFunc(h)}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		theirs, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		var got [2]string
		for i, conn := range []net.Conn{ours, theirs} {
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			go func() { _, _ = io.WriteString(conn, c.request+simple) }() // with another behind it
			got[i] = told(conn, c.request)
		}
		if got[0] != got[1] {
			t.Errorf("%s: answered\n%.600s\nnet/http answers\n%.600s", name, got[0], got[1])
		}
		_ = theirs.Close()
		_ = srv.Close()
		<-served
	}
}

// told reads two answers and tells what was in them.
func told(conn net.Conn, request string) string {
	var out strings.Builder
	br := bufio.NewReader(conn)
	method, _, _ := strings.Cut(request, " ")
	for final := 0; final < 2; {
		res, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			out.WriteString("no more\n")
			break
		}
		body, err := io.ReadAll(res.Body)
		if d := res.Header.Get("Date"); d != "" && !strings.HasPrefix(d, "Mon, 02 Mar") {
			res.Header.Set("Date", "now")
		}
		fmt.Fprintf(&out, "%s %s %v %v %d %v %v %x %v\n", res.Proto, res.Status, res.Header, res.Trailer, res.ContentLength, res.TransferEncoding, res.Close, body, err)
		if res.StatusCode >= 200 {
			final++
			method = "GET"
		}
	}
	return out.String()
}
