package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"
)

// How long what the provider said about itself is believed.
const (
	discoveryLife  = time.Hour       // a good discovery document
	lookEvery      = time.Minute     // Run's
	discoveryRetry = 3 * time.Second // a failure, before the provider is asked again
	keysLife       = 5 * time.Minute // a removed signing key dies within this
	keysEvery      = time.Minute     // one fetch of keys for unknown key ids per this, beyond a burst of two
)

// What the log says when the provider goes silent, and at the end of it.
const (
	saidSilent  = "the identity provider does not answer; nobody can log in"
	saidAnswers = "the identity provider answers again"
)

// discovered is one good discovery document and what follows from it.
type discovered struct {
	AuthURL       string   `json:"authorization_endpoint"`
	TokenURL      string   `json:"token_endpoint"`
	JWKSURL       string   `json:"jwks_uri"`
	AuthMethods   []string `json:"token_endpoint_auth_methods_supported"`
	IssInResponse bool     `json:"authorization_response_iss_parameter_supported"`

	style    oauth2.AuthStyle
	verifier *oidc.IDTokenVerifier
}

// discovery holds the last answer and the last failure.
type discovery struct {
	mu     sync.Mutex
	good   *discovered // guarded by mu; nil before the first
	at     time.Time   // guarded by mu; when good was fetched
	failed time.Time   // guarded by mu; when the last login's try failed
	err    error       // guarded by mu; of the last try
	look   look        // guarded by mu
}

// state returns what to use, or the failure that is still fresh, or neither:
// then it is time to ask.
func (d *discovery) state(now time.Time) (*discovered, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fresh := now.Sub(d.failed) < discoveryRetry && d.err != nil
	if d.good != nil && (fresh || now.Sub(d.at) < discoveryLife) {
		return d.good, nil
	}
	if fresh {
		return nil, d.err
	}
	return nil, nil
}

// discover returns the provider's configuration. One request runs at a time,
// for everyone who waits, and does not die with the one who began it. A
// provider that was known stays known when a later try fails.
func (p *Provider) discover(ctx context.Context) (*discovered, error) {
	if d, err := p.disc.state(p.now()); d != nil || err != nil {
		return d, err
	}
	ch := p.flight.DoChan("", func() (any, error) {
		if d, err := p.disc.state(p.now()); d != nil || err != nil {
			return d, err
		}
		return p.ask(context.WithoutCancel(ctx), true)
	})
	select {
	case <-ctx.Done():
		return nil, unavailable(fmt.Errorf("reading its configuration: %w", ctx.Err()))
	case res := <-ch:
		if res.Err != nil {
			return nil, res.Err
		}
		return res.Val.(*discovered), nil
	}
}

// ask reads the provider's configuration and keeps it, or the failure. A new
// failure and its end are said. Only a failed login has the next ones wait: the
// provider may have come up since Run found it silent.
func (p *Provider) ask(ctx context.Context, login bool) (*discovered, error) {
	d, err := p.fetchDiscovery(ctx)
	if err != nil && ctx.Err() != nil {
		return nil, err // whoever asked went away: that says nothing about the provider
	}
	p.disc.mu.Lock()
	defer p.disc.mu.Unlock()
	was := p.disc.err
	if err != nil {
		if was == nil {
			p.log.Warn(saidSilent, "url", p.cfg.Issuer, "err", cause(err))
		}
		p.disc.err = err
		if login {
			p.disc.failed = p.now()
		}
		if p.disc.good != nil {
			return p.disc.good, nil
		}
		return nil, err
	}
	if was != nil {
		p.log.Info(saidAnswers, "url", p.cfg.Issuer)
	}
	// A known provider keeps its verifier, and with it the keys.
	if g := p.disc.good; g != nil && g.JWKSURL == d.JWKSURL {
		d.verifier = g.verifier
	}
	p.disc.good, p.disc.at, p.disc.err = d, p.now(), nil
	p.disc.look = look{at: p.disc.at}
	return d, nil
}

// Run asks the provider now and every minute, so that its silence is known
// before somebody wants to log in, until ctx is done.
func (p *Provider) Run(ctx context.Context) error {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		_, _ = p.ask(ctx, false) // which keeps what Healthy tells
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// Healthy returns nil, or why the provider did not answer when it was last
// asked.
func (p *Provider) Healthy() error {
	p.disc.mu.Lock()
	defer p.disc.mu.Unlock()
	if p.disc.err == nil {
		return nil
	}
	return fmt.Errorf("%s does not answer; nobody can log in: %w", p.cfg.Issuer, cause(p.disc.err))
}

// cause is err without what a person at a login is told.
func cause(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err
	}
	return err
}

