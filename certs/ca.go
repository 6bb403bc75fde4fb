// Package certs holds the gateway's certificates: the internal CA that names
// devices and apps, and the certificates the public port shows, which come
// from that CA, from files, or from an ACME server.
package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Life times of what the CA issues. DeviceLife bounds how long a certificate
// that nobody asks about stays good; revocation does not wait for it.
const (
	RootLife   = 10 * 365 * 24 * time.Hour
	DeviceLife = 24 * time.Hour
	ServerLife = 7 * 24 * time.Hour
)

// backdate is how far before its issue a certificate begins, for laptops
// whose clock is a little behind.
const backdate = 2 * time.Minute

const (
	rootKeyFile  = "root.key"
	rootCertFile = "root.pem"
)

// CAConfig says where the internal CA lives.
type CAConfig struct {
	// Dir holds root.key (0600) and root.pem. It is created with 0700.
	Dir string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// CA is the gateway's internal certificate authority. It is safe for
// concurrent use.
type CA struct {
	now  func() time.Time
	key  *ecdsa.PrivateKey
	root *x509.Certificate
	pem  []byte
	spki [32]byte

	mu      sync.Mutex
	servers map[string]*serverEntry // guarded by mu; key: names and addresses, sorted
}

// OpenCA opens the CA in cfg.Dir and creates it when neither of its files is
// there. It refuses a key that others may read, half a CA, and a key and
// certificate that do not belong together; the errors say what to do.
func OpenCA(cfg CAConfig) (*CA, error) {
	now := cfg.Now
	if now == nil {
		now = time.Now
	}
	if cfg.Dir == "" {
		return nil, errors.New("opening the internal CA: no directory is given")
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the internal CA's directory: %w", err)
	}
	keyPath, certPath := filepath.Join(cfg.Dir, rootKeyFile), filepath.Join(cfg.Dir, rootCertFile)
	haveKey, err := exists(keyPath)
	if err != nil {
		return nil, fmt.Errorf("looking for the internal CA's key: %w", err)
	}
	haveCert, err := exists(certPath)
	if err != nil {
		return nil, fmt.Errorf("looking for the internal CA's certificate: %w", err)
	}
	switch {
	case !haveKey && !haveCert:
		if err := createRoot(keyPath, certPath, now()); err != nil {
			return nil, fmt.Errorf("creating the internal CA: %w", err)
		}
	case !haveKey:
		return nil, halfCA(certPath, keyPath)
	case !haveCert:
		return nil, halfCA(keyPath, certPath)
	}
	return loadRoot(keyPath, certPath, now)
}

func halfCA(there, missing string) error {
	return fmt.Errorf("opening the internal CA: %s is there but %s is missing; restore it from a backup. "+
		"If this gateway never finished its first start, remove %s and start again", there, missing, there)
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func createRoot(keyPath, certPath string, now time.Time) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("making the root key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return err
	}
	spki, err := KeyHash(&key.PublicKey)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		// The name differs between gateways, so that a browser or keychain
		// that holds the roots of two of them does not mix them up.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("Portvakt internal CA %x", spki[:4]), Organization: []string{"Portvakt"}},
		NotBefore:             now.Add(-backdate).UTC(),
		NotAfter:              now.Add(RootLife).UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return fmt.Errorf("signing the root certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding the root key: %w", err)
	}
	// A crash between the two leaves the key alone, which halfCA explains; the
	// other order could leave a certificate that agents already know by hash.
	if err := writeNew(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return writeNew(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// writeNew makes path appear with all of data or not at all, and never
// replaces a file that is there.
func writeNew(path string, data []byte, mode fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		// Unlike a rename, a link refuses to replace what a second process
		// that starts at the same time has just written.
		err = os.Link(f.Name(), path)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			err = os.Rename(f.Name(), path) // a file system without hard links
		}
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("opening %s: %w", dir, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("syncing %s: %w", dir, err)
	}
	return nil
}

func loadRoot(keyPath, certPath string, now func() time.Time) (*CA, error) {
	info, err := os.Stat(keyPath)
	if err != nil {
		return nil, fmt.Errorf("reading the internal CA's key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("reading the internal CA's key: %s may be used by others (mode %04o); whoever read it can pass for any device. "+
			"Run: chmod 600 %s", keyPath, info.Mode().Perm(), keyPath)
	}
	key, err := readKey(keyPath)
	if err != nil {
		return nil, fmt.Errorf("reading the internal CA's key: %w", err)
	}
	certPEM, err := os.ReadFile(certPath)
	if err != nil {
		return nil, fmt.Errorf("reading the internal CA's certificate: %w", err)
	}
	block, rest := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" || len(rest) != 0 {
		return nil, fmt.Errorf("reading the internal CA's certificate: %s is not one PEM certificate; restore it from a backup", certPath)
	}
	root, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("reading the internal CA's certificate: %s: %w; restore it from a backup", certPath, err)
	}
	if !root.IsCA || !key.PublicKey.Equal(root.PublicKey) {
		return nil, fmt.Errorf("reading the internal CA: %s and %s do not belong together; restore both from the same backup", keyPath, certPath)
	}
	if err := root.CheckSignatureFrom(root); err != nil {
		return nil, fmt.Errorf("reading the internal CA's certificate: %s: %w; restore it from a backup", certPath, err)
	}
	if !now().Before(root.NotAfter) {
		return nil, fmt.Errorf("reading the internal CA's certificate: %s expired at %s", certPath, root.NotAfter.Format(time.RFC3339))
	}
	spki, err := KeyHash(root.PublicKey)
	if err != nil {
		return nil, err
	}
	return &CA{
		now: now, key: key, root: root, spki: spki,
		pem:     pem.EncodeToMemory(block),
		servers: make(map[string]*serverEntry),
	}, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s is not a PEM private key; restore it from a backup", path)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; restore it from a backup", path, err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s is not an ECDSA P-256 key; restore it from a backup", path)
	}
	return key, nil
}

