package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// gate is a device that takes nothing more once it is shut.
type gate struct {
	net.Conn
	shut    atomic.Bool
	waits   chan struct{} // closed when something is being written to a shut one
	waiting sync.Once
	reset   chan struct{} // closed by Reset
	once    sync.Once
}

func (g *gate) Write(b []byte) (int, error) {
	if g.shut.Load() {
		g.waiting.Do(func() { close(g.waits) })
		<-g.reset
		return 0, net.ErrClosed
	}
	return g.Conn.Write(b)
}

func (g *gate) Close() error { g.Reset(); return nil }

func (g *gate) Reset() {
	g.once.Do(func() { close(g.reset) })
	_ = g.Conn.Close()
}

type gated struct {
	*gate
	peer, local netip.AddrPort
}

func (i gated) Peer() netip.AddrPort                     { return i.peer }
func (i gated) Local() netip.AddrPort                    { return i.local }
func (i gated) Accept(context.Context) (net.Conn, error) { return i.gate, nil }

// An answer that the device has not taken yet is still a Flow: a revocation
// stops it, by every protocol and road.
func TestAnAnswerOnItsWayIsCut(t *testing.T) {
	secret := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("the customer's secret")) })
	plain, secure := httptest.NewServer(secret), httptest.NewTLSServer(secret)
	defer plain.Close()
	defer secure.Close()
	yaml := strings.NewReplacer("name: crm", "name: tls", "[crm.test, kunder.test]", "[tls.test]", "{{crm}}", "{{tls}}").Replace(crmYAML)
	w := newWorld(t, []string{crmYAML, yaml + "upstream_ca_file: " + caFile(t, secure) + "\n"}, map[string]string{"crm": plain.URL, "tls": secure.URL})
	for _, h2 := range []bool{false, true} {
		for _, host := range []string{"crm.test", "tls.test"} {
			w.login()
			here, there := net.Pipe()
			g := &gate{Conn: there, waits: make(chan struct{}), reset: make(chan struct{})}
			w.proxy.HandleTCP(gated{g, netip.AddrPortFrom(w.device.Addresses[0], uint16(w.ports.Add(1))), w.address(host, 443)})
			fresh := make(chan net.Conn, 1)
			fresh <- here
			tr := &http.Transport{
				TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: h2,
				DialContext: func(context.Context, string, string) (net.Conn, error) {
					select {
					case c := <-fresh:
						return c, nil
					default:
						return nil, errors.New("there is one connection only")
					}
				},
			}
			if !h2 {
				tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
			}
			c := &http.Client{Transport: tr, Timeout: 10 * time.Second}
			get(t, c, "https://"+host+"/")
			g.shut.Store(true)
			end := make(chan error)
			go func() {
				res, err := c.Get("https://" + host + "/")
				if err == nil {
					res.Body.Close()
				}
				end <- err
			}()
			<-g.waits
			if n := w.manager.Counts().Flows; n != 1 {
				t.Errorf("h2 %v, %s: %d Flows open while the answer is written", h2, host, n)
			}
			w.revoke()
			select {
			case <-g.reset:
			case <-time.After(10 * time.Second):
				t.Fatalf("h2 %v, %s: the answer is still on its way", h2, host)
			}
			if err := <-end; err == nil {
				t.Errorf("h2 %v, %s: answered after the revocation", h2, host)
			}
			tr.CloseIdleConnections()
		}
	}
}
