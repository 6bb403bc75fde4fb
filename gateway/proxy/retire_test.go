package proxy

import (
	"bufio"
	"context"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/http1"
	"github.com/portvakt/portvakt/policy"
)

// clinging is a connection whose end waits for the app, as that of TLS may.
type clinging struct {
	net.Conn
	ends, goOn chan struct{}
}

func (c clinging) Close() error {
	close(c.ends)
	<-c.goOn
	return c.Conn.Close()
}

// What was opened to an app by its old CA may be slow to close; who looks for
// another app's CA meanwhile does not wait for that.
func TestRetiringHoldsUpNobody(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw})
	app := func(name string) *policy.App {
		file := filepath.Join(t.TempDir(), name+".pem")
		if err := os.WriteFile(file, ca, 0o600); err != nil {
			t.Fatal(err)
		}
		return &policy.App{Name: name, Upstream: "https://" + name + ".internal", UpstreamCAFile: file}
	}
	u := newUpstreams(Config{})
	defer u.closeIdle()
	slow, other := app("slow"), app("other")
	up, err := u.of(slow)
	if err != nil {
		t.Fatal(err)
	}
	c := clinging{ends: make(chan struct{}), goOn: make(chan struct{})}
	up.transport = func() *http.Transport {
		return &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
			near, far := net.Pipe()
			c.Conn = near
			go func() {
				if _, err := http.ReadRequest(bufio.NewReader(far)); err == nil {
					_, _ = io.WriteString(far, "HTTP/1.1 204 No Content\r\n\r\n")
				}
			}()
			return c, nil
		}}
	}
	l := u.enter(up, http1.Holder{})
	res, err := (&http.Client{Transport: l.transport}).Get("http://slow.internal/")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	u.leave(l)

	replaced := make(chan error, 1)
	slow = app("slow") // by another file
	go func() {
		_, err := u.of(slow)
		replaced <- err
	}()
	<-c.ends
	looked := make(chan error, 1)
	go func() {
		_, err := u.of(other)
		looked <- err
	}()
	select {
	case err = <-looked:
		close(c.goOn)
	case <-time.After(30 * time.Second):
		t.Error("another app waits for the one that ends")
		close(c.goOn)
		err = <-looked
	}
	if err != nil {
		t.Error(err)
	}
	if err := <-replaced; err != nil {
		t.Error(err)
	}
}
