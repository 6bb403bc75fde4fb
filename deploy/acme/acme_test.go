package acme_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/portvakt/portvakt/certs"
)

const (
	internalName = "gateway.portvakt.internal"
	host         = "gateway.portvakt.test"
	host2        = "www.portvakt.test"
)

// server is a pebble in this process. Its validation authority connects to
// the gateway's port.
type server struct {
	directory, caFile string
	roots             *x509.CertPool
	orders            atomic.Int32 // new orders asked for
	down              atomic.Bool  // answer 503
}

func pebble(t *testing.T, tlsPort int, validity uint64) *server {
	t.Helper()
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	t.Setenv("PEBBLE_WFE_NONCEREJECT", "20")
	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	authority := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {Description: "default", ValidityPeriod: validity}})
	validator := va.New(quiet, 1, tlsPort, true, resolver(t), store)
	front := wfe.New(quiet, store, validator, authority, []string{"pebble.letsencrypt.org"}, true, false, 0, 0)
	handler := front.Handler()

	s := &server{roots: x509.NewCertPool()}
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.down.Load() {
			http.Error(w, "down", http.StatusServiceUnavailable)
			return
		}
		if strings.Contains(r.URL.Path, "order-plz") {
			s.orders.Add(1)
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.directory = srv.URL + wfe.DirectoryPath
	s.caFile = filepath.Join(t.TempDir(), "acme-ca.pem")
	if err := os.WriteFile(s.caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if !s.roots.AppendCertsFromPEM(authority.GetRootCert(0).PEM()) {
		t.Fatal("pebble has no root")
	}
	return s
}

// resolver answers every question for an address with 127.0.0.1, over TCP as
// pebble asks.
func resolver(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go answer(c)
		}
	}()
	return ln.Addr().String()
}

// answer serves one question; each message has its length before it (RFC 1035
// section 4.2.2).
func answer(c net.Conn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, buf); err != nil {
		return
	}
	var m dnsmessage.Message
	if m.Unpack(buf) != nil || len(m.Questions) != 1 {
		return
	}
	m.Response, m.Additionals = true, nil
	if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		}}
	}
	if out, err := m.AppendPack([]byte{0, 0}); err == nil {
		binary.BigEndian.PutUint16(out, uint16(len(out)-2))
		_, _ = c.Write(out)
	}
}

// gateway is the public port of a gateway: a listener, and the part that
// chooses its certificates.
type gateway struct {
	addr    string
	cfg     certs.PublicConfig
	public  *certs.Public
	current atomic.Pointer[tls.Config]
}

func listen(t *testing.T) *gateway {
	t.Helper()
	authority, err := certs.OpenCA(certs.CAConfig{Dir: filepath.Join(t.TempDir(), "ca")})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateway{addr: ln.Addr().String()}
	g.cfg = certs.PublicConfig{
		Mode: certs.ModeACME, InternalName: internalName, Hosts: []string{host, host2}, CA: authority,
		ACME: certs.ACMEConfig{Email: "it@portvakt.test", Storage: filepath.Join(t.TempDir(), "acme"), ListenAddr: g.addr},
		Log:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) }),
		ErrorLog:          log.New(io.Discard, "", 0),
		ReadHeaderTimeout: 5 * time.Second,
		TLSConfig: &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c := g.current.Load() // a restarted gateway's
			if c.GetConfigForClient != nil {
				return c.GetConfigForClient(h)
			}
			return c, nil
		}},
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(ln, "", "") }()
	t.Cleanup(func() { srv.Close(); <-done })
	return g
}

func (g *gateway) port() int {
	a, _ := net.ResolveTCPAddr("tcp", g.addr)
	return a.Port
}

// start makes a new Public, as a restart would. run starts its Run; stop ends
// it and checks that it ends well.
func (g *gateway) start(t *testing.T, s *server) (run, stop func()) {
	t.Helper()
	g.cfg.ACME.Directory, g.cfg.ACME.CAFile = s.directory, s.caFile
	public, err := certs.NewPublic(g.cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.public = public
	g.current.Store(public.TLSConfig())
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	done := make(chan error, 1)
	run = func() { go func() { done <- public.Run(ctx) }() }
	stop = func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	}
	return run, stop
}

