// Package twin is a small real gateway for the agent's tests: TLS with the
// internal CA on the public side, and the control API as plain HTTP where the
// tunnel would end. It decides nothing; a test sets what it answers.
package twin

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/internal/wire"
)

// Gateway is the twin. Its fields may be changed with [Gateway.Set] only.
type Gateway struct {
	CA      *certs.CA
	URL     string
	Control string // host:port of the control API

	mu        sync.Mutex
	clock     func() time.Time
	codes     map[[32]byte]string // code hash -> device that used it, "" while unused
	keys      map[[32]byte]string // SPKI hash -> device
	pubs      map[string]*ecdsa.PublicKey
	refuse    map[string]*wire.Error // by path
	loseNext  int                    // answers of enroll to lose
	token     int
	nonce     int
	state     wire.State
	osUser    string // of the login under way
	watch     map[chan wire.Event]struct{}
	mute      bool // no heartbeats
	reports   []wire.Report
	connects  []wire.ConnectRequest
	renewals  int
	completed []wire.LoginComplete
	languages []string // asked for on the public side
	closed    chan struct{}
}

// New starts a twin that ends with the test. now may be nil.
func New(t testing.TB, now func() time.Time) *Gateway {
	t.Helper()
	if now == nil {
		now = time.Now
	}
	ca, err := certs.OpenCA(certs.CAConfig{Dir: t.TempDir() + "/ca", Now: now})
	if err != nil {
		t.Fatal(err)
	}
	g := &Gateway{
		CA: ca, clock: now, codes: map[[32]byte]string{}, keys: map[[32]byte]string{}, pubs: map[string]*ecdsa.PublicKey{},
		refuse: map[string]*wire.Error{}, watch: map[chan wire.Event]struct{}{}, closed: make(chan struct{}),
	}
	public := httptest.NewUnstartedServer(http.HandlerFunc(g.public))
	public.TLS = &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequestClientCert, Time: now,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return ca.ServerCertificate([]string{wire.InternalName}, nil)
		},
	}
	public.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose
	public.StartTLS()
	control := httptest.NewServer(http.HandlerFunc(g.control))
	t.Cleanup(func() {
		close(g.closed)
		public.CloseClientConnections()
		public.Close()
		control.CloseClientConnections()
		control.Close()
	})
	g.URL, g.Control = public.URL, control.Listener.Addr().String()
	return g
}

// Code makes an enrolment code.
func (g *Gateway) Code() wire.Code {
	c := wire.NewCode(g.CA.SPKIHash())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.codes[c.SecretHash()] = ""
	return c
}

// Refuse makes the endpoint answer e until it is nil again.
func (g *Gateway) Refuse(path string, e *wire.Error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse[path] = e
}

// LoseAnswers breaks the connection instead of answering the next n enrolments,
// after they were carried out.
func (g *Gateway) LoseAnswers(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.loseNext = n
}

// SetState makes s the State and tells it to every stream.
func (g *Gateway) SetState(change func(*wire.State)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.state)
	g.state.Epoch++
	g.state.Time = g.clock()
	s := g.state
	for c := range g.watch {
		c <- wire.Event{Type: wire.EventState, State: &s}
	}
}

// NextState changes the State and tells nobody: the next answer has it.
func (g *Gateway) NextState(change func(*wire.State)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(&g.state)
}

// Revoke refuses the device from now on and tells every stream.
func (g *Gateway) Revoke(d *wire.Denial) {
	e := &wire.Error{Code: d.Reason, Message: d.Message, Remedy: d.Remedy, Denial: d}
	g.Refuse(wire.PathConnect, e)
	g.Refuse(wire.PathRenew, e)
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.watch {
		c <- wire.Event{Type: wire.EventRevoked, Denial: d}
	}
}

// reset is the event that is none: the connection breaks off.
const reset = "reset"

// Restart forgets what a gateway forgets that is killed and started again: every
// connection breaks off, the nonce is another one, and epochs begin anew.
func (g *Gateway) Restart(change func(*wire.State)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nonce++
	g.state.Epoch = 1
	change(&g.state)
	for c := range g.watch {
		select {
		case c <- wire.Event{Type: reset}:
		default:
		}
	}
}

// Mute stops the heartbeats of event streams.
func (g *Gateway) Mute(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mute = on
}

// SpendNonce makes the nonce the agent holds a used one.
func (g *Gateway) SpendNonce() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.nonce++
}

// DropTokens makes every control token an unknown one.
func (g *Gateway) DropTokens() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.token++
}

// Seen returns copies of what agents sent so far.
func (g *Gateway) Seen() (reports []wire.Report, connects []wire.ConnectRequest, renewals int, completed []wire.LoginComplete) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append(reports, g.reports...), append(connects, g.connects...), g.renewals, append(completed, g.completed...)
}

