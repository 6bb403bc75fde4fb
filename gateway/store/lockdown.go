package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Scope says what the value of a Lockdown names.
type Scope string

// The Scopes.
const (
	ScopeAll     Scope = "all"     // everything; the value is empty
	ScopeApp     Scope = "app"     // an app's name
	ScopeSubject Scope = "subject" // a person, ISS#SUB
	ScopeDevice  Scope = "device"  // a device's ID
	ScopeSite    Scope = "site"    // a prefix of outer addresses, in CIDR form
)

// Lockdown lets nothing of its scope through until it is lifted.
type Lockdown struct {
	ID     string
	Scope  Scope
	Value  string
	Reason string // for administrators; workers never see it
	By     string
	At     time.Time
}

// PutLockdown stores a lockdown.
func (s *Store) PutLockdown(ctx context.Context, l Lockdown) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		if l.ID == "" {
			return errors.New("it has no id")
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO lockdowns (id, scope, value, reason, set_by, set_at) VALUES (?, ?, ?, ?, ?, ?)`,
			l.ID, string(l.Scope), l.Value, l.Reason, l.By, nanos(l.At))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing lockdown %q: %w", l.ID, err)
	}
	return nil
}

// LiftLockdown notes that a lockdown is over. ErrNotFound if none with that ID
// is in force.
func (s *Store) LiftLockdown(ctx context.Context, id, by string, when time.Time) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.ExecContext(ctx, `UPDATE lockdowns SET lifted_by = ?, lifted_at = ? WHERE id = ? AND lifted_at IS NULL`, by, nanos(when), id))
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("lifting lockdown %q: %w", id, err)
	}
	return nil
}

// Lockdowns returns the lockdowns in force, the earliest first.
func (s *Store) Lockdowns(ctx context.Context) ([]Lockdown, error) {
	rows, err := s.r.QueryContext(ctx, `SELECT id, scope, value, reason, set_by, set_at FROM lockdowns WHERE lifted_at IS NULL ORDER BY set_at, id`)
	if err != nil {
		return nil, fmt.Errorf("reading lockdowns: %w", err)
	}
	var out []Lockdown
	err = each(rows, func() error {
		var l Lockdown
		var scope string
		var set int64
		err := rows.Scan(&l.ID, &scope, &l.Value, &l.Reason, &l.By, &set)
		l.Scope, l.At = Scope(scope), at(set)
		out = append(out, l)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading lockdowns: %w", err)
	}
	return out, nil
}
