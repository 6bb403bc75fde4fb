// Package assertion tells apps who is asking: it signs a short-lived JWT that
// the proxy adds to every request it forwards, and publishes the key to check
// it with. An app that checks signature, issuer, audience and expiry needs to
// trust nothing else about the road the request came.
package assertion

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Header is the request header that carries the assertion to an app.
const Header = "Portvakt-Assertion"

// Lifetime is how long an assertion is valid: one request's way to the app,
// with room for clocks that differ.
const Lifetime = 60 * time.Second

// Reuse is how long an assertion is given again for the same claims: a page
// makes dozens of requests, and a signature costs more than the rest of one.
// What an app gets is therefore valid for another 40 s at least, and never of
// other claims than those of the request.
const Reuse = 20 * time.Second

// maxKept bounds the assertions that are kept, each about 1 KiB.
const maxKept = 16384

// Config names a Signer's key and what it says of itself.
type Config struct {
	// KeyFile holds the P-256 signing key (PKCS #8 PEM, mode 0600). It is made
	// on first use.
	KeyFile string
	// Issuer is the gateway's public URL, the `iss` of every assertion.
	Issuer string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Claims are what an assertion says beside issuer and times.
type Claims struct {
	// Audience is the app's name. An app refuses assertions for another.
	Audience string `json:"-"`
	// Subject is "ISS#SUB"; empty when policy allowed a device without login.
	Subject string   `json:"-"`
	Name    string   `json:"name,omitempty"`
	Email   string   `json:"email,omitempty"`
	Groups  []string `json:"groups"`
	Device  string   `json:"device"`
	Session string   `json:"session,omitempty"`
}

// Signer signs assertions with ES256. It is safe for concurrent use.
type Signer struct {
	issuer string
	now    func() time.Time
	signer jose.Signer
	jwks   []byte

	mu    sync.Mutex // guards what follows
	kept  map[string]string
	since time.Time // when the first of kept was signed
}

// Open reads the key, or makes it. Two processes that make it at once end up
// with the same one. A key that others can read is refused.
func Open(cfg Config) (*Signer, error) {
	if cfg.Issuer == "" {
		return nil, errors.New("opening the assertion signer: no issuer")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	key, err := readKey(cfg.KeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeKey(cfg.KeyFile); err != nil {
			return nil, fmt.Errorf("making the assertion key: %w", err)
		}
		key, err = readKey(cfg.KeyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the assertion key: %w", err)
	}
	return newSigner(cfg, key)
}

func newSigner(cfg Config, key *ecdsa.PrivateKey) (*Signer, error) {
	public := jose.JSONWebKey{Key: key.Public(), Algorithm: string(jose.ES256), Use: "sig"}
	thumb, err := public.Thumbprint(crypto.SHA256) // RFC 7638
	if err != nil {
		return nil, fmt.Errorf("naming the assertion key: %w", err)
	}
	public.KeyID = fmt.Sprintf("%x", thumb[:8])
	jwks, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{public}})
	if err != nil {
		return nil, fmt.Errorf("encoding the key set: %w", err)
	}
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: public.KeyID}},
		(&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return nil, fmt.Errorf("preparing the assertion key: %w", err)
	}
	return &Signer{issuer: cfg.Issuer, now: cfg.Now, signer: signer, jwks: jwks}, nil
}

// Sign returns the assertion in compact form: one that was signed for the very
// same claims within Reuse, or a new one with an identifier of its own.
func (s *Signer) Sign(c Claims) (string, error) {
	if c.Audience == "" {
		return "", errors.New("signing an assertion: no audience")
	}
	now := s.now()
	var scratch [512]byte
	key := c.key(scratch[:0])
	s.mu.Lock()
	if age := now.Sub(s.since); age >= Reuse || age < 0 || len(s.kept) >= maxKept {
		s.kept, s.since = map[string]string{}, now
	}
	token, ok := s.kept[string(key)]
	s.mu.Unlock()
	if ok {
		return token, nil
	}
	token, err := s.sign(c, now)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !now.Before(s.since) { // else the clock was set back, or it is of a time before
		s.kept[string(key)] = token
	}
	return token, nil
}

// key appends what tells claims apart: every part with its length before it.
func (c *Claims) key(dst []byte) []byte {
	for _, part := range []string{c.Audience, c.Subject, c.Name, c.Email, c.Device, c.Session} {
		dst = binary.AppendUvarint(dst, uint64(len(part)))
		dst = append(dst, part...)
	}
	for _, group := range c.Groups {
		dst = binary.AppendUvarint(dst, uint64(len(group)))
		dst = append(dst, group...)
	}
	return dst
}

func (s *Signer) sign(c Claims, now time.Time) (string, error) {
	if c.Groups == nil {
		c.Groups = []string{}
	}
	token, err := jwt.Signed(s.signer).Claims(jwt.Claims{
		Issuer: s.issuer, Subject: c.Subject, Audience: jwt.Audience{c.Audience}, ID: rand.Text(),
		IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(Lifetime)),
	}).Claims(c).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing an assertion: %w", err)
	}
	return token, nil
}

// JWKS serves the public key set (RFC 7517).
func (s *Signer) JWKS() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", "application/jwk-set+json")
		w.Header().Set("Cache-Control", "public, max-age=300")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		_, _ = w.Write(s.jwks)
	})
}

const pemType = "PRIVATE KEY"

func readKey(path string) (*ecdsa.PrivateKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s may be read by others (mode %04o): make it 0600", path, st.Mode().Perm())
	}
	data := make([]byte, 4096)
	n, err := f.Read(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	block, _ := pem.Decode(data[:n])
	if block == nil || block.Type != pemType {
		return nil, fmt.Errorf("%s holds no PEM %q block", path, pemType)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, fmt.Errorf("%s holds no P-256 key", path)
	}
	return key, nil
}

// makeKey writes a new key beside path and links it there. A crash leaves the
// key whole or absent; who comes second at the link keeps the first one's key.
func makeKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	tmp, err := os.CreateTemp(dir, ".assertion-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if err := pem.Encode(tmp, &pem.Block{Type: pemType, Bytes: der}); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := tmp.Sync(); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