func (p *Provider) fetchDiscovery(ctx context.Context) (*discovered, error) {
	ctx, cancel := context.WithTimeout(oidc.ClientContext(ctx, p.client), httpTimeout)
	defer cancel()
	provider, err := oidc.NewProvider(ctx, p.cfg.Issuer)
	if err != nil {
		var mismatch *oidc.IssuerMismatchError
		if errors.As(err, &mismatch) {
			err = fmt.Errorf("the configured issuer is %q, but it calls itself %q", p.cfg.Issuer, clean(mismatch.Discovered, 200))
		}
		// The library quotes whole answers; the log takes a line.
		return nil, unavailable(fmt.Errorf("reading its configuration: %s", clean(err.Error(), 300)))
	}
	d := new(discovered)
	if err := provider.Claims(d); err != nil {
		return nil, unavailable(fmt.Errorf("reading its configuration: %s", clean(err.Error(), 300)))
	}
	for _, e := range []struct{ name, url string }{
		{"authorization_endpoint", d.AuthURL}, {"token_endpoint", d.TokenURL}, {"jwks_uri", d.JWKSURL},
	} {
		plain, _, _ := strings.Cut(e.url, "?") // a query is allowed (RFC 6749 sections 3.1 and 3.2)
		if err := checkURL(plain); err != nil {
			return nil, unavailable(fmt.Errorf("reading its configuration: %s: %w", e.name, err))
		}
	}
	// Chosen, not tried out: a wrong try would use up the code.
	switch {
	case p.secret == "":
		d.style = oauth2.AuthStyleInParams
	case len(d.AuthMethods) == 0 || slices.Contains(d.AuthMethods, "client_secret_basic"):
		d.style = oauth2.AuthStyleInHeader
	default:
		d.style = oauth2.AuthStyleInParams
	}
	d.verifier = oidc.NewVerifier(p.cfg.Issuer, newKeySet(p.client, d.JWKSURL, p.now), &oidc.Config{
		ClientID: p.cfg.ClientID, SupportedSigningAlgs: p.cfg.Algorithms,
		SkipExpiryCheck: true, // verify does it, with less leeway
	})
	return d, nil
}

// keySet is go-oidc's remote key set with bounds: that one keeps a removed key
// until an unknown one turns up, and asks the provider once per unknown key.
type keySet struct {
	url string
	now func() time.Time
	ctx context.Context // carries the HTTP client, as go-oidc wants it

	mu     sync.Mutex
	remote *oidc.RemoteKeySet // guarded by mu
	since  time.Time          // guarded by mu
}

func newKeySet(client *http.Client, url string, now func() time.Time) *keySet {
	limited := *client
	limited.Transport = &keyFetcher{next: client.Transport, now: now, limit: rate.NewLimiter(rate.Every(keysEvery), 2)}
	return &keySet{url: url, now: now, ctx: oidc.ClientContext(context.Background(), &limited)}
}

// VerifySignature implements oidc.KeySet.
func (k *keySet) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	k.mu.Lock()
	if now := k.now(); k.remote == nil || now.Sub(k.since) >= keysLife {
		k.remote, k.since = oidc.NewRemoteKeySet(k.ctx, k.url), now
	}
	remote := k.remote
	k.mu.Unlock()
	return remote.VerifySignature(ctx, jwt)
}

// keyFetcher answers fetches of the key document beyond the limit with the
// last good one. Failed fetches do not count against it, but the provider gets
// discoveryRetry of peace after each.
type keyFetcher struct {
	next  http.RoundTripper
	now   func() time.Time
	limit *rate.Limiter

	mu     sync.Mutex
	last   []byte    // guarded by mu; the last good document
	failed time.Time // guarded by mu
}

func (f *keyFetcher) RoundTrip(r *http.Request) (*http.Response, error) {
	// Held while the provider answers: fetches are single-flight anyway, and
	// the client's timeout bounds it.
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	if now.Sub(f.failed) < discoveryRetry {
		return nil, errors.New("fetching the keys failed a moment ago")
	}
	if f.last != nil && !f.limit.AllowN(now, 1) {
		return f.answer(r), nil
	}
	resp, err := f.next.RoundTrip(r)
	if err != nil {
		f.failed = now
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err != nil {
		f.failed = now
		return nil, err
	}
	if f.last == nil {
		f.limit.AllowN(now, 1)
	}
	f.last = body
	return f.answer(r), nil
}

// answer is a response with the last good document. mu is held.
func (f *keyFetcher) answer(r *http.Request) *http.Response {
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {"application/json"}}, Request: r,
		Body: io.NopCloser(bytes.NewReader(f.last)), ContentLength: int64(len(f.last)),
	}
}
