package certs_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/certs"
)

const internalName = "gateway.portvakt.internal"

func public(t *testing.T, cfg certs.PublicConfig) *certs.Public {
	t.Helper()
	cfg.InternalName = internalName
	p, err := certs.NewPublic(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serve runs a real HTTPS server on the configuration; each answer says who
// the client's certificate names.
func serve(t *testing.T, ca *certs.CA, p *certs.Public) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := ca.VerifyDevice(r.TLS.PeerCertificates)
		fmt.Fprintf(w, "%s %q %v", r.Proto, id.DeviceID, err)
	}))
	srv.EnableHTTP2 = true
	srv.TLS = p.TLSConfig()
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	// Not StartTLS: httptest adds a certificate of its own.
	srv.Listener = tls.NewListener(srv.Listener, srv.TLS)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

// shake makes one handshake and returns its state.
func shake(addr string, cfg *tls.Config) (tls.ConnectionState, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, cfg)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	return c.ConnectionState(), nil
}

func pool(cs ...*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, c := range cs {
		p.AddCert(c)
	}
	return p
}

func TestInternalMode(t *testing.T) {
	ca := open(t, nil)
	p := public(t, certs.PublicConfig{Hosts: []string{"Gateway.example", "127.0.0.1", "::1"}, CA: ca})
	addr := serve(t, ca, p)
	for name, ok := range map[string]bool{
		internalName: true, "GATEWAY.portvakt.internal": true, "gateway.example": true, "127.0.0.1": true, "::1": true,
		"other.example": false, "127.0.0.2": false,
	} {
		st, err := shake(addr, &tls.Config{ServerName: name, RootCAs: pool(ca.Root()), NextProtos: []string{"h2", "http/1.1"}})
		if ok != (err == nil) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !ok {
			continue
		}
		if st.Version != tls.VersionTLS13 || st.NegotiatedProtocol != "h2" || st.CurveID != tls.X25519MLKEM768 {
			t.Errorf("%s: version %x, protocol %q, exchange %v", name, st.Version, st.NegotiatedProtocol, st.CurveID)
		}
	}
	if _, err := shake(addr, &tls.Config{ServerName: "other.example", InsecureSkipVerify: true}); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a stranger's name: %v", err)
	}
	if _, err := shake(addr, &tls.Config{ServerName: internalName, RootCAs: pool(ca.Root()), MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
	if _, err := shake(addr, &tls.Config{ServerName: internalName, InsecureSkipVerify: true, NextProtos: []string{"acme-tls/1"}}); err == nil {
		t.Error("an ACME challenge in mode internal")
	}
	if err := runFor(p, 0); err != nil {
		t.Error(err)
	}
}

func runFor(p *certs.Public, d time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return p.Run(ctx)
}

// Any certificate completes the handshake; what it is worth, the handler
// finds out, on the key that this handshake proved.
func TestClientCertificates(t *testing.T) {
	c := newClock()
	ca, other := open(t, c.Now), open(t, c.Now)
	addr := serve(t, ca, public(t, certs.PublicConfig{CA: ca}))
	key := newKey(t)
	issue := func(ca *certs.CA) tls.Certificate {
		certPEM, _, err := ca.IssueDevice("dev-1", &key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Certificate{Certificate: [][]byte{parse(t, certPEM).Raw}, PrivateKey: key}
	}
	mine, foreign := issue(ca), issue(other)
	stolen := mine
	stolen.PrivateKey = newKey(t)
	sessions := tls.NewLRUClientSessionCache(8)
	ask := func(cert ...tls.Certificate) (string, error) {
		cfg := &tls.Config{ServerName: internalName, RootCAs: pool(ca.Root()), ClientSessionCache: sessions}
		if len(cert) > 0 {
			// Whatever the server says it accepts.
			cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert[0], nil }
		}
		tr := &http.Transport{TLSClientConfig: cfg}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Get("https://" + addr)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		if resp.TLS.DidResume {
			t.Error("a session was resumed")
		}
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	for range 2 {
		if got, err := ask(mine); err != nil || got != `HTTP/1.1 "dev-1" <nil>` {
			t.Errorf("a device: %q, %v", got, err)
		}
	}
	if got, err := ask(); err != nil || got != `HTTP/1.1 "" no device certificate was shown` {
		t.Errorf("nobody: %q, %v", got, err)
	}
	if got, err := ask(foreign); err != nil || !strings.Contains(got, `"" verifying the device certificate`) {
		t.Errorf("another CA's device: %q, %v", got, err)
	}
	if got, err := ask(stolen); err == nil {
		t.Errorf("a certificate without its key: %q", got)
	}
	c.Add(3 * certs.DeviceLife)
	if got, err := ask(mine); err != nil || got != `HTTP/1.1 "dev-1" <nil>` {
		t.Errorf("an expired device: %q, %v", got, err)
	}
}

// pair writes a self-signed certificate for names and returns it.
func pair(t *testing.T, certFile, keyFile string, notAfter time.Time, names ...string) *x509.Certificate {
	t.Helper()
	key := newKey(t)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	c := sign(t, tmpl, tmpl, &key.PublicKey, key)
	put(t, certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	put(t, keyFile, keyText(t, key))
	return c
}

func keyText(t *testing.T, key *ecdsa.PrivateKey) []byte {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o640); err != nil {
		t.Fatal(err)
	}
}

// syncBuffer is a log's end that a test may read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 500 {
		if f() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("never: %s", what)
}

func TestFilesMode(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.key")
	later := time.Now().Add(time.Hour)
	first := pair(t, certFile, keyFile, later, "gateway.example", "*.other.example")
	ca := open(t, nil)
	var logs syncBuffer
	p := public(t, certs.PublicConfig{
		Mode: certs.ModeFiles, Hosts: []string{"gateway.example", "127.0.0.1"}, CertFile: certFile, KeyFile: keyFile, CA: ca, Interval: 20 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(&logs, nil)),
	})
	addr := serve(t, ca, p)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	shows := func(name string, c *x509.Certificate) bool {
		_, err := shake(addr, &tls.Config{ServerName: name, RootCAs: pool(c)})
		return err == nil
	}
	for name, root := range map[string]*x509.Certificate{
		"gateway.example": first, "a.other.example": first, internalName: ca.Root(), "127.0.0.1": ca.Root(),
	} {
		if !shows(name, root) {
			t.Errorf("%s has the wrong certificate", name)
		}
	}
	if shows("stranger.example", first) {
		t.Error("a stranger's name got a certificate")
	}

	second := pair(t, certFile, keyFile, later, "gateway.example")
	eventually(t, "the new pair in force", func() bool { return shows("gateway.example", second) })

	// Nothing of this may replace the good pair.
	good, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		do   func()
		want string
	}{
		{"another key", func() { put(t, keyFile, keyText(t, newKey(t))) }, "private key does not match"},
		{"garbled", func() { put(t, certFile, []byte("half")) }, "failed to find any PEM data"},
		{"another host", func() { pair(t, certFile, keyFile, later, "wrong.example") }, "valid for wrong.example"},
		{"expired", func() { pair(t, certFile, keyFile, time.Now().Add(-time.Minute), "gateway.example") }, "expired at"},
		{"removed", func() { os.Remove(certFile) }, "no such file"},
	} {
		put(t, certFile, good) // without its key, after the first case
		before := len(logs.String())
		c.do()
		eventually(t, c.name+": said so", func() bool { return strings.Contains(logs.String()[before:], c.want) })
		if !shows("gateway.example", second) {
			t.Errorf("%s: the last good pair is gone", c.name)
		}
	}
	third := pair(t, certFile, keyFile, later, "gateway.example")
	eventually(t, "back to good", func() bool { return shows("gateway.example", third) })
}

