// Package enroll makes a laptop a Device and keeps its certificate alive: the
// one-time enrolment with a code, and the renewals that follow by themselves.
package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/agent/state"
	"github.com/portvakt/portvakt/internal/wire"
)

// TierSoftware is the honest name of a device key that is a file.
const TierSoftware = "software"

// ErrAlreadyEnrolled says that the state directory holds an enrolment already.
var ErrAlreadyEnrolled = errors.New("this laptop is already enrolled; with --force it is enrolled again as a new device")

// Config is what an enrolment or a renewal works with.
type Config struct {
	State *state.Dir
	// Info is what the device calls itself; see [LocalInfo].
	Info wire.DeviceInfo
	// Force enrols again, as a new device with a new key.
	Force bool
	// Language is what refusals are asked for in, as in Accept-Language.
	Language string
	// OwnProxy: see control.PublicConfig.
	OwnProxy string
	// Dial replaces the network in tests.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Now is the laptop's clock; nil means time.Now.
	Now func() time.Time
}

func (c Config) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

// LocalInfo returns what this laptop says about itself. The serial number is
// empty where reading it needs privilege.
func LocalInfo() wire.DeviceInfo {
	info := wire.DeviceInfo{OS: runtime.GOOS, Arch: runtime.GOARCH, KeyTier: TierSoftware}
	info.Name, _ = os.Hostname()
	if data, err := os.ReadFile("/sys/class/dmi/id/product_serial"); err == nil {
		info.Serial = strings.TrimSpace(string(data))
	}
	return info
}

// Enroll redeems the text of an enrolment code at a gateway. The code is sent
// only to the gateway it names. The device key is made and saved before
// anything is sent, so that a call whose answer was lost can simply be made
// again. The error wraps *[wire.Error] when the gateway refused.
func Enroll(ctx context.Context, cfg Config, url, codeText string) (state.Identity, error) {
	code, err := wire.ParseCode(codeText)
	if err != nil {
		return state.Identity{}, err
	}
	u, err := control.ParseURL(url)
	if err != nil {
		return state.Identity{}, err
	}
	_, err = cfg.State.Identity()
	switch {
	case cfg.Force: // also the way out of a damaged directory
	case err == nil:
		return state.Identity{}, ErrAlreadyEnrolled
	case !errors.Is(err, state.ErrNotEnrolled):
		return state.Identity{}, err
	}
	public, err := control.NewPublic(control.PublicConfig{URL: u.String(), CAHash: code.CAHash, Language: cfg.Language, OwnProxy: cfg.OwnProxy, Dial: cfg.Dial, Now: cfg.Now})
	if err != nil {
		return state.Identity{}, err
	}
	defer public.Close()
	res, key, err := redeem(ctx, cfg, public, code)
	if err != nil {
		return state.Identity{}, err
	}
	_, ca, err := checkAnswer(res, key, "")
	if err != nil {
		return state.Identity{}, err
	}
	if control.SPKIHash(ca) != code.CAHash {
		return state.Identity{}, errors.New("the gateway answered with another CA than the code names; tell your IT support")
	}
	id := state.Identity{Gateway: u.String(), DeviceID: res.DeviceID, EnrolledAt: cfg.now().UTC().Truncate(time.Second)}
	if err := cfg.State.SaveEnrolment(id, []byte(res.Certificate), []byte(res.CA), cfg.Force); err != nil {
		return state.Identity{}, fmt.Errorf("%w. The device key is kept: run the same command again; if the code is refused as used, ask for a new one", err)
	}
	return id, nil
}

func redeem(ctx context.Context, cfg Config, public *control.Public, code wire.Code) (*wire.EnrollResponse, *ecdsa.PrivateKey, error) {
	for again := false; ; again = true {
		key, err := cfg.State.EnsureKey(cfg.Force)
		if err != nil {
			return nil, nil, err
		}
		csr, err := CSR(key)
		if err != nil {
			return nil, nil, err
		}
		res, err := public.Enroll(ctx, wire.EnrollRequest{Code: code.SecretText(), CSR: csr, Device: cfg.Info})
		if err == nil {
			return res, key, nil
		}
		var refused *wire.Error
		if !errors.As(err, &refused) {
			return nil, nil, lost(err)
		}
		if !cfg.Force || again || refused.Code != "key_taken" {
			return nil, nil, fmt.Errorf("the gateway refused the enrolment: %w", err)
		}
		// A key of an earlier --force whose answer was lost belongs to a
		// device already; that one stays unused and this one gets a new key.
		if err := cfg.State.DropPendingKey(); err != nil {
			return nil, nil, err
		}
	}
}

