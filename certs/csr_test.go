package certs_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/certs"
)

func csr(t testing.TB, key crypto.Signer, tmpl *x509.CertificateRequest) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func csrPEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestParseCSR(t *testing.T) {
	key := newKey(t)
	// All it asks for beyond the key is ignored.
	greedy := csr(t, key, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root"}, DNSNames: []string{"*.example"}, IPAddresses: []net.IP{{10, 0, 0, 1}},
		EmailAddresses: []string{"a@example.com"},
		ExtraExtensions: []pkix.Extension{
			{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}, // CA:TRUE
		},
	})
	for _, text := range []string{csrPEM(greedy), "\n" + csrPEM(greedy) + "\n\n", strings.ReplaceAll(csrPEM(greedy), "\n", "\r\n")} {
		pub, err := certs.ParseCSR(text)
		if err != nil {
			t.Fatal(err)
		}
		if !pub.Equal(key.Public()) {
			t.Error("another key")
		}
	}
	pub, err := certs.ParseCSR(csrPEM(greedy))
	if err != nil {
		t.Fatal(err)
	}
	certPEM, _, err := open(t, nil).IssueDevice("dev-1", pub)
	if err != nil {
		t.Fatal(err)
	}
	if leaf := parse(t, certPEM); leaf.IsCA || leaf.Subject.String() != "CN=dev-1" || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0 {
		t.Errorf("the request's wishes came true: %+v", leaf)
	}
}

func TestParseCSRRefuses(t *testing.T) {
	key := newKey(t)
	good := csr(t, key, &x509.CertificateRequest{})
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// Signed with another key than the one it names.
	a, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKIXPublicKey(newKey(t).Public())
	if err != nil {
		t.Fatal(err)
	}
	stolen := bytes.Replace(good, a, b, 1)
	flipped := bytes.Clone(good)
	flipped[len(flipped)-3] ^= 1
	for name, c := range map[string]struct{ text, want string }{
		"empty":           {"", "not one PEM block"},
		"garbage":         {"hello", "not one PEM block"},
		"bare DER":        {string(good), "not one PEM block"},
		"text before":     {"hello\n" + csrPEM(good), "not one PEM block"},
		"text after":      {csrPEM(good) + "hello", "not one PEM block"},
		"two":             {csrPEM(good) + csrPEM(good), "not one PEM block"},
		"a certificate":   {string(open(t, nil).RootPEM()), "not a CERTIFICATE REQUEST"},
		"empty DER":       {csrPEM(nil), "parsing"},
		"cut off":         {csrPEM(good[:len(good)-5]), "parsing"},
		"more after DER":  {csrPEM(append(bytes.Clone(good), 0)), "parsing"},
		"RSA":             {csrPEM(csr(t, r, &x509.CertificateRequest{})), "P-256"},
		"P-384":           {csrPEM(csr(t, p384, &x509.CertificateRequest{})), "P-256"},
		"Ed25519":         {csrPEM(csr(t, ed, &x509.CertificateRequest{})), "P-256"},
		"another's key":   {csrPEM(stolen), "signature"},
		"signature wrong": {csrPEM(flipped), "signature"},
		"huge":            {csrPEM(csr(t, key, &x509.CertificateRequest{Subject: pkix.Name{CommonName: strings.Repeat("a", 9000)}})), "larger than"},
	} {
		pub, err := certs.ParseCSR(c.text)
		if err == nil || pub != nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error that says %q", name, err, c.want)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(csrPEM(csr(f, key, &x509.CertificateRequest{DNSNames: []string{"a.example"}})))
	f.Fuzz(func(t *testing.T, text string) {
		pub, err := certs.ParseCSR(text)
		if err != nil {
			if pub != nil {
				t.Fatal("a key beside an error")
			}
			return
		}
		if pub.Curve != elliptic.P256() {
			t.Fatalf("a key on %v", pub.Curve)
		}
		if _, err := certs.KeyHash(pub); err != nil {
			t.Fatal(err)
		}
	})
}
