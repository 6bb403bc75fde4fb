package proxy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// errForbidden is why an address was not dialled.
var errForbidden = errors.New("the address is one that the gateway must not dial")

// neverDialled can be no app; no prefix in `allow` changes that.
var neverDialled = prefixes("0.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32", "::/128", "ff00::/8")

// guarded are what a name must not lead to by itself: the gateway's own
// loopback, its link, and the addresses cloud machines get their credentials
// from.
var guarded = prefixes(
	"127.0.0.0/8", "::1/128",
	"169.254.0.0/16", "fe80::/10", "fec0::/10",
	"100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", "fd00:ec2::/32", "fd20:ce::254/128",
	"240.0.0.0/4",
	// Forms that hide an IPv4 address where it cannot be read off: NAT64 of
	// local use (RFC 8215) and Teredo (RFC 4380).
	"64:ff9b:1::/48", "2001::/32",
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
	compat = netip.MustParsePrefix("::/96")
)

// plainAddr takes the forms off in which an IPv4 address hides in an IPv6 one.
func plainAddr(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	b := a.As16()
	switch {
	case a.Is4():
	case nat64.Contains(a), compat.Contains(a) && (b[12] != 0 || b[13] != 0):
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixTo4.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

// checkDestination refuses an address the gateway must not dial for an app. It
// is asked after name resolution, for each address that is dialled.
func checkDestination(a netip.Addr, allow, forbidden []netip.Prefix, own []netip.Addr) error {
	a = plainAddr(a)
	if within(neverDialled, a) {
		return fmt.Errorf("%w: %s", errForbidden, a)
	}
	if within(allow, a) {
		return nil
	}
	if within(guarded, a) || within(forbidden, a) || slices.Contains(own, a) {
		return fmt.Errorf("%w: %s", errForbidden, a)
	}
	return nil
}

// ownAddresses are the machine's; an app there is the gateway itself unless it
// says so in `allow`.
func ownAddresses() ([]netip.Addr, error) {
	ifs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("listing the machine's addresses: %w", err)
	}
	out := make([]netip.Addr, 0, len(ifs))
	for _, i := range ifs {
		if p, err := netip.ParsePrefix(i.String()); err == nil {
			out = append(out, p.Addr().Unmap().WithZone(""))
		}
	}
	return out, nil
}

func dialer(timeout time.Duration, allow, forbidden []netip.Prefix) *net.Dialer {
	return &net.Dialer{
		Timeout:         timeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3},
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			dst, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("%w: %s", errForbidden, address)
			}
			own, err := ownAddresses()
			if err != nil {
				return err
			}
			return checkDestination(dst.Addr(), allow, forbidden, own)
		},
	}
}

// upstream is one app's pool of connections.
type upstream struct {
	key          string // all that the pool depends on
	scheme, host string
	transport    *http.Transport
}

// upstreams are the pools by app. An app whose upstream changed gets a new one,
// and none is shared between apps, so that a dead app starves no other.
type upstreams struct {
	timeouts  Timeouts
	limits    Limits
	forbidden []netip.Prefix

	mu  sync.Mutex // guards all
	all map[string]*upstream
}

func (u *upstreams) of(app *policy.App) (*upstream, error) {
	var key strings.Builder
	fmt.Fprintf(&key, "%s %s %v", app.Upstream, app.UpstreamCAFile, app.Allow)
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.all[app.Name]
	if old != nil && old.key == key.String() {
		return old, nil
	}
	up, err := u.make(app)
	if err != nil {
		return nil, err
	}
	up.key = key.String()
	if old != nil {
		old.transport.CloseIdleConnections()
	}
	u.all[app.Name] = up
	return up, nil
}

func (u *upstreams) make(app *policy.App) (*upstream, error) {
	to, err := url.Parse(app.Upstream)
	if err != nil || to.Host == "" || (to.Scheme != "http" && to.Scheme != "https") {
		return nil, fmt.Errorf("reading the upstream %q: not http(s)://host[:port]", app.Upstream)
	}
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
	return &upstream{
		scheme: to.Scheme, host: to.Host,
		transport: &http.Transport{
			DialContext:            dialer(u.timeouts.Dial, app.Allow, u.forbidden).DialContext,
			TLSClientConfig:        conf,
			TLSHandshakeTimeout:    u.timeouts.Dial,
			ForceAttemptHTTP2:      true,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    64,
			IdleConnTimeout:        90 * time.Second,
			ResponseHeaderTimeout:  u.timeouts.ResponseHeader,
			MaxResponseHeaderBytes: u.limits.ResponseHeaderBytes,
			ReadBufferSize:         16 << 10,
			WriteBufferSize:        16 << 10,
		},
	}, nil
}

func (u *upstreams) closeIdle() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, up := range u.all {
		up.transport.CloseIdleConnections()
	}
}
