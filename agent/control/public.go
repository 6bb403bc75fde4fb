// Package control is the agent's side of the API that agents and gateways
// speak: [Public] on the gateway's public TLS port, [Client] on its own address
// inside the tunnel. Both turn every answer that is not 2xx into a
// *[wire.Error].
package control

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coder/websocket"
	"golang.org/x/net/http/httpproxy"

	"github.com/portvakt/portvakt/internal/transport"
	"github.com/portvakt/portvakt/internal/wire"
)

const (
	dialTimeout   = 10 * time.Second
	publicTimeout = 30 * time.Second
	maxAnswer     = 1 << 20
)

// PublicConfig says which gateway to speak to and how to know it.
type PublicConfig struct {
	// URL is https://host[:port], nothing more.
	URL string
	// CAHash is the SHA-256 of the internal CA's SubjectPublicKeyInfo. The
	// gateway is known by it alone: the public PKI is not asked.
	CAHash [32]byte
	// Certificate is the device's; nil before enrolment.
	Certificate *tls.Certificate
	// OwnProxy is the agent's own proxy, host:port. The environment's
	// HTTPS_PROXY is used unless it is that one.
	OwnProxy string
	// Language is what refusals are asked for in, as in Accept-Language; empty
	// is the gateway's choice.
	Language string
	// Dial replaces the network in tests; nil dials directly.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is the laptop's clock; nil means time.Now.
	Now func() time.Time
}

// Public is a client of the public TLS port.
type Public struct {
	base *url.URL
	http *http.Client
	head http.Header
	// stream is http for WebSockets.
	stream *http.Client

	mu     sync.Mutex
	remote netip.AddrPort // guarded by mu: where the last connection went
	curve  tls.CurveID    // guarded by mu: the last connection's key exchange
}

// ParseURL reads a gateway's URL and returns it as https://host[:port]. Its
// errors are meant for the person who typed it.
func ParseURL(text string) (*url.URL, error) {
	s := strings.TrimSpace(text)
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil || u.Hostname() == "" || u.Opaque != "" {
		return nil, fmt.Errorf("%q is not a gateway's address; it looks like https://gateway.example.com", text)
	}
	if u.Scheme != "https" {
		return nil, fmt.Errorf("the gateway's address %q must begin with https://", text)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") != "" {
		return nil, fmt.Errorf("the gateway's address %q must be only https://host or https://host:port", text)
	}
	return &url.URL{Scheme: "https", Host: strings.ToLower(u.Host)}, nil
}

// NewPublic checks the URL; it opens nothing.
func NewPublic(cfg PublicConfig) (*Public, error) {
	base, err := ParseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	now := cfg.Now
	if now == nil {
		now = time.Now
	}
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	p := &Public{base: base, head: speaking(http.Header{}, cfg.Language)}
	conf := &tls.Config{
		NextProtos: []string{"http/1.1"},
		MinVersion: tls.VersionTLS13,
		ServerName: wire.InternalName,
		// The check is VerifyConnection's: the root is known by the hash of
		// its key and by nothing else.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			p.mu.Lock()
			p.curve = cs.CurveID
			p.mu.Unlock()
			return verifyGateway(cs.PeerCertificates, cfg.CAHash, base.Hostname(), now())
		},
	}
	if cfg.Certificate != nil {
		// Sent whatever CAs the gateway lists: an expired certificate must
		// still arrive, since it authenticates its own renewal.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return cfg.Certificate, nil
		}
	}
	direct := base.Host
	if base.Port() == "" {
		direct = net.JoinHostPort(base.Hostname(), "443")
	}
	// A redirect would carry the code or the CSR elsewhere.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	road := &http.Transport{
		Proxy:               environmentProxy(cfg.OwnProxy),
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: dialTimeout,
		OnProxyConnectResponse: func(_ context.Context, proxy *url.URL, _ *http.Request, res *http.Response) error {
			if res.StatusCode != http.StatusOK {
				return &ProxyError{Proxy: proxy.Host, Status: res.StatusCode}
			}
			return nil
		},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err == nil && address == direct { // not a proxy
				p.note(c.RemoteAddr())
			}
			return c, err
		},
	}
	p.http = &http.Client{Timeout: publicTimeout, Transport: road, CheckRedirect: stay}
	stream := road.Clone()
	stream.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := road.DialContext(ctx, network, address)
		if err == nil {
			transport.KeepShort(c)
		}
		return c, err
	}
	p.stream = &http.Client{Transport: stream, CheckRedirect: stay}
	return p, nil
}

