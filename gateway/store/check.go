package store

import (
	"context"
	"errors"
	"fmt"
)

// rules are queries that must find nothing. Some repeat what the schema
// enforces: they are for a file that was edited or damaged, and for a schema
// that lost a constraint in a migration.
var rules = []struct{ name, query string }{
	{"two devices have one key", `SELECT MIN(id) FROM devices GROUP BY key_hash HAVING COUNT(*) > 1`},
	{"two devices have one address", `SELECT MIN(id) FROM devices GROUP BY number HAVING COUNT(*) > 1`},
	{"a device has an address that is not its own", `SELECT d.id FROM devices d LEFT JOIN addresses a ON a.number = d.number AND a.owner_kind = 'device' AND a.owner = d.id WHERE a.number IS NULL`},
	{"an owner has two addresses", `SELECT MIN(owner) FROM addresses GROUP BY owner_kind, owner HAVING COUNT(*) > 1`},
	{"an address is below the first one given out", `SELECT owner FROM addresses WHERE number < 16`},
	{"an address belongs to a device that does not exist", `SELECT a.owner FROM addresses a LEFT JOIN devices d ON d.id = a.owner WHERE a.owner_kind = 'device' AND d.id IS NULL`},
	{"a device has two registrations", `SELECT device_id FROM registrations GROUP BY device_id HAVING COUNT(*) > 1`},
	{"two registrations have one tunnel key", `SELECT MIN(device_id) FROM registrations GROUP BY tunnel_key HAVING COUNT(*) > 1`},
	{"a registration is of a revoked or unknown device", `SELECT r.device_id FROM registrations r LEFT JOIN devices d ON d.id = r.device_id WHERE d.id IS NULL OR d.revoked_at IS NOT NULL`},
	{"a device has two open sessions", `SELECT device_id FROM sessions WHERE ended_at IS NULL GROUP BY device_id HAVING COUNT(*) > 1`},
	{"an open session is of a revoked or unknown device", `SELECT s.id FROM sessions s LEFT JOIN devices d ON d.id = s.device_id WHERE d.id IS NULL OR (d.revoked_at IS NOT NULL AND s.ended_at IS NULL)`},
	{"an ended session has no reason", `SELECT id FROM sessions WHERE ended_at IS NOT NULL AND end_reason = ''`},
	{"a used code has no device", `SELECT i.created_by FROM invites i LEFT JOIN devices d ON d.id = i.device_id WHERE i.used_at IS NOT NULL AND d.id IS NULL`},
	{"two codes made one device", `SELECT device_id FROM invites WHERE device_id IS NOT NULL GROUP BY device_id HAVING COUNT(*) > 1`},
	{"a device was made without a code", `SELECT d.id FROM devices d LEFT JOIN invites i ON i.device_id = d.id WHERE i.device_id IS NULL`},
}

// CheckConsistency reads the whole store and returns every rule that does not
// hold, with one example each. It is meant for tests and for a doubtful file.
func (s *Store) CheckConsistency(ctx context.Context) error {
	var errs []error
	for _, r := range rules {
		found, err := s.strings(ctx, r.query)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("checking whether %s: %w", r.name, err))
		case len(found) > 0:
			errs = append(errs, fmt.Errorf("%s: %q (%d in all)", r.name, found[0], len(found)))
		}
	}
	if _, err := s.Registrations(ctx); err != nil {
		errs = append(errs, err)
	}
	if _, err := s.Sessions(ctx, SessionFilter{}); err != nil {
		errs = append(errs, err)
	}
	// The only SQL here that PostgreSQL does not have.
	if found, err := s.strings(ctx, `PRAGMA integrity_check`); err != nil {
		errs = append(errs, err)
	} else if len(found) != 1 || found[0] != "ok" {
		errs = append(errs, fmt.Errorf("the file is damaged: %q", found))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("checking the store: %w", err)
	}
	return nil
}

func (s *Store) strings(ctx context.Context, query string) ([]string, error) {
	rows, err := s.r.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	var out []string
	err = each(rows, func() error {
		var v string
		err := rows.Scan(&v)
		out = append(out, v)
		return err
	})
	return out, err
}
