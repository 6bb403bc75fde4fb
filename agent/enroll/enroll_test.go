package enroll_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/agent/enroll"
	"github.com/portvakt/portvakt/agent/state"
	"github.com/portvakt/portvakt/agent/twin"
	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func dir(t *testing.T) *state.Dir {
	t.Helper()
	d, err := state.Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func config(d *state.Dir) enroll.Config { return enroll.Config{State: d, Info: enroll.LocalInfo()} }

func code(t *testing.T, err error) string {
	t.Helper()
	var e *wire.Error
	if !errors.As(err, &e) {
		t.Fatalf("not a gateway's error: %v", err)
	}
	return e.Code
}

func TestEnroll(t *testing.T) {
	g, d := twin.New(t, nil), dir(t)
	text := g.Code().String()
	id, err := enroll.Enroll(t.Context(), config(d), g.URL, text)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := d.Load()
	if err != nil || cred.Identity != id || id.DeviceID != "dev-1" || id.Gateway != g.URL {
		t.Fatalf("%+v, %v", cred, err)
	}
	if _, err := enroll.Enroll(t.Context(), config(d), g.URL, g.Code().String()); !errors.Is(err, enroll.ErrAlreadyEnrolled) {
		t.Errorf("a second enrolment: %v", err)
	}
	forced := config(d)
	forced.Force = true
	if id, err := enroll.Enroll(t.Context(), forced, g.URL, g.Code().String()); err != nil || id.DeviceID != "dev-2" {
		t.Errorf("with force: %+v, %v", id, err)
	}
	if now, err := d.Load(); err != nil || now.Key.Equal(cred.Key) {
		t.Error("with force the key must be a new one", err)
	}
	if _, err := enroll.Enroll(t.Context(), config(dir(t)), g.URL, text); code(t, err) != "code_used" {
		t.Errorf("a used code: %v", err)
	}
	if _, err := enroll.Enroll(t.Context(), config(dir(t)), g.URL, wire.NewCode(g.CA.SPKIHash()).String()); code(t, err) != "code_unknown" {
		t.Errorf("an unknown code: %v", err)
	}
}

func TestEnrollsInThePersonsLanguage(t *testing.T) {
	g, cfg := twin.New(t, nil), config(dir(t))
	cfg.Language = "sv"
	if _, err := enroll.Enroll(t.Context(), cfg, g.URL, g.Code().String()); err != nil {
		t.Fatal(err)
	}
	if got := g.Languages(); len(got) != 1 || got[0] != "sv" {
		t.Errorf("asked for %q", got)
	}
}

// The gateway carried the enrolment out, but the answer never arrived.
func TestLostAnswerIsRepaired(t *testing.T) {
	for _, force := range []bool{false, true} {
		g, d := twin.New(t, nil), dir(t)
		text := g.Code().String()
		cfg := config(d)
		cfg.Force = force
		g.LoseAnswers(2) // the HTTP client may itself repeat once
		_, err := enroll.Enroll(t.Context(), cfg, g.URL, text)
		if err == nil || !strings.Contains(err.Error(), "run the same command again") {
			t.Fatalf("force %v: the person is not told what to do: %v", force, err)
		}
		g.LoseAnswers(0)
		id, err := enroll.Enroll(t.Context(), cfg, g.URL, text)
		if err != nil || id.DeviceID != "dev-1" {
			t.Fatalf("force %v: the second click: %+v, %v", force, id, err)
		}
		if _, err := d.Load(); err != nil {
			t.Error(err)
		}
	}
}

// A key that another enrolment left behind must not make --force fail for ever.
func TestForceGetsPastATakenKey(t *testing.T) {
	g, d := twin.New(t, nil), dir(t)
	cfg := config(d)
	cfg.Force = true
	g.LoseAnswers(2)
	if _, err := enroll.Enroll(t.Context(), cfg, g.URL, g.Code().String()); err == nil {
		t.Fatal("the answer was not lost")
	}
	g.LoseAnswers(0)
	id, err := enroll.Enroll(t.Context(), cfg, g.URL, g.Code().String())
	if err != nil || id.DeviceID != "dev-2" {
		t.Fatalf("%+v, %v", id, err)
	}
}

func TestDamagedCodes(t *testing.T) {
	g := twin.New(t, nil)
	good := g.Code().String()
	parts := strings.Split(good, ".")
	for name, text := range map[string]string{
		"empty":        "",
		"no prefix":    strings.Join(parts[1:], "."),
		"other prefix": "pv2." + strings.Join(parts[1:], "."),
		"cut":          good[:len(good)-5],
		"secret short": parts[0] + "." + parts[1][:10] + "." + parts[2],
		"not base64":   parts[0] + ".!" + parts[1][1:] + "." + parts[2],
		"extra part":   good + ".x",
		"inner space":  parts[0] + ". " + parts[1] + "." + parts[2],
		"padded":       parts[0] + "." + parts[1] + "==." + parts[2],
	} {
		d := dir(t)
		if _, err := enroll.Enroll(t.Context(), config(d), g.URL, text); err == nil || !strings.Contains(err.Error(), "code") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := d.Key(); err == nil {
			t.Errorf("%s: a key was made for nothing", name)
		}
	}
	if _, err := enroll.Enroll(t.Context(), config(dir(t)), g.URL, "  "+good+"\n"); err != nil {
		t.Errorf("white space around a pasted code: %v", err)
	}
}

func TestBadURLs(t *testing.T) {
	text := wire.NewCode([32]byte{}).String()
	for _, u := range []string{"", "http://gateway", "ftp://g", "https://", "https://g/path", "https://u:p@g", "https://g?x=1", "https://g#f", "ht tp://x"} {
		if _, err := enroll.Enroll(t.Context(), config(dir(t)), u, text); err == nil || !strings.Contains(err.Error(), "address") {
			t.Errorf("%q: %v", u, err)
		}
	}
}

// impostor is a TLS server that records every byte that reaches it in clear.
type impostor struct {
	url string

	mu    sync.Mutex
	heard bytes.Buffer // guarded by mu
}

func newImpostor(t *testing.T, chain func() *tls.Certificate) *impostor {
	t.Helper()
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return chain(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	im := &impostor{url: "https://" + ln.Addr().String()}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				defer c.Close()
				data, _ := io.ReadAll(io.LimitReader(c, 1<<20))
				im.mu.Lock()
				im.heard.Write(data)
				im.mu.Unlock()
			})
		}
	})
	t.Cleanup(func() { ln.Close(); work.Wait() })
	return im
}

