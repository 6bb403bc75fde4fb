package control_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/control"
	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// gw is the API with real rooms behind it, a TLS listener in front of its
// public half, and a clock of its own. Only the tunnel is not there: inner
// calls name their inner address themselves.
type gw struct {
	t        *testing.T
	ca       *certs.CA
	store    *store.Store
	audit    *audit.Log
	sessions *session.Manager
	public   *httptest.Server
	inner    http.Handler
	now      atomic.Int64
	full     atomic.Bool // takes no WebSocket
	db       string      // path of the store's file
}

// gatewayKey is the gateway's own WireGuard key.
var gatewayKey = base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32))

func (g *gw) clock() time.Time { return time.Unix(0, g.now.Load()).UTC() }

func newGateway(t *testing.T) *gw {
	t.Helper()
	return newGatewayOf(t, "http://127.0.0.1:1") // an identity provider that does not answer
}

func newGatewayOf(t *testing.T, issuer string) *gw {
	t.Helper()
	g := &gw{t: t}
	g.now.Store(time.Now().UnixNano())
	dir := t.TempDir()
	g.db = filepath.Join(dir, "data", "gateway.db")
	var err error
	must := func() {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	g.ca, err = certs.OpenCA(certs.CAConfig{Dir: filepath.Join(dir, "ca"), Now: g.clock})
	must()
	g.store, err = store.Open(t.Context(), store.Options{
		Path: g.db, IPv4: netip.MustParsePrefix("100.96.0.0/16"),
		IPv6: netip.MustParsePrefix("fd70:7674:766b::/64"), SealKey: [32]byte{1}, Now: g.clock,
	})
	must()
	g.audit, err = audit.Open(audit.Options{Dir: filepath.Join(dir, "audit"), Now: g.clock})
	must()
	own := g.store.GatewayAddresses()
	g.sessions = session.New(session.Config{
		Engine: policy.NewEngine(policy.EngineOptions{}), Store: g.store, Audit: g.audit, Table: segment.NewTable(own), Gateway: own, ControlPort: 80,
		Locate:     func(a netip.Addr) policy.Location { return policy.Location{Address: a.String()} },
		AddPeer:    func(session.Connection) error { return nil },
		RemovePeer: func([32]byte) error { return nil },
		Now:        g.clock,
	})
	idp, err := identity.New(identity.Config{Issuer: issuer, ClientID: "portvakt", Now: g.clock})
	must()
	api := control.New(control.Config{
		CA: g.ca, Store: g.store, Audit: g.audit, Sessions: g.sessions, Identity: idp, MTU: 1280,
		Tunnel:      wire.GatewayTunnel{TunnelKey: gatewayKey, Endpoints: []string{":51820"}, Addresses: own[:]},
		DNSSuffixes: func() []string { return nil }, SessionLifetime: time.Hour, JWKS: http.NotFoundHandler(), Now: g.clock,
		WebSocket: func(w http.ResponseWriter, _ *http.Request, device string) error {
			if g.full.Load() {
				return errors.New("as many as it takes")
			}
			return json.NewEncoder(w).Encode(map[string]string{"device": device})
		},
	})
	g.inner = api.Tunnel()
	public, err := certs.NewPublic(certs.PublicConfig{InternalName: wire.InternalName, Hosts: []string{"gateway.example.com"}, CA: g.ca})
	must()
	g.public = httptest.NewUnstartedServer(api.Public())
	g.public.TLS = public.TLSConfig()
	g.public.StartTLS()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.audit.Run(ctx) }()
	t.Cleanup(func() {
		g.public.Close()
		cancel()
		err := errors.Join(<-done, g.store.CheckConsistency(context.Background()), g.audit.Close(), g.store.Close())
		if err != nil {
			t.Error(err)
		}
	})
	return g
}

func (g *gw) code(expires time.Duration, serial string) wire.Code {
	g.t.Helper()
	c := wire.NewCode(g.ca.SPKIHash())
	err := g.store.CreateInvite(g.t.Context(), store.Invite{SecretHash: c.SecretHash(), Serial: serial, CreatedBy: "test", CreatedAt: g.clock(), ExpiresAt: g.clock().Add(expires)})
	if err != nil {
		g.t.Fatal(err)
	}
	return c
}

