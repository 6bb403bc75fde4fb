package geoip_test

import (
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/portvakt/portvakt/deploy/demo/geoip"
)

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "geo.mmdb")
	if err := geoip.Write(path, map[netip.Prefix]string{netip.MustParsePrefix("127.10.0.0/16"): "SE"}); err != nil {
		t.Fatal(err)
	}
	if err := geoip.Write(path, map[netip.Prefix]string{
		netip.MustParsePrefix("127.10.0.0/16"): "FI",
		netip.MustParsePrefix("127.66.0.0/16"): "US",
	}); err != nil {
		t.Fatal(err)
	}
	db, err := maxminddb.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for addr, want := range map[string]string{"127.10.0.1": "FI", "127.10.255.255": "FI", "127.66.3.4": "US", "127.0.0.1": "", "192.0.2.1": ""} {
		var got struct {
			Country struct {
				Code string `maxminddb:"iso_code"`
			} `maxminddb:"country"`
		}
		if err := db.Lookup(netip.MustParseAddr(addr)).Decode(&got); err != nil || got.Country.Code != want {
			t.Errorf("%s is in %q, want %q (%v)", addr, got.Country.Code, want, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".geoip-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := geoip.Write(filepath.Join(t.TempDir(), "no", "geo.mmdb"), nil); err == nil {
		t.Error("wrote into a directory that is not there")
	}
}
