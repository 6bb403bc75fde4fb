package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var t0 = time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)

func options(path string) store.Options {
	return store.Options{
		Path: path,
		IPv4: netip.MustParsePrefix("100.80.0.0/16"), IPv6: netip.MustParsePrefix("fd50:5056::/64"),
		SealKey: [32]byte{1, 2, 3}, Now: func() time.Time { return t0 },
	}
}

// open opens a store that is checked when the test ends.
func open(t *testing.T, opt store.Options) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.CheckConsistency(context.Background()); err != nil {
			t.Error(err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func fresh(t *testing.T) *store.Store {
	return open(t, options(filepath.Join(t.TempDir(), "portvakt.db")))
}

func hash(s string) [32]byte { return sha256.Sum256([]byte(s)) }

func invite(t *testing.T, s *store.Store, secret string) store.Invite {
	t.Helper()
	i := store.Invite{SecretHash: hash(secret), CreatedBy: "os:0:root", CreatedAt: t0, ExpiresAt: t0.Add(time.Hour)}
	if err := s.CreateInvite(t.Context(), i); err != nil {
		t.Fatal(err)
	}
	return i
}

func redeem(secret, id string) store.Redeem {
	return store.Redeem{SecretHash: hash(secret), Now: t0, Device: store.Device{
		ID: id, KeyHash: hash("key " + id), Name: "laptop", Serial: "S1", OS: "linux", Arch: "amd64", KeyTier: "software",
	}}
}

func enrol(t *testing.T, s *store.Store, id string) store.Device {
	t.Helper()
	invite(t, s, "for "+id)
	d, err := s.RedeemInvite(t.Context(), redeem("for "+id, id))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{})); diff != "" {
		t.Errorf("%s: -want +got\n%s", what, diff)
	}
}

func TestFilesAreThePrivateOnesOfTheOwner(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b c?%")
	s := open(t, options(filepath.Join(dir, "portvakt.db")))
	enrol(t, s, "d1")
	for name, want := range map[string]os.FileMode{".": 0o700, "portvakt.db": 0o600, "portvakt.db-wal": 0o600, "portvakt.db-shm": 0o600} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	first := func(t *testing.T, path string) {
		s, err := store.Open(t.Context(), options(path))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	exec := func(query string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			first(t, path)
			raw(t, path, query)
		}
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string)
		change  func(o *store.Options)
		want    []string
	}{
		"another IPv4 pool": {first, func(o *store.Options) { o.IPv4 = netip.MustParsePrefix("10.9.0.0/16") }, []string{"100.80.0.0/16", "10.9.0.0/16"}},
		"another IPv6 pool": {first, func(o *store.Options) { o.IPv6 = netip.MustParsePrefix("fd51::/64") }, []string{"fd50:5056::/64", "fd51::/64"}},
		"another seal key":  {first, func(o *store.Options) { o.SealKey[0]++ }, []string{"another key"}},
		"no seal key":       {nil, func(o *store.Options) { o.SealKey = [32]byte{} }, []string{"no key to seal"}},
		"newer schema":      {exec(`UPDATE meta SET value = '99' WHERE name = 'schema'`), nil, []string{"version 99", "newer"}},
		"garbled schema":    {exec(`UPDATE meta SET value = 'x' WHERE name = 'schema'`), nil, []string{"no number"}},
		"not a database": {func(t *testing.T, p string) {
			if err := os.WriteFile(p, bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"not a database"}},
		"file of others": {func(t *testing.T, p string) {
			first(t, p)
			if err := os.Chmod(p, 0o640); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"chmod 600"}},
		"directory of others": {func(t *testing.T, p string) {
			if err := os.Chmod(filepath.Dir(p), 0o777); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"chmod 700"}},
		"symlink": {func(t *testing.T, p string) {
			if err := os.Symlink("elsewhere", p); err != nil {
				t.Fatal(err)
			}
		}, nil, []string{"not a regular file"}},
		"IPv4 too small":   {nil, func(o *store.Options) { o.IPv4 = netip.MustParsePrefix("10.0.0.0/25") }, []string{"/10 and /24"}},
		"IPv4 too large":   {nil, func(o *store.Options) { o.IPv4 = netip.MustParsePrefix("10.0.0.0/8") }, []string{"/10 and /24"}},
		"IPv4 host bits":   {nil, func(o *store.Options) { o.IPv4 = netip.MustParsePrefix("10.0.0.1/24") }, []string{"write 10.0.0.0/24"}},
		"IPv4 missing":     {nil, func(o *store.Options) { o.IPv4 = netip.Prefix{} }, []string{"IPv4"}},
		"families swapped": {nil, func(o *store.Options) { o.IPv4, o.IPv6 = o.IPv6, o.IPv4 }, []string{"not an IPv4 prefix"}},
		"IPv6 mapped":      {nil, func(o *store.Options) { o.IPv6 = netip.MustParsePrefix("::ffff:0:0/96") }, []string{"not an IPv6 prefix"}},
		"IPv6 smaller": {nil, func(o *store.Options) {
			o.IPv4, o.IPv6 = netip.MustParsePrefix("10.0.0.0/12"), netip.MustParsePrefix("fd00::/112")
		}, []string{"smaller"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "portvakt.db")
			if err := os.Chmod(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if c.prepare != nil {
				c.prepare(t, path)
			}
			opt := options(path)
			if c.change != nil {
				c.change(&opt)
			}
			s, err := store.Open(t.Context(), opt)
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v does not say %q", err, w)
				}
			}
		})
	}
}