func TestNewPublicRefuses(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.key")
	pair(t, certFile, keyFile, time.Now().Add(time.Hour), "gateway.example")
	open0644 := filepath.Join(dir, "open.key")
	b, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	put(t, open0644, b)
	if err := os.Chmod(open0644, 0o644); err != nil {
		t.Fatal(err)
	}
	ca := open(t, nil)
	acme := certs.ACMEConfig{Storage: filepath.Join(dir, "acme")}
	with := func(change func(*certs.ACMEConfig)) certs.ACMEConfig {
		a := acme
		change(&a)
		return a
	}
	for name, c := range map[string]struct {
		cfg  certs.PublicConfig
		want string
	}{
		"no CA":               {certs.PublicConfig{}, "no internal CA"},
		"unknown mode":        {certs.PublicConfig{Mode: "manual", CA: ca}, `mode "manual"`},
		"bad host":            {certs.PublicConfig{Hosts: []string{"a b"}, CA: ca}, `"a b"`},
		"host with port":      {certs.PublicConfig{Hosts: []string{"a.example:443"}, CA: ca}, "a.example:443"},
		"no files":            {certs.PublicConfig{Mode: "files", CA: ca}, "needs a certificate file"},
		"missing file":        {certs.PublicConfig{Mode: "files", CertFile: filepath.Join(dir, "gone"), KeyFile: keyFile, CA: ca}, "no such file"},
		"key for everyone":    {certs.PublicConfig{Mode: "files", CertFile: certFile, KeyFile: open0644, CA: ca}, "chmod o= "},
		"files swapped":       {certs.PublicConfig{Mode: "files", CertFile: keyFile, KeyFile: certFile, CA: ca}, "reading certificate"},
		"host not covered":    {certs.PublicConfig{Mode: "files", CertFile: certFile, KeyFile: keyFile, Hosts: []string{"b.example"}, CA: ca}, "b.example"},
		"acme without host":   {certs.PublicConfig{Mode: "acme", ACME: acme, Hosts: []string{"127.0.0.1"}, CA: ca}, "host name"},
		"acme private host":   {certs.PublicConfig{Mode: "acme", ACME: acme, Hosts: []string{"gw.internal"}, CA: ca}, "not a public name"},
		"acme no storage":     {certs.PublicConfig{Mode: "acme", Hosts: []string{"gw.example"}, CA: ca}, "storage"},
		"acme bad listener":   {certs.PublicConfig{Mode: "acme", ACME: with(func(a *certs.ACMEConfig) { a.ListenAddr = "443" }), Hosts: []string{"gw.example"}, CA: ca}, "host:port"},
		"acme roots missing":  {certs.PublicConfig{Mode: "acme", ACME: with(func(a *certs.ACMEConfig) { a.CAFile = filepath.Join(dir, "gone") }), Hosts: []string{"gw.example"}, CA: ca}, "no such file"},
		"acme roots not PEM":  {certs.PublicConfig{Mode: "acme", ACME: with(func(a *certs.ACMEConfig) { a.CAFile = keyFile }), Hosts: []string{"gw.example"}, CA: ca}, "no PEM certificate"},
		"internal name empty": {certs.PublicConfig{CA: ca, InternalName: "-"}, "internal name"},
	} {
		if c.cfg.InternalName == "" {
			c.cfg.InternalName = internalName
		}
		if _, err := certs.NewPublic(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.want)
		}
	}
	if _, err := os.Stat(acme.Storage); err == nil {
		t.Error("a refused configuration wrote something")
	}
}