// Languages returns what each call on the public side asked for, in order.
func (g *Gateway) Languages() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.languages...)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

func fail(w http.ResponseWriter, status int, e *wire.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(e)
}

func (g *Gateway) public(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.languages = append(g.languages, r.Header.Get("Accept-Language"))
	if e := g.refuse[r.URL.Path]; e != nil {
		fail(w, http.StatusForbidden, e)
		return
	}
	switch r.URL.Path {
	case wire.PathEnroll:
		g.enroll(w, r)
	case wire.PathRenew, wire.PathConnect:
		id, err := g.CA.VerifyDevice(r.TLS.PeerCertificates)
		if err != nil || g.keys[id.KeyHash] != id.DeviceID {
			fail(w, http.StatusUnauthorized, &wire.Error{Code: "certificate_unknown", Message: fmt.Sprint(err)})
			return
		}
		if r.URL.Path == wire.PathRenew {
			g.renew(w, r, id)
			return
		}
		g.connect(w, r, id)
	default:
		http.NotFound(w, r)
	}
}

func (g *Gateway) enroll(w http.ResponseWriter, r *http.Request) {
	var req wire.EnrollRequest
	hash, pub, ok := [32]byte{}, (*ecdsa.PublicKey)(nil), false
	if json.NewDecoder(r.Body).Decode(&req) == nil {
		var err error
		if hash, err = wire.ParseSecret(req.Code); err == nil {
			pub, err = certs.ParseCSR(req.CSR)
		}
		ok = err == nil
	}
	used, known := g.codes[hash]
	if !ok || !known {
		fail(w, http.StatusForbidden, &wire.Error{Code: "code_unknown", Message: "The enrolment code is not one of this gateway's.", Remedy: "Ask IT for a new one."})
		return
	}
	key, _ := certs.KeyHash(pub)
	device := g.keys[key]
	switch {
	case used != "" && used == device: // the same laptop again
	case used != "":
		fail(w, http.StatusConflict, &wire.Error{Code: "code_used", Message: "The enrolment code was used already.", Remedy: "Ask IT for a new code."})
		return
	case device != "":
		fail(w, http.StatusConflict, &wire.Error{Code: "key_taken", Message: "This device key is enrolled already."})
		return
	default:
		device = "dev-" + strconv.Itoa(len(g.keys)+1)
		g.keys[key], g.pubs[device], g.codes[hash] = device, pub, device
	}
	if g.loseNext > 0 {
		g.loseNext--
		panic(http.ErrAbortHandler)
	}
	g.issue(w, device)
}

func (g *Gateway) issue(w http.ResponseWriter, device string) {
	cert, notAfter, err := g.CA.IssueDevice(device, g.pubs[device])
	if err != nil {
		fail(w, http.StatusInternalServerError, &wire.Error{Code: "unavailable", Message: err.Error()})
		return
	}
	answer(w, wire.EnrollResponse{DeviceID: device, Certificate: string(cert), CA: string(g.CA.RootPEM()), NotAfter: notAfter})
}

func (g *Gateway) renew(w http.ResponseWriter, r *http.Request, id certs.DeviceIdentity) {
	var req wire.RenewRequest
	if json.NewDecoder(r.Body).Decode(&req) != nil {
		fail(w, http.StatusBadRequest, &wire.Error{Code: "bad_request", Message: "no JSON"})
		return
	}
	pub, err := certs.ParseCSR(req.CSR)
	if err != nil || !pub.Equal(g.pubs[id.DeviceID]) {
		fail(w, http.StatusBadRequest, &wire.Error{Code: "bad_csr", Message: "another key"})
		return
	}
	g.renewals++
	g.issue(w, id.DeviceID)
}

func (g *Gateway) connect(w http.ResponseWriter, r *http.Request, id certs.DeviceIdentity) {
	if id.Expired {
		fail(w, http.StatusUnauthorized, &wire.Error{Code: "certificate_expired", Message: "The device's certificate has expired."})
		return
	}
	var req wire.ConnectRequest
	if json.NewDecoder(r.Body).Decode(&req) != nil {
		fail(w, http.StatusBadRequest, &wire.Error{Code: "bad_request", Message: "no JSON"})
		return
	}
	g.connects = append(g.connects, req)
	g.token++
	key := sha256.Sum256([]byte("gateway"))
	answer(w, wire.ConnectResponse{
		DeviceID: id.DeviceID, Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.20"), netip.MustParseAddr("fd00::20")},
		Gateway: wire.GatewayTunnel{
			TunnelKey: base64.StdEncoding.EncodeToString(key[:]), Endpoints: []string{":51820"},
			Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")},
		},
		PresharedKey: base64.StdEncoding.EncodeToString(key[:]), PostQuantum: r.TLS.CurveID == tls.X25519MLKEM768,
		ControlToken: "token-" + strconv.Itoa(g.token), ExpiresAt: g.clock().Add(12 * time.Hour),
		PostureNonce: g.nonceText(), MTU: 1280,
	})
}