// raw runs SQL past the store and its constraints.
func raw(t *testing.T, path string, queries ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, q := range queries {
		if _, err := db.Exec(q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}

func TestFirstOpenByManyAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portvakt.db")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s, err := store.Open(t.Context(), options(path))
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestRedeem(t *testing.T) {
	s := fresh(t)
	named := store.Invite{SecretHash: hash("named"), Name: "desk 7", Serial: "S1", CreatedBy: "os:0:root", CreatedAt: t0, ExpiresAt: t0.Add(time.Hour)}
	if err := s.CreateInvite(t.Context(), named); err != nil {
		t.Fatal(err)
	}
	invite(t, s, "open")
	invite(t, s, "spare")
	with := func(r store.Redeem, f func(*store.Redeem)) store.Redeem { f(&r); return r }
	for _, c := range []struct {
		name string
		r    store.Redeem
		err  error
	}{
		{"unknown", redeem("nobody's", "x"), store.ErrInviteUnknown},
		{"other serial", with(redeem("named", "x"), func(r *store.Redeem) { r.Device.Serial = "S2" }), store.ErrInviteSerial},
		{"at its expiry", with(redeem("named", "x"), func(r *store.Redeem) { r.Now = t0.Add(time.Hour) }), store.ErrInviteExpired},
		{"a nanosecond before", with(redeem("named", "d1"), func(r *store.Redeem) { r.Now = t0.Add(time.Hour - 1) }), nil},
		{"again", redeem("named", "x"), store.ErrInviteUsed},
		{"again after its expiry", with(redeem("named", "x"), func(r *store.Redeem) { r.Now = t0.Add(2 * time.Hour) }), store.ErrInviteUsed},
		{"key of another device", with(redeem("open", "x"), func(r *store.Redeem) { r.Device.KeyHash = hash("key d1") }), store.ErrKeyTaken},
		{"the code is still good", redeem("open", "d2"), nil},
	} {
		if _, err := s.RedeemInvite(t.Context(), c.r); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.err)
		}
	}
	d1, err := s.Device(t.Context(), "d1")
	if err != nil {
		t.Fatal(err)
	}
	want := redeem("", "d1").Device
	want.Name = "desk 7"
	want.EnrolledAt, want.LastSeen = t0.Add(time.Hour-1), t0.Add(time.Hour-1)
	want.Addresses = [2]netip.Addr{netip.MustParseAddr("100.80.0.16"), netip.MustParseAddr("fd50:5056::10")}
	same(t, "device", d1, want)

	ds, err := s.Devices(t.Context())
	if err != nil || len(ds) != 2 || ds[1].ID != "d2" || ds[1].Addresses[0] != netip.MustParseAddr("100.80.0.17") {
		t.Errorf("%+v %v", ds, err)
	}
	if _, err := s.Device(t.Context(), "x"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a refused enrolment left something: %v", err)
	}
	if _, err := s.RedeemInvite(t.Context(), with(redeem("spare", "d1"), func(r *store.Redeem) { r.Device.KeyHash = hash("new") })); err == nil {
		t.Error("a device id was given twice")
	}
	// Re-enrolment under the same name and serial makes a new device.
	if _, err := s.RedeemInvite(t.Context(), redeem("spare", "d3")); err != nil {
		t.Error(err)
	}
	if err := s.CreateInvite(t.Context(), store.Invite{SecretHash: hash("late"), CreatedAt: t0, ExpiresAt: t0}); err == nil {
		t.Error("made a code that is expired at once")
	}
	if err := s.CreateInvite(t.Context(), named); err == nil {
		t.Error("made one code twice")
	}
}

