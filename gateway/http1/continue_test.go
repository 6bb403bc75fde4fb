package http1

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// late is a connection on which a 100 Continue takes its time.
type late struct {
	net.Conn
	at chan struct{} // closed when it begins to be written
}

func (l late) Write(b []byte) (int, error) {
	if bytes.HasPrefix(b, []byte("HTTP/1.1 100")) {
		close(l.at)
		time.Sleep(50 * time.Millisecond)
	}
	return l.Conn.Write(b)
}

// A 100 Continue comes before the answer or not at all, whoever reads the body.
func TestContinueComesFirst(t *testing.T) {
	at := make(chan struct{})
	s := &Server{Handler: handler(func(w http.ResponseWriter, r *http.Request) {
		read := make(chan struct{})
		go func() { defer close(read); _, _ = io.Copy(io.Discard, r.Body) }()
		<-at
		w.Header().Set("Content-Length", "60000")
		_, _ = w.Write(make([]byte, 30000))
		w.(http.Flusher).Flush()
		<-read
		_, _ = w.Write(make([]byte, 30000))
	})}
	here, there := net.Pipe()
	served := make(chan struct{})
	go func() { defer close(served); s.Serve(t.Context(), late{there, at}) }()
	go func() {
		_, _ = io.WriteString(here, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello")
	}()
	_ = here.SetReadDeadline(time.Now().Add(10 * time.Second))
	all, _ := io.ReadAll(here)
	const first = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"
	if !bytes.HasPrefix(all, []byte(first)) || bytes.Count(all, []byte("HTTP/1.1 100")) != 1 {
		t.Errorf("%d bytes, 100 Continue at %d, the head is %.100q", len(all), bytes.Index(all, []byte("HTTP/1.1 100")), all)
	}
	_ = here.Close()
	<-served
}
