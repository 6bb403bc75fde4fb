// Package identity is the gateway's OIDC relying party: it starts logins,
// keeps their state, nonce and PKCE verifier, and turns the identity
// provider's answer into a verified Subject. No token outlives Finish.
package identity

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"github.com/portvakt/portvakt/policy"
)

// httpTimeout bounds one exchange with the identity provider, body included.
const httpTimeout = 10 * time.Second

// maxBody bounds what is read of any answer of the identity provider, in bytes.
const maxBody = 1 << 20

// Config says who the identity provider is and what to take from it.
type Config struct {
	// Issuer is the provider's issuer URL, exactly as its discovery document
	// and tokens have it. https, or http on a loopback address.
	Issuer   string
	ClientID string
	// ClientSecretFile holds the client secret; empty means a public client.
	ClientSecretFile string
	// Scopes default to openid profile email groups. openid is always sent.
	Scopes []string
	// GroupsClaim names the ID token claim with the groups; default "groups".
	GroupsClaim string
	// NameClaim names the claim with the person's name; default "name", and
	// preferred_username stands in when it is absent.
	NameClaim string
	// KeepClaims are further claims to keep in Subject.Claims.
	KeepClaims []string
	// Algorithms an ID token may be signed with; default RS256, ES256.
	Algorithms []string
	// RedirectPorts are the only loopback ports a redirect may name; empty
	// means any.
	RedirectPorts []uint16
	// CAFile holds the roots (PEM) of a private identity provider; without it
	// the system's are used.
	CAFile string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

// algorithms are the ones that may be configured: asymmetric only, so that no
// public key can serve as a shared secret.
var algorithms = []string{
	oidc.RS256, oidc.RS384, oidc.RS512, oidc.PS256, oidc.PS384, oidc.PS512,
	oidc.ES256, oidc.ES384, oidc.ES512, oidc.EdDSA,
}

// Provider is one identity provider. It is safe for concurrent use and owns no
// goroutine. The provider is asked for its configuration at a login, and by Run.
type Provider struct {
	cfg     Config
	secret  string
	now     func() time.Time
	log     *slog.Logger
	client  *http.Client
	looker  *http.Client // every request on a connection of its own
	pending pendingTable
	flight  singleflight.Group
	disc    discovery
	seen    seenLogouts

	// bound is how long a login waits to learn whether the provider answers.
	bound func(context.Context) (context.Context, context.CancelFunc)
}

// New checks the configuration and reads the files it names. It does not use
// the network: a gateway starts while its identity provider is down.
func New(cfg Config) (*Provider, error) {
	p := &Provider{cfg: cfg, now: cfg.Now, log: cfg.Log}
	if p.now == nil {
		p.now = time.Now
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if err := checkURL(cfg.Issuer); err != nil {
		return nil, fmt.Errorf("identity provider: issuer: %w", err)
	}
	if cfg.ClientID == "" {
		return nil, errors.New("identity provider: no client id is given")
	}
	if len(cfg.Scopes) == 0 {
		p.cfg.Scopes = []string{oidc.ScopeOpenID, "profile", "email", "groups"}
	} else if !slices.Contains(cfg.Scopes, oidc.ScopeOpenID) {
		p.cfg.Scopes = append([]string{oidc.ScopeOpenID}, cfg.Scopes...)
	}
	if cfg.GroupsClaim == "" {
		p.cfg.GroupsClaim = "groups"
	}
	if cfg.NameClaim == "" {
		p.cfg.NameClaim = "name"
	}
	if len(cfg.Algorithms) == 0 {
		p.cfg.Algorithms = []string{oidc.RS256, oidc.ES256}
	}
	for _, a := range p.cfg.Algorithms {
		if !slices.Contains(algorithms, a) {
			return nil, fmt.Errorf("identity provider: algorithm %q is not one of %s", a, strings.Join(algorithms, ", "))
		}
	}
	if slices.Contains(cfg.RedirectPorts, 0) {
		return nil, errors.New("identity provider: 0 is no redirect port")
	}
	var err error
	if cfg.ClientSecretFile != "" {
		if p.secret, err = readSecret(cfg.ClientSecretFile); err != nil {
			return nil, fmt.Errorf("identity provider: reading the client secret: %w", err)
		}
	}
	if p.client, p.looker, err = newClients(cfg.CAFile); err != nil {
		return nil, fmt.Errorf("identity provider: reading its roots: %w", err)
	}
	p.bound = func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, lookTimeout)
	}
	p.pending.init()
	return p, nil
}

