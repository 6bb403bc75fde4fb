package http1

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestBoundsMove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, app := net.Pipe()
		p := NewPool(Options{Dial: func(context.Context) (net.Conn, error) { return here, nil }})
		c, err := p.Dial(t.Context(), asa, at)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		silence := func(want time.Duration) {
			t.Helper()
			if _, err := c.nc.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != want {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
		}
		// Later, while the timer is on its way; then earlier than it fires.
		c.SetReadDeadline(began.Add(time.Minute))
		time.Sleep(30 * time.Second)
		c.SetReadDeadline(began.Add(2 * time.Minute))
		silence(2 * time.Minute)
		silence(2 * time.Minute) // it stays so until the bound moves
		c.SetReadDeadline(began.Add(10 * time.Minute))
		c.SetReadDeadline(began.Add(3 * time.Minute))
		silence(3 * time.Minute)
		c.SetReadDeadline(time.Unix(1, 0))
		silence(3 * time.Minute)
		// An app that takes nothing, while the bound on the answer is further away.
		c.SetReadDeadline(began.Add(time.Hour))
		if _, err := c.write([]byte("x"), time.Now().Add(time.Minute)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(began) != 4*time.Minute {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
		// What was lifted stays lifted, in both directions.
		c.SetReadDeadline(time.Time{})
		time.Sleep(2 * time.Hour)
		go func() {
			_, _ = io.CopyN(app, app, 1)
		}()
		if _, err := c.write([]byte("x"), time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c.nc, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(time.Hour))
		c.Release(false)
		_ = app.Close()
	})
}
