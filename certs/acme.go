package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func (p *Public) checkACME() error {
	a := &p.cfg.ACME
	if len(p.names) == 0 {
		return errors.New("mode acme needs at least one host name")
	}
	if a.Storage == "" {
		return errors.New("mode acme needs a storage directory")
	}
	for _, n := range p.names {
		if a.Directory == "" && !certmagic.SubjectQualifiesForPublicCert(n) {
			return fmt.Errorf("host %q is not a public name, so no public ACME server certifies it", n)
		}
	}
	if a.ListenAddr == "" {
		a.ListenAddr = ":443"
	}
	if _, _, err := splitListen(a.ListenAddr); err != nil {
		return err
	}
	if a.CAFile != "" {
		data, err := os.ReadFile(a.CAFile)
		if err != nil {
			return fmt.Errorf("reading the ACME server's roots: %w", err)
		}
		// Its own pool, not the system's and these: whoever names a private
		// ACME server's root means that server.
		p.roots = x509.NewCertPool()
		if !p.roots.AppendCertsFromPEM(data) {
			return fmt.Errorf("reading the ACME server's roots: %s holds no PEM certificate", a.CAFile)
		}
	}
	return nil
}

func splitListen(addr string) (host string, port int, err error) {
	host, ps, err := net.SplitHostPort(addr)
	if err == nil {
		port, err = strconv.Atoi(ps)
	}
	if err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("the listen address %q for ACME challenges is not host:port", addr)
	}
	return host, port, nil
}

// runACME owns the certmagic cache, and with it certmagic's goroutines.
func (p *Public) runACME(ctx context.Context) error {
	a := p.cfg.ACME
	if err := os.MkdirAll(a.Storage, 0o700); err != nil {
		return fmt.Errorf("creating the ACME storage: %w", err)
	}
	info, err := os.Stat(a.Storage)
	if err != nil {
		return fmt.Errorf("opening the ACME storage: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("opening the ACME storage: others may look into %s, which holds private keys (mode %04o). Run: chmod 700 %s",
			a.Storage, info.Mode().Perm(), a.Storage)
	}
	host, port, err := splitListen(a.ListenAddr)
	if err != nil {
		return err
	}
	// certmagic's goroutines end with ctx, which on a normal end is done
	// already; the cache's own with Stop.
	ctx, cancel := context.WithCancel(ctx)
	logger := zap.New(&slogCore{log: p.log, done: ctx.Done()})

	files := &storage{files: certmagic.FileStorage{Path: a.Storage}}
	defer files.drain()
	defer cancel()

	// The cache's maintenance asks for the configuration that is made with it.
	var current atomic.Pointer[certmagic.Config]
	cache := certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return current.Load(), nil },
		Logger:           logger,
	})
	defer cache.Stop()
	magic := certmagic.New(cache, certmagic.Config{
		Storage: files,
		Logger:  logger,
		// No OCSP: it would tell a third party who connects, and when; public
		// CAs have given it up.
		OCSP: certmagic.OCSPConfig{DisableStapling: true},
	})
	magic.Issuers = []certmagic.Issuer{certmagic.NewACMEIssuer(magic, certmagic.ACMEIssuer{
		CA:                   a.Directory,
		Email:                a.Email,
		Agreed:               true,
		DisableHTTPChallenge: true,
		ListenHost:           host,
		AltTLSALPNPort:       port,
		TrustedRoots:         p.roots,
		Logger:               logger,
	})}
	current.Store(magic)
	p.magic.Store(magic)
	defer p.magic.Store(nil)
	if err := magic.ManageAsync(ctx, p.names); err != nil {
		return fmt.Errorf("managing public certificates: %w", err)
	}
	<-ctx.Done()
	return nil
}

// slogCore writes certmagic's log into ours. What certmagic calls
// information is detail to us, and its detail is left out: it can hold
// account and order data.
type slogCore struct {
	log    *slog.Logger
	done   <-chan struct{} // closed: what fails now fails because we stop
	fields []zapcore.Field
}

func (c *slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.InfoLevel && c.log.Enabled(context.Background(), slogLevel(l))
}

func (c *slogCore) With(f []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log, done: c.done, fields: append(append([]zapcore.Field(nil), c.fields...), f...)}
}

func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	attrs := make([]slog.Attr, 0, len(enc.Fields)+1)
	for k, v := range enc.Fields {
		switch {
		case k == "error":
			k = "err"
		case strings.HasSuffix(k, "Verbose"): // zap's copy of an error with its stack
			continue
		}
		attrs = append(attrs, slog.Any(k, v))
	}
	level := slogLevel(e.Level)
	select {
	case <-c.done:
		level = slog.LevelDebug
	default:
	}
	if e.Message == "tls-alpn challenge" {
		level = slog.LevelDebug // any stranger can ask for a challenge that is not on
	}
	c.log.LogAttrs(context.Background(), level, "acme: "+e.Message, attrs...)
	return nil
}

func (c *slogCore) Sync() error { return nil }

func slogLevel(l zapcore.Level) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel:
		return slog.LevelError
	case l == zapcore.WarnLevel:
		return slog.LevelWarn
	default:
		return slog.LevelDebug
	}
}
