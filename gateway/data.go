package gateway

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/notary"
	"github.com/portvakt/portvakt/gateway/audit/people"
	"github.com/portvakt/portvakt/gateway/store"
)

// dirs is the layout of data_dir, which only the gateway's user may read.
type dirs struct{ root string }

func (d dirs) ca() string       { return filepath.Join(d.root, "ca") }
func (d dirs) keys() string     { return filepath.Join(d.root, "keys") }
func (d dirs) audit() string    { return filepath.Join(d.root, "audit") }
func (d dirs) people() string   { return filepath.Join(d.root, "people") }
func (d dirs) tree() string     { return filepath.Join(d.root, "audit", "tree") }
func (d dirs) bundles() string  { return filepath.Join(d.root, "revisions") }
func (d dirs) lastGood() string { return filepath.Join(d.root, "policy") }
func (d dirs) acme() string     { return filepath.Join(d.root, "acme") }
func (d dirs) store() string    { return filepath.Join(d.root, "gateway.db") }

// tunnelKey is the gateway's WireGuard key. Changing it makes every device
// connect anew.
func (d dirs) tunnelKey() ([32]byte, error) {
	return secretKey(filepath.Join(d.keys(), "tunnel.key"))
}

// openData opens everything in data_dir. A second gateway on the same directory
// is refused before anything is touched.
func (g *gateway) openData(ctx context.Context) (unlock func() error, err error) {
	g.dirs = dirs{g.cfg.DataDir}
	if err := privateDir(g.dirs.root); err != nil {
		return nil, fmt.Errorf("preparing data_dir: %w", err)
	}
	unlock, err = lock(filepath.Join(g.dirs.root, "lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.closeData(), unlock())
		}
	}()
	for _, dir := range []string{g.dirs.keys(), g.dirs.bundles()} {
		if err := privateDir(dir); err != nil {
			return nil, fmt.Errorf("preparing data_dir: %w", err)
		}
	}
	keys, err := people.Open(g.dirs.people())
	if err != nil {
		return nil, err
	}
	if g.audit, err = audit.Open(audit.Options{Dir: g.dirs.audit(), People: keys, Log: g.log}); err != nil {
		return nil, err
	}
	g.notary, err = notary.New(notary.Config{LogFile: g.audit.Path(), Dir: g.dirs.tree(), KeyFile: filepath.Join(g.dirs.keys(), "checkpoint.key"), Log: g.log})
	if err != nil {
		return nil, err
	}
	if err = errors.Join(g.openSinks(), g.openWitness()); err != nil {
		return nil, err
	}
	if g.ca, err = certs.OpenCA(certs.CAConfig{Dir: g.dirs.ca()}); err != nil {
		return nil, err
	}
	if g.signer, err = assertion.Open(assertion.Config{KeyFile: filepath.Join(g.dirs.keys(), "assertion.pem"), Issuer: g.cfg.Public.URL}); err != nil {
		return nil, err
	}
	seal, err := secretKey(filepath.Join(g.dirs.keys(), "seal.key"))
	if err != nil {
		return nil, err
	}
	v4, err4 := netip.ParsePrefix(g.cfg.Tunnel.IPv4)
	v6, err6 := netip.ParsePrefix(g.cfg.Tunnel.IPv6)
	if err := errors.Join(err4, err6); err != nil {
		return nil, fmt.Errorf("reading the tunnel's pools: %w", err)
	}
	g.store, err = store.Open(ctx, store.Options{Path: g.dirs.store(), IPv4: v4, IPv6: v6, SealKey: seal})
	return unlock, err
}

func (g *gateway) closeData() error {
	var errs []error
	if g.store != nil {
		errs = append(errs, g.store.Close())
	}
	if g.audit != nil {
		errs = append(errs, g.audit.Close())
	}
	return errors.Join(errs...)
}

func privateDir(dir string) error {
	err := os.MkdirAll(dir, 0o700)
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w; run: install -d -m 700 -o %s %s", err, myName(), dir)
	}
	if err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if text := openToOthers(dir, st); text != "" {
		return errors.New(text)
	}
	if owner := st.Sys().(*syscall.Stat_t).Uid; os.Geteuid() != 0 && int(owner) != os.Geteuid() {
		return fmt.Errorf("%s belongs to uid %d, this program runs as %d; run: chown %s %[1]s", dir, owner, os.Geteuid(), myName())
	}
	return nil
}

func openToOthers(dir string, st os.FileInfo) string {
	if st.Mode().Perm()&0o077 == 0 {
		return ""
	}
	return fmt.Sprintf("%s is open to others (mode %#o); run: chmod 700 %[1]s", dir, st.Mode().Perm())
}

// myName is whom a command has to name so that this process is meant.
func myName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return strconv.Itoa(os.Geteuid())
}

// unfit says why a directory cannot be data_dir, as far as that can be seen
// without making it. It may not be there yet, and who looks may be another user
// than the gateway's.
func unfit(dir string) string {
	for _, system := range []string{"/proc", "/sys"} {
		if dir == system || strings.HasPrefix(dir, system+"/") {
			return "expected a directory that only the gateway's user may read; " + system + " holds the kernel's files and no others"
		}
	}
	st, err := os.Stat(dir)
	if err == nil && st.IsDir() {
		return openToOthers(dir, st)
	}
	for parent := dir; ; parent = filepath.Dir(parent) {
		st, err := os.Stat(parent)
		switch {
		case err == nil && !st.IsDir():
			return "expected a directory that only the gateway's user may read; " + parent + " is a file"
		case err == nil && errors.Is(unix.Access(parent, unix.W_OK), unix.EROFS):
			return "expected a directory that can be written; " + parent + " is mounted read-only"
		case err == nil, parent == filepath.Dir(parent), errors.Is(err, os.ErrPermission):
			return ""
		}
	}
}

// lock keeps a second gateway off the directory. The kernel releases it with
// the process, however that ends.
func lock(path string) (unlock func() error, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking data_dir: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("another gateway is running on %s", filepath.Dir(path)), f.Close())
	}
	return f.Close, nil
}

// secretKey reads 32 random bytes, or makes them on first use.
func secretKey(path string) (key [32]byte, err error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		rand.Read(key[:])
		return key, writeSecret(path, keyText(key))
	}
	if err != nil {
		return key, fmt.Errorf("reading a key: %w", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return key, fmt.Errorf("reading a key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return key, fmt.Errorf("%s is readable by others, so it may be known to them; run: chmod 600 %s, or remove it to make a new one", path, path)
	}
	b, err := base64.StdEncoding.DecodeString(string(text))
	if err != nil || len(b) != 32 {
		return key, fmt.Errorf("%s does not hold a key of 32 bytes in base64; restore it from a backup", path)
	}
	return [32]byte(b), nil
}

// writeSecret never leaves half a key: a crash leaves either no file or all.
func writeSecret(path, text string) error {
	if err := renameio.WriteFile(path, []byte(text), 0o600, renameio.WithTempDir(filepath.Dir(path))); err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	return nil
}

func keyText(k [32]byte) string { return base64.StdEncoding.EncodeToString(k[:]) }
