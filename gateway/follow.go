package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/renameio/v2"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/dial"
	"github.com/portvakt/portvakt/policy"
)

// followPolicy keeps the policy directory's newest good revision in force. A
// bad one is said and recorded; the last good one stays.
// first is closed after the first look, whatever came of it.
func (g *gateway) followPolicy(ctx context.Context, first chan<- struct{}) error {
	var once sync.Once
	src := &policy.Source{Dir: g.cfg.Policy.Directory, Load: g.cfg.policyOptions()}
	return src.Run(ctx, func(rev *policy.Revision, err error) {
		defer once.Do(func() { close(first) })
		if err == nil {
			err = g.cfg.checkApps(rev)
		}
		if err == nil {
			err = g.publish(ctx, rev, "directory:"+g.cfg.Policy.Directory)
		}
		if err == nil {
			if err := g.keepFiles(rev); err != nil {
				g.log.Warn("keeping the policy's files for a restart", "err", err)
			}
		} else {
			if g.engine.Active() == nil {
				g.resume(ctx)
			}
			g.refusedPolicy(err)
		}
		g.policyState.set(err)
	})
}

// publish puts a revision in force.
func (g *gateway) publish(ctx context.Context, rev *policy.Revision, actor string) error {
	if err := g.keepBundle(rev); err != nil {
		return err
	}
	if err := g.sessions.Publish(ctx, rev, actor); err != nil {
		return err
	}
	g.log.Info("a policy revision is in force", "revision", rev.ID())
	return nil
}

// checkApps looks at what a revision names outside the policy directory: an app
// whose CA cannot be read, or whose address may not be dialled, would be down,
// and nobody would know why.
func (c *Config) checkApps(rev *policy.Revision) error {
	var problems policy.Problems
	for _, a := range rev.Apps() {
		if text := c.undialled(a); text != "" {
			problems = append(problems, rev.Problem(a.Name, "upstream", text))
		}
		if text := unusable(a.UpstreamCertFile, a.UpstreamKeyFile); text != "" {
			problems = append(problems, rev.Problem(a.Name, "upstream_cert_file", text))
		}
		if a.UpstreamCAFile == "" {
			continue
		}
		pem, err := os.ReadFile(a.UpstreamCAFile)
		if err == nil && !x509.NewCertPool().AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s holds no certificate in PEM", a.UpstreamCAFile)
		}
		if err != nil {
			problems = append(problems, rev.Problem(a.Name, "upstream_ca_file", "wanted a PEM file the gateway can read: "+err.Error()))
		}
	}
	if len(problems) > 0 {
		return problems
	}
	return nil
}

// unusable says what is wrong with a client certificate.
func unusable(certFile, keyFile string) string {
	if certFile == "" {
		return ""
	}
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		return "wanted a certificate and its key, in PEM, that the gateway can read: " + err.Error()
	}
	if info, err := os.Stat(keyFile); err == nil && info.Mode().Perm()&0o007 != 0 {
		return fmt.Sprintf("everyone may read %s (mode %04o). Run: chmod o= %s", keyFile, info.Mode().Perm(), keyFile)
	}
	return ""
}

// undialled says why the address an app's upstream names is never dialled. What
// a name leads to, and the machine's own addresses, are looked at when they are.
func (c *Config) undialled(a policy.App) string {
	host, _, err := net.SplitHostPort(a.UpstreamFor(1))
	if err != nil {
		return ""
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || dial.Check(addr, a.Allow, c.forbidden()) == nil {
		return ""
	}
	itself := netip.PrefixFrom(addr, addr.BitLen())
	if dial.Check(addr, []netip.Prefix{itself}, nil) != nil {
		return addr.String() + " is an address no app can be on"
	}
	text := itself.String()
	if addr.Is6() {
		text = strconv.Quote(text) // YAML takes the colons for keys
	}
	return fmt.Sprintf("%s is an address no app may be on unless it says so; add allow: [%s]", addr, text)
}

func (g *gateway) refusedPolicy(err error) {
	active := "none: everything is refused"
	if r := g.engine.Active(); r != nil {
		active = r.ID()
	}
	g.log.Error("a policy revision was refused; the last good one stays", "active", active, "err", err)
	g.audit.Note(audit.Record{Kind: audit.KindPolicyRefused, Revision: active, Outcome: err.Error()})
}

// resume puts the revision of before a restart in force, when the directory has
// been broken since: a file with a mistake in it must not send a whole contact
// centre home because a machine was restarted.
func (g *gateway) resume(ctx context.Context) {
	rev, err := policy.Load(g.dirs.lastGood(), g.cfg.policyOptions())
	if errors.Is(err, os.ErrNotExist) {
		rev, err = policy.Load(g.dirs.lastGood()+".before", g.cfg.policyOptions())
	}
	if errors.Is(err, os.ErrNotExist) {
		return // the first start: there is nothing good yet
	}
	if err == nil && len(rev.Apps()) > 0 {
		err = g.publish(ctx, rev, "last good revision")
	}
	if err != nil {
		g.log.Error("resuming the last good policy revision", "err", err)
	}
}

// keepFiles copies the policy's files beside the store, for resume. A copy that
// is not of this revision, because a file changed meanwhile, is not kept: the
// change brings its own copy.
func (g *gateway) keepFiles(rev *policy.Revision) error {
	next := g.dirs.lastGood() + ".next"
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	if err := os.Mkdir(next, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(g.cfg.Policy.Directory)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.IsDir() || (ext != ".yaml" && ext != ".yml" && ext != ".rego") {
			continue
		}
		data, err := os.ReadFile(filepath.Join(g.cfg.Policy.Directory, e.Name()))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(next, e.Name()), data, 0o600); err != nil {
			return err
		}
	}
	if copied, err := policy.Load(next, g.cfg.policyOptions()); err != nil || copied.ID() != rev.ID() {
		return err
	}
	// A crash between the two renames leaves the copy of before, which resume
	// finds too.
	before := g.dirs.lastGood() + ".before"
	if err := os.RemoveAll(before); err != nil {
		return err
	}
	if err := os.Rename(g.dirs.lastGood(), before); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Rename(next, g.dirs.lastGood())
}

// keepBundle keeps every revision that was ever active, so that a Decision can
// be reproduced long after.
func (g *gateway) keepBundle(rev *policy.Revision) error {
	path := filepath.Join(g.dirs.bundles(), rev.ID()+".tar.gz")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(g.dirs.bundles()), renameio.WithPermissions(0o600))
	if err != nil {
		return fmt.Errorf("keeping the revision: %w", err)
	}
	err = rev.WriteBundle(f)
	if err == nil {
		err = f.CloseAtomicallyReplace()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keeping the revision: %w", err), f.Cleanup())
	}
	return nil
}

// dnsSuffixes are the domains of the apps' hosts, for agents with split DNS.
func (g *gateway) dnsSuffixes() []string {
	var out []string
	rev := g.engine.Active()
	if rev == nil {
		return nil
	}
	for _, a := range rev.Apps() {
		if a.Visibility != "explain" {
			continue // a hidden app's domain would give it away
		}
		for _, h := range a.Hosts {
			if _, parent, ok := strings.Cut(h, "."); ok && !slices.Contains(out, parent) {
				out = append(out, parent)
			}
		}
	}
	slices.Sort(out)
	return out
}

// lastError is the outcome of the newest policy revision, for readiness.
type lastError struct {
	mu  sync.Mutex
	err error // guarded by mu
}

func (l *lastError) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *lastError) get() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
