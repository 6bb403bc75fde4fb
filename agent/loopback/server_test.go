package loopback_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/loopback"
	"github.com/portvakt/portvakt/internal/wire"
)

func dial(t *testing.T, network, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

func connectTo(t *testing.T, s *loopback.Server, authority string) net.Conn {
	t.Helper()
	c := dial(t, "tcp", proxyOf(s))
	io.WriteString(c, "CONNECT "+authority+" HTTP/1.1\r\nHost: "+authority+"\r\n\r\n")
	head := make([]byte, len("HTTP/1.1 200 Connection established\r\n\r\n"))
	if _, err := io.ReadFull(c, head); err != nil || !strings.HasPrefix(string(head), "HTTP/1.1 200 ") {
		t.Fatalf("CONNECT %s: %q, %v", authority, head, err)
	}
	return c
}

func wantEcho(t *testing.T, c net.Conn, prefix string) {
	t.Helper()
	io.WriteString(c, "hi\n")
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if want := prefix + "hi\n"; err != nil || string(buf[:n]) != want {
		t.Fatalf("got %q, %v; want %q", buf[:n], err, want)
	}
}

// wantCut checks for a reset, not a proper end.
func wantCut(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("connection ended with %v, want a reset", err)
	}
}

func wantSilence(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(150 * time.Millisecond))
	buf := make([]byte, 100)
	if n, err := c.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q, %v; want silence", buf[:n], err)
	}
}

func TestTCPPort(t *testing.T) {
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, desk)
	c := dial(t, "tcp", portOf(t, s, "desk"))
	wantEcho(t, c, "desk:")
	c.(*net.TCPConn).CloseWrite() // half closed: the app still answers
	rest, err := io.ReadAll(c)
	if err != nil || string(rest) != "end\n" {
		t.Errorf("after half close: %q, %v", rest, err)
	}

	g.mu.Lock()
	delete(g.real, "tcp 10.99.0.17:7000")
	g.mu.Unlock()
	refused, err := net.Dial("tcp", portOf(t, s, "desk")) // a refusal is a reset
	if err == nil {
		defer refused.Close()
		wantCut(t, refused)
	} else if !errors.Is(err, syscall.ECONNRESET) { // it may come before Dial returns
		t.Error(err)
	}
}

func TestHalfOpenConnectionEnds(t *testing.T) {
	loopback.SetBounds(t, time.Second, 50*time.Millisecond, time.Minute, time.Minute)
	l := listen(t) // an app that neither answers nor ends
	defer l.Close()
	g := newGateway(t)
	g.real["tcp 10.99.0.17:7000"] = l.Addr().String()
	s := serve(t, loopback.Config{Dial: g.dial}, desk)
	c := dial(t, "tcp", portOf(t, s, "desk"))
	c.(*net.TCPConn).CloseWrite()
	wantCut(t, c)
}

func TestSetAppsSwap(t *testing.T) {
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, crm, desk, voice)
	kept := connectTo(t, s, "crm.example.test:443")
	gone := connectTo(t, s, "desk.example.test:7000")
	port := portOf(t, s, "desk")
	open, udp := dial(t, "tcp", port), dial(t, "udp", portOf(t, s, "voice"))
	wantEcho(t, kept, "crm:")
	wantEcho(t, gone, "desk:")
	wantEcho(t, open, "desk:")
	wantEcho(t, udp, "voice:")

	s.SetApps([]wire.App{crm})
	if _, err := net.Dial("tcp", port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the gone app's port: %v, want refused at once", err)
	}
	wantCut(t, gone)
	wantCut(t, open)
	if _, err := udp.Write([]byte("hi\n")); err == nil {
		if _, err := udp.Read(make([]byte, 10)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the gone app's UDP port: %v, want refused", err)
		}
	}
	wantEcho(t, kept, "crm:")
	if _, apps := s.Addresses(); len(apps) != 0 {
		t.Errorf("ports left: %v", apps)
	}

	moved := crm
	moved.Addresses = addrs("10.99.0.99")
	s.SetApps([]wire.App{moved})
	wantCut(t, kept)

	s.SetApps([]wire.App{desk})
	if got := portOf(t, s, "desk"); got != port {
		t.Errorf("the app came back on %s, had %s", got, port)
	}
}

