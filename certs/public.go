package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caddyserver/certmagic"
)

// The modes of PublicConfig.
const (
	ModeInternal = "internal" // the internal CA serves the public names too
	ModeFiles    = "files"    // a certificate and key that someone else renews
	ModeACME     = "acme"     // certmagic, TLS-ALPN-01 on this very port
)

// alpnACME is the protocol name of TLS-ALPN-01 (RFC 8737 section 6.2).
const alpnACME = "acme-tls/1"

// PublicConfig says which certificates the public port shows.
type PublicConfig struct {
	// Mode is internal (also when empty), files or acme.
	Mode string
	// InternalName is the server name that agents ask for. It is always
	// answered by CA.
	InternalName string
	// Hosts are the public names and addresses of the gateway. Addresses, and
	// clients that send no server name, are always answered by CA.
	Hosts []string
	// CertFile and KeyFile are PEM files (mode files). They are followed.
	CertFile, KeyFile string
	// Interval is how often the files are looked at; 0 means every second.
	Interval time.Duration
	ACME     ACMEConfig
	CA       *CA
	// Log may be nil.
	Log *slog.Logger
}

// ACMEConfig configures mode acme.
type ACMEConfig struct {
	// Email is given to the ACME server for its notices; may be empty.
	Email string
	// Directory is the ACME server's directory URL; empty means Let's Encrypt.
	Directory string
	// CAFile holds further roots (PEM) to trust when talking to the ACME
	// server; without it the system's are used.
	CAFile string
	// Storage is the directory for account, keys and certificates, made 0700.
	Storage string
	// ListenAddr is the address the gateway's public port listens on
	// (host:port, default ":443"). The challenge is answered there; a
	// challenge that begins before that listener is up opens it for its own
	// duration.
	ListenAddr string
}

// Public chooses the certificate of the public port. Its TLS configuration
// works before Run does; in mode acme the public names have no certificate
// until Run got one.
type Public struct {
	cfg   PublicConfig
	log   *slog.Logger
	names []string // the DNS names of cfg.Hosts, normal form
	ips   []net.IP
	roots *x509.CertPool // for the ACME server; nil: the system's

	file  atomic.Pointer[filePair]         // mode files; never nil there
	magic atomic.Pointer[certmagic.Config] // mode acme; nil unless Run runs
}

// NewPublic checks the configuration and reads the files it names. It opens no
// connection and starts nothing.
func NewPublic(cfg PublicConfig) (*Public, error) {
	p := &Public{cfg: cfg, log: cfg.Log}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Interval <= 0 {
		p.cfg.Interval = time.Second
	}
	if cfg.CA == nil {
		return nil, errors.New("preparing public certificates: no internal CA is given")
	}
	p.cfg.InternalName = strings.ToLower(cfg.InternalName)
	if !validDNSName(p.cfg.InternalName) {
		return nil, fmt.Errorf("preparing public certificates: the internal name %q is not a host name", cfg.InternalName)
	}
	for _, h := range cfg.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			p.ips = append(p.ips, ip)
			continue
		}
		n := strings.ToLower(strings.TrimSuffix(h, "."))
		if !validDNSName(n) {
			return nil, fmt.Errorf("preparing public certificates: %q is neither a host name nor an IP address", h)
		}
		p.names = append(p.names, n)
	}
	switch cfg.Mode {
	case "", ModeInternal:
		p.cfg.Mode = ModeInternal
	case ModeFiles:
		pair, err := p.loadFiles()
		if err != nil {
			return nil, fmt.Errorf("preparing public certificates: %w", err)
		}
		p.file.Store(pair)
	case ModeACME:
		if err := p.checkACME(); err != nil {
			return nil, fmt.Errorf("preparing public certificates: %w", err)
		}
	default:
		return nil, fmt.Errorf("preparing public certificates: mode %q is none of internal, files, acme", cfg.Mode)
	}
	return p, nil
}

// CheckPublic says what NewPublic would refuse, before there is a CA.
func CheckPublic(cfg PublicConfig) error {
	cfg.CA = &CA{} // only asked when a certificate is
	_, err := NewPublic(cfg)
	return err
}

// Run follows the files (mode files) or obtains and renews certificates (mode
// acme) until ctx is done; it then returns nil. It may run once.
func (p *Public) Run(ctx context.Context) error {
	switch p.cfg.Mode {
	case ModeFiles:
		return p.followFiles(ctx)
	case ModeACME:
		return p.runACME(ctx)
	}
	<-ctx.Done()
	return nil
}

// TLSConfig returns the configuration of the public port. It asks every
// client for a certificate and checks none: the handler verifies it with
// [CA.VerifyDevice] on every request, so that a revoked device can be told
// why. There is no resumption: each connection proves the device key anew.
func (p *Public) TLSConfig() *tls.Config {
	normal := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2", "http/1.1"},
		ClientAuth:             tls.RequestClientCert,
		GetCertificate:         p.certificate,
		SessionTicketsDisabled: true,
	}
	if p.cfg.Mode != ModeACME {
		return normal
	}
	// RFC 8737 section 3 lets the ACME server use TLS 1.2, and its connection
	// is no place for requests of devices.
	challenge := &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{alpnACME},
		GetCertificate:         p.challengeCertificate,
		SessionTicketsDisabled: true,
	}
	normal.NextProtos = append(normal.NextProtos, alpnACME)
	inner := normal.Clone()
	inner.NextProtos = []string{"h2", "http/1.1"}
	normal.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if isChallenge(hello) {
			return challenge, nil
		}
		return inner, nil
	}
	// The version is negotiated on what GetConfigForClient returns.
	return normal
}

func isChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == alpnACME
}

func (p *Public) challengeCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	m := p.magic.Load()
	if m == nil || !slices.Contains(p.names, strings.ToLower(hello.ServerName)) {
		return nil, nil
	}
	return m.GetCertificate(hello)
}

// certificate returns nil without an error for a name that is not ours:
// crypto/tls then sends unrecognized_name.
func (p *Public) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	switch {
	case name == p.cfg.InternalName:
		return p.cfg.CA.ServerCertificate([]string{name}, nil)
	case name == "" || net.ParseIP(name) != nil:
		return p.cfg.CA.ServerCertificate(append([]string{p.cfg.InternalName}, p.names...), p.ips)
	}
	switch p.cfg.Mode {
	case ModeFiles:
		pair := p.file.Load()
		if pair.cert.Leaf.VerifyHostname(name) == nil {
			return pair.cert, nil
		}
	case ModeACME:
		if m := p.magic.Load(); m != nil && slices.Contains(p.names, name) {
			return m.GetCertificate(hello)
		}
	default:
		if slices.Contains(p.names, name) {
			return p.cfg.CA.ServerCertificate(p.names, p.ips)
		}
	}
	return nil, nil
}
