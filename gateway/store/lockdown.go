package store

import (
	"context"
	"database/sql"
	"encoding/json"
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
	// Marks are what the app of a lockdown is known by besides its name: it
	// holds for every app that bears one.
	Marks []string
}

// PutLockdown stores a lockdown.
func (s *Store) PutLockdown(ctx context.Context, l Lockdown) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		if l.ID == "" {
			return errors.New("it has no id")
		}
		marks, err := marksText(l.Marks)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO lockdowns (id, scope, value, reason, set_by, set_at, marks) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			l.ID, string(l.Scope), l.Value, l.Reason, l.By, nanos(l.At), marks)
		return err
	})
	if err != nil {
		return fmt.Errorf("storing lockdown %q: %w", l.ID, err)
	}
	return nil
}

// marksText is "" for none.
func marksText(marks []string) (string, error) {
	if len(marks) == 0 {
		return "", nil
	}
	text, err := json.Marshal(marks)
	return string(text), err
}

// MarkLockdown replaces the marks of a lockdown. ErrNotFound if none with that
// ID is in force.
func (s *Store) MarkLockdown(ctx context.Context, id string, marks []string) error {
	text, err := marksText(marks)
	if err == nil {
		err = s.write(ctx, func(tx *sql.Tx) error {
			n, err := affected(tx.ExecContext(ctx, `UPDATE lockdowns SET marks = ? WHERE id = ? AND lifted_at IS NULL`, text, id))
			if err == nil && n == 0 {
				err = ErrNotFound
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("storing the marks of lockdown %q: %w", id, err)
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
	rows, err := s.r.QueryContext(ctx, `SELECT id, scope, value, reason, set_by, set_at, marks FROM lockdowns WHERE lifted_at IS NULL ORDER BY set_at, id`)
	if err != nil {
		return nil, fmt.Errorf("reading lockdowns: %w", err)
	}
	var out []Lockdown
	err = each(rows, func() error {
		var l Lockdown
		var scope, marks string
		var set int64
		err := rows.Scan(&l.ID, &scope, &l.Value, &l.Reason, &l.By, &set, &marks)
		if err == nil && marks != "" {
			err = json.Unmarshal([]byte(marks), &l.Marks)
		}
		l.Scope, l.At = Scope(scope), at(set)
		out = append(out, l)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading lockdowns: %w", err)
	}
	return out, nil
}
