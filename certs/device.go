package certs

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
)

// notYetSlack is how far in the future a device certificate may begin.
const notYetSlack = 5 * time.Minute

// maxCSR bounds a certificate request, in bytes of PEM. A P-256 one has 500.
const maxCSR = 8 << 10

// IssueDevice issues the certificate of a device for its key: ECDSA P-256,
// valid for [DeviceLife], good for TLS client authentication only, with the
// one name portvakt://device/ID.
func (ca *CA) IssueDevice(deviceID string, pub crypto.PublicKey) (certPEM []byte, notAfter time.Time, err error) {
	if !validDeviceID(deviceID) {
		return nil, time.Time{}, fmt.Errorf("issuing a device certificate: %q is not a device id", deviceID)
	}
	if _, err := p256(pub); err != nil {
		return nil, time.Time{}, fmt.Errorf("issuing a device certificate: %w", err)
	}
	der, notAfter, err := ca.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: deviceID},
		URIs:        []*url.URL{{Scheme: "portvakt", Host: "device", Path: "/" + deviceID}},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, pub, DeviceLife)
	if err != nil {
		return nil, time.Time{}, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), notAfter, nil
}

// DeviceIdentity is what a device certificate proves together with the TLS
// handshake that used it. It says nothing about revocation: the caller looks
// the device up by DeviceID and compares KeyHash.
type DeviceIdentity struct {
	DeviceID string
	// KeyHash is the [KeyHash] of the device key.
	KeyHash [32]byte
	// Expired says that the certificate has run out. Such a certificate still
	// authenticates its own renewal and nothing else.
	Expired  bool
	NotAfter time.Time
}

// VerifyDevice checks that chain[0] is a device certificate of this CA. An
// expired one is reported, not refused. A certificate of another CA, one for
// another use, or one without exactly one device name is an error.
func (ca *CA) VerifyDevice(chain []*x509.Certificate) (DeviceIdentity, error) {
	if len(chain) == 0 {
		return DeviceIdentity{}, errors.New("no device certificate was shown")
	}
	leaf, now := chain[0], ca.now()
	if leaf.NotBefore.After(now.Add(notYetSlack)) {
		return DeviceIdentity{}, fmt.Errorf("the device certificate is not valid before %s; it is %s here",
			leaf.NotBefore.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	// The root itself, or a certificate without key usages, would pass
	// x509's check of the chain.
	if leaf.IsCA || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(leaf.UnknownExtKeyUsage) > 0 {
		return DeviceIdentity{}, errors.New("the certificate is not a device certificate")
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca.root)
	// The chain is checked at a moment at which the leaf was valid; now is
	// judged by us, above and below.
	at := now
	if at.After(leaf.NotAfter) {
		at = leaf.NotAfter
	}
	if at.Before(leaf.NotBefore) {
		at = leaf.NotBefore
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: x509.NewCertPool(), // the CA issues leaves only
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return DeviceIdentity{}, fmt.Errorf("verifying the device certificate: %w", err)
	}
	id, err := deviceName(leaf)
	if err != nil {
		return DeviceIdentity{}, err
	}
	pub, err := p256(leaf.PublicKey)
	if err != nil {
		return DeviceIdentity{}, fmt.Errorf("verifying the device certificate: %w", err)
	}
	hash, err := KeyHash(pub)
	if err != nil {
		return DeviceIdentity{}, err
	}
	return DeviceIdentity{DeviceID: id, KeyHash: hash, Expired: now.After(leaf.NotAfter), NotAfter: leaf.NotAfter}, nil
}

func deviceName(c *x509.Certificate) (string, error) {
	if len(c.URIs) != 1 || len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) > 0 {
		return "", errors.New("the certificate does not name exactly one device")
	}
	id, ok := strings.CutPrefix(c.URIs[0].String(), "portvakt://device/")
	if !ok || !validDeviceID(id) {
		return "", errors.New("the certificate does not name a device")
	}
	return id, nil
}

// validDeviceID keeps ids to what needs no escaping in a URI, a path, a log
// line or a file name.
func validDeviceID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for _, r := range s {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_') {
			return false
		}
	}
	return true
}

func p256(pub crypto.PublicKey) (*ecdsa.PublicKey, error) {
	k, ok := pub.(*ecdsa.PublicKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("the key is not an ECDSA P-256 key")
	}
	return k, nil
}

// ParseCSR reads a PKCS #10 request in PEM, checks that it is signed with the
// key it names, and returns that key, which is all a request is good for:
// names, usages and extensions in it are ignored.
func ParseCSR(pemText string) (*ecdsa.PublicKey, error) {
	if len(pemText) > maxCSR {
		return nil, fmt.Errorf("the certificate request is larger than %d bytes", maxCSR)
	}
	text := strings.TrimSpace(pemText)
	block, rest := pem.Decode([]byte(text))
	if block == nil || !strings.HasPrefix(text, "-----BEGIN ") || len(rest) != 0 {
		return nil, errors.New("the certificate request is not one PEM block")
	}
	if block.Type != "CERTIFICATE REQUEST" {
		return nil, fmt.Errorf("the PEM block is a %.40q, not a CERTIFICATE REQUEST", block.Type)
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parsing the certificate request: %w", err)
	}
	// Before the signature: a huge RSA key costs what its sender likes.
	pub, err := p256(req.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate request: %w", err)
	}
	switch req.SignatureAlgorithm {
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
	default:
		return nil, fmt.Errorf("the certificate request is signed with %s, not with ECDSA and SHA-2", req.SignatureAlgorithm)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("checking the certificate request's signature: %w", err)
	}
	return pub, nil
}
