// Package state keeps what an agent must remember between starts, in one
// directory that only its own OS user may enter. The tunnel's private key and
// every token stay in memory and never come here.
package state

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"
)

// Names of the files of a state directory.
const (
	FileIdentity   = "identity.json"
	FileKey        = "device.key"
	FilePendingKey = "device.key.new"
	FileDevice     = "device.pem"
	FileCA         = "ca.pem"
	FilePorts      = "ports.json"
	FileLock       = "lock"
	FileSocket     = "agent.sock"
)

var (
	// ErrNotEnrolled says that the directory holds no enrolment.
	ErrNotEnrolled = errors.New("this laptop is not enrolled; ask your IT support for a code and run: portvakt-agent enroll URL CODE")
	// ErrLocked says that another agent runs on the directory.
	ErrLocked = errors.New("another portvakt-agent is running on this state directory; stop it first, or give this one a directory of its own with --state")
)

// Dir is a state directory. Its methods may be called from several goroutines;
// every file is replaced whole, so that a reader sees the old or the new one.
type Dir struct{ path string }

// Identity says which gateway the device belongs to and as whom.
type Identity struct {
	Gateway    string    `json:"gateway"` // https://host[:port]
	DeviceID   string    `json:"device_id"`
	EnrolledAt time.Time `json:"enrolled_at"`
}

// Credentials are what the agent shows the gateway and knows it by.
type Credentials struct {
	Identity Identity
	Key      *ecdsa.PrivateKey
	Device   *x509.Certificate
	CA       *x509.Certificate
}

// Default returns the directory an agent uses when none is named: PORTVAKT_STATE,
// else $XDG_STATE_HOME/portvakt or ~/.local/state/portvakt, on macOS
// ~/Library/Application Support/Portvakt, on Windows %LocalAppData%\Portvakt.
func Default() (string, error) {
	if p := os.Getenv("PORTVAKT_STATE"); p != "" {
		return p, nil
	}
	switch runtime.GOOS {
	case "darwin":
		p, err := os.UserConfigDir()
		if err != nil {
			return "", fmt.Errorf("finding the state directory: %w; name one with --state", err)
		}
		return filepath.Join(p, "Portvakt"), nil
	case "windows":
		p, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding the state directory: %w; name one with --state", err)
		}
		return filepath.Join(p, "Portvakt"), nil
	}
	if p := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(p) {
		return filepath.Join(p, "portvakt"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", fmt.Errorf("finding the state directory: %w; name one with --state", err)
	}
	return filepath.Join(home, ".local", "state", "portvakt"), nil
}

// Open makes the directory if it is absent (0700) and refuses one that others
// may enter or that belongs to someone else. An empty path means [Default].
func Open(path string) (*Dir, error) {
	if path == "" {
		p, err := Default()
		if err != nil {
			return nil, err
		}
		path = p
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("opening the state directory: %w", err)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, fmt.Errorf("making the state directory: %w", err)
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening the state directory: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("opening the state directory: %s is not a directory", path)
	}
	if err := checkOwned(st, path, "directory", "0700"); err != nil {
		return nil, err
	}
	return &Dir{path: path}, nil
}

// File returns the path of a file in the directory.
func (d *Dir) File(name string) string { return filepath.Join(d.path, name) }

// Socket returns the path of the local API's socket when none is named.
func (d *Dir) Socket() string { return d.File(FileSocket) }

// Identity reads who the device is, or [ErrNotEnrolled].
func (d *Dir) Identity() (Identity, error) {
	data, err := os.ReadFile(d.File(FileIdentity))
	if errors.Is(err, fs.ErrNotExist) {
		return Identity{}, ErrNotEnrolled
	}
	if err != nil {
		return Identity{}, fmt.Errorf("reading the enrolment: %w", err)
	}
	var id Identity
	if err := json.Unmarshal(data, &id); err != nil {
		return Identity{}, d.damaged(FileIdentity, err)
	}
	if u, err := url.Parse(id.Gateway); err != nil || u.Host == "" || id.DeviceID == "" {
		return Identity{}, d.damaged(FileIdentity, errors.New("gateway or device_id is missing"))
	}
	return id, nil
}

// Load reads everything a connect needs and checks that the pieces belong
// together: the certificate is of this key and of this device.
func (d *Dir) Load() (*Credentials, error) {
	id, err := d.Identity()
	if err != nil {
		return nil, err
	}
	c := &Credentials{Identity: id}
	if c.Key, err = d.Key(); err != nil {
		return nil, err
	}
	if c.Device, err = d.certificate(FileDevice); err != nil {
		return nil, err
	}
	if c.CA, err = d.certificate(FileCA); err != nil {
		return nil, err
	}
	if !c.Key.PublicKey.Equal(c.Device.PublicKey) {
		return nil, d.damaged(FileDevice, errors.New("it is not for the key in "+FileKey))
	}
	if got := DeviceID(c.Device); got != id.DeviceID {
		return nil, d.damaged(FileDevice, fmt.Errorf("it is for device %q and not %q", got, id.DeviceID))
	}
	if err := c.Device.CheckSignatureFrom(c.CA); err != nil {
		return nil, d.damaged(FileDevice, fmt.Errorf("it is not signed by %s: %w", FileCA, err))
	}
	return c, nil
}