// lost says what to do when nobody knows whether the gateway took the code.
func lost(err error) error {
	var clock *control.ClockError
	var untrusted *control.UntrustedError
	var proxy *control.ProxyError
	var op *net.OpError
	if errors.As(err, &clock) || errors.As(err, &untrusted) || errors.As(err, &proxy) || errors.As(err, &op) && (op.Op == "dial" || op.Op == "proxyconnect") {
		// Nothing was sent.
		t := control.Diagnose(err)
		return fmt.Errorf("enrolling: %w. %s The code was not sent and is still good: run the command again", err, t.Remedy)
	}
	return fmt.Errorf("enrolling: %w. Nothing is lost: run the same command again; if the code is then refused as used, ask your IT support for a new one", err)
}

// Renew gets a new certificate for the same key with the one at hand, which may
// have expired. It saves nothing: a certificate is good also where the disk is
// full. The error wraps *[wire.Error] when the gateway refused.
func Renew(ctx context.Context, cfg Config, cred *state.Credentials) (*state.Credentials, error) {
	public, err := Public(cfg, cred)
	if err != nil {
		return nil, err
	}
	defer public.Close()
	csr, err := CSR(cred.Key)
	if err != nil {
		return nil, err
	}
	res, err := public.Renew(ctx, wire.RenewRequest{CSR: csr})
	if err != nil {
		return nil, fmt.Errorf("renewing the device certificate: %w", err)
	}
	cert, ca, err := checkAnswer(res, cred.Key, cred.Identity.DeviceID)
	if err != nil {
		return nil, fmt.Errorf("renewing the device certificate: %w", err)
	}
	if control.SPKIHash(ca) != control.SPKIHash(cred.CA) {
		return nil, errors.New("renewing the device certificate: the gateway answered with another CA than the one this laptop enrolled with; tell your IT support")
	}
	return &state.Credentials{Identity: cred.Identity, Key: cred.Key, Device: cert, CA: ca}, nil
}

// Public returns the client of the gateway a device is enrolled with, holding
// its certificate.
func Public(cfg Config, cred *state.Credentials) (*control.Public, error) {
	return control.NewPublic(control.PublicConfig{
		URL: cred.Identity.Gateway, CAHash: control.SPKIHash(cred.CA), Language: cfg.Language, OwnProxy: cfg.OwnProxy, Dial: cfg.Dial, Now: cfg.Now,
		Certificate: &tls.Certificate{Certificate: [][]byte{cred.Device.Raw}, PrivateKey: cred.Key, Leaf: cred.Device},
	})
}

// RenewAt returns when a certificate is due for renewal, by the gateway's clock.
func RenewAt(c *x509.Certificate) time.Time { return c.NotBefore.Add(RenewAfter(c)) }

// RenewAfter returns how old a certificate becomes until its renewal is due: two
// thirds of its life.
func RenewAfter(c *x509.Certificate) time.Duration { return c.NotAfter.Sub(c.NotBefore) * 2 / 3 }

// CSR returns a PKCS #10 request in PEM that proves the possession of the key.
func CSR(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: "portvakt device"}}, key)
	if err != nil {
		return "", fmt.Errorf("making the certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

// checkAnswer makes sure that an answer is for this key and, when device is
// set, for this device, and that its CA signed it. It returns both.
func checkAnswer(res *wire.EnrollResponse, key *ecdsa.PrivateKey, device string) (cert, ca *x509.Certificate, err error) {
	cert, err = state.ParseCertificate([]byte(res.Certificate))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the certificate the gateway sent: %w", err)
	}
	ca, err = state.ParseCertificate([]byte(res.CA))
	if err != nil {
		return nil, nil, fmt.Errorf("reading the CA the gateway sent: %w", err)
	}
	switch {
	case !key.PublicKey.Equal(cert.PublicKey):
		return nil, nil, errors.New("the certificate the gateway sent is for another key; tell your IT support")
	case res.DeviceID == "" || state.DeviceID(cert) != res.DeviceID:
		return nil, nil, errors.New("the certificate the gateway sent names another device; tell your IT support")
	case device != "" && device != res.DeviceID:
		return nil, nil, errors.New("the gateway answered for another device; tell your IT support")
	}
	if err := cert.CheckSignatureFrom(ca); err != nil {
		return nil, nil, fmt.Errorf("checking the certificate the gateway sent: %w", err)
	}
	return cert, ca, nil
}
