// Package geoip writes a small location database in MaxMind's format, in which
// loopback addresses lie in countries. It lets a demo travel without a network.
package geoip

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
)

// Write makes the database at path; countries gives each prefix its ISO 3166-1
// alpha-2 code. A database that is already there is replaced in one step, so
// that a reader sees the old one or the new one.
func Write(path string, countries map[netip.Prefix]string) error {
	tree, err := mmdbwriter.New(mmdbwriter.Options{
		DatabaseType:            "GeoLite2-Country",
		Description:             map[string]string{"en": "made by the Portvakt demo"},
		IncludeReservedNetworks: true, // loopback is one
		RecordSize:              24,
	})
	if err != nil {
		return fmt.Errorf("making a location database: %w", err)
	}
	for p, code := range countries {
		_, ipnet, err := net.ParseCIDR(p.Masked().String())
		if err != nil {
			return fmt.Errorf("reading prefix %s: %w", p, err)
		}
		country := mmdbtype.Map{"iso_code": mmdbtype.String(code)}
		if err := tree.Insert(ipnet, mmdbtype.Map{"country": country, "registered_country": country}); err != nil {
			return fmt.Errorf("adding %s: %w", p, err)
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".geoip-*")
	if err != nil {
		return fmt.Errorf("writing the location database: %w", err)
	}
	defer os.Remove(f.Name()) // fails once it has its final name
	_, err = tree.WriteTo(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("writing the location database: %w", err)
	}
	return nil
}