// laptop is a device key and what it was given.
type laptop struct {
	key  *ecdsa.PrivateKey
	cert []byte // PEM
	id   string
	conn wire.ConnectResponse
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func csr(t *testing.T, k *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// post calls the public port; cert may be nil. It returns the status, and the
// error's code when it is not 200.
func (g *gw) post(path string, cert *tls.Certificate, in, out any) (int, wire.Error) {
	g.t.Helper()
	return g.send(http.MethodPost, path, cert, in, out)
}

func (g *gw) send(method, path string, cert *tls.Certificate, in, out any) (int, wire.Error) {
	g.t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(g.ca.RootPEM())
	tc := &tls.Config{RootCAs: pool, ServerName: wire.InternalName, MinVersion: tls.VersionTLS13, Time: g.clock}
	if cert != nil {
		tc.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	tr := &http.Transport{TLSClientConfig: tc}
	defer tr.CloseIdleConnections()
	body, err := json.Marshal(in)
	if s, ok := in.(string); ok {
		body, err = []byte(s), nil
	}
	if err != nil {
		g.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(g.t.Context(), method, g.public.URL+path, bytes.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: tr, Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		g.t.Error(err)
		return 0, wire.Error{}
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Error(err)
	}
	if path == wire.PathTunnel && resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "5" {
		g.t.Errorf("%s answers 503 without saying when to ask again: %v", path, resp.Header)
	}
	var we wire.Error
	if resp.StatusCode != http.StatusOK {
		out = &we
	}
	if err := json.Unmarshal(data, out); err != nil {
		g.t.Errorf("%s answered %s %q: %v", path, resp.Status, data, err)
	}
	return resp.StatusCode, we
}

func (g *gw) enroll() *laptop {
	g.t.Helper()
	l := &laptop{key: newKey(g.t)}
	var resp wire.EnrollResponse
	status, we := g.post(wire.PathEnroll, nil, wire.EnrollRequest{
		Code: g.code(time.Hour, "").SecretText(), CSR: csr(g.t, l.key), Device: wire.DeviceInfo{Name: "anna", OS: "linux", Arch: "amd64", KeyTier: "hardware"},
	}, &resp)
	if status != http.StatusOK {
		g.t.Fatalf("enrolling: %d %+v", status, we)
	}
	l.cert, l.id = []byte(resp.Certificate), resp.DeviceID
	return l
}

func (l *laptop) tls(t *testing.T) *tls.Certificate {
	t.Helper()
	block, _ := pem.Decode(l.cert)
	return &tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: l.key}
}

func (g *gw) connect(l *laptop) (int, wire.Error) {
	g.t.Helper()
	var key [32]byte
	rand.Read(key[:])
	return g.post(wire.PathConnect, l.tls(g.t), wire.ConnectRequest{TunnelKey: base64.StdEncoding.EncodeToString(key[:]), BootID: "boot", AgentVersion: "test"}, &l.conn)
}

func (g *gw) ready() *laptop {
	g.t.Helper()
	l := g.enroll()
	if status, we := g.connect(l); status != http.StatusOK {
		g.t.Fatalf("connecting: %d %+v", status, we)
	}
	return l
}

// call calls the API inside the tunnel from an inner address.
func (g *gw) call(method, path string, from netip.Addr, header http.Header, in, out any) (int, wire.Error) {
	g.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		g.t.Fatal(err)
	}
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.RemoteAddr = netip.AddrPortFrom(from, 40000).String()
	r.Header = header
	w := httptest.NewRecorder()
	g.inner.ServeHTTP(w, r)
	var we wire.Error
	if w.Code != http.StatusOK {
		out = &we
	}
	if out != nil {
		if err := json.Unmarshal(w.Body.Bytes(), out); err != nil {
			g.t.Errorf("%s answered %d %q", path, w.Code, w.Body)
		}
	}
	return w.Code, we
}

func (l *laptop) token() http.Header {
	return http.Header{http.CanonicalHeaderKey(wire.TokenHeader): {l.conn.ControlToken}}
}

func (g *gw) refusals(kind audit.Kind) (out []string) {
	g.t.Helper()
	for deadline := time.Now().Add(5 * time.Second); g.audit.Pending() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	err := audit.Scan(g.audit.Path(), func(_ []byte, r *audit.Record) bool {
		if r.Kind == kind {
			out = append(out, r.Reason)
		}
		return true
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

func TestEnrolmentCodes(t *testing.T) {
	g := newGateway(t)
	used := g.code(time.Hour, "")
	var resp wire.EnrollResponse
	first := newKey(t)
	ask := func(code string, k *ecdsa.PrivateKey, serial string) (int, wire.Error) {
		return g.post(wire.PathEnroll, nil, wire.EnrollRequest{Code: code, CSR: csr(t, k), Device: wire.DeviceInfo{Name: "x", OS: "linux", Serial: serial}}, &resp)
	}
	if status, we := ask(used.SecretText(), first, ""); status != http.StatusOK {
		t.Fatalf("%d %+v", status, we)
	}
	device := resp.DeviceID
	if want := store.DeviceOf(used.SecretHash()); device != want {
		t.Errorf("enrolled as %s, and the code is recorded as that of %s", device, want)
	}
	expired := g.code(time.Nanosecond, "")
	g.now.Add(int64(time.Millisecond))
	bound := g.code(time.Hour, "PF3XYZ1")
	for _, c := range []struct {
		name, code, serial string
		key                *ecdsa.PrivateKey
		status             int
		want               string
	}{
		{"unknown", wire.NewCode(g.ca.SPKIHash()).SecretText(), "", newKey(t), 403, "code_unknown"},
		{"damaged", "abc", "", newKey(t), 403, "code_unknown"},
		{"used by another", used.SecretText(), "", newKey(t), 409, "code_used"},
		{"expired", expired.SecretText(), "", newKey(t), 403, "code_expired"},
		{"other serial", bound.SecretText(), "PF3XYZ2", newKey(t), 403, "code_serial"},
		{"key enrolled already", g.code(time.Hour, "").SecretText(), "", first, 409, "key_taken"},
	} {
		status, we := ask(c.code, c.key, c.serial)
		if status != c.status || we.Code != c.want || we.Message == "" || we.Remedy == "" {
			t.Errorf("%s: %d %+v", c.name, status, we)
		}
	}
	if got := strings.Join(g.refusals(audit.KindEnrollRefused), " "); got != "code_unknown code_unknown code_used code_expired code_serial key_taken" {
		t.Errorf("recorded refusals: %s", got)
	}
	// The same caller with the same key lost the answer and asks again.
	if status, we := ask(used.SecretText(), first, ""); status != http.StatusOK || resp.DeviceID != device {
		t.Errorf("a repeated call: %d %+v, device %s, was %s", status, we, resp.DeviceID, device)
	}
	// Long after, the code is no way around a renewal that refuses.
	g.now.Add(int64(11 * time.Minute))
	if status, we := ask(used.SecretText(), first, ""); status != http.StatusConflict || we.Code != "code_used" {
		t.Errorf("a call repeated long after: %d %+v", status, we)
	}
	// The right serial still may.
	if status, we := ask(bound.SecretText(), newKey(t), "PF3XYZ1"); status != http.StatusOK {
		t.Errorf("%d %+v", status, we)
	}
}

func TestBadEnrolmentBodies(t *testing.T) {
	g := newGateway(t)
	code := g.code(time.Hour, "").SecretText()
	other := newKey(t)
	tampered := strings.Replace(csr(t, other), "M", "N", 3)
	for name, body := range map[string]any{
		"not json":      "{",
		"unknown field": `{"code":"x","cssr":"y"}`,
		"two values":    `{} {}`,
		"too large":     `{"code":"` + strings.Repeat("a", wire.MaxBody) + `"}`,
		"no csr":        wire.EnrollRequest{Code: code},
		"tampered csr":  wire.EnrollRequest{Code: code, CSR: tampered},
	} {
		if status, we := g.post(wire.PathEnroll, nil, body, &struct{}{}); status/100 != 4 || (we.Code != "bad_request" && we.Code != "bad_csr") {
			t.Errorf("%s: %d %+v", name, status, we)
		}
	}
	// None of them used the code up.
	var resp wire.EnrollResponse
	if status, we := g.post(wire.PathEnroll, nil, wire.EnrollRequest{Code: code, CSR: csr(t, other)}, &resp); status != http.StatusOK {
		t.Errorf("%d %+v", status, we)
	}
}

func TestOneOfManyRedeems(t *testing.T) {
	g := newGateway(t)
	code := g.code(time.Hour, "").SecretText()
	var won, used atomic.Int32
	var wg sync.WaitGroup
	for range 64 {
		k := newKey(t)
		wg.Go(func() {
			var resp wire.EnrollResponse
			switch status, we := g.post(wire.PathEnroll, nil, wire.EnrollRequest{Code: code, CSR: csr(t, k)}, &resp); {
			case status == http.StatusOK:
				won.Add(1)
			case we.Code == "code_used":
				used.Add(1)
			default:
				t.Errorf("%d %+v", status, we)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || used.Load() != 63 {
		t.Errorf("%d won, %d were told it is used", won.Load(), used.Load())
	}
	devices, err := g.store.Devices(t.Context())
	if err != nil || len(devices) != 1 || devices[0].KeyTier != "software" {
		t.Errorf("devices: %+v %v", devices, err)
	}
}

func TestCertificatesOfOthersAreRefused(t *testing.T) {
	g, foreign := newGateway(t), newGateway(t)
	stranger := foreign.enroll()
	none := &laptop{key: newKey(t)}
	for _, path := range []string{wire.PathConnect, wire.PathRenew} {
		if status, we := g.post(path, nil, struct{}{}, nil); status != 401 || we.Code != "certificate_required" {
			t.Errorf("%s without a certificate: %d %+v", path, status, we)
		}
		if status, we := g.post(path, stranger.tls(t), struct{}{}, nil); status != 401 || we.Code != "certificate_unknown" {
			t.Errorf("%s with another CA's: %d %+v", path, status, we)
		}
	}
	// A certificate of this CA for a device that is not in the store.
	pemCert, _, err := g.ca.IssueDevice("dev-ghost", none.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	none.cert = pemCert
	if status, we := g.connect(none); status != 401 || we.Code != "certificate_unknown" {
		t.Errorf("a ghost: %d %+v", status, we)
	}
	// A certificate of this CA that names an enrolled device, for another key.
	l := g.enroll()
	none.cert, _, err = g.ca.IssueDevice(l.id, none.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	if status, we := g.connect(none); status != 401 || we.Code != "certificate_unknown" {
		t.Errorf("another key for an enrolled device: %d %+v", status, we)
	}
	if got := strings.Join(g.refusals(audit.KindConnectRefused), " "); got != "certificate_required certificate_unknown certificate_required certificate_unknown certificate_unknown certificate_unknown" {
		t.Errorf("recorded refusals: %s", got)
	}
}

// A WebSocket is for the device of a certificate in force, and for no other.
func TestWhoMayOpenAWebSocket(t *testing.T) {
	g, foreign := newGateway(t), newGateway(t)
	l := g.enroll()
	ask := func(cert *tls.Certificate) (int, wire.Error, string) {
		t.Helper()
		var got struct{ Device string }
		status, we := g.send(http.MethodGet, wire.PathTunnel, cert, nil, &got)
		return status, we, got.Device
	}
	if status, we, device := ask(l.tls(t)); status != http.StatusOK || device != l.id {
		t.Errorf("the device itself: %d %+v %q", status, we, device)
	}
	for name, c := range map[string]struct {
		cert *tls.Certificate
		code string
	}{"no certificate": {nil, "certificate_required"}, "another CA's": {foreign.enroll().tls(t), "certificate_unknown"}} {
		if status, we, _ := ask(c.cert); status != 401 || we.Code != c.code {
			t.Errorf("%s: %d %+v", name, status, we)
		}
	}
	g.full.Store(true)
	if status, we, _ := ask(l.tls(t)); status != 503 || !we.Retry {
		t.Errorf("when there is no room: %d %+v", status, we)
	}
	g.full.Store(false)
	many := 0
	for range 60 {
		if status, we, _ := ask(l.tls(t)); status == 429 && we.Code == "too_many_connects" {
			many++
		}
	}
	if many < 25 {
		t.Errorf("%d of 60 at once were refused", many)
	}
	g.now.Add(int64(30 * 24 * time.Hour))
	if status, we, _ := ask(l.tls(t)); status != 401 || we.Code != "certificate_expired" {
		t.Errorf("an expired one: %d %+v", status, we)
	}
	other := g.enroll()
	if _, err := g.store.RevokeDevice(t.Context(), store.Revocation{DeviceID: other.id, Reason: "stolen", By: "os:0:root", At: g.clock()}); err != nil {
		t.Fatal(err)
	}
	if status, we, _ := ask(other.tls(t)); status != 403 || we.Code != "device_revoked" || we.Denial == nil {
		t.Errorf("a revoked one: %d %+v", status, we)
	}
}

func TestExpiredCertificateRenewsItselfOnly(t *testing.T) {
	g := newGateway(t)
	l := g.enroll()
	g.now.Add(int64(30 * 24 * time.Hour))
	if status, we := g.connect(l); status != 401 || we.Code != "certificate_expired" {
		t.Errorf("connecting with an expired certificate: %d %+v", status, we)
	}
	var resp wire.EnrollResponse
	if status, we := g.post(wire.PathRenew, l.tls(t), wire.RenewRequest{CSR: csr(t, newKey(t))}, &resp); status != 400 || we.Code != "bad_csr" {
		t.Errorf("renewing for another key: %d %+v", status, we)
	}
	if status, we := g.post(wire.PathRenew, l.tls(t), wire.RenewRequest{CSR: csr(t, l.key)}, &resp); status != http.StatusOK || resp.DeviceID != l.id {
		t.Fatalf("renewing: %d %+v", status, we)
	}
	l.cert = []byte(resp.Certificate)
	if status, we := g.connect(l); status != http.StatusOK {
		t.Errorf("connecting after renewal: %d %+v", status, we)
	}
	g.now.Add(int64(46 * 24 * time.Hour))
	if status, we := g.post(wire.PathRenew, l.tls(t), wire.RenewRequest{CSR: csr(t, l.key)}, &resp); status != 403 || we.Code != "device_unseen" {
		t.Errorf("after 46 days away: %d %+v", status, we)
	}
}

func TestRevokedDeviceIsToldWhy(t *testing.T) {
	g := newGateway(t)
	l := g.ready()
	if _, err := g.store.RevokeDevice(t.Context(), store.Revocation{DeviceID: l.id, Reason: "stolen", By: "os:0:root", At: g.clock()}); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		body any
	}{{wire.PathConnect, wire.ConnectRequest{}}, {wire.PathRenew, wire.RenewRequest{CSR: csr(t, l.key)}}} {
		status, we := g.post(c.path, l.tls(t), c.body, &struct{}{})
		if status != 403 || we.Code != "device_revoked" || we.Denial == nil || !strings.Contains(we.Denial.Fact.Value, "stolen") {
			t.Errorf("%s: %d %+v", c.path, status, we)
		}
	}
	if got := g.refusals(audit.KindConnectRefused); len(got) != 2 {
		t.Errorf("recorded refusals: %v", got)
	}
}

// A device is refused in the language it asks for.
func TestRefusalsSpeakTheDevicesLanguage(t *testing.T) {
	g := newGateway(t)
	l := g.ready()
	h := l.token()
	h.Set("Accept-Language", "sv-SE,en;q=0.5")
	var d wire.Denial
	if status, we := g.call(http.MethodGet, wire.PathWhy+"?app=nosuch", l.conn.Addresses[0], h, nil, &d); status != http.StatusOK {
		t.Fatalf("why: %d %+v", status, we)
	}
	if want := policy.Reasons[policy.ReasonUnknownApp]["sv"]; d.Message != want.Message || d.Remedy != want.Remedy || d.Reason != "unknown_app" {
		t.Errorf("%+v", d)
	}
	// So is a person whom the identity provider does not answer.
	status, we := g.call(http.MethodPost, wire.PathLogin, l.conn.Addresses[0], h, wire.LoginRequest{RedirectURI: "http://127.0.0.1:1234/callback", OSUser: "1:a"}, &wire.LoginResponse{})
	if want := policy.Reasons[policy.ReasonIDPUnavailable]["sv"]; status != http.StatusServiceUnavailable || !we.Retry || we.Message != want.Message || we.Remedy != want.Remedy {
		t.Errorf("%d %+v", status, we)
	}
}

func TestBadConnects(t *testing.T) {
	g := newGateway(t)
	l := g.enroll()
	for name, req := range map[string]wire.ConnectRequest{
		"no key":    {BootID: "b"},
		"short key": {BootID: "b", TunnelKey: "AAAA"},
		"zero key":  {BootID: "b", TunnelKey: base64.StdEncoding.EncodeToString(make([]byte, 32))},
		// It can never be a peer, and was stored before it was refused.
		"the gateway's": {BootID: "b", TunnelKey: gatewayKey},
		"no boot":       {TunnelKey: base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 32))},
	} {
		if status, we := g.post(wire.PathConnect, l.tls(t), req, &l.conn); status != 400 || we.Code != "bad_request" {
			t.Errorf("%s: %d %+v", name, status, we)
		}
	}
	a, b := g.ready(), g.enroll()
	regs, err := g.store.Registrations(t.Context())
	if err != nil || len(regs) != 1 || regs[0].DeviceID != a.id {
		t.Fatalf("%+v %v", regs, err)
	}
	req := wire.ConnectRequest{BootID: "b", TunnelKey: base64.StdEncoding.EncodeToString(regs[0].TunnelKey[:])}
	if status, we := g.post(wire.PathConnect, b.tls(t), req, &b.conn); status != 409 || we.Code != "key_taken" {
		t.Errorf("another device's tunnel key: %d %+v", status, we)
	}
}

func TestConnectsAreBounded(t *testing.T) {
	g := newGateway(t)
	l, other := g.enroll(), g.enroll()
	for range 30 {
		if status, we := g.connect(l); status != http.StatusOK {
			t.Fatalf("%d %+v", status, we)
		}
	}
	if status, we := g.connect(l); status != http.StatusTooManyRequests || !we.Retry {
		t.Errorf("the 31st connect at once: %d %+v", status, we)
	}
	if status, we := g.connect(other); status != http.StatusOK {
		t.Errorf("another device: %d %+v", status, we)
	}
	g.now.Add(int64(2 * time.Second))
	if status, we := g.connect(l); status != http.StatusOK {
		t.Errorf("two seconds later: %d %+v", status, we)
	}
}

func TestRenewalsAreBounded(t *testing.T) {
	g := newGateway(t)
	l, other := g.enroll(), g.enroll()
	renew := func(l *laptop) (int, wire.Error) {
		return g.post(wire.PathRenew, l.tls(t), wire.RenewRequest{CSR: csr(t, l.key)}, &wire.EnrollResponse{})
	}
	for range 10 {
		if status, we := renew(l); status != http.StatusOK {
			t.Fatalf("%d %+v", status, we)
		}
	}
	if status, we := renew(l); status != http.StatusTooManyRequests || we.Code != "too_many_renewals" || !we.Retry {
		t.Errorf("the 11th renewal at once: %d %+v", status, we)
	}
	if status, we := renew(other); status != http.StatusOK {
		t.Errorf("another device: %d %+v", status, we)
	}
	if status, we := g.connect(l); status != http.StatusOK {
		t.Errorf("connecting meanwhile: %d %+v", status, we)
	}
	g.now.Add(int64(10 * time.Minute))
	if status, we := renew(l); status != http.StatusOK {
		t.Errorf("ten minutes later: %d %+v", status, we)
	}
}

func TestInnerCallsNeedTheTokenAndNoPage(t *testing.T) {
	g := newGateway(t)
	l, other := g.ready(), g.ready()
	own := l.conn.Addresses[0]
	with := func(pairs ...string) http.Header {
		h := l.token()
		for i := 0; i < len(pairs); i += 2 {
			h.Set(pairs[i], pairs[i+1])
		}
		return h
	}
	for name, c := range map[string]struct {
		from   netip.Addr
		header http.Header
		status int
	}{
		"right":              {own, l.token(), 200},
		"right over IPv6":    {l.conn.Addresses[1], l.token(), 200},
		"no token":           {own, http.Header{}, 401},
		"another's token":    {own, other.token(), 401},
		"another's address":  {other.conn.Addresses[0], l.token(), 401},
		"no device there":    {netip.MustParseAddr("100.96.9.9"), l.token(), 401},
		"origin":             {own, with("Origin", "https://evil.example"), 403},
		"null origin":        {own, with("Origin", "null"), 403},
		"fetch metadata":     {own, with("Sec-Fetch-Site", "none"), 403},
		"token in wrong var": {own, http.Header{"Authorization": {"Bearer " + l.conn.ControlToken}}, 401},
	} {
		if status, we := g.call(http.MethodGet, wire.PathState, c.from, c.header, nil, &wire.State{}); status != c.status {
			t.Errorf("%s: %d %+v", name, status, we)
		}
	}
	if status, _ := g.connect(l); status != http.StatusOK {
		t.Fatal("connecting again")
	}
	g.call(http.MethodGet, wire.PathState, own, l.token(), nil, &wire.State{})
	stale := &laptop{conn: wire.ConnectResponse{ControlToken: "AAAA"}}
	if status, _ := g.call(http.MethodGet, wire.PathState, own, stale.token(), nil, nil); status != 401 {
		t.Errorf("a token of before: %d", status)
	}
}

func sign(t *testing.T, k *ecdsa.PrivateKey, report any) wire.SignedReport {
	t.Helper()
	data, err := json.Marshal(report)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	sig, err := ecdsa.SignASN1(rand.Reader, k, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return wire.SignedReport{Report: data, Signature: sig}
}

func TestPostureReports(t *testing.T) {
	g := newGateway(t)
	l, other := g.ready(), g.ready()
	nonce := l.conn.PostureNonce
	report := func() wire.Report {
		return wire.Report{DeviceID: l.id, Nonce: nonce, BootID: "boot", Time: g.clock(), Signals: []wire.Signal{{Name: wire.SignalHostFirewall, State: wire.SignalPass}}}
	}
	post := func(s wire.SignedReport) (int, wire.Error, string) {
		var resp wire.PostureResponse
		status, we := g.call(http.MethodPost, wire.PathPosture, l.conn.Addresses[0], l.token(), s, &resp)
		return status, we, resp.Nonce
	}
	good := sign(t, l.key, report())
	forged := good
	forged.Report = bytes.Replace(good.Report, []byte(`"pass"`), []byte(`"fail"`), 1)
	foreign := report()
	foreign.DeviceID = other.id
	boot := report()
	boot.BootID = "another"
	signal := func(s ...wire.Signal) wire.SignedReport {
		r := report()
		r.Signals = s
		return sign(t, l.key, r)
	}
	for _, c := range []struct {
		name   string
		report wire.SignedReport
		status int
		code   string
	}{
		{"forged", forged, 403, "bad_signature"},
		{"signed by another key", sign(t, other.key, report()), 403, "bad_signature"},
		{"no signature", wire.SignedReport{Report: good.Report}, 403, "bad_signature"},
		{"of another device", sign(t, l.key, foreign), 403, "bad_report"},
		{"unknown member", sign(t, l.key, map[string]any{"device_id": l.id, "root": true}), 400, "bad_report"},
		{"unknown signal", signal(wire.Signal{Name: "mood", State: "pass"}), 400, "bad_report"},
		{"bad state", signal(wire.Signal{Name: wire.SignalHostFirewall, State: "true"}), 400, "bad_report"},
		{"twice", signal(wire.Signal{Name: wire.SignalHostFirewall, State: "pass"}, wire.Signal{Name: wire.SignalHostFirewall, State: "fail"}), 400, "bad_report"},
		{"of the future", signal(wire.Signal{Name: wire.SignalHostFirewall, State: "pass", AgeSeconds: -1}), 400, "bad_report"},
	} {
		if status, we, _ := post(c.report); status != c.status || we.Code != c.code {
			t.Errorf("%s: %d %+v", c.name, status, we)
		}
	}
	// None of those used the nonce up.
	status, we, next := post(good)
	if status != http.StatusOK || next == "" || next == nonce {
		t.Fatalf("a good report: %d %+v %q", status, we, next)
	}
	status, we, _ = post(good)
	if status != 409 || we.Code != "bad_nonce" || we.PostureNonce == "" {
		t.Fatalf("replayed: %d %+v", status, we)
	}
	nonce = we.PostureNonce
	boot.Nonce = nonce
	if status, we, _ = post(sign(t, l.key, boot)); status != 403 || we.PostureNonce == "" {
		t.Fatalf("of another boot: %d %+v", status, we)
	}
	nonce = we.PostureNonce
	if status, we, _ = post(signal(wire.Signal{Name: wire.SignalHostFirewall, State: "pass", AgeSeconds: 91})); status != http.StatusOK {
		t.Fatalf("%d %+v", status, we)
	}
	var st wire.State
	g.call(http.MethodGet, wire.PathState, l.conn.Addresses[0], l.token(), nil, &st)
	if len(st.Posture) != 1 || st.Posture[0].State != wire.SignalUnknown {
		t.Errorf("a signal collected too long ago: %+v", st.Posture)
	}
	if status, we := g.call(http.MethodPost, wire.PathPosture, l.conn.Addresses[0], l.token(), "no report", nil); status != http.StatusBadRequest {
		t.Fatalf("%d %+v", status, we)
	}
	if got := g.refusals(audit.KindPostureRefused); len(got) != 12 {
		t.Errorf("recorded refusals: %v", got)
	}
}

func TestLoginsThatCannotBe(t *testing.T) {
	g := newGateway(t)
	l := g.ready()
	own := l.conn.Addresses[0]
	for _, c := range []struct {
		name   string
		req    wire.LoginRequest
		status int
		code   string
	}{
		{"no os user", wire.LoginRequest{RedirectURI: "http://127.0.0.1:1234/callback"}, 400, "bad_request"},
		{"elsewhere", wire.LoginRequest{RedirectURI: "https://evil.example/callback", OSUser: "1:a"}, 400, "bad_redirect"},
		{"another path", wire.LoginRequest{RedirectURI: "http://127.0.0.1:1234/x", OSUser: "1:a"}, 400, "bad_redirect"},
		{"provider down", wire.LoginRequest{RedirectURI: "http://127.0.0.1:1234/callback", OSUser: "1:a"}, 503, "idp_unavailable"},
	} {
		if status, we := g.call(http.MethodPost, wire.PathLogin, own, l.token(), c.req, &wire.LoginResponse{}); status != c.status || we.Code != c.code {
			t.Errorf("%s: %d %+v", c.name, status, we)
		}
	}
	if status, we := g.call(http.MethodPost, wire.PathLoginComplete, own, l.token(), wire.LoginComplete{State: "made up", Code: "x"}, &wire.State{}); status != 403 || we.Code != "unknown_state" {
		t.Errorf("a made-up state: %d %+v", status, we)
	}
	if got := strings.Join(g.refusals(audit.KindLoginRefused), " "); got != "bad_redirect bad_redirect idp_unavailable unknown_state" {
		t.Errorf("recorded refusals: %s", got)
	}
}

func TestNothingIsGrantedWithoutARecord(t *testing.T) {
	g := newGateway(t)
	l := g.enroll()
	code := g.code(time.Hour, "").SecretText()
	if err := g.audit.Close(); err != nil {
		t.Fatal(err)
	}
	var resp wire.EnrollResponse
	if status, we := g.post(wire.PathEnroll, nil, wire.EnrollRequest{Code: code, CSR: csr(t, newKey(t))}, &resp); status != 503 || !we.Retry || resp.Certificate != "" {
		t.Errorf("enrolling: %d %+v", status, we)
	}
	if status, we := g.post(wire.PathRenew, l.tls(t), wire.RenewRequest{CSR: csr(t, l.key)}, &resp); status != 503 || resp.Certificate != "" {
		t.Errorf("renewing: %d %+v", status, we)
	}
	if status, we := g.connect(l); status != 503 || l.conn.ControlToken != "" {
		t.Errorf("connecting: %d %+v", status, we)
	}
}