// DeviceID returns the device a certificate names in its URI
// portvakt://device/ID, or "".
func DeviceID(c *x509.Certificate) string {
	for _, u := range c.URIs {
		if u.Scheme == "portvakt" && u.Host == "device" && len(u.Path) > 1 {
			return u.Path[1:]
		}
	}
	return ""
}

// SaveEnrolment writes an enrolment. All of it is on the disk before the first
// file takes its place, so that a full disk loses nothing of the old state;
// identity.json takes its place last. With fresh set, the key of
// EnsureKey(true) becomes the device key.
func (d *Dir) SaveEnrolment(id Identity, certPEM, caPEM []byte, fresh bool) error {
	data, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return fmt.Errorf("saving the enrolment: %w", err)
	}
	files := []file{{FileCA, caPEM}, {FileDevice, certPEM}, {FileIdentity, append(data, '\n')}}
	if fresh {
		key, err := os.ReadFile(d.File(FilePendingKey))
		if err != nil {
			return fmt.Errorf("saving the enrolment: %w", err)
		}
		files = append([]file{{FileKey, key}}, files...)
	}
	if err := d.replace(files...); err != nil {
		return fmt.Errorf("saving the enrolment: %w", err)
	}
	return d.DropPendingKey()
}

// SaveCertificate replaces the device certificate by the one of c, after a renewal.
func (d *Dir) SaveCertificate(c *Credentials) error {
	text := func(c *x509.Certificate) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	}
	if err := d.replace(file{FileCA, text(c.CA)}, file{FileDevice, text(c.Device)}); err != nil {
		return fmt.Errorf("saving the device certificate: %w", err)
	}
	return nil
}

// Ports reads the loopback ports given to apps at earlier starts. They are a
// convenience: a damaged file is the same as none.
func (d *Dir) Ports() map[string]uint16 {
	ports := map[string]uint16{}
	data, err := os.ReadFile(d.File(FilePorts))
	if err != nil || json.Unmarshal(data, &ports) != nil {
		return map[string]uint16{}
	}
	return ports
}

// SavePorts remembers the loopback ports.
func (d *Dir) SavePorts(ports map[string]uint16) error {
	data, err := json.MarshalIndent(ports, "", "  ")
	if err != nil {
		return fmt.Errorf("saving the loopback ports: %w", err)
	}
	if err := d.replace(file{FilePorts, append(data, '\n')}); err != nil {
		return fmt.Errorf("saving the loopback ports: %w", err)
	}
	return nil
}

// Key reads the device key; the error wraps fs.ErrNotExist when there is none.
func (d *Dir) Key() (*ecdsa.PrivateKey, error) { return d.readKey(FileKey) }

// EnsureKey reads the key an enrolment uses, and makes it on the first call, so
// that an enrolment whose answer was lost is taken up again with the same key.
// With fresh set it is a key apart from the enrolled one, which stays in place
// until [Dir.SaveEnrolment].
func (d *Dir) EnsureKey(fresh bool) (*ecdsa.PrivateKey, error) {
	name := FileKey
	if fresh {
		name = FilePendingKey
	}
	key, err := d.readKey(name)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("making the device key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("making the device key: %w", err)
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err := d.replace(file{name, data}); err != nil {
		return nil, fmt.Errorf("saving the device key: %w", err)
	}
	return key, nil
}

// DropPendingKey forgets a key made for an enrolment that cannot succeed.
func (d *Dir) DropPendingKey() error {
	if err := os.Remove(d.File(FilePendingKey)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forgetting the unused device key: %w", err)
	}
	return nil
}

func (d *Dir) readKey(name string) (*ecdsa.PrivateKey, error) {
	path := d.File(name)
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("reading the device key: %w", err)
	}
	if err := checkOwned(st, path, "key", "0600"); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the device key: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, d.damaged(name, errors.New("no PEM private key in it"))
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, d.damaged(name, err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, d.damaged(name, errors.New("it is not an ECDSA P-256 key"))
	}
	return key, nil
}

func (d *Dir) certificate(name string) (*x509.Certificate, error) {
	data, err := os.ReadFile(d.File(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.damaged(name, errors.New("it is missing"))
	}
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	c, err := ParseCertificate(data)
	if err != nil {
		return nil, d.damaged(name, err)
	}
	return c, nil
}

// ParseCertificate reads the one certificate of a PEM text.
func ParseCertificate(data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate in it")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return nil, errors.New("more than one certificate in it")
	}
	return x509.ParseCertificate(block.Bytes)
}

func (d *Dir) damaged(name string, cause error) error {
	return fmt.Errorf("%s is damaged (%w); ask your IT support for a new code and run: portvakt-agent enroll --force URL CODE",
		d.File(name), cause)
}