// dial returns the certificate that name gets, if it was good at its issue.
func (g *gateway) dial(name string, roots *x509.CertPool) (*x509.Certificate, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", g.addr, &tls.Config{
		ServerName: name, NextProtos: []string{"h2"},
		InsecureSkipVerify: true, // for the sake of the time only
		VerifyConnection: func(cs tls.ConnectionState) error {
			opt := x509.VerifyOptions{DNSName: name, Roots: roots, Intermediates: x509.NewCertPool(), CurrentTime: cs.PeerCertificates[0].NotBefore.Add(time.Second)}
			for _, c := range cs.PeerCertificates[1:] {
				opt.Intermediates.AddCert(c)
			}
			_, err := cs.PeerCertificates[0].Verify(opt)
			return err
		},
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// await dials until name gets a certificate of the ACME server other than not.
func (g *gateway) await(t *testing.T, name string, s *server, not *x509.Certificate) *x509.Certificate {
	t.Helper()
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var c *x509.Certificate
		if c, err = g.dial(name, s.roots); err == nil && !c.Equal(not) {
			return c
		}
	}
	t.Fatalf("no new certificate of the ACME server for %s: %v", name, err)
	return nil
}

func TestObtainServeRestart(t *testing.T) {
	g := listen(t)
	s := pebble(t, g.port(), 0)
	internal := x509.NewCertPool()
	internal.AddCert(g.cfg.CA.Root())

	run, stop := g.start(t, s)
	if _, err := g.dial(internalName, internal); err != nil {
		t.Errorf("the internal name before any public certificate: %v", err)
	}
	if _, err := g.dial(host, s.roots); err == nil {
		t.Error("a public certificate out of nowhere")
	}
	run()
	first := g.await(t, host, s, nil)
	g.await(t, host2, s, nil)
	if _, err := g.dial(internalName, internal); err != nil {
		t.Errorf("the internal name: %v", err)
	}
	if _, err := g.dial("other.portvakt.test", s.roots); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a stranger's name: %v", err)
	}
	if n := s.orders.Load(); n < 2 {
		t.Errorf("%d orders counted for two names", n)
	}

	// Nobody else gets a challenge certificate, and none is served when no
	// challenge is on.
	for _, name := range []string{host, "other.portvakt.test", internalName} {
		c, err := tls.Dial("tcp", g.addr, &tls.Config{ServerName: name, InsecureSkipVerify: true, NextProtos: []string{"acme-tls/1"}})
		if err == nil {
			c.Close()
			t.Errorf("a challenge certificate for %s", name)
		}
	}
	err := filepath.WalkDir(g.cfg.ACME.Storage, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	stop()

	// A restart uses what is stored, also while the ACME server is away.
	s.down.Store(true)
	orders := s.orders.Load()
	run, stop = g.start(t, s)
	run()
	if again := g.await(t, host, s, nil); !again.Equal(first) {
		t.Error("another certificate after a restart")
	}
	if s.orders.Load() != orders {
		t.Error("a restart ordered anew")
	}
	stop()
}

// A gateway that was off for so long that its certificate ran out gets a new
// one at its start.
func TestExpiredWhileOff(t *testing.T) {
	g := listen(t)
	const validity = 3 // seconds
	s := pebble(t, g.port(), validity)
	run, stop := g.start(t, s)
	run()
	first := g.await(t, host, s, nil)
	stop()
	time.Sleep(time.Until(first.NotAfter.Add(time.Second)))
	run, stop = g.start(t, s)
	run()
	if again := g.await(t, host, s, first); !again.NotAfter.After(first.NotAfter) {
		t.Errorf("the new certificate ends at %v", again.NotAfter)
	}
	stop()
}