func TestPortsAreSticky(t *testing.T) {
	g := newGateway(t)
	var kept map[string]uint16
	cfg := loopback.Config{Dial: g.dial, LoadPorts: func() (map[string]uint16, error) { return maps.Clone(kept), nil }, SavePorts: func(m map[string]uint16) error { kept = m; return nil }}
	low := desk
	low.Ports = []uint16{23}
	s, stop := serveUntil(t, cfg, low, voice)
	first := []string{proxyOf(s), portOf(t, s, "desk"), portOf(t, s, "voice")}
	if strings.HasSuffix(first[1], ":23") {
		t.Error("a privileged port was taken")
	}
	if first[2] != "127.0.0.1:7001" {
		t.Errorf("voice listens on %s though its own port is free", first[2])
	}
	stop()
	s, stop = serveUntil(t, cfg, low, voice)
	again := []string{proxyOf(s), portOf(t, s, "desk"), portOf(t, s, "voice")}
	stop()
	for i, p := range again {
		// Another program may have been given a free port in between.
		if l, err := net.Listen("tcp", first[i]); p != first[i] && err == nil {
			l.Close()
			t.Errorf("ports moved from %v to %v", first, again)
		} else if err == nil {
			l.Close()
		}
	}
	first = again
	for _, p := range first[:2] { // taken by someone else meanwhile
		l, err := net.Listen("tcp", p)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	s = serve(t, cfg, low, voice)
	if p := portOf(t, s, "desk"); p == first[1] || kept["desk/tcp/23"] != netip.MustParseAddrPort(p).Port() {
		t.Errorf("port taken: listens on %s, saved %v", p, kept)
	}
}

func TestUDPFlows(t *testing.T) {
	loopback.SetBounds(t, time.Second, time.Second, 80*time.Millisecond, time.Minute)
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, voice)
	addr := portOf(t, s, "voice")
	a, b := dial(t, "udp", addr), dial(t, "udp", addr) // connected: replies from elsewhere would be dropped
	for range 3 {
		wantEcho(t, a, "voice:")
		wantEcho(t, b, "voice:")
	}
	if n := g.count("udp 10.99.0.18:7001"); n != 2 {
		t.Errorf("%d flows for two clients", n)
	}
	for end := time.Now().Add(5 * time.Second); ; {
		time.Sleep(200 * time.Millisecond)
		wantEcho(t, a, "voice:") // idle flows ended, a new one begins
		if n := g.count("udp 10.99.0.18:7001"); n >= 3 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no new flow after the idle time")
		}
	}
}

func TestUDPFlowsAreBounded(t *testing.T) {
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, voice)
	for range 256 {
		wantEcho(t, dial(t, "udp", portOf(t, s, "voice")), "voice:")
	}
	over := dial(t, "udp", portOf(t, s, "voice"))
	over.Write([]byte("hi"))
	wantSilence(t, over)
}

func TestRunRefuses(t *testing.T) {
	taken := listen(t)
	defer taken.Close()
	for name, addr := range map[string]string{"any address": "0.0.0.0:0", "public": "192.0.2.1:8080", "no port": "127.0.0.1", "empty": "", "taken": taken.Addr().String()} {
		s := loopback.New(loopback.Config{ProxyAddr: addr, AllowAnyLocalUser: true, UserAllowed: func(uint32) bool { return true }, Dial: (&gateway{}).dial})
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		if err := s.Run(ctx); err == nil {
			t.Errorf("%s: Run(%q) listens", name, addr)
		}
		cancel()
	}
}

func TestSlowClientsAreCut(t *testing.T) {
	loopback.SetBounds(t, 100*time.Millisecond, time.Second, time.Minute, time.Minute)
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial}, crm)
	for _, begin := range []string{"", "C", "CONNECT crm.example.test:443 HTTP/1.1\r\nX: ", "\x05", "\x05\x01\x00\x05\x01"} {
		c := dial(t, "tcp", proxyOf(s))
		io.WriteString(c, begin)
		start := time.Now()
		io.Copy(io.Discard, bufio.NewReader(c))
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("after %q the connection stayed for %v", begin, took)
		}
	}
}
