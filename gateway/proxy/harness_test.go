package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/proxy"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("modernc.org/libc.(*TLS).Close"))
}

// world is a gateway without its tunnel: real policy, sessions, store and log,
// and one device with a person logged in. Connections come over loopback
// instead of the tunnel and carry the addresses a tunnel would have proven.
type world struct {
	t       testing.TB
	dir     string
	proxy   *proxy.Proxy
	manager *session.Manager
	log     *audit.Log
	signer  *assertion.Signer
	device  store.Device
	subject policy.Subject
	session store.Session
	roots   *x509.CertPool
	ports   atomic.Uint32
	began   time.Time
	ahead   atomic.Int64  // nanoseconds by which the sessions' clocks were put on
	asleep  atomic.Bool   // not decided again after a lapse
	lasts   time.Duration // of a session

	mu        sync.Mutex
	listeners map[netip.AddrPort]net.Listener
	conns     []net.Conn

	stop func() // ends Run and waits for it
}

type option func(*proxy.Config)

// newWorld starts one. apps are YAML documents; PLACES like {{crm}} are
// replaced from upstreams.
func newWorld(t testing.TB, apps []string, upstreams map[string]string, opts ...option) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), listeners: map[netip.AddrPort]net.Listener{}, began: time.Now(), lasts: 8 * time.Hour}
	w.ports.Store(20000)
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	st, err := store.Open(ctx, store.Options{
		Path: filepath.Join(w.dir, "db", "p.db"), IPv4: netip.MustParsePrefix("100.64.0.0/16"), IPv6: netip.MustParsePrefix("fd00:64::/64"), SealKey: [32]byte{9},
	})
	must(err)
	w.log, err = audit.Open(audit.Options{Dir: filepath.Join(w.dir, "audit")})
	must(err)
	w.manager = session.New(session.Config{
		Engine: policy.NewEngine(policy.EngineOptions{Timeout: 5 * time.Second}), Store: st, Audit: w.log,
		Table: segment.NewTable(st.GatewayAddresses()), Gateway: st.GatewayAddresses(), ControlPort: 80,
		Locate:     func(netip.Addr) policy.Location { return policy.Location{} },
		AddPeer:    func(session.Connection) error { return nil },
		RemovePeer: func([32]byte) error { return nil },
		Now:        w.now,
		Elapsed:    func() time.Duration { return w.now().Sub(w.began) },
	})
	w.publish(apps, upstreams)
	w.connect(st)
	w.signer, err = assertion.Open(assertion.Config{KeyFile: filepath.Join(w.dir, "assert.pem"), Issuer: "https://gw.example"})
	must(err)
	certificate, roots := newCA(t)
	w.roots = roots
	cfg := proxy.Config{
		Session: w.manager, AppByAddr: w.manager.AppByAddr, Certificate: certificate, Signer: w.signer,
		Forbidden: []netip.Prefix{netip.MustParsePrefix("100.64.0.0/16")},
		Decided:   func() bool { return !w.asleep.Load() },
		Timeouts:  proxy.Timeouts{Drain: 200 * time.Millisecond},
	}
	for _, o := range opts {
		o(&cfg)
	}
	w.proxy, err = proxy.New(cfg)
	must(err)

	run, cancel := context.WithCancel(ctx)
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := w.proxy.Run(run); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	parts.Go(func() { _ = w.log.Run(run) })
	w.stop = func() { cancel(); parts.Wait() }
	t.Cleanup(func() {
		w.stop()
		w.mu.Lock()
		for _, l := range w.listeners {
			_ = l.Close()
		}
		for _, c := range w.conns {
			_ = c.Close()
		}
		w.mu.Unlock()
		_ = w.log.Close()
		_ = st.Close()
	})
	for range 200 { // HandleTCP refuses until Run has begun
		if c, err := w.try("probe.test", 80); err == nil {
			_ = c.Close()
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return w
}

func (w *world) publish(apps []string, upstreams map[string]string) {
	w.t.Helper()
	dir := w.t.TempDir()
	apps = append(apps, "name: probe\nprotocol: http\nhosts: [probe.test]\nupstream: http://127.0.0.1:1\naccess: [{anyone: true}]\n")
	for i, a := range apps {
		for k, v := range upstreams {
			a = strings.ReplaceAll(a, "{{"+k+"}}", v)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.yaml", i)), []byte(a), 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	rev, err := policy.Load(dir, policy.LoadOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.manager.Publish(context.Background(), rev, "test"); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) connect(st *store.Store) {
	w.t.Helper()
	ctx, now := context.Background(), time.Now()
	if err := st.CreateInvite(ctx, store.Invite{SecretHash: [32]byte{1}, CreatedAt: now, ExpiresAt: now.Add(time.Hour)}); err != nil {
		w.t.Fatal(err)
	}
	var err error
	w.device, err = st.RedeemInvite(ctx, store.Redeem{SecretHash: [32]byte{1}, Now: now, Device: store.Device{
		ID: "dev-1", Name: "laptop", OS: "linux", Arch: "amd64", KeyTier: "software", KeyHash: [32]byte{2},
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	reg := store.Registration{DeviceID: w.device.ID, TunnelKey: [32]byte{3}, TokenHash: [32]byte{4}, BootID: "boot", CreatedAt: now, ExpiresAt: now.Add(12 * time.Hour)}
	if _, err := st.PutRegistration(ctx, reg); err != nil {
		w.t.Fatal(err)
	}
	if err := w.manager.Connect(session.Connection{Device: w.device, Registration: reg, Nonce: "n"}); err != nil {
		w.t.Fatal(err)
	}
	w.subject = policy.Subject{Issuer: "https://idp", ID: "u1", Name: "Åsa", Email: "asa@example.com", Groups: []string{"sales"}, AuthenticatedAt: now}
	w.login()
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load())) }

func (w *world) login() {
	w.t.Helper()
	var err error
	w.session, err = w.manager.Login(context.Background(), store.Session{
		DeviceID: w.device.ID, OSUser: "1000:asa", Subject: w.subject, StartedAt: w.now(), ExpiresAt: w.now().Add(w.lasts), LastSeen: w.now(),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// revoke ends the session and returns when it is in force.
func (w *world) revoke() {
	w.t.Helper()
	if err := w.manager.EndSession(context.Background(), store.End{SessionID: w.session.ID, Reason: "test", By: "test", At: time.Now()}, policy.ReasonSessionRevoked); err != nil {
		w.t.Fatal(err)
	}
}

// newCA makes certificates for any names, as the internal CA does.
func newCA(t testing.TB) (func([]string) (*tls.Certificate, error), *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, _ := x509.ParseCertificate(der)
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return func(names []string) (*tls.Certificate, error) {
		leaf := &x509.Certificate{
			SerialNumber: big.NewInt(2), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		der, err := x509.CreateCertificate(rand.Reader, leaf, parsed, key.Public(), key)
		if err != nil {
			return nil, err
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
	}, pool
}

// inbound is a connection that came over loopback.
type inbound struct {
	net.Conn
	peer, local netip.AddrPort
}

func (i inbound) Peer() netip.AddrPort                     { return i.peer }
func (i inbound) Local() netip.AddrPort                    { return i.local }
func (i inbound) Accept(context.Context) (net.Conn, error) { return i.Conn, nil }
func (i inbound) Reset() {
	_ = i.Conn.(*net.TCPConn).SetLinger(0)
	_ = i.Close()
}

func (w *world) address(host string, port uint16) netip.AddrPort {
	if a := w.manager.AppAddresses(strings.TrimSuffix(host, ".test"))[0]; a.IsValid() {
		return netip.AddrPortFrom(a, port)
	}
	w.t.Fatalf("no app for %q", host)
	return netip.AddrPort{}
}

// dial opens a connection from the device to an app's virtual address.
func (w *world) dial(host string, port uint16) net.Conn {
	w.t.Helper()
	c, err := w.open(host, port)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) open(host string, port uint16) (net.Conn, error) {
	local := w.address(host, port)
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.listeners[local]
	if l == nil {
		var err error
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
		w.listeners[local] = l
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				w.proxy.HandleTCP(inbound{c, netip.AddrPortFrom(w.device.Addresses[0], uint16(w.ports.Add(1))), local})
			}
		}()
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err == nil {
		w.conns = append(w.conns, c)
	}
	return c, err
}

func (w *world) try(host string, port uint16) (net.Conn, error) {
	c, err := w.open(host, port)
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", host); err != nil {
		return nil, err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return nil, err
	}
	return c, nil
}

func (w *world) tls(host string, protos ...string) *tls.Conn {
	w.t.Helper()
	c := tls.Client(w.dial(host, 443), &tls.Config{RootCAs: w.roots, ServerName: host, NextProtos: protos})
	if err := c.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// client speaks to apps by name, over HTTP/2 if asked.
func (w *world) client(h2 bool) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: w.roots}, ForceAttemptHTTP2: h2,
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			host, port, _ := net.SplitHostPort(addr)
			if port == "80" {
				return w.dial(host, 80), nil
			}
			return w.dial(host, 443), nil
		},
		DisableCompression: true,
	}
	if !h2 {
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	w.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw sends bytes on a fresh TLS connection and returns all that comes back.
func (w *world) raw(host, text string) string {
	w.t.Helper()
	c := w.tls(host)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		return "write: " + err.Error()
	}
	br := bufio.NewReader(c)
	var out bytes.Buffer
	for {
		res, err := http.ReadResponse(br, nil)
		if err != nil {
			return out.String()
		}
		body, err := io.ReadAll(res.Body)
		fmt.Fprintf(&out, "%d %s %s\n", res.StatusCode, res.Header.Get("Portvakt-Reason"), body)
		if err != nil || res.Close || res.StatusCode >= 200 {
			return out.String()
		}
	}
}

// records returns the decisions in the log, once n of them are there.
func (w *world) records(kind audit.Kind, n int) []audit.Record {
	w.t.Helper()
	var out []audit.Record
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		out = out[:0]
		err := audit.Scan(w.log.Path(), func(_ []byte, r *audit.Record) bool {
			if r.Kind == kind {
				out = append(out, *r)
			}
			return true
		})
		if err == nil && len(out) >= n {
			return out
		}
	}
	w.t.Fatalf("%d %s records in the log, want %d", len(out), kind, n)
	return nil
}

// seen is what an upstream saw of a request.
type seen struct {
	Method, URI, Host string
	Header            http.Header
	Trailer           http.Header
	Body              string
}

// echo is an app that tells what it received.
type echo struct {
	*httptest.Server
	mu  sync.Mutex
	got []seen
}

func newEcho(t testing.TB) *echo {
	e := &echo{}
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(e.serve))
	e.Config.DisableGeneralOptionsHandler = true
	e.Start()
	t.Cleanup(e.Close)
	return e
}

func (e *echo) serve(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s := seen{Method: r.Method, URI: r.RequestURI, Host: r.Host, Header: r.Header.Clone(), Trailer: r.Trailer.Clone(), Body: string(body)}
	e.mu.Lock()
	e.got = append(e.got, s)
	e.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(s)
}

func (e *echo) requests() []seen {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.got)
}

const crmYAML = `name: crm
title: Customer register
protocol: http
hosts: [crm.test, kunder.test]
upstream: {{crm}}
allow: [127.0.0.1/32]
websocket: true
origins: ["https://portal.test"]
cross_site: [/saml/acs]
access:
  - groups: [sales]
`

func isReset(err error) bool {
	return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func get(t testing.TB, c *http.Client, url string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}
