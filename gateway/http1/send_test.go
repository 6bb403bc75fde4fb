//go:build unix

package http1

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// A whole request is there for the app to read, also when it is more than the
// socket takes at once, and its answer is the next thing read.
func TestSendWaitsForTheAnswer(t *testing.T) {
	for name, size := range map[string]int{"small": 100, "more than the socket takes": 8 << 20} {
		t.Run(name, func(t *testing.T) {
			p, conns := tcp(t, Options{})
			c, err := p.Dial(t.Context(), asa, at)
			if err != nil {
				t.Fatal(err)
			}
			app := <-conns
			defer app.Close()
			for range 3 { // the first time the connection is fresh
				request := bytes.Repeat([]byte("r"), size)
				done := make(chan error, 1)
				go func() {
					got := make([]byte, size)
					if _, err := io.ReadFull(app, got); err != nil || !bytes.Equal(got, request) {
						done <- errors.Join(err, errors.New("the app got something else"))
						return
					}
					_, err := io.WriteString(app, fine)
					done <- err
				}()
				before := time.Now()
				begun, err := c.Send(request, true, time.Minute)
				if err != nil || begun.Before(before) || begun.After(time.Now()) {
					t.Fatal(begun, err)
				}
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				once(t, c, app, "")
				if c = p.Idle(asa, at); c == nil {
					t.Fatal("it was not kept")
				}
			}
			c.Release(false)
		})
	}
}

// What an app says while nobody asked it anything is seen before the request
// is sent, however short a time the connection has waited.
func TestStaleConnectionGetsNothing(t *testing.T) {
	for name, say := range map[string]func(app *net.TCPConn){
		"closes": func(app *net.TCPConn) { _ = app.CloseWrite() },
		"speaks": func(app *net.TCPConn) { _, _ = io.WriteString(app, fine) },
	} {
		for _, whole := range []bool{true, false} {
			t.Run(name, func(t *testing.T) {
				p, conns := tcp(t, Options{})
				c, err := p.Dial(t.Context(), asa, at)
				if err != nil {
					t.Fatal(err)
				}
				app := (<-conns).(*net.TCPConn)
				defer app.Close()
				once(t, c, app, fine)
				c = p.Idle(asa, at)
				say(app)
				for silent(fd(t, c)) { // until it has arrived
					time.Sleep(time.Millisecond)
				}
				if begun, err := c.Send([]byte("POST"), whole, time.Minute); !errors.Is(err, ErrStale) || !begun.IsZero() {
					t.Fatal(begun, err)
				}
				c.Release(false)
				if got, _ := io.ReadAll(app); len(got) > 0 {
					t.Errorf("the app got %q", got)
				}
			})
		}
	}
}

func fd(t *testing.T, c *Conn) (n int) {
	t.Helper()
	raw, err := c.nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// An app that says nothing is waited for no longer than the time.
func TestSendWaitsNoLonger(t *testing.T) {
	p, conns := tcp(t, Options{})
	c, err := p.Dial(t.Context(), asa, at)
	if err != nil {
		t.Fatal(err)
	}
	app := <-conns
	defer app.Close()
	if begun, err := c.Send([]byte("GET"), true, 20*time.Millisecond); err != nil || begun.IsZero() {
		t.Fatal(begun, err) // it was sent
	}
	if _, err := c.ReadHead("GET", nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	c.Release(false)
}
