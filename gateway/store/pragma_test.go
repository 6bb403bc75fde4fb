package store

import (
	"database/sql"
	"net/netip"
	"path/filepath"
	"testing"
)

// What a crash or a second process would show, too late.
func TestConnectionSettings(t *testing.T) {
	s, err := Open(t.Context(), Options{
		Path: filepath.Join(t.TempDir(), "portvakt.db"), SealKey: [32]byte{1},
		IPv4: netip.MustParsePrefix("10.0.0.0/16"), IPv6: netip.MustParsePrefix("fd00::/64"),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for name, db := range map[string]*sql.DB{"writer": s.w, "reader": s.r} {
		for pragma, want := range map[string]string{
			"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": "10000",
			"query_only": map[string]string{"writer": "0", "reader": "1"}[name],
		} {
			var got string
			if err := db.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s: %s is %q (%v), want %q", name, pragma, got, err, want)
			}
		}
	}
	if n := s.w.Stats().MaxOpenConnections; n != 1 {
		t.Errorf("%d writers", n)
	}
}