// environmentProxy is for [http.Transport]: the proxy that the environment names,
// but never own, which leads through the tunnel that is to be built, whatever it
// is called there.
func environmentProxy(own string) func(*http.Request) (*url.URL, error) {
	ask := httpproxy.FromEnvironment().ProxyFunc()
	_, port, _ := net.SplitHostPort(own)
	return func(r *http.Request) (*url.URL, error) {
		u, err := ask(r.URL)
		if u != nil && port != "" && u.Port() == port && thisLaptop(u.Hostname()) {
			return nil, nil
		}
		return u, err
	}
}

// thisLaptop says whether a host of a URL is the loopback (RFC 6761 section 6.3).
func thisLaptop(host string) bool {
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().IsLoopback()
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// Tunnel opens a WebSocket for the tunnel's datagrams. ctx bounds the opening,
// life the WebSocket.
func (p *Public) Tunnel(ctx, life context.Context) (*transport.Stream, error) {
	c, res, err := websocket.Dial(ctx, p.base.JoinPath(wire.PathTunnel).String(), &websocket.DialOptions{
		HTTPClient: p.stream, HTTPHeader: p.head, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if res != nil && res.StatusCode/100 != 2 && res.Body != nil {
			data, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
			return nil, refusal(res, data)
		}
		return nil, fmt.Errorf("calling the gateway: %w", err)
	}
	key, err := transport.ParseProbeKey(res.Header.Get(transport.ProbeHeader))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reading the gateway's answer: %w", err), c.CloseNow())
	}
	return transport.NewStream(life, c, p.Remote(), key), nil
}

func (p *Public) note(a net.Addr) {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return
	}
	p.mu.Lock()
	p.remote = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	p.mu.Unlock()
}

// Remote returns the address the last connection reached, so that the tunnel
// can go to the one of several that is known to work.
func (p *Public) Remote() netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.remote
}

// Host returns the host of the gateway's URL.
func (p *Public) Host() string { return p.base.Hostname() }

// Close lets go of idle connections.
func (p *Public) Close() {
	p.http.CloseIdleConnections()
	p.stream.CloseIdleConnections()
}

// Enroll redeems an enrolment code.
func (p *Public) Enroll(ctx context.Context, req wire.EnrollRequest) (*wire.EnrollResponse, error) {
	return post[wire.EnrollResponse](ctx, p.http, p.base.JoinPath(wire.PathEnroll), p.head, req)
}

// Renew asks for a new certificate for the same key.
func (p *Public) Renew(ctx context.Context, req wire.RenewRequest) (*wire.EnrollResponse, error) {
	return post[wire.EnrollResponse](ctx, p.http, p.base.JoinPath(wire.PathRenew), p.head, req)
}

// Connect registers a fresh tunnel key.
func (p *Public) Connect(ctx context.Context, req wire.ConnectRequest) (*wire.ConnectResponse, error) {
	out, err := post[wire.ConnectResponse](ctx, p.http, p.base.JoinPath(wire.PathConnect), p.head, req)
	if err != nil {
		return nil, err
	}
	// A gateway cannot make more of this connection than it was.
	p.mu.Lock()
	out.PostQuantum = out.PostQuantum && p.curve == tls.X25519MLKEM768
	p.mu.Unlock()
	return out, nil
}

// ProxyError says that the environment's proxy does not carry connections to the
// gateway.
type ProxyError struct {
	Proxy  string // host:port
	Status int    // of its answer
}

// Error returns one sentence for the person at the laptop.
func (e *ProxyError) Error() string {
	return fmt.Sprintf("The web proxy %s, which HTTPS_PROXY names for this laptop, does not let it through to the gateway (%d %s)", e.Proxy, e.Status, http.StatusText(e.Status))
}

// UntrustedError says that whoever answered is not the gateway.
type UntrustedError struct {
	Cause string
	// Inspector is who issued the certificate, when it claims to be the
	// gateway's: a device on the way that opens TLS connections. Empty if it is
	// just somebody else's.
	Inspector string
}

// Error returns one sentence for the person at the laptop.
func (e *UntrustedError) Error() string {
	return "whoever answered is not the gateway this laptop knows: " + e.Cause
}

// ClockError says that the gateway is the right one but its certificate is not
// valid at what this laptop takes for now.
type ClockError struct {
	Now, NotBefore, NotAfter time.Time
}

