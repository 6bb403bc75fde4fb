package proxy_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/proxy"
)

// slowInbound never finishes its TCP handshake.
type slowInbound struct {
	peer, local netip.AddrPort
	accepting   chan struct{}
	end         chan struct{}
}

func (s slowInbound) Peer() netip.AddrPort  { return s.peer }
func (s slowInbound) Local() netip.AddrPort { return s.local }
func (s slowInbound) Reset()                {}
func (s slowInbound) Accept(context.Context) (net.Conn, error) {
	s.accepting <- struct{}{}
	<-s.end
	return nil, errors.New("the device never answered")
}

// Whoever sends SYNs and nothing more uses up their own share only, not the
// places of everyone whose connection waits to be decided.
func TestHalfOpenConnectionsLockNobodyOut(t *testing.T) {
	e := newEcho(t)
	w := newWorld(t, []string{crmYAML}, map[string]string{"crm": e.URL}, func(c *proxy.Config) { c.Limits.Pending = 1 })
	slow := slowInbound{
		peer: netip.MustParseAddrPort("100.64.9.9:1"), local: w.address("crm.test", 443),
		accepting: make(chan struct{}, 4), end: make(chan struct{}),
	}
	defer close(slow.end)
	for range 4 {
		w.proxy.HandleTCP(slow)
		select {
		case <-slow.accepting:
		case <-time.After(3 * time.Second):
			t.Fatal("a half-open connection keeps the next one from its handshake")
		}
	}
	res, err := w.client(false).Get("https://crm.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Errorf("%d", res.StatusCode)
	}
}

// gone is a device that went away within the handshake.
type gone struct {
	slowInbound
	ended chan struct{}
}

func (g gone) Accept(ctx context.Context) (net.Conn, error) {
	g.accepting <- struct{}{}
	<-ctx.Done()
	close(g.ended)
	return nil, ctx.Err()
}

// A handshake that nobody ends is over when its flow is cut and when the proxy
// stops.
func TestHandshakesAreEnded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for name, end := range map[string]func(*world){
		"cut":  func(w *world) { w.revoke() },
		"stop": func(w *world) { w.stop() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, []string{deskYAML}, map[string]string{"desk": l.Addr().String()}, func(c *proxy.Config) {
				c.Timeouts.Handshake, c.Timeouts.Drain = time.Hour, 10*time.Millisecond
			})
			g := gone{
				slowInbound{peer: netip.AddrPortFrom(w.device.Addresses[0], 1), local: w.address("desk", 7000), accepting: make(chan struct{}, 1)},
				make(chan struct{}),
			}
			w.proxy.HandleTCP(g)
			wait := func(what string, c <-chan struct{}) {
				select {
				case <-c:
				case <-time.After(20 * time.Second):
					t.Fatal(what)
				}
			}
			wait("the handshake does not begin", g.accepting)
			end(w)
			wait("the handshake goes on", g.ended)
		})
	}
}

// What an app says before its answer is cleaned like the answer.
func TestInformationalAnswersAreCleaned(t *testing.T) {
	apps, upstreams := newKinds(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for name, value := range map[string]string{"Link": "</a>", "Portvakt-Reason": "allowed", "Alt-Svc": "h3=\":443\""} {
			w.Header().Set(name, value)
		}
		w.WriteHeader(http.StatusEarlyHints)
	}), nil)
	w := newWorld(t, apps, upstreams)
	for _, kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			conn := w.tls(kind + ".test")
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(slack * 10 * time.Second))
			if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+kind+".test\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			br := bufio.NewReader(conn)
			for _, status := range []int{http.StatusEarlyHints, http.StatusOK} {
				res, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Fatal(err)
				}
				if res.StatusCode != status || res.Header.Get("Link") == "" {
					t.Fatalf("%d %v", res.StatusCode, res.Header)
				}
				if res.Header.Get("Portvakt-Reason") != "" || res.Header.Get("Alt-Svc") != "" {
					t.Errorf("an answer of status %d carries %v", status, res.Header)
				}
			}
		})
	}
}