// checkURL takes https URLs, and http ones whose host is this machine, where
// nobody can listen in.
func checkURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || u.RawQuery != "" {
		return fmt.Errorf("%q is not a plain URL", s)
	}
	switch u.Scheme {
	case "https":
		return nil
	case "http":
		if a, err := netip.ParseAddr(u.Hostname()); u.Hostname() == "localhost" || err == nil && a.Unmap().IsLoopback() {
			return nil
		}
		return fmt.Errorf("%q must be https (http is for loopback addresses only)", s)
	}
	return fmt.Errorf("%q must begin with https://", s)
}

func readSecret(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("everyone may read %s (mode %04o). Run: chmod o= %s", path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return s, nil
}

// newClients returns a client for the provider, and one that makes a connection
// for each request: an idle one does not tell that the provider still lives.
func newClients(caFile string) (client, looker *http.Client, err error) {
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: httpTimeout,
		MaxIdleConnsPerHost:   2,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
	}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, nil, fmt.Errorf("%s holds no PEM certificate", caFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	fresh := t.Clone()
	fresh.DisableKeepAlives = true
	// None of the endpoints may redirect, and a code or secret must not follow one.
	stay := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &http.Client{Transport: capped{t}, Timeout: httpTimeout, CheckRedirect: stay},
		&http.Client{Transport: fresh, CheckRedirect: stay}, nil
}

// capped fails the reading of a body that is longer than maxBody.
type capped struct{ next http.RoundTripper }

func (c capped) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &cappedBody{ReadCloser: resp.Body, left: maxBody}
	return resp, nil
}

type cappedBody struct {
	io.ReadCloser
	left int64
}

func (b *cappedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, fmt.Errorf("the answer is larger than %d bytes", maxBody)
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return n, fmt.Errorf("the answer is larger than %d bytes", maxBody)
	}
	return n, err
}

// Begin is what a device asks for when its OS user wants to log in.
type Begin struct {
	DeviceID, OSUser string
	// RedirectURI is the agent's listener, http://127.0.0.1:PORT/callback.
	RedirectURI string
}

// Begin starts a login and returns the page to open and when the login runs
// out. The login is bound to device and OS user and can be finished once. A
// provider that does not answer now is said here, and not by a dead page. Its
// errors are of type *[Error].
func (p *Provider) Begin(ctx context.Context, b Begin) (authURL string, expires time.Time, err error) {
	if err := p.checkRedirect(b.RedirectURI); err != nil {
		return "", time.Time{}, err
	}
	if err := p.answers(ctx); err != nil {
		return "", time.Time{}, err
	}
	d, err := p.discover(ctx)
	if err != nil {
		return "", time.Time{}, err
	}
	l := &login{
		nonce: random(), verifier: oauth2.GenerateVerifier(),
		osUser: b.OSUser, redirect: b.RedirectURI,
	}
	key := pendingKey{device: b.DeviceID, state: random()}
	expires, err = p.pending.add(key, l, p.now())
	if err != nil {
		return "", time.Time{}, err
	}
	return p.oauth(d, l.redirect).AuthCodeURL(key.state,
		oidc.Nonce(l.nonce), oauth2.S256ChallengeOption(l.verifier)), expires, nil
}

// checkRedirect takes exactly http://127.0.0.1:PORT/callback (RFC 8252 section
// 7.3; the name localhost can be made to point elsewhere).
func (p *Provider) checkRedirect(s string) error {
	port, ok := strings.CutPrefix(s, "http://127.0.0.1:")
	if ok {
		port, ok = strings.CutSuffix(port, "/callback")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if !ok || err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return &Error{
			Code: CodeBadRedirect, Message: "The login's return address is not http://127.0.0.1:PORT/callback.",
			Remedy: "Update portvakt-agent.",
		}
	}
	if len(p.cfg.RedirectPorts) > 0 && !slices.Contains(p.cfg.RedirectPorts, uint16(n)) {
		return &Error{
			Code: CodeBadRedirect, Message: fmt.Sprintf("The identity provider does not accept port %d for the login's return address.", n),
			Remedy: "Close what uses the ports that your company registered for logins, then log in again.",
		}
	}
	return nil
}

