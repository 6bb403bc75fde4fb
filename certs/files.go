package certs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"time"
)

// fileStamp tells one state of the two files from another.
type fileStamp struct {
	certTime, keyTime time.Time
	certSize, keySize int64
}

type filePair struct {
	cert  *tls.Certificate
	stamp fileStamp
}

func (p *Public) stampFiles() (fileStamp, error) {
	c, err := os.Stat(p.cfg.CertFile)
	if err != nil {
		return fileStamp{}, err
	}
	k, err := os.Stat(p.cfg.KeyFile)
	if err != nil {
		return fileStamp{}, err
	}
	return fileStamp{c.ModTime(), k.ModTime(), c.Size(), k.Size()}, nil
}

// loadFiles reads the pair. The key may be read by a group, which is how
// certificate tools hand keys out, but not by everyone.
func (p *Public) loadFiles() (*filePair, error) {
	if p.cfg.CertFile == "" || p.cfg.KeyFile == "" {
		return nil, fmt.Errorf("mode files needs a certificate file and a key file")
	}
	stamp, err := p.stampFiles()
	if err != nil {
		return nil, fmt.Errorf("reading certificate files: %w", err)
	}
	info, err := os.Stat(p.cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading certificate files: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("reading certificate files: everyone may use the key %s (mode %04o). Run: chmod o= %s",
			p.cfg.KeyFile, info.Mode().Perm(), p.cfg.KeyFile)
	}
	cert, err := tls.LoadX509KeyPair(p.cfg.CertFile, p.cfg.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("reading certificate %s and key %s: %w", p.cfg.CertFile, p.cfg.KeyFile, err)
	}
	if cert.Leaf == nil { // only with GODEBUG x509keypairleaf=0
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("reading certificate %s: %w", p.cfg.CertFile, err)
		}
	}
	for _, n := range p.names {
		if err := cert.Leaf.VerifyHostname(n); err != nil {
			return nil, fmt.Errorf("certificate %s does not fit the configured host: %w", p.cfg.CertFile, err)
		}
	}
	return &filePair{cert: &cert, stamp: stamp}, nil
}

// followFiles swaps the pair when the files change. A pair that does not load,
// or has run out while the one in use has not, changes nothing; it is said
// once per state of the files.
func (p *Public) followFiles(ctx context.Context) error {
	now := p.cfg.CA.now
	if leaf := p.file.Load().cert.Leaf; now().After(leaf.NotAfter) {
		p.log.Warn("the public certificate has expired", "file", p.cfg.CertFile, "not_after", leaf.NotAfter)
	}
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	seen := p.file.Load().stamp
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		stamp, err := p.stampFiles()
		if err == nil && stamp == seen {
			continue
		}
		if err != nil && seen == (fileStamp{}) {
			continue // still missing, and said so
		}
		seen = stamp // zero when a file is missing
		var pair *filePair
		if err == nil {
			pair, err = p.loadFiles()
		}
		if err == nil && now().After(pair.cert.Leaf.NotAfter) && !now().After(p.file.Load().cert.Leaf.NotAfter) {
			err = fmt.Errorf("certificate %s expired at %s", p.cfg.CertFile, pair.cert.Leaf.NotAfter.Format(time.RFC3339))
		}
		if err != nil {
			p.log.Error("the public certificate's files changed and cannot be used; the last good certificate stays", "err", err)
			continue
		}
		p.file.Store(pair)
		p.log.Info("the public certificate was replaced", "file", p.cfg.CertFile, "not_after", pair.cert.Leaf.NotAfter)
	}
}
