package control_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/internal/transport"
	"github.com/portvakt/portvakt/internal/wire"
)

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	a.cert = a.sign(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, a.key, nil)
	return a
}

// sign signs with parent, or as the root itself.
func (a *authority) sign(t *testing.T, c *x509.Certificate, key *ecdsa.PrivateKey, parent *x509.Certificate) *x509.Certificate {
	t.Helper()
	c.SerialNumber, c.NotBefore, c.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// config is a server's for a name.
func (a *authority) config(t *testing.T, name string) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := a.sign(t, &x509.Certificate{DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, key, a.cert)
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, a.cert.Raw}, PrivateKey: key}}}
}

// publicPort is a gateway's public port: it says that every connect is
// post-quantum, and takes WebSockets.
func publicPort(t *testing.T, conf *tls.Config) *httptest.Server {
	t.Helper()
	outside := transport.NewGateway(transport.UDPOptions{})
	if _, _, err := outside.Open(0); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == wire.PathTunnel {
			_ = outside.Accept(w, r, "dev")
			return
		}
		io.WriteString(w, `{"post_quantum": true}`)
	}))
	srv.TLS = conf
	srv.StartTLS()
	t.Cleanup(func() {
		_ = outside.Close()
		srv.Close()
	})
	return srv
}

// connectProxy is an HTTP proxy that knows one place: whatever it is asked for,
// it leads to to. With conf it opens the TLS connections that go through it.
func connectProxy(t *testing.T, to string, conf *tls.Config) (proxy string, asked *atomic.Value) {
	t.Helper()
	asked = new(atomic.Value)
	var wg sync.WaitGroup
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wg.Add(1) // the server does not wait for what it gave away
		defer wg.Done()
		asked.Store(r.Method + " " + r.Host)
		there, err := net.Dial("tcp", to)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		here, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n")
		if conf != nil {
			here = tls.Server(here, conf)
		}
		var both sync.WaitGroup
		both.Go(func() { _, _ = io.Copy(there, here); _ = there.Close() })
		both.Go(func() { _, _ = io.Copy(here, there); _ = here.Close() })
		both.Wait()
	}))
	t.Cleanup(func() {
		srv.Close()
		wg.Wait()
	})
	return srv.URL, asked
}

