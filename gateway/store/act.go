package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Act is something that one administrator asks for and another approves.
type Act struct {
	ID, Kind, Target, Reason string
	RequestedBy              string
	RequestedAt, ExpiresAt   time.Time
	Outcome                  string // empty: undecided
	DecidedBy                string
	DecidedAt                time.Time
}

// Pending says whether the act can still be decided.
func (a Act) Pending(now time.Time) bool { return a.Outcome == "" && now.Before(a.ExpiresAt) }

// ErrDecided: the act was decided or expired before.
var ErrDecided = errors.New("it was decided or has expired")

const actColumns = `SELECT id, kind, target, reason, requested_by, requested_at, expires_at, outcome, decided_by, decided_at FROM acts`

func scanAct(r row) (a Act, err error) {
	var requested, expires int64
	var decided sql.NullInt64
	err = r.Scan(&a.ID, &a.Kind, &a.Target, &a.Reason, &a.RequestedBy, &requested, &expires, &a.Outcome, &a.DecidedBy, &decided)
	a.RequestedAt, a.ExpiresAt, a.DecidedAt = at(requested), at(expires), maybe(decided)
	return a, err
}

// PutAct stores an act and returns it. If one of that kind is pending for that
// target, that one is returned instead.
func (s *Store) PutAct(ctx context.Context, a Act) (Act, error) {
	err := s.write(ctx, func(tx *sql.Tx) error {
		pending, err := scanAct(tx.QueryRowContext(ctx, actColumns+` WHERE kind = ? AND target = ? AND outcome = '' AND expires_at > ?`, a.Kind, a.Target, nanos(a.RequestedAt)))
		if err == nil {
			a = pending
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO acts (id, kind, target, reason, requested_by, requested_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			a.ID, a.Kind, a.Target, a.Reason, a.RequestedBy, nanos(a.RequestedAt), nanos(a.ExpiresAt))
		return err
	})
	if err != nil {
		return Act{}, fmt.Errorf("storing an act: %w", err)
	}
	return a, nil
}

// DecideAct decides a pending act, once. ErrNotFound if there is none with that
// ID, ErrDecided if it is not pending any more.
func (s *Store) DecideAct(ctx context.Context, id, outcome, by string, when time.Time) error {
	err := s.write(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.ExecContext(ctx, `UPDATE acts SET outcome = ?, decided_by = ?, decided_at = ? WHERE id = ? AND outcome = '' AND expires_at > ?`,
			outcome, by, nanos(when), id, nanos(when)))
		if err != nil || n == 1 {
			return err
		}
		if _, err := act(ctx, tx, id); err != nil {
			return err
		}
		return ErrDecided
	})
	if err != nil {
		return fmt.Errorf("deciding act %q: %w", id, err)
	}
	return nil
}

// Act returns one act, or ErrNotFound.
func (s *Store) Act(ctx context.Context, id string) (Act, error) { return act(ctx, s.r, id) }

func act(ctx context.Context, q querier, id string) (Act, error) {
	a, err := scanAct(q.QueryRowContext(ctx, actColumns+` WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Act{}, fmt.Errorf("reading act %q: %w", id, err)
	}
	return a, nil
}

// Acts returns the acts that were asked for since then, the latest first.
func (s *Store) Acts(ctx context.Context, since time.Time) ([]Act, error) {
	rows, err := s.r.QueryContext(ctx, actColumns+` WHERE requested_at >= ? ORDER BY requested_at DESC, id`, nanos(since))
	if err != nil {
		return nil, fmt.Errorf("reading acts: %w", err)
	}
	var out []Act
	err = each(rows, func() error {
		a, err := scanAct(rows)
		out = append(out, a)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading acts: %w", err)
	}
	return out, nil
}
