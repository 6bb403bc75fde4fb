package proxy

import (
	"bytes"
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
	"time"

	"github.com/portvakt/portvakt/gateway/dial"
	"github.com/portvakt/portvakt/gateway/http1"
	"github.com/portvakt/portvakt/policy"
)

// upstream is how one app is reached.
type upstream struct {
	from policy.App // what it was made of
	ca   []byte     // with the content of from.UpstreamCAFile

	// What it was compared with last, and when; upstreams.mu guards both.
	app    *policy.App
	looked time.Time

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
	decided   func() bool

	idle *http1.Budget // of all pools

	breakers breakers

	reading sync.Mutex // one reads a CA at a time: what was read before is never put in force after it

	mu    sync.Mutex // guards what follows
	all   map[string]*upstream
	lanes lanes
}

func newUpstreams(cfg Config) upstreams {
	return upstreams{
		timeouts: cfg.Timeouts, limits: cfg.Limits, forbidden: cfg.Forbidden, decided: cfg.Decided, idle: http1.NewBudget(maxIdle), breakers: newBreakers(cfg),
		all: map[string]*upstream{}, lanes: lanes{of: map[netip.Addr][]*lane{}, perApp: map[*upstream]int{}},
	}
}

// caAge is how long an app's CA is taken for what its file says.
const caAge = time.Second

// of returns the way to an app. Whatever it is made of may change, with a
// publish or, in the file of its CA, without: from then on nothing that was
// opened before is used for another exchange. An app whose CA cannot be read is
// not reached at all.
func (u *upstreams) of(app *policy.App) (*upstream, error) {
	if up := u.known(app); up != nil {
		return up, nil
	}
	var ca []byte
	var err error
	if app.UpstreamCAFile != "" {
		u.reading.Lock()
		if up := u.known(app); up != nil {
			u.reading.Unlock()
			return up, nil
		}
		if ca, err = os.ReadFile(app.UpstreamCAFile); err != nil {
			err = fmt.Errorf("app %s: reading upstream_ca_file: %w", app.Name, err)
		}
	}
	u.mu.Lock()
	if app.UpstreamCAFile != "" {
		u.reading.Unlock() // not after unlock, which may wait for an app
	}
	defer u.unlock()
	up := u.all[app.Name]
	if err == nil && (up == nil || !up.madeOf(app, ca)) {
		up, err = u.make(app, ca)
	}
	if old := u.all[app.Name]; old != nil && (err != nil || old != up) {
		u.retire(old)
		delete(u.all, app.Name)
	}
	if err != nil {
		return nil, err
	}
	up.app, up.looked = app, time.Now()
	u.all[app.Name] = up
	return up, nil
}

// known returns the way to an app that was compared with what it is made of
// since the last publish, and lately.
func (u *upstreams) known(app *policy.App) *upstream {
	u.mu.Lock()
	defer u.mu.Unlock()
	up := u.all[app.Name]
	if up == nil || up.app != app || app.UpstreamCAFile != "" && time.Since(up.looked) > caAge {
		return nil
	}
	return up
}

func (up *upstream) madeOf(app *policy.App, ca []byte) bool {
	return up.from.Upstream == app.Upstream && up.from.UpstreamCAFile == app.UpstreamCAFile && bytes.Equal(up.ca, ca) &&
		up.from.UpstreamCertFile == app.UpstreamCertFile && up.from.UpstreamKeyFile == app.UpstreamKeyFile && slices.Equal(up.from.Allow, app.Allow)
}

func (u *upstreams) make(app *policy.App, ca []byte) (*upstream, error) {
	to, err := url.Parse(app.Upstream)
	if err != nil || to.Host == "" || (to.Scheme != "http" && to.Scheme != "https") {
		return nil, fmt.Errorf("app %s: reading the upstream %q: not http(s)://host[:port]", app.Name, app.Upstream)
	}
	conf, err := upstreamTLS(app, ca)
	if err != nil {
		return nil, err
	}
	name, dialer := app.Name, dial.New(u.timeouts.Dial, app.Allow, u.forbidden)
	connect := func(ctx context.Context, address string, may func() bool) (net.Conn, error) {
		c, err := u.breakers.dial(ctx, name, dialer, address)
		if err != nil {
			return nil, err
		}
		return newAppConn(c, u.timeouts.Write, may), nil
	}
	up := &upstream{
		from: *app, ca: ca,
		scheme: to.Scheme, host: to.Host,
		transport: func() *http.Transport {
			return &http.Transport{
				// Who writes there, and when, http.Transport decides: over HTTP/2 a
				// request waits for its turn.
				DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
					return connect(ctx, address, u.decided)
				},
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
			Dial:        func(ctx context.Context) (net.Conn, error) { return connect(ctx, address, nil) }, // whose users ask their Flow
			HeadBytes:   int(u.limits.ResponseHeaderBytes),
			IdleTimeout: u.timeouts.UpstreamIdle,
			Budget:      u.idle,
		})
	}
	return up, nil
}

// upstreamTLS is how an https app is known, and how it knows the gateway. ca is
// what app.UpstreamCAFile holds.
func upstreamTLS(app *policy.App, ca []byte) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if app.UpstreamCAFile != "" {
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(ca) {
			return nil, fmt.Errorf("app %s: reading upstream_ca_file: %s holds no certificate in PEM", app.Name, app.UpstreamCAFile)
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