// In mode acme the internal name works before there is any public
// certificate, and an open storage directory is refused.
func TestACMEWithoutCertificate(t *testing.T) {
	dir := t.TempDir()
	ca := open(t, nil)
	p := public(t, certs.PublicConfig{
		Mode: certs.ModeACME, Hosts: []string{"gw.test"}, CA: ca,
		// Port 9: nobody answers there.
		ACME: certs.ACMEConfig{Directory: "https://127.0.0.1:9/dir", Storage: filepath.Join(dir, "acme"), ListenAddr: "127.0.0.1:9"},
	})
	addr := serve(t, ca, p)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	if _, err := shake(addr, &tls.Config{ServerName: internalName, RootCAs: pool(ca.Root())}); err != nil {
		t.Errorf("the internal name: %v", err)
	}
	if _, err := shake(addr, &tls.Config{ServerName: "gw.test", InsecureSkipVerify: true}); err == nil {
		t.Error("a public certificate out of nowhere")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	shared := filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	q := public(t, certs.PublicConfig{
		Mode: certs.ModeACME, Hosts: []string{"gw.test"}, CA: ca,
		ACME: certs.ACMEConfig{Directory: "https://127.0.0.1:9/dir", Storage: shared},
	})
	if err := runFor(q, time.Second); err == nil || !strings.Contains(err.Error(), "chmod 700 ") {
		t.Errorf("an open storage: %v", err)
	}
}
