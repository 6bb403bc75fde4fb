package tunnel_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/tunnel"
)

// A path that loses what is longer than 1,280 bytes and says nothing: the
// tunnel finds out, and bulk goes both ways.
func TestFindsWhatThePathLoses(t *testing.T) {
	t.Parallel()
	m := newMixed(t, false, 5)
	m.valve.longest.Store(1280 - 28)
	for end := time.Now().Add(20 * time.Second); m.Status().MTU != 1216; {
		if time.Now().After(end) {
			t.Fatalf("status %+v", m.Status())
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, a := range gatewayAddrs {
		c, err := m.DialTCP(ctx(t), at(a, 80))
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		data := make([]byte, 1<<20)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
		go func() {
			_, _ = c.Write(data)
			_ = c.(interface{ CloseWrite() error }).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("through %v: %d of %d bytes, %v", a, len(got), len(data), err)
		}
		_ = c.Close()
	}
	// A WebSocket takes what UDP loses, and on the way back it is found out again.
	m.valve.shut.Store(true)
	if _, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80)); err != nil {
		t.Fatal(err)
	}
	m.becomes(t, tunnel.TransportWebSocket, 5*time.Second)
	for end := time.Now().Add(20 * time.Second); m.Status().MTU != 1280; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("status %+v", m.Status())
		}
	}
	m.valve.shut.Store(false)
	m.becomes(t, tunnel.TransportUDP, 5*time.Second)
	for end := time.Now().Add(20 * time.Second); m.Status().MTU != 1216; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("status %+v", m.Status())
		}
	}
}

// A path that becomes smaller under open connections and says nothing holds
// them up for a moment only, whichever way the bulk goes.
func TestConnectionsSurviveAPathThatNarrows(t *testing.T) {
	for name, c := range map[string]struct{ outer, inner int }{
		"1280 by IPv4": {1280 - 28, 1216},
		"1280 by IPv6": {1280 - 48, 1200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMixed(t, false, 1)
			for end := time.Now().Add(20 * time.Second); m.Status().MTU <= c.inner; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("status %+v", m.Status())
				}
			}
			var open []net.Conn
			for _, a := range gatewayAddrs {
				inside, err := m.DialTCP(ctx(t), at(a, 80))
				if err != nil {
					t.Fatal(err)
				}
				roundTrip(t, inside)
				open = append(open, inside)
			}
			m.valve.longest.Store(int64(c.outer))
			for _, inside := range open {
				_ = inside.SetDeadline(time.Now().Add(60 * time.Second))
				data := make([]byte, 1<<20)
				_, _ = rand.NewChaCha8([32]byte{2}).Read(data)
				begun := time.Now()
				go func() { _, _ = inside.Write(data) }()
				got := make([]byte, len(data))
				if n, err := io.ReadFull(inside, got); err != nil || !bytes.Equal(got, data) {
					t.Errorf("with %v: %d of %d bytes, %v", inside.RemoteAddr(), n, len(data), err)
				}
				t.Logf("with %v: %v", inside.RemoteAddr(), time.Since(begun))
				_ = inside.Close()
			}
			if n := m.Status().MTU; n > c.inner {
				t.Errorf("MTU %d, want at most %d", n, c.inner)
			}
		})
	}
}

// Echoes that wait for the first handshake go by the WebSocket that brings it
// about. They prove nothing about UDP, whose path is measured when it works.
func TestAWebSocketProvesNothingAboutUDP(t *testing.T) {
	t.Parallel()
	m := newMixed(t, true, 5)
	m.valve.longest.Store(1280 - 28)
	m.becomes(t, tunnel.TransportWebSocket, 20*time.Second)
	for end := time.Now().Add(20 * time.Second); m.Status().MTU != 1280; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("status %+v", m.Status())
		}
	}
	m.valve.shut.Store(false)
	m.becomes(t, tunnel.TransportUDP, 20*time.Second)
	for end := time.Now().Add(20 * time.Second); m.Status().MTU != 1216; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("status %+v", m.Status())
		}
	}
}

// The usual path: the gateway's MTU is proven with the first echo.
func TestFullMTUIsProvenAtOnce(t *testing.T) {
	t.Parallel()
	m := newMixed(t, false, 1)
	begun := time.Now()
	for m.Status().MTU != 1280 {
		if time.Since(begun) > 3*time.Second {
			t.Fatalf("status %+v", m.Status())
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("after %v", time.Since(begun))
}
