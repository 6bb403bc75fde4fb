package loopback_test

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
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/loopback"
	"github.com/portvakt/portvakt/internal/wire"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if spec := os.Getenv("LOOPBACK_CLIENT"); spec != "" {
		for _, road := range strings.Fields(spec) { // all in one process: starting one takes its time
			kind, addr, _ := strings.Cut(road, "/")
			got, err := reach(kind, addr)
			if err != nil {
				got = "refused"
			}
			fmt.Println(kind, got)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

var (
	crm   = wire.App{Name: "crm", Protocol: "http", Hosts: []string{"crm.example.test", "CRM2.example.test"}, Ports: []uint16{443, 80}, Addresses: addrs("10.99.0.16", "fd99::10")}
	desk  = wire.App{Name: "desk", Protocol: "tcp", Hosts: []string{"desk.example.test"}, Ports: []uint16{7000}, Addresses: addrs("10.99.0.17", "fd99::11")}
	voice = wire.App{Name: "voice", Protocol: "udp", Ports: []uint16{7001}, Addresses: addrs("10.99.0.18")}
)

func addrs(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// gateway is the far end of the tunnel: real listeners on loopback behind the
// virtual addresses.
type gateway struct {
	mu    sync.Mutex
	real  map[string]string // "tcp 10.99.0.16:443" -> local address
	dials map[string]int
}

func (g *gateway) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	key := network + " " + to.String()
	g.mu.Lock()
	g.dials[key]++
	addr := g.real[key]
	g.mu.Unlock()
	if addr == "" {
		return nil, errors.New("connection was refused")
	}
	var d net.Dialer
	return d.DialContext(ctx, network, addr)
}

func (g *gateway) count(key string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dials[key]
}

// newGateway serves crm (443 and desk echo lines with a prefix, 80 HTTP) and
// voice (UDP echo).
func newGateway(t *testing.T) *gateway {
	t.Helper()
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var b bytes.Buffer
		r.Header.Write(&b)
		w.Header().Set("Proxy-Authenticate", "Basic")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		fmt.Fprintf(w, "%s %s host=%s\n%s", r.Method, r.RequestURI, r.Host, b.String())
	})}
	l := listen(t)
	go web.Serve(l)
	t.Cleanup(func() { web.Close() })
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { udp.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			udp.WriteTo(append([]byte("voice:"), buf[:n]...), from)
		}
	}()
	return &gateway{dials: map[string]int{}, real: map[string]string{
		"tcp 10.99.0.16:443":  echo(t, "crm:"),
		"tcp 10.99.0.16:80":   l.Addr().String(),
		"tcp 10.99.0.17:7000": echo(t, "desk:"),
		"udp 10.99.0.18:7001": udp.LocalAddr().String(),
	}}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// echo answers each line with a prefix and ends when its client has.
func echo(t *testing.T, prefix string) string {
	l := listen(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						io.WriteString(c, "end\n")
						return
					}
					io.WriteString(c, prefix+line)
				}
			}()
		}
	}()
	return l.Addr().String()
}

// serve runs a server until the test ends; users says who may pass (nil: all).
func serve(t *testing.T, cfg loopback.Config, apps ...wire.App) *loopback.Server {
	t.Helper()
	s, _ := serveUntil(t, cfg, apps...)
	return s
}

func serveUntil(t *testing.T, cfg loopback.Config, apps ...wire.App) (*loopback.Server, func()) {
	t.Helper()
	if cfg.ProxyAddr == "" {
		cfg.ProxyAddr = "127.0.0.1:0"
	}
	if cfg.UserAllowed == nil {
		cfg.UserAllowed = func(uint32) bool { return true }
	}
	cfg.AllowAnyLocalUser = true // no effect on Linux
	s := loopback.New(cfg)
	s.SetApps(apps)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	select {
	case <-s.Ready():
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Run: %v", err)
				}
			case <-time.After(5 * time.Second):
				t.Error("Run does not end")
			}
		})
	}
	t.Cleanup(stop)
	return s, stop
}

func proxyOf(s *loopback.Server) string { p, _ := s.Addresses(); return p.String() }

func portOf(t *testing.T, s *loopback.Server, app string) string {
	t.Helper()
	_, apps := s.Addresses()
	if len(apps[app]) != 1 {
		t.Fatalf("%s has ports %v, want one", app, apps[app])
	}
	return apps[app][0].Local.String()
}

// reach uses one of the four roads once and returns what the app said.
func reach(kind, addr string) (string, error) {
	network := "tcp"
	d := net.Dialer{Timeout: 2 * time.Second}
	switch kind {
	case "udp", "relay":
		network = "udp"
	case "udpfrom": // from a given local address
		kind, network = "udp", "udp"
		to, from, _ := strings.Cut(addr, "/")
		addr, d.LocalAddr = to, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from))
	}
	c, err := d.Dial(network, addr)
	if err != nil {
		return "", err
	}
	defer c.Close()
	wait := 3 * time.Second
	if kind == "udp" || kind == "relay" {
		wait = 700 * time.Millisecond // silence is the answer
	}
	c.SetDeadline(time.Now().Add(wait))
	r := bufio.NewReader(c)
	switch kind {
	case "http":
		io.WriteString(c, "GET /proxy.pac HTTP/1.1\r\nHost: "+addr+"\r\n\r\n")
		line, err := r.ReadString('\n')
		return strings.TrimSpace(line), err
	case "connect":
		io.WriteString(c, "CONNECT crm.example.test:443 HTTP/1.1\r\nHost: x\r\n\r\n")
		for line := "x"; line != "\r\n"; {
			if line, err = r.ReadString('\n'); err != nil {
				return "", err
			}
		}
	case "socks":
		io.WriteString(c, "\x05\x01\x00\x05\x01\x00\x03\x10crm.example.test\x01\xbb")
		if _, err := io.ReadFull(r, make([]byte, 12)); err != nil {
			return "", err
		}
	case "associate":
		io.WriteString(c, "\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00")
		answer := make([]byte, 12)
		if _, err := io.ReadFull(r, answer); err != nil {
			return "", err
		}
		if answer[3] != 0 {
			return "", errors.New("no association")
		}
		relay := netip.AddrPortFrom(netip.AddrFrom4([4]byte(answer[6:10])), uint16(answer[10])<<8|uint16(answer[11]))
		return reach("relay", relay.String())
	case "relay": // of an association, to the app voice
		io.WriteString(c, "\x00\x00\x00\x01\x0a\x63\x00\x12\x1b\x59hi")
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		return strings.TrimPrefix(string(buf[:n]), "\x00\x00\x00\x01\x0a\x63\x00\x12\x1b\x59"), err
	case "udp":
		io.WriteString(c, "hi")
		buf := make([]byte, 100)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	io.WriteString(c, "hi\n")
	line, err := r.ReadString('\n')
	return strings.TrimSpace(line), err
}