func ca(t *testing.T) *certs.CA {
	t.Helper()
	c, err := certs.OpenCA(certs.CAConfig{Dir: filepath.Join(t.TempDir(), "ca")})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestImpostorsHearNothing(t *testing.T) {
	real, other := ca(t), ca(t)
	server := func(c *certs.CA, name string) *tls.Certificate {
		s, err := c.ServerCertificate([]string{name}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	own := server(other, wire.InternalName)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	device, _, err := real.IssueDevice("dev-7", &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	deviceCert, err := state.ParseCertificate(device)
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string]*tls.Certificate{
		"another CA":                        own,
		"another CA and the real root":      {Certificate: append(own.Certificate[:1:1], real.Root().Raw), PrivateKey: own.PrivateKey},
		"the real CA but for an app":        server(real, "crm.example"),
		"an enrolled device's certificate":  {Certificate: [][]byte{deviceCert.Raw, real.Root().Raw}, PrivateKey: key},
		"the real CA's key in a false root": falseRoot(t, real),
		"a lone leaf":                       {Certificate: own.Certificate[:1], PrivateKey: own.PrivateKey},
	} {
		t.Run(name, func(t *testing.T) {
			im := newImpostor(t, func() *tls.Certificate { return chain })
			d := dir(t)
			text := wire.NewCode(real.SPKIHash())
			_, err := enroll.Enroll(t.Context(), config(d), im.url, text.String())
			var untrusted *control.UntrustedError
			if !errors.As(err, &untrusted) || !strings.Contains(err.Error(), "was not sent") {
				t.Errorf("got %v", err)
			}
			im.mu.Lock()
			defer im.mu.Unlock()
			if n := im.heard.Len(); n != 0 {
				t.Errorf("the impostor heard %d bytes: %q", n, im.heard.String())
			}
		})
	}
}

// falseRoot wraps the real CA's public key in a certificate of the impostor's
// and signs a leaf with a key of its own.
func falseRoot(t *testing.T, real *certs.CA) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, real.Root().PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(3), DNSNames: []string{wire.InternalName}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	issuer := *root
	issuer.PublicKey = &key.PublicKey
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, &issuer, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{leafDER, rootDER}, PrivateKey: key}
}

func TestWrongClockIsSaidToBeOne(t *testing.T) {
	g := twin.New(t, nil)
	for name, shift := range map[string]time.Duration{"ahead": 60 * 24 * time.Hour, "behind": -60 * 24 * time.Hour} {
		cfg := config(dir(t))
		cfg.Now = func() time.Time { return time.Now().Add(shift) }
		_, err := enroll.Enroll(t.Context(), cfg, g.URL, g.Code().String())
		var clock *control.ClockError
		if !errors.As(err, &clock) || !strings.Contains(err.Error(), "check this laptop's clock") {
			t.Errorf("%s: %v", name, err)
		}
		if control.Diagnose(err).Code != "clock" {
			t.Errorf("%s: %+v", name, control.Diagnose(err))
		}
	}
}

func TestRenew(t *testing.T) {
	for name, later := range map[string]time.Duration{"valid": 17 * time.Hour, "expired": 10 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			shift := time.Duration(0)
			now := func() time.Time { mu.Lock(); defer mu.Unlock(); return time.Now().Add(shift) }
			g, d := twin.New(t, now), dir(t)
			cfg := config(d)
			cfg.Now = now
			if _, err := enroll.Enroll(t.Context(), cfg, g.URL, g.Code().String()); err != nil {
				t.Fatal(err)
			}
			old, err := d.Load()
			if err != nil {
				t.Fatal(err)
			}
			if at := enroll.RenewAt(old.Device); at.Sub(now()) < 15*time.Hour || at.Sub(now()) > 17*time.Hour {
				t.Errorf("renewal is due at %v", at)
			}
			mu.Lock()
			shift = later
			mu.Unlock()
			fresh, err := enroll.Renew(t.Context(), cfg, old)
			if err != nil {
				t.Fatal(err)
			}
			if !fresh.Key.Equal(old.Key) || !fresh.Device.NotAfter.After(now()) {
				t.Errorf("key kept: %v, until %v", fresh.Key.Equal(old.Key), fresh.Device.NotAfter)
			}
			if err := d.SaveCertificate(fresh); err != nil {
				t.Fatal(err)
			}
			if again, err := d.Load(); err != nil || !again.Device.Equal(fresh.Device) {
				t.Error("the new certificate is not on the disk", err)
			}
		})
	}
}