func (g *Gateway) nonceText() string { return "nonce-" + strconv.Itoa(g.nonce) }

func (g *Gateway) control(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == wire.PathEvents && g.authorized(w, r) {
		g.events(w, r)
		return
	}
	if !g.authorized(w, r) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if e := g.refuse[r.URL.Path]; e != nil {
		fail(w, http.StatusForbidden, e)
		return
	}
	switch r.URL.Path {
	case wire.PathState:
		answer(w, g.state)
	case wire.PathRegistration:
		answer(w, wire.RegistrationResponse{ExpiresAt: g.clock().Add(12 * time.Hour)})
	case wire.PathLogin:
		var req wire.LoginRequest
		json.NewDecoder(r.Body).Decode(&req)
		g.osUser = req.OSUser
		answer(w, wire.LoginResponse{URL: "https://idp.example/auth?state=s1&redirect_uri=" + req.RedirectURI + "&user=" + req.OSUser, ExpiresAt: g.clock().Add(time.Minute)})
	case wire.PathLoginComplete:
		var req wire.LoginComplete
		json.NewDecoder(r.Body).Decode(&req)
		g.completed = append(g.completed, req)
		g.state.Epoch++
		g.state.Session = &wire.Session{ID: "s-1", Subject: "https://idp#anna", Name: "Anna", OSUser: g.osUser, ExpiresAt: g.clock().Add(time.Hour)}
		answer(w, g.state)
	case wire.PathLogout:
		g.state.Epoch++
		g.state.Session = nil
		answer(w, g.state)
	case wire.PathPosture:
		g.posture(w, r)
	case wire.PathWhy:
		answer(w, wire.Denial{Decision: "d-1", Reason: "login_required", Message: "You are not logged in.", Remedy: "Log in with: portvakt-agent login", App: r.URL.Query().Get("app")})
	default:
		http.NotFound(w, r)
	}
}

func (g *Gateway) authorized(w http.ResponseWriter, r *http.Request) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Header.Get(wire.TokenHeader) == "token-"+strconv.Itoa(g.token) && r.Header.Get("Origin") == "" {
		return true
	}
	fail(w, http.StatusUnauthorized, &wire.Error{Code: "bad_token", Message: "The control token is not this connection's."})
	return false
}

// posture checks the report as a gateway does.
func (g *Gateway) posture(w http.ResponseWriter, r *http.Request) {
	var signed wire.SignedReport
	var report wire.Report
	if json.NewDecoder(r.Body).Decode(&signed) != nil || wire.DecodeStrict(signed.Report, &report) != nil {
		fail(w, http.StatusBadRequest, &wire.Error{Code: "bad_request", Message: "no report"})
		return
	}
	sum := sha256.Sum256(signed.Report)
	pub := g.pubs[report.DeviceID]
	if pub == nil || !ecdsa.VerifyASN1(pub, sum[:], signed.Signature) {
		fail(w, http.StatusForbidden, &wire.Error{Code: "bad_signature", Message: "not signed with the device's key"})
		return
	}
	if report.Nonce != g.nonceText() {
		fail(w, http.StatusConflict, &wire.Error{Code: "bad_nonce", Message: "the nonce was used", PostureNonce: g.nonceText()})
		return
	}
	g.nonce++
	g.reports = append(g.reports, report)
	answer(w, wire.PostureResponse{Nonce: g.nonceText()})
}

func (g *Gateway) events(w http.ResponseWriter, r *http.Request) {
	c := make(chan wire.Event, 64)
	g.mu.Lock()
	s := g.state
	c <- wire.Event{Type: wire.EventState, State: &s}
	g.watch[c] = struct{}{}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.watch, c)
		g.mu.Unlock()
	}()
	beat := time.NewTicker(50 * time.Millisecond)
	defer beat.Stop()
	out, flush := json.NewEncoder(w), http.NewResponseController(w)
	for {
		e := wire.Event{Type: wire.EventHeartBeat}
		select {
		case <-r.Context().Done():
			return
		case <-g.closed:
			return
		case e = <-c:
		case <-beat.C:
			g.mu.Lock()
			mute := g.mute
			g.mu.Unlock()
			if mute {
				continue
			}
		}
		if e.Type == reset {
			if c, _, err := flush.Hijack(); err == nil {
				_ = c.(*net.TCPConn).SetLinger(0)
				_ = c.Close()
			}
			return
		}
		if out.Encode(e) != nil || flush.Flush() != nil {
			return
		}
	}
}

// Dial opens a TCP connection to the control API, whatever the address, as a
// tunnel to this gateway would.
func (g *Gateway) Dial() (net.Conn, error) { return net.Dial("tcp", g.Control) }
