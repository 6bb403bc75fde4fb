package location_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/gateway/location"
	"github.com/portvakt/portvakt/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func record(iso string) mmdbtype.Map {
	return mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(iso)}}
}

// cityRecord has the shape of GeoLite2-City.
func cityRecord(iso string) mmdbtype.Map {
	return mmdbtype.Map{
		"city":               mmdbtype.Map{"names": mmdbtype.Map{"en": mmdbtype.String("Göteborg")}},
		"country":            mmdbtype.Map{"iso_code": mmdbtype.String(iso), "geoname_id": mmdbtype.Uint32(1)},
		"registered_country": mmdbtype.Map{"iso_code": mmdbtype.String("US")},
		"location":           mmdbtype.Map{"latitude": mmdbtype.Float64(57.7)},
	}
}

func build(t *testing.T, opt mmdbwriter.Options, nets map[string]mmdbtype.Map) []byte {
	t.Helper()
	opt.IncludeReservedNetworks = true
	w, err := mmdbwriter.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	for n, rec := range nets {
		_, ipnet, err := net.ParseCIDR(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Insert(ipnet, rec); err != nil {
			t.Fatalf("%s: %v", n, err)
		}
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func country(t *testing.T, iso string) []byte {
	return build(t, mmdbwriter.Options{DatabaseType: "GeoLite2-Country"}, map[string]mmdbtype.Map{"127.0.0.0/8": record(iso)})
}

func TestLookup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "geo.mmdb")
	put(t, path, build(t, mmdbwriter.Options{DatabaseType: "GeoLite2-City"}, map[string]mmdbtype.Map{
		"127.0.0.0/8":      cityRecord("SE"),
		"192.168.7.0/24":   record("NO"),
		"10.0.0.0/8":       record("fi"),
		"198.51.100.0/24":  record("X1"),
		"203.0.113.0/24":   record("SWE"),
		"203.0.113.128/25": {"registered_country": mmdbtype.Map{"iso_code": mmdbtype.String("DK")}},
		"192.0.2.0/24":     {"country": mmdbtype.String("SE")},
		"2001:db8::/32":    record("DK"),
		"fe80::/10":        record("IS"),
	}))
	db, err := location.Open(location.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]policy.Location{
		"127.0.0.1":          {Address: "127.0.0.1", Country: "SE"},
		"::ffff:127.0.0.1":   {Address: "127.0.0.1", Country: "SE"},
		"192.168.7.9":        {Address: "192.168.7.9", Country: "NO"},
		"10.1.2.3":           {Address: "10.1.2.3", Country: "FI"},
		"192.168.8.9":        {Address: "192.168.8.9"},
		"198.51.100.1":       {Address: "198.51.100.1"},
		"203.0.113.1":        {Address: "203.0.113.1"},
		"203.0.113.200":      {Address: "203.0.113.200"},
		"192.0.2.1":          {Address: "192.0.2.1"},
		"2001:db8::1":        {Address: "2001:db8::1", Country: "DK"},
		"fe80::1%eth0":       {Address: "fe80::1", Country: "IS"},
		"2001:db9::1":        {Address: "2001:db9::1"},
		"::ffff:192.168.7.1": {Address: "192.168.7.1", Country: "NO"},
	} {
		if diff := cmp.Diff(want, db.Lookup(netip.MustParseAddr(in))); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", in, diff)
		}
	}
	if got := db.Lookup(netip.Addr{}); got != (policy.Location{}) {
		t.Errorf("zero address: %+v", got)
	}
}

func TestIPv4OnlyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "geo.mmdb")
	put(t, path, build(t, mmdbwriter.Options{DatabaseType: "DBIP-Country-Lite", IPVersion: 4}, map[string]mmdbtype.Map{"127.0.0.0/8": record("SE")}))
	db, err := location.Open(location.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	if got := db.Lookup(netip.MustParseAddr("::ffff:127.0.0.9")); got.Country != "SE" {
		t.Errorf("v4: %+v", got)
	}
	if got := db.Lookup(netip.MustParseAddr("2001:db8::1")); got != (policy.Location{Address: "2001:db8::1"}) {
		t.Errorf("v6 in a v4 file: %+v", got)
	}
}

func TestNoFile(t *testing.T) {
	db, err := location.Open(location.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if got := db.Lookup(netip.MustParseAddr("127.0.0.1")); got != (policy.Location{Address: "127.0.0.1"}) {
		t.Errorf("%+v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := db.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	good := country(t, "SE")
	flipped := bytes.Clone(good)
	copy(flipped, bytes.Repeat([]byte{0xff}, 8)) // the search tree's first nodes
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"missing":   {nil, "no such file"},
		"empty":     {[]byte{}, "is empty"},
		"text":      {[]byte("<html>404</html>"), "not a whole MaxMind database"},
		"archive":   {append([]byte{0x1f, 0x8b, 8}, good...), "compressed archive"},
		"cut start": {good[len(good)-60:], "MaxMind database"},
		"cut end":   {good[:len(good)/2], "not a whole MaxMind database"},
		"flipped":   {flipped, "damaged"},
		"asn": {build(t, mmdbwriter.Options{DatabaseType: "GeoLite2-ASN"}, map[string]mmdbtype.Map{
			"127.0.0.0/8": {"autonomous_system_number": mmdbtype.Uint32(64500)},
		}), `"GeoLite2-ASN" database holds no countries`},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".mmdb")
			if c.data != nil {
				put(t, path, c.data)
			}
			db, err := location.Open(location.Config{Path: path})
			if err == nil || db != nil {
				t.Fatal("opened")
			}
			for _, part := range []string{path, c.want, "leave the path empty"} {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
		})
	}
	if _, err := location.Open(location.Config{Path: dir}); err == nil || !strings.Contains(err.Error(), "not a file") {
		t.Errorf("a directory: %v", err)
	}
}

// The file is replaced, broken, removed and mended; only good states count,
// and each trouble is said once.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "geo.mmdb")
	put(t, path, country(t, "SE"))
	var logs syncBuffer
	changed := make(chan struct{}, 10)
	db, err := location.Open(location.Config{
		Path: path, OnChange: func() { changed <- struct{}{} },
		Log: slog.New(slog.NewTextHandler(&logs, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- db.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	at := netip.MustParseAddr("127.0.0.1")
	wait := func(iso string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(5 * time.Second):
			t.Fatalf("no change to %s", iso)
		}
		if got := db.Lookup(at).Country; got != iso {
			t.Fatalf("country %q, want %q", got, iso)
		}
	}
	put(t, path, country(t, "NO"))
	wait("NO")

	put(t, path, []byte("half a file"))
	logs.wait(t, "not a whole MaxMind database")
	if got := db.Lookup(at).Country; got != "NO" {
		t.Errorf("after a garbled file: %q", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	logs.wait(t, "no such file")
	if got := db.Lookup(at).Country; got != "NO" {
		t.Errorf("after removal: %q", got)
	}
	put(t, path, country(t, "FI"))
	wait("FI")
	if n := strings.Count(logs.String(), "\n"); n != 2 {
		t.Errorf("%d error lines, want 2:\n%s", n, logs.String())
	}
}