// RootPEM returns the root certificate in PEM. The caller owns the bytes.
func (ca *CA) RootPEM() []byte { return append([]byte(nil), ca.pem...) }

// Root returns the root certificate. It must not be changed.
func (ca *CA) Root() *x509.Certificate { return ca.root }

// SPKIHash returns the SHA-256 of the root's public key, which enrolment
// codes carry.
func (ca *CA) SPKIHash() [32]byte { return ca.spki }

// KeyHash returns the SHA-256 of a public key in its SubjectPublicKeyInfo
// form, encoded anew: two encodings of one key have one hash.
func KeyHash(pub crypto.PublicKey) ([32]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return [32]byte{}, fmt.Errorf("encoding public key: %w", err)
	}
	return sha256.Sum256(der), nil
}

// newSerial returns a random 128-bit serial number, never 0.
func newSerial() (*big.Int, error) {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	b[0] |= 1 // never zero, always 16 bytes long
	return new(big.Int).SetBytes(b[:]), nil
}

// issue signs a leaf. Times and serial are set here; the rest is the caller's.
func (ca *CA) issue(tmpl *x509.Certificate, pub crypto.PublicKey, life time.Duration) ([]byte, time.Time, error) {
	now := ca.now()
	if !now.Before(ca.root.NotAfter) {
		return nil, time.Time{}, fmt.Errorf("issuing a certificate: the internal CA expired at %s", ca.root.NotAfter.Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, time.Time{}, err
	}
	tmpl.SerialNumber = serial
	tmpl.NotBefore = now.Add(-backdate).UTC().Truncate(time.Second)
	tmpl.NotAfter = now.Add(life).UTC().Truncate(time.Second)
	if tmpl.NotAfter.After(ca.root.NotAfter) {
		tmpl.NotAfter = ca.root.NotAfter
	}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.BasicConstraintsValid = true // and IsCA false
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.root, pub, ca.key)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("issuing a certificate: %w", err)
	}
	return der, tmpl.NotAfter, nil
}