// random returns 256 random bits as text.
func random() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails: it ends the process instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

func (p *Provider) oauth(d *discovered, redirect string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.cfg.ClientID, ClientSecret: p.secret,
		Endpoint:    oauth2.Endpoint{AuthURL: d.AuthURL, TokenURL: d.TokenURL, AuthStyle: d.style},
		RedirectURL: redirect, Scopes: p.cfg.Scopes,
	}
}

// Finish is the identity provider's answer as the agent got it.
type Finish struct {
	DeviceID    string
	State, Code string
	// Issuer is the answer's iss parameter (RFC 9207), "" if it had none.
	Issuer                  string
	Error, ErrorDescription string
}

// Login is a finished login.
type Login struct {
	Subject policy.Subject
	// SID is the ID of the provider's own session, "" when it gave none.
	SID string
	// IssuedAt is when the provider made the ID token, by its clock.
	IssuedAt time.Time
	// OSUser is the one Begin was called for.
	OSUser string
}

// Finish ends a login that the same device began: it takes the state, whatever
// comes of it, exchanges the code and verifies the ID token. Its errors are of
// type *[Error], and never with Retry: the state is used up.
func (p *Provider) Finish(ctx context.Context, f Finish) (Login, error) {
	l, err := p.finish(ctx, f)
	var e *Error
	if errors.As(err, &e) && e.Retry {
		once := *e
		once.Retry = false
		return Login{}, &once
	}
	return l, err
}

func (p *Provider) finish(ctx context.Context, f Finish) (Login, error) {
	l := p.pending.take(pendingKey{device: f.DeviceID, state: f.State}, p.now())
	if l == nil {
		return Login{}, &Error{
			Code: CodeUnknownState, Message: "This login was not started on this laptop, is too old, or was used already.",
			Remedy: "Log in again with: portvakt-agent login",
		}
	}
	d, err := p.discover(ctx)
	if err != nil {
		return Login{}, err
	}
	// RFC 9207 section 2.4: before anything else in the answer is believed.
	if f.Issuer == "" && d.IssInResponse || f.Issuer != "" && f.Issuer != p.cfg.Issuer {
		return Login{}, tokenInvalid("The answer to the login came from another identity provider.",
			fmt.Errorf("answer's iss is %q", clean(f.Issuer, 200)))
	}
	if f.Error != "" {
		return Login{}, refused(f.Error, f.ErrorDescription)
	}
	if f.Code == "" {
		return Login{}, refused("", "the answer has no code")
	}
	raw, err := p.exchange(ctx, d, l, f.Code)
	if err != nil {
		return Login{}, err
	}
	done, err := p.verify(ctx, d, raw, l.nonce)
	if err != nil {
		return Login{}, err
	}
	if p.LoggedOut(done) { // while its token was on the way here
		return Login{}, refused("", "the session is over")
	}
	done.OSUser = l.osUser
	return done, nil
}

// exchange swaps the code for an ID token. Errors of the oauth2 package may
// quote the answer, and with it tokens: only what is known to be harmless of
// them is passed on.
func (p *Provider) exchange(ctx context.Context, d *discovered, l *login, code string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	tok, err := p.oauth(d, l.redirect).Exchange(oidc.ClientContext(ctx, p.client), code, oauth2.VerifierOption(l.verifier))
	if err != nil {
		var re *oauth2.RetrieveError
		var ue *url.Error
		switch {
		case errors.As(err, &re) && re.Response != nil && re.Response.StatusCode >= 500:
			return "", unavailable(fmt.Errorf("exchanging the code: %s", re.Response.Status))
		case errors.As(err, &re) && re.ErrorCode != "":
			return "", refused(re.ErrorCode, re.ErrorDescription)
		case errors.As(err, &re) && re.Response != nil:
			return "", unavailable(fmt.Errorf("exchanging the code: %s", re.Response.Status))
		case errors.As(err, &ue):
			return "", unavailable(fmt.Errorf("exchanging the code: %w", ue))
		}
		return "", unavailable(errors.New("exchanging the code: the answer is not a token response"))
	}
	raw, _ := tok.Extra("id_token").(string)
	if raw == "" {
		return "", tokenInvalid("The identity provider sent no ID token.", errors.New("no id_token in the token response"))
	}
	return raw, nil
}

// sameText compares without telling by its time where the texts differ.
func sameText(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
