package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"sync"

	"github.com/portvakt/portvakt/gateway/dial"
	"github.com/portvakt/portvakt/gateway/http1"
	"github.com/portvakt/portvakt/policy"
)

// upstream is how one app is reached.
type upstream struct {
	from         policy.App // what it was made of
	scheme, host string
	transport    func() *http.Transport // a new one, for one lane
	pool         *http1.Pool            // nil for https, which may turn out to be HTTP/2
}

// upstreams are the ways to apps. An app whose upstream changed gets a new one,
// and none is shared between apps, so that a dead app starves no other. Nor is
// a connection shared between logins: to an app that authenticates connections
// (NTLM, Negotiate) whoever comes by one is whom it knows there.
type upstreams struct {
	timeouts  Timeouts
	limits    Limits
	forbidden []netip.Prefix

	idle *http1.Budget // of all pools

	breakers breakers

	mu    sync.Mutex // guards what follows
	all   map[string]*upstream
	lanes lanes
}

func newUpstreams(cfg Config) upstreams {
	return upstreams{
		timeouts: cfg.Timeouts, limits: cfg.Limits, forbidden: cfg.Forbidden, idle: http1.NewBudget(maxIdle), breakers: newBreakers(cfg),
		all: map[string]*upstream{}, lanes: lanes{of: map[netip.Addr][]*lane{}, perApp: map[*upstream]int{}},
	}
}

func (u *upstreams) of(app *policy.App) (*upstream, error) {
	u.mu.Lock()
	defer u.unlock()
	old := u.all[app.Name]
	if old != nil && old.from.Upstream == app.Upstream && old.from.UpstreamCAFile == app.UpstreamCAFile &&
		old.from.UpstreamCertFile == app.UpstreamCertFile && old.from.UpstreamKeyFile == app.UpstreamKeyFile && slices.Equal(old.from.Allow, app.Allow) {
		return old, nil
	}
	up, err := u.make(app)
	if err != nil {
		return nil, err
	}
	up.from = *app
	if old != nil {
		u.retire(old)
	}
	u.all[app.Name] = up
	return up, nil
}

func (u *upstreams) make(app *policy.App) (*upstream, error) {
	to, err := url.Parse(app.Upstream)
	if err != nil || to.Host == "" || (to.Scheme != "http" && to.Scheme != "https") {
		return nil, fmt.Errorf("reading the upstream %q: not http(s)://host[:port]", app.Upstream)
	}
	conf, err := upstreamTLS(app)
	if err != nil {
		return nil, err
	}
	name, dialer := app.Name, dial.New(u.timeouts.Dial, app.Allow, u.forbidden)
	connect := func(ctx context.Context, address string) (net.Conn, error) {
		c, err := u.breakers.dial(ctx, name, dialer, address)
		if err != nil {
			return nil, err
		}
		return newAppConn(c, u.timeouts.Write), nil
	}
	up := &upstream{
		scheme: to.Scheme, host: to.Host,
		transport: func() *http.Transport {
			return &http.Transport{
				DialContext:            func(ctx context.Context, _, address string) (net.Conn, error) { return connect(ctx, address) },
				TLSClientConfig:        conf,
				TLSHandshakeTimeout:    u.timeouts.Dial,
				ForceAttemptHTTP2:      true,
				DisableCompression:     true,
				MaxIdleConnsPerHost:    laneIdle,
				IdleConnTimeout:        u.timeouts.UpstreamIdle,
				ResponseHeaderTimeout:  u.timeouts.ResponseHeader,
				MaxResponseHeaderBytes: u.limits.ResponseHeaderBytes,
				ReadBufferSize:         16 << 10,
				WriteBufferSize:        16 << 10,
			}
		},
	}
	if to.Scheme == "http" {
		address := to.Host
		if to.Port() == "" {
			address = net.JoinHostPort(to.Hostname(), "80")
		}
		up.pool = http1.NewPool(http1.Options{
			Dial:        func(ctx context.Context) (net.Conn, error) { return connect(ctx, address) },
			HeadBytes:   int(u.limits.ResponseHeaderBytes),
			IdleTimeout: u.timeouts.UpstreamIdle,
			Budget:      u.idle,
		})
	}
	return up, nil
}

// upstreamTLS is how an https app is known, and how it knows the gateway.
func upstreamTLS(app *policy.App) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if app.UpstreamCAFile != "" {
		pem, err := os.ReadFile(app.UpstreamCAFile)
		if err != nil {
			return nil, fmt.Errorf("reading the upstream's CA: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("reading the upstream's CA: no certificate in %s", app.UpstreamCAFile)
		}
	}
	if cert, key := app.UpstreamCertFile, app.UpstreamKeyFile; cert != "" {
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			if err != nil {
				return nil, fmt.Errorf("reading the certificate for the app: %w", err)
			}
			return &pair, nil
		}
	}
	return conf, nil
}

// retire closes what waits to be used again, for good. u.mu is held.
func (u *upstreams) retire(up *upstream) {
	u.lanes.remove(func(l *lane) bool { return l.up == up })
	if up.pool != nil {
		up.pool.Close()
	}
}

func (u *upstreams) closeIdle() {
	u.mu.Lock()
	defer u.unlock()
	for _, up := range u.all {
		u.retire(up)
	}
	clear(u.all)
}