func TestRedeemHasOneWinner(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portvakt.db")
	stores := []*store.Store{open(t, options(path)), open(t, options(path))}
	for round := range 5 {
		secret := fmt.Sprint("raced ", round)
		invite(t, stores[0], secret)
		errs := make([]error, 64)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				<-start
				_, errs[i] = stores[i%2].RedeemInvite(t.Context(), redeem(secret, fmt.Sprintf("d%d.%d", round, i)))
			})
		}
		close(start)
		wg.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, store.ErrInviteUsed):
				t.Error(err)
			}
		}
		if won != 1 {
			t.Errorf("round %d: %d winners", round, won)
		}
	}
	ds, err := stores[1].Devices(t.Context())
	if err != nil || len(ds) != 5 || ds[4].Addresses[0] != netip.MustParseAddr("100.80.0.20") {
		t.Errorf("losers took addresses: %+v %v", ds, err)
	}
}

func TestNoSecretRestsInTheFiles(t *testing.T) {
	dir := t.TempDir()
	s := open(t, options(filepath.Join(dir, "portvakt.db")))
	enrol(t, s, "d1")
	var psk [32]byte
	copy(psk[:], "CANARY-preshared-key-0123456789!")
	if _, err := s.PutRegistration(t.Context(), store.Registration{DeviceID: "d1", TunnelKey: hash("k"), PresharedKey: psk, CreatedAt: t0, ExpiresAt: t0}); err != nil {
		t.Fatal(err)
	}
	rs, err := s.Registrations(t.Context())
	if err != nil || len(rs) != 1 || rs[0].PresharedKey != psk {
		t.Fatalf("%v %v", rs, err)
	}
	for _, name := range []string{"portvakt.db", "portvakt.db-wal"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || len(b) == 0 {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
		if bytes.Contains(b, []byte("CANARY")) || bytes.Contains(b, []byte("for d1")) {
			t.Errorf("%s holds a secret", name)
		}
	}
}

func TestAPresharedKeyBelongsToItsDeviceAndTunnelKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portvakt.db")
	s, err := store.Open(t.Context(), options(path))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, id := range []string{"d1", "d2"} {
		enrol(t, s, id)
		if _, err := s.PutRegistration(t.Context(), store.Registration{DeviceID: id, TunnelKey: hash(id), PresharedKey: hash(id), CreatedAt: t0, ExpiresAt: t0}); err != nil {
			t.Fatal(err)
		}
	}
	raw(t, path, `UPDATE registrations SET psk_sealed = (SELECT psk_sealed FROM registrations WHERE device_id = 'd1') WHERE device_id = 'd2'`)
	if _, err := s.Registrations(t.Context()); err == nil || !strings.Contains(err.Error(), `"d2"`) {
		t.Errorf("a swapped key was opened: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portvakt.db")
	opt := options(path)
	opt.IPv4, opt.IPv6 = netip.MustParsePrefix("10.0.0.0/24"), netip.MustParsePrefix("fd00::/112")
	s := open(t, opt)
	if got, want := s.GatewayAddresses(), ([2]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}); got != want {
		t.Errorf("gateway %v", got)
	}
	first, err := s.AppAddresses(t.Context(), []string{"crm", "desk", "crm"})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "apps", first, map[string][2]netip.Addr{
		"crm":  {netip.MustParseAddr("10.0.0.16"), netip.MustParseAddr("fd00::10")},
		"desk": {netip.MustParseAddr("10.0.0.17"), netip.MustParseAddr("fd00::11")},
	})
	enrol(t, s, "d1")
	if _, err := s.RevokeDevice(t.Context(), store.Revocation{DeviceID: "d1", Reason: "lost", By: "x", At: t0}); err != nil {
		t.Fatal(err)
	}
	// Neither a revoked device's nor a removed app's address comes back.
	again, err := open(t, opt).AppAddresses(t.Context(), []string{"voice", "desk"})
	if err != nil || again["desk"] != first["desk"] || again["voice"][0] != netip.MustParseAddr("10.0.0.19") {
		t.Errorf("%v %v", again, err)
	}
	if none, err := s.AppAddresses(t.Context(), nil); err != nil || len(none) != 0 {
		t.Errorf("%v %v", none, err)
	}
	var rest []string
	for n := 20; n <= 254; n++ {
		rest = append(rest, fmt.Sprint("app", n))
	}
	all, err := s.AppAddresses(t.Context(), rest)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[netip.Addr]bool{}
	for _, a := range all {
		seen[a[0]], seen[a[1]] = true, true
	}
	if len(seen) != 2*len(rest) || seen[netip.MustParseAddr("10.0.0.255")] || !seen[netip.MustParseAddr("10.0.0.254")] {
		t.Errorf("%d addresses for %d apps", len(seen), len(rest))
	}
	if _, err := s.AppAddresses(t.Context(), []string{"crm", "one more"}); err == nil || !strings.Contains(err.Error(), "10.0.0.0/24 is used up") {
		t.Errorf("exhausted: %v", err)
	}
	invite(t, s, "full")
	if _, err := s.RedeemInvite(t.Context(), redeem("full", "d9")); err == nil || !strings.Contains(err.Error(), "used up") {
		t.Errorf("exhausted: %v", err)
	}
}

func TestAddressesAreGivenOnceUnderARace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "portvakt.db")
	stores := []*store.Store{open(t, options(path)), open(t, options(path))}
	var mu sync.Mutex
	got := map[string][2]netip.Addr{}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			m, err := stores[i%2].AppAddresses(t.Context(), []string{fmt.Sprint("app", i%8), fmt.Sprint("app", (i+1)%8)})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for name, a := range m {
				if old, ok := got[name]; ok && old != a {
					t.Errorf("%s has %v and %v", name, old, a)
				}
				got[name] = a
			}
		})
	}
	wg.Wait()
	owner := map[netip.Addr]string{}
	for name, a := range got {
		if other, ok := owner[a[0]]; ok {
			t.Errorf("%s and %s share %v", name, other, a[0])
		}
		owner[a[0]] = name
	}
}

func subject() policy.Subject {
	return policy.Subject{
		Issuer: "https://idp", ID: "42", Name: "Åsa", Groups: []string{"sales"},
		Claims: map[string]any{"dept": "x", "n": 1.5}, AuthenticatedAt: t0,
	}
}
