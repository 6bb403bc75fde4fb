// Package app holds the demo's protected apps: a CRM and a payments web app, a
// TCP desk and a UDP voice echo. They are what a company already has: they
// know nothing of tunnels or policy, and the web apps believe only what the
// gateway signed.
package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// AssertionHeader is where the gateway says who is asking.
const AssertionHeader = "Portvakt-Assertion"

// Who is the person in an assertion.
type Who struct {
	Issuer  string   `json:"iss"`
	Subject string   `json:"sub"`
	Name    string   `json:"name"`
	Email   string   `json:"email"`
	Groups  []string `json:"groups"`
}

// Verifier checks assertions for one app against the gateway's published keys.
type Verifier struct {
	// Audience is the app's own name; an assertion for another app is refused.
	Audience string
	// Issuer is the gateway's public URL.
	Issuer string
	// JWKS is the URL of the gateway's keys.
	JWKS string
	// Client fetches them.
	Client *http.Client

	mu      sync.Mutex
	keys    jose.JSONWebKeySet // guarded by mu
	fetched time.Time          // guarded by mu
}

// leeway is how far the clocks of gateway and app may be apart.
const leeway = 5 * time.Second

// refetch is the shortest time between two fetches of the keys, so that bad
// tokens do not become requests to the gateway.
const refetch = time.Second

// ErrNoAssertion is returned for a request that did not come through the gateway.
var ErrNoAssertion = errors.New("the request carries no assertion: it did not come through the gateway")

// ClientTrusting returns an HTTP client that believes the CA in a PEM file and
// no other.
func ClientTrusting(caFile, serverName string) (*http.Client, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the gateway's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", caFile)
	}
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: serverName, MinVersion: tls.VersionTLS13}},
	}, nil
}

// Verify returns who is asking. It accepts ES256, exactly one header, this
// app's audience and a time within the token's life; anything else is an error.
func (v *Verifier) Verify(r *http.Request) (Who, error) {
	values := r.Header.Values(AssertionHeader)
	if len(values) != 1 {
		return Who{}, ErrNoAssertion
	}
	token, err := jwt.ParseSigned(values[0], []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return Who{}, fmt.Errorf("reading the assertion: %w", err)
	}
	if len(token.Headers) != 1 || token.Headers[0].KeyID == "" {
		return Who{}, errors.New("the assertion names no key")
	}
	key, err := v.key(r.Context(), token.Headers[0].KeyID)
	if err != nil {
		return Who{}, err
	}
	var std jwt.Claims
	var who Who
	if err := token.Claims(key, &std, &who); err != nil {
		return Who{}, fmt.Errorf("checking the assertion's signature: %w", err)
	}
	if std.Expiry == nil || v.Issuer == "" {
		return Who{}, errors.New("the assertion never expires, or the app knows no issuer to expect")
	}
	if err := std.ValidateWithLeeway(jwt.Expected{Issuer: v.Issuer, AnyAudience: jwt.Audience{v.Audience}, Time: time.Now()}, leeway); err != nil {
		return Who{}, fmt.Errorf("checking the assertion: %w", err)
	}
	return who, nil
}

// key returns the key of that id, and fetches the keys again for one it has
// not seen.
func (v *Verifier) key(ctx context.Context, kid string) (*jose.JSONWebKey, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if k := v.keys.Key(kid); len(k) == 1 {
		return &k[0], nil
	}
	if time.Since(v.fetched) < refetch {
		return nil, fmt.Errorf("the gateway publishes no key %q", kid)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, v.JWKS, nil)
	if err != nil {
		return nil, err
	}
	resp, err := v.Client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("fetching the gateway's keys: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetching the gateway's keys: %s", resp.Status)
	}
	var keys jose.JSONWebKeySet
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&keys); err != nil {
		return nil, fmt.Errorf("reading the gateway's keys: %w", err)
	}
	v.keys, v.fetched = keys, time.Now()
	k := keys.Key(kid)
	if len(k) != 1 {
		return nil, fmt.Errorf("the gateway publishes no key %q", kid)
	}
	return &k[0], nil
}