func TestRenewTrustsOnlyTheEnrolledCA(t *testing.T) {
	g, d := twin.New(t, nil), dir(t)
	if _, err := enroll.Enroll(t.Context(), config(d), g.URL, g.Code().String()); err != nil {
		t.Fatal(err)
	}
	cred, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	other := twin.New(t, nil)
	cred.Identity.Gateway = other.URL
	var untrusted *control.UntrustedError
	if _, err := enroll.Renew(t.Context(), config(d), cred); !errors.As(err, &untrusted) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyAnswers(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	text := wire.NewCode([32]byte{1}).String()
	_, err = enroll.Enroll(t.Context(), config(dir(t)), "https://"+ln.Addr().String(), text)
	if control.Diagnose(err).Code != "refused" || !strings.Contains(err.Error(), "still good") {
		t.Errorf("refused: %+v: %v", control.Diagnose(err), err)
	}
	_, err = enroll.Enroll(t.Context(), config(dir(t)), "https://no-such-gateway.invalid", text)
	if control.Diagnose(err).Code != "dns" {
		t.Errorf("dns: %+v: %v", control.Diagnose(err), err)
	}
	for _, s := range []string{text, strings.Split(text, ".")[1]} {
		if strings.Contains(err.Error(), s) {
			t.Error("the error shows the code")
		}
	}
}