func public(t *testing.T, url string, ca *authority, own string) *control.Public {
	t.Helper()
	p, err := control.NewPublic(control.PublicConfig{URL: url, CAHash: control.SPKIHash(ca.cert), OwnProxy: own})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

func TestThroughAProxy(t *testing.T) {
	ca := newAuthority(t, "Portvakt")
	srv := publicPort(t, ca.config(t, wire.InternalName))
	proxy, asked := connectProxy(t, srv.Listener.Addr().String(), nil)
	t.Setenv("HTTPS_PROXY", proxy)
	t.Setenv("NO_PROXY", "")
	// Only the proxy can resolve this name.
	p := public(t, "https://gateway.invalid", ca, "127.0.0.1:1")
	if _, err := p.Connect(t.Context(), wire.ConnectRequest{}); err != nil {
		t.Fatalf("connecting: %v", err)
	}
	if asked.Load() != "CONNECT gateway.invalid:443" || p.Remote().IsValid() {
		t.Errorf("the proxy was asked for %v; the gateway is taken to be at %v", asked.Load(), p.Remote())
	}
	ctx, cancel := context.WithCancel(t.Context())
	s, err := p.Tunnel(t.Context(), ctx)
	if err != nil {
		t.Fatalf("opening a WebSocket: %v", err)
	}
	carry := func(s *transport.Stream, end func()) {
		done := make(chan error, 1)
		go func() { done <- transport.NewInbox().Carry(s, s.Endpoint(), func([]byte) {}) }()
		end()
		<-done
	}
	if s.Endpoint().AddrPort().IsValid() {
		t.Errorf("the WebSocket's other end is taken to be at %v", s.Endpoint().AddrPort())
	}
	carry(s, cancel)

	// The agent's own proxy leads through the tunnel that is not there yet.
	u, _ := url.Parse(proxy)
	asked.Store("")
	direct := public(t, srv.URL, ca, u.Host)
	if _, err := direct.Connect(t.Context(), wire.ConnectRequest{}); err != nil || asked.Load() != "" {
		t.Errorf("past the own proxy: %v, it was asked for %v", err, asked.Load())
	}
	if direct.Remote().String() != srv.Listener.Addr().String() {
		t.Errorf("the gateway is taken to be at %v", direct.Remote())
	}
	ctx, cancel = context.WithCancel(t.Context())
	if s, err = public(t, srv.URL, ca, u.Host).Tunnel(t.Context(), ctx); err != nil {
		t.Fatalf("opening a WebSocket past the own proxy: %v", err)
	}
	if got := s.Endpoint().AddrPort().String(); got != srv.Listener.Addr().String() {
		t.Errorf("the WebSocket's other end is taken to be at %v", got)
	}
	carry(s, cancel)
	for _, host := range []string{"127.0.0.1", "localhost", "LocalHost.", "[::1]", "proxy.localhost", "[::ffff:127.0.0.1]"} {
		t.Setenv("HTTPS_PROXY", "http://"+net.JoinHostPort(strings.Trim(host, "[]"), u.Port()))
		own := public(t, "https://gateway.invalid", ca, u.Host)
		_, err := own.Connect(t.Context(), wire.ConnectRequest{})
		if control.Diagnose(err).Code != "dns" || asked.Load() != "" {
			t.Errorf("through the own proxy as %s: %v, it was asked for %v", host, err, asked.Load())
		}
	}
}

// What the proxy does is not the gateway's fault.
func TestProxyFaultsAreTheProxys(t *testing.T) {
	ca := newAuthority(t, "Portvakt")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	taken.Close()
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusProxyAuthRequired)
	}))
	defer refusing.Close()
	for name, c := range map[string]struct{ proxy, code, word string }{
		"nobody listens": {"http://" + taken.Addr().String(), "proxy", taken.Addr().String()},
		"no such name":   {"http://proxy.invalid:3128", "proxy", "proxy.invalid"},
		"credentials":    {"http://anna:secret@" + refusing.Listener.Addr().String(), "proxy_refused", "407"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("HTTPS_PROXY", c.proxy)
			t.Setenv("NO_PROXY", "")
			p := public(t, "https://gateway.invalid", ca, "127.0.0.1:1")
			_, connect := p.Connect(t.Context(), wire.ConnectRequest{})
			_, tunnel := p.Tunnel(t.Context(), t.Context())
			for _, err := range []error{connect, tunnel} {
				got := control.Diagnose(err)
				if got.Code != c.code || !strings.Contains(got.Message, "HTTPS_PROXY") || !strings.Contains(got.Message, c.word) || strings.Contains(got.Message, "secret") || got.Remedy == "" {
					t.Errorf("%v: trouble %+v", err, got)
				}
			}
		})
	}
}

func TestNamesWhoOpensTLS(t *testing.T) {
	ca, box := newAuthority(t, "Portvakt"), newAuthority(t, "Hotel Inspection CA")
	srv := publicPort(t, ca.config(t, wire.InternalName))
	for name, c := range map[string]struct {
		conf *tls.Config
		code string
	}{
		"made for the name asked for": {box.config(t, wire.InternalName), "tls_inspected"},
		"made for the host":           {box.config(t, "gateway.invalid"), "tls_inspected"},
		"somebody else's":             {box.config(t, "portal.hotel.example"), "untrusted"},
	} {
		t.Run(name, func(t *testing.T) {
			proxy, _ := connectProxy(t, srv.Listener.Addr().String(), c.conf)
			t.Setenv("HTTPS_PROXY", proxy)
			t.Setenv("NO_PROXY", "")
			p := public(t, "https://gateway.invalid", ca, "")
			_, connect := p.Connect(t.Context(), wire.ConnectRequest{})
			_, tunnel := p.Tunnel(t.Context(), t.Context())
			for _, err := range []error{connect, tunnel} {
				var untrusted *control.UntrustedError
				if !errors.As(err, &untrusted) {
					t.Fatalf("error %v", err)
				}
				got := control.Diagnose(err)
				if got.Code != c.code || strings.Contains(got.Message, "‘Hotel Inspection CA’") != (c.code == "tls_inspected") || got.Remedy == "" {
					t.Errorf("trouble %+v", got)
				}
			}
		})
	}
}

// The gateway's word is not enough: this end of TLS must have seen it too.
func TestPostQuantumIsWhatTLSWas(t *testing.T) {
	t.Setenv("HTTPS_PROXY", "")
	ca := newAuthority(t, "Portvakt")
	for want, curves := range map[bool][]tls.CurveID{true: nil, false: {tls.X25519}} {
		conf := ca.config(t, wire.InternalName)
		conf.CurvePreferences = curves
		got, err := public(t, publicPort(t, conf).URL, ca, "").Connect(t.Context(), wire.ConnectRequest{})
		if err != nil || got.PostQuantum != want {
			t.Errorf("curves %v: post-quantum %t, %v", curves, got.PostQuantum, err)
		}
	}
}
