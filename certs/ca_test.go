package certs_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/certs"
)

func TestMain(m *testing.M) {
	// certmagic looks every 5 s whether a lock it refreshes is still there,
	// and ends when it is not; no context reaches it.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/caddyserver/certmagic.keepLockfileFresh"))
}

// clock is a time that a test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now()} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func open(t *testing.T, now func() time.Time) *certs.CA {
	t.Helper()
	ca, err := certs.OpenCA(certs.CAConfig{Dir: filepath.Join(t.TempDir(), "ca"), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func parse(t *testing.T, certPEM []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(certPEM)
	if block == nil || len(rest) != 0 {
		t.Fatalf("not one PEM block: %q", certPEM)
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestOpenCACreatesAndKeeps(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "ca")
	ca, err := certs.OpenCA(certs.CAConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"": os.ModeDir | 0o700, "root.key": 0o600, "root.pem": 0o644} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode() != want {
			t.Errorf("%q: mode %v, want %v (%v)", name, info.Mode(), want, err)
		}
	}
	if files, _ := os.ReadDir(dir); len(files) != 2 {
		t.Errorf("%d files, want 2: %v", len(files), files)
	}
	root := parse(t, ca.RootPEM())
	if !root.IsCA || !root.MaxPathLenZero || root.MaxPathLen != 0 || root.SerialNumber.BitLen() < 120 {
		t.Errorf("root: %+v", root)
	}
	if d := time.Until(root.NotAfter); d < certs.RootLife-time.Hour || d > certs.RootLife {
		t.Errorf("root lives %v", d)
	}
	if ca.SPKIHash() != sha256.Sum256(root.RawSubjectPublicKeyInfo) || !ca.Root().Equal(root) {
		t.Error("hash or root is another's")
	}
	again, err := certs.OpenCA(certs.CAConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.RootPEM(), ca.RootPEM()) {
		t.Error("another root at the second start")
	}
}

func TestOpenCARefuses(t *testing.T) {
	other := filepath.Join(t.TempDir(), "other")
	if _, err := certs.OpenCA(certs.CAConfig{Dir: other}); err != nil {
		t.Fatal(err)
	}
	copyFrom := func(t *testing.T, dir, name string) {
		b, err := os.ReadFile(filepath.Join(other, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(t *testing.T, dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		do   func(t *testing.T, dir string)
		now  func() time.Time
		want string
	}{
		"key for the group": {do: func(_ *testing.T, dir string) { os.Chmod(filepath.Join(dir, "root.key"), 0o640) }, want: "chmod 600 "},
		"key for everyone":  {do: func(_ *testing.T, dir string) { os.Chmod(filepath.Join(dir, "root.key"), 0o604) }, want: "chmod 600 "},
		"key writable":      {do: func(_ *testing.T, dir string) { os.Chmod(filepath.Join(dir, "root.key"), 0o620) }, want: "chmod 600 "},
		"no key":            {do: func(_ *testing.T, dir string) { os.Remove(filepath.Join(dir, "root.key")) }, want: "root.key is missing"},
		"no certificate":    {do: func(_ *testing.T, dir string) { os.Remove(filepath.Join(dir, "root.pem")) }, want: "root.pem is missing"},
		"other key":         {do: func(t *testing.T, dir string) { copyFrom(t, dir, "root.key") }, want: "do not belong together"},
		"other certificate": {do: func(t *testing.T, dir string) { copyFrom(t, dir, "root.pem") }, want: "do not belong together"},
		"garbled key":       {do: func(t *testing.T, dir string) { write(t, dir, "root.key", "x") }, want: "not a PEM private key"},
		"empty key":         {do: func(t *testing.T, dir string) { write(t, dir, "root.key", "") }, want: "not a PEM private key"},
		"garbled cert":      {do: func(t *testing.T, dir string) { write(t, dir, "root.pem", "x") }, want: "not one PEM certificate"},
		"RSA key": {do: func(t *testing.T, dir string) {
			k, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			der, _ := x509.MarshalPKCS8PrivateKey(k)
			write(t, dir, "root.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
		}, want: "not an ECDSA P-256 key"},
		"expired": {do: func(*testing.T, string) {}, now: func() time.Time { return time.Now().Add(certs.RootLife + time.Hour) }, want: "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "ca")
			if _, err := certs.OpenCA(certs.CAConfig{Dir: dir}); err != nil {
				t.Fatal(err)
			}
			c.do(t, dir)
			ca, err := certs.OpenCA(certs.CAConfig{Dir: dir, Now: c.now})
			if err == nil || ca != nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), dir) {
				t.Errorf("error %v, want one that says %q and names the file", err, c.want)
			}
		})
	}
	if _, err := certs.OpenCA(certs.CAConfig{}); err == nil {
		t.Error("no directory was fine")
	}
}

// Many first starts at once end with one root, whoever wins.
func TestOpenCARace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	var wg sync.WaitGroup
	var mu sync.Mutex
	roots := map[[32]byte]bool{}
	for range 16 {
		wg.Go(func() {
			if ca, err := certs.OpenCA(certs.CAConfig{Dir: dir}); err == nil {
				mu.Lock()
				roots[ca.SPKIHash()] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	ca, err := certs.OpenCA(certs.CAConfig{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if len(roots) > 1 || len(roots) == 1 && !roots[ca.SPKIHash()] {
		t.Errorf("%d roots", len(roots))
	}
}

func TestIssueDevice(t *testing.T) {
	c := newClock()
	ca := open(t, c.Now)
	key := newKey(t)
	certPEM, notAfter, err := ca.IssueDevice("dev-7_A", &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, certPEM)
	if leaf.IsCA || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0 ||
		len(leaf.URIs) != 1 || leaf.URIs[0].String() != "portvakt://device/dev-7_A" ||
		len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth ||
		leaf.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("%+v", leaf)
	}
	if !leaf.NotAfter.Equal(notAfter) || notAfter.Sub(c.Now()).Round(time.Minute) != certs.DeviceLife {
		t.Errorf("ends at %v", notAfter)
	}
	if back := c.Now().Sub(leaf.NotBefore); back < time.Minute || back > 5*time.Minute {
		t.Errorf("begins %v before its issue", back)
	}
	got, err := ca.VerifyDevice([]*x509.Certificate{leaf})
	if err != nil {
		t.Fatal(err)
	}
	hash, err := certs.KeyHash(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if want := (certs.DeviceIdentity{DeviceID: "dev-7_A", KeyHash: hash, NotAfter: notAfter}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	c.Add(certs.DeviceLife + time.Minute)
	if got, err = ca.VerifyDevice([]*x509.Certificate{leaf}); err != nil || !got.Expired || got.KeyHash != hash {
		t.Errorf("after it ran out: %+v, %v", got, err)
	}
	c.Add(400 * 24 * time.Hour)
	if got, err = ca.VerifyDevice([]*x509.Certificate{leaf}); err != nil || !got.Expired {
		t.Errorf("a year later: %+v, %v", got, err)
	}
}

func TestIssueDeviceRefuses(t *testing.T) {
	ca := open(t, nil)
	good := &newKey(t).PublicKey
	for _, id := range []string{"", "a b", "../x", "a/b", "a?b", "å", "a%2f", strings.Repeat("a", 65)} {
		if _, _, err := ca.IssueDevice(id, good); err == nil {
			t.Errorf("a certificate for %q", id)
		}
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, pub := range []crypto.PublicKey{nil, r.Public(), p384.Public(), *good} {
		if _, _, err := ca.IssueDevice("d", pub); err == nil {
			t.Errorf("a certificate for a %T", pub)
		}
	}
	c := newClock()
	old := open(t, c.Now)
	c.Add(certs.RootLife - time.Hour)
	if _, end, err := old.IssueDevice("d", good); err != nil || end.After(old.Root().NotAfter) {
		t.Errorf("outlives its root: %v, %v", end, err)
	}
	c.Add(2 * time.Hour)
	if _, _, err := old.IssueDevice("d", good); err == nil {
		t.Error("an expired root issued")
	}
}

// sign makes a certificate as an attacker with some key would.
func sign(t *testing.T, tmpl, parent *x509.Certificate, pub crypto.PublicKey, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestVerifyDeviceRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	c := newClock()
	ca, err := certs.OpenCA(certs.CAConfig{Dir: dir, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, "root.key"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(keyPEM)
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	rootKey := k.(*ecdsa.PrivateKey)
	key := newKey(t)
	name := []*url.URL{{Scheme: "portvakt", Host: "device", Path: "/dev-1"}}
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	tmpl := func(change func(*x509.Certificate)) *x509.Certificate {
		x := &x509.Certificate{
			SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "dev-1"}, URIs: name, ExtKeyUsage: client,
			KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
			NotBefore: c.Now().Add(-time.Minute), NotAfter: c.Now().Add(time.Hour),
		}
		if change != nil {
			change(x)
		}
		return x
	}
	ours := func(change func(*x509.Certificate)) []*x509.Certificate {
		return []*x509.Certificate{sign(t, tmpl(change), ca.Root(), &key.PublicKey, rootKey)}
	}
	if _, err := ca.VerifyDevice(ours(nil)); err != nil {
		t.Fatalf("the table's good case: %v", err)
	}
	if _, err := ca.VerifyDevice(ours(func(x *x509.Certificate) { x.NotBefore = c.Now().Add(4 * time.Minute) })); err != nil {
		t.Errorf("a clock four minutes ahead: %v", err)
	}

	otherCA := open(t, c.Now)
	otherPEM, _, err := otherCA.IssueDevice("dev-1", &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	// An impostor CA with the same name as ours.
	fakeKey := newKey(t)
	fake := *ca.Root()
	fake.PublicKey = &fakeKey.PublicKey
	server, err := ca.ServerCertificate([]string{"crm.example"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	tampered := append([]byte(nil), ours(nil)[0].Raw...)
	at := bytes.Index(tampered, []byte("portvakt://device/dev-1"))
	tampered[at+len("portvakt://device/dev-1")-1] = '2'
	forged, err := x509.ParseCertificate(tampered)
	if err != nil {
		t.Fatal(err)
	}
	// A device that plays CA for its own chain.
	subCA := sign(t, tmpl(func(x *x509.Certificate) {
		x.IsCA, x.KeyUsage = true, x509.KeyUsageCertSign
	}), ca.Root(), &key.PublicKey, rootKey)
	below := sign(t, tmpl(nil), subCA, &newKey(t).PublicKey, key)
	device := ours(nil)[0]
	belowDevice := sign(t, tmpl(nil), device, &newKey(t).PublicKey, key)
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}

	for what, chain := range map[string][]*x509.Certificate{
		"nothing":              nil,
		"another CA":           {parse(t, otherPEM)},
		"another CA and ours":  {parse(t, otherPEM), ca.Root()},
		"another CA, its root": {parse(t, otherPEM), otherCA.Root()},
		"an impostor CA":       {sign(t, tmpl(nil), &fake, &key.PublicKey, fakeKey)},
		"self-signed":          {sign(t, tmpl(nil), tmpl(nil), &key.PublicKey, key)},
		"the root itself":      {ca.Root()},
		"an app's certificate": {server.Leaf},
		"tampered":             {forged},
		"below a sub-CA":       {below, subCA},
		"a sub-CA":             {subCA},
		"below a device":       {belowDevice, device},
		"no usage":             ours(func(x *x509.Certificate) { x.ExtKeyUsage = nil }),
		"any usage":            ours(func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }),
		"two usages":           ours(func(x *x509.Certificate) { x.ExtKeyUsage = append(client, x509.ExtKeyUsageServerAuth) }),
		"no name":              ours(func(x *x509.Certificate) { x.URIs = nil }),
		"two names":            ours(func(x *x509.Certificate) { x.URIs = append(name, name[0]) }),
		"a DNS name too":       ours(func(x *x509.Certificate) { x.DNSNames = []string{"a.example"} }),
		"an IP address too":    ours(func(x *x509.Certificate) { x.IPAddresses = []net.IP{{10, 0, 0, 1}} }),
		"another scheme":       ours(func(x *x509.Certificate) { x.URIs = []*url.URL{{Scheme: "https", Host: "device", Path: "/dev-1"}} }),
		"another kind":         ours(func(x *x509.Certificate) { x.URIs = []*url.URL{{Scheme: "portvakt", Host: "gateway", Path: "/dev-1"}} }),
		"a path":               ours(func(x *x509.Certificate) { x.URIs = []*url.URL{{Scheme: "portvakt", Host: "device", Path: "/a/b"}} }),
		"a query": ours(func(x *x509.Certificate) {
			x.URIs = []*url.URL{{Scheme: "portvakt", Host: "device", Path: "/a", RawQuery: "b"}}
		}),
		"not yet valid": ours(func(x *x509.Certificate) { x.NotBefore = c.Now().Add(6 * time.Minute) }),
		"an RSA key":    {sign(t, tmpl(nil), ca.Root(), r.Public(), rootKey)},
		"an unknown critical": ours(func(x *x509.Certificate) {
			x.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true}}
		}),
		"expired, of other CA":  {sign(t, tmpl(func(x *x509.Certificate) { x.NotAfter = c.Now().Add(-time.Second) }), &fake, &key.PublicKey, fakeKey)},
		"expired, other usage":  ours(func(x *x509.Certificate) { x.NotAfter, x.ExtKeyUsage = c.Now().Add(-time.Second), nil }),
		"ends before it begins": {sign(t, tmpl(func(x *x509.Certificate) { x.NotBefore = c.Now().Add(time.Hour) }), &fake, &key.PublicKey, fakeKey)},
	} {
		if id, err := ca.VerifyDevice(chain); err == nil || id != (certs.DeviceIdentity{}) {
			t.Errorf("%s: taken for %+v (%v)", what, id, err)
		}
	}
}

func TestServerCertificate(t *testing.T) {
	c := newClock()
	ca := open(t, c.Now)
	get := func(names []string, ips ...net.IP) *tls.Certificate {
		t.Helper()
		x, err := ca.ServerCertificate(names, ips)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	first := get([]string{"CRM.example.", "a.example"}, net.IPv4(10, 0, 0, 1))
	pool := x509.NewCertPool()
	pool.AddCert(ca.Root())
	for _, name := range []string{"crm.example", "a.example", "10.0.0.1"} {
		if _, err := first.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool, CurrentTime: c.Now()}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := first.Leaf.VerifyHostname("b.example"); err == nil {
		t.Error("good for a stranger's name")
	}
	if len(first.Certificate) != 2 || !bytes.Equal(first.Certificate[1], ca.Root().Raw) {
		t.Error("the root is not in the chain")
	}
	if life := first.Leaf.NotAfter.Sub(c.Now()).Round(time.Minute); life != certs.ServerLife {
		t.Errorf("lives %v", life)
	}
	if get([]string{"a.example", "crm.example", "a.example"}, net.IP{10, 0, 0, 1}) != first {
		t.Error("the same set in another order got another certificate")
	}
	if get([]string{"a.example"}) == first {
		t.Error("another set got the same certificate")
	}
	c.Add(certs.ServerLife * 2 / 3)
	c.Add(-time.Hour)
	if get([]string{"a.example", "crm.example"}, net.IP{10, 0, 0, 1}) != first {
		t.Error("replaced before two thirds of its life")
	}
	c.Add(2 * time.Hour)
	if get([]string{"a.example", "crm.example"}, net.IP{10, 0, 0, 1}) == first {
		t.Error("not replaced after two thirds of its life")
	}
	for _, names := range [][]string{nil, {""}, {"*.example"}, {"a b"}, {"a..b"}, {"-a"}, {"å.example"}, {strings.Repeat("a", 64)}, {"a\x00b"}} {
		if _, err := ca.ServerCertificate(names, nil); err == nil {
			t.Errorf("a certificate for %q", names)
		}
	}
	if _, err := ca.ServerCertificate(nil, []net.IP{{1, 2, 3}}); err == nil {
		t.Error("a certificate for three bytes")
	}
}

func TestServerCertificateConcurrently(t *testing.T) {
	ca := open(t, nil)
	var wg sync.WaitGroup
	got := make([]*tls.Certificate, 64)
	for i := range got {
		wg.Go(func() {
			x, err := ca.ServerCertificate([]string{[]string{"a.example", "b.example"}[i%2]}, nil)
			if err != nil {
				t.Error(err)
			}
			got[i] = x
		})
	}
	wg.Wait()
	for i := range got {
		if got[i] != got[i%2] {
			t.Fatal("two certificates for one name")
		}
	}
}