// Error returns one sentence with the three times.
func (e *ClockError) Error() string {
	const f = "2006-01-02 15:04 MST"
	return fmt.Sprintf("check this laptop's clock: it says %s, but the gateway's certificate is valid from %s to %s",
		e.Now.UTC().Format(f), e.NotBefore.UTC().Format(f), e.NotAfter.UTC().Format(f))
}

// SPKIHash returns the SHA-256 of a certificate's SubjectPublicKeyInfo.
func SPKIHash(c *x509.Certificate) [32]byte { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func verifyGateway(chain []*x509.Certificate, caHash [32]byte, host string, now time.Time) error {
	if len(chain) < 2 {
		return &UntrustedError{"it did not show the certificate of your company's Portvakt", inspector(chain, host)}
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	var root *x509.Certificate
	for _, c := range chain[1:] {
		// Anyone can wrap the CA's public key in a certificate of their own;
		// only the CA itself can sign one with it.
		if SPKIHash(c) == caHash && c.IsCA && c.CheckSignatureFrom(c) == nil {
			root = c
			roots.AddCert(c)
		} else {
			between.AddCert(c)
		}
	}
	if root == nil {
		return &UntrustedError{"it belongs to another CA than the code or the enrolment names", inspector(chain, host)}
	}
	opts := x509.VerifyOptions{
		Roots: roots, Intermediates: between, DNSName: wire.InternalName, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	_, err := chain[0].Verify(opts)
	if err == nil {
		return nil
	}
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		// Only a chain that is right but for the time is a matter of clocks.
		e := &ClockError{Now: now, NotBefore: chain[0].NotBefore, NotAfter: chain[0].NotAfter}
		if root.NotBefore.After(e.NotBefore) {
			e.NotBefore = root.NotBefore
		}
		if root.NotAfter.Before(e.NotAfter) {
			e.NotAfter = root.NotAfter
		}
		opts.CurrentTime = e.NotBefore
		if _, err := chain[0].Verify(opts); err == nil {
			return e
		}
	}
	return &UntrustedError{Cause: err.Error()}
}

// inspector is the issuer of a certificate that was made for the gateway's name
// by another CA: who opens TLS connections makes one for every name that is
// asked for, and for the internal one nobody else does.
func inspector(chain []*x509.Certificate, host string) string {
	if len(chain) == 0 || (chain[0].VerifyHostname(wire.InternalName) != nil && chain[0].VerifyHostname(host) != nil) {
		return ""
	}
	issuer := chain[0].Issuer
	for _, name := range []string{issuer.CommonName, strings.Join(issuer.Organization, " "), issuer.String()} {
		if name != "" {
			return name
		}
	}
	return "an unnamed CA"
}

// post sends one JSON body and reads one JSON answer.
func post[T any](ctx context.Context, c *http.Client, u *url.URL, head http.Header, body any) (*T, error) {
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("writing the request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("writing the request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	return call[T](c, req, head)
}

func call[T any](c *http.Client, req *http.Request, head http.Header) (*T, error) {
	for k, v := range head {
		req.Header[k] = v
	}
	req.Header.Set("Accept", "application/json")
	res, err := c.Do(req)
	if err != nil {
		return nil, fmt.Errorf("calling the gateway: %w", err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("reading the gateway's answer: %w", err)
	}
	if len(data) > maxAnswer {
		return nil, errors.New("reading the gateway's answer: it is too long")
	}
	if res.StatusCode/100 != 2 {
		return nil, refusal(res, data)
	}
	// Unknown members are let through: a gateway may be newer than its agents.
	out := new(T)
	if err := json.Unmarshal(data, out); err != nil {
		return nil, fmt.Errorf("reading the gateway's answer: %w", err)
	}
	return out, nil
}

// StatusError is an answer that is not 2xx. It unwraps to the *[wire.Error] of
// its body.
type StatusError struct {
	Status int
	Err    *wire.Error
}

// Error returns the gateway's sentence.
func (e *StatusError) Error() string { return e.Err.Error() }

// Unwrap returns the *[wire.Error].
func (e *StatusError) Unwrap() error { return e.Err }

func refusal(res *http.Response, data []byte) error {
	e := new(wire.Error)
	if json.Unmarshal(data, e) != nil || e.Code == "" {
		e = &wire.Error{
			Code:    "bad_answer",
			Message: fmt.Sprintf("The gateway answered %s without saying why.", res.Status),
			Retry:   res.StatusCode >= 500,
		}
	}
	return &StatusError{Status: res.StatusCode, Err: e}
}
