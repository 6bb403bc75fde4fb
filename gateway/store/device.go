package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// CreateInvite stores a new enrolment code.
func (s *Store) CreateInvite(ctx context.Context, i Invite) error {
	if !i.ExpiresAt.After(i.CreatedAt) {
		return errors.New("storing an enrolment code: it expires before it is made")
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx,
			`INSERT INTO invites (secret_hash, name, serial, created_by, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)`,
			i.SecretHash[:], i.Name, i.Serial, i.CreatedBy, nanos(i.CreatedAt), nanos(i.ExpiresAt))
		if err != nil {
			return fmt.Errorf("storing an enrolment code: %w", err)
		}
		return nil
	})
}

// RedeemInvite uses a code up and enrols its device, in one write: of any
// number of callers one wins, and a code whose redemption fails stays usable.
// The errors that say why are ErrInviteUnknown, ErrInviteUsed,
// ErrInviteExpired, ErrInviteSerial and ErrKeyTaken. It always makes a new
// device, whatever name or serial number others have.
func (s *Store) RedeemInvite(ctx context.Context, r Redeem) (Device, error) {
	d := r.Device
	if d.ID == "" || d.KeyHash == ([32]byte{}) {
		return Device{}, errors.New("redeeming an enrolment code: the device has no id or key")
	}
	d.EnrolledAt, d.LastSeen = norm(r.Now), norm(r.Now)
	d.RevokedAt, d.RevokedReason, d.RevokedBy = time.Time{}, "", ""
	err := s.write(ctx, func(tx *sql.Tx) error {
		// The transaction holds the writer's lock since it began, so nobody
		// redeems between this check and the UPDATE below; the UPDATE checks
		// again, for databases that lock otherwise.
		name, err := usableInvite(ctx, tx, r)
		if err != nil {
			return err
		}
		if name != "" {
			d.Name = name // IT's word counts more than the device's
		}
		if err := s.insertDevice(ctx, tx, &d); err != nil {
			return err
		}
		n, err := affected(tx.ExecContext(ctx,
			`UPDATE invites SET used_at = ?, device_id = ? WHERE secret_hash = ? AND used_at IS NULL AND expires_at > ?`,
			nanos(r.Now), d.ID, r.SecretHash[:], nanos(r.Now)))
		if err == nil && n != 1 {
			err = ErrInviteUsed
		}
		return err
	})
	if err != nil {
		return Device{}, fmt.Errorf("redeeming an enrolment code: %w", err)
	}
	return d, nil
}

// usableInvite returns the name that the code gives its device, or why the
// code cannot be used.
func usableInvite(ctx context.Context, tx *sql.Tx, r Redeem) (name string, err error) {
	var serial string
	var expires int64
	var used sql.NullInt64
	err = tx.QueryRowContext(ctx, `SELECT name, serial, expires_at, used_at FROM invites WHERE secret_hash = ?`, r.SecretHash[:]).
		Scan(&name, &serial, &expires, &used)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return "", ErrInviteUnknown
	case err != nil:
		return "", err
	case used.Valid:
		return "", ErrInviteUsed
	case nanos(r.Now) >= expires:
		return "", ErrInviteExpired
	case serial != "" && serial != r.Device.Serial:
		return "", ErrInviteSerial
	}
	return name, nil
}

// Invite returns the enrolment code with that secret's hash, or ErrNotFound.
func (s *Store) Invite(ctx context.Context, secretHash [32]byte) (Invite, error) {
	i := Invite{SecretHash: secretHash}
	var created, expires int64
	var used sql.NullInt64
	var device sql.NullString
	err := s.r.QueryRowContext(ctx,
		`SELECT name, serial, created_by, created_at, expires_at, used_at, device_id FROM invites WHERE secret_hash = ?`, secretHash[:]).
		Scan(&i.Name, &i.Serial, &i.CreatedBy, &created, &expires, &used, &device)
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Invite{}, fmt.Errorf("reading an enrolment code: %w", err)
	}
	i.CreatedAt, i.ExpiresAt, i.UsedAt, i.DeviceID = at(created), at(expires), maybe(used), device.String
	return i, nil
}

func (s *Store) insertDevice(ctx context.Context, tx *sql.Tx, d *Device) error {
	var owner string
	err := tx.QueryRowContext(ctx, `SELECT id FROM devices WHERE key_hash = ?`, d.KeyHash[:]).Scan(&owner)
	if err == nil {
		return ErrKeyTaken
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	n, err := s.number(ctx, tx, "device", d.ID)
	if err != nil {
		return err
	}
	d.Addresses = s.pools.at(n)
	_, err = tx.ExecContext(ctx,
		`INSERT INTO devices (id, name, serial, os, arch, key_tier, key_hash, public_key, number, enrolled_at, last_seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		d.ID, d.Name, d.Serial, d.OS, d.Arch, d.KeyTier, d.KeyHash[:], d.PublicKey, n, nanos(d.EnrolledAt), nanos(d.LastSeen))
	return err
}

const deviceColumns = `SELECT id, name, serial, os, arch, key_tier, key_hash, public_key, number, enrolled_at, last_seen, revoked_at, revoked_reason, revoked_by FROM devices`

// row is what *sql.Row and *sql.Rows have in common.
type row interface{ Scan(...any) error }

func (s *Store) scanDevice(r row) (d Device, err error) {
	var hash []byte
	var number, enrolled, seen int64
	var revoked sql.NullInt64
	if err := r.Scan(&d.ID, &d.Name, &d.Serial, &d.OS, &d.Arch, &d.KeyTier, &hash, &d.PublicKey, &number,
		&enrolled, &seen, &revoked, &d.RevokedReason, &d.RevokedBy); err != nil {
		return Device{}, err
	}
	if err := fill(&d.KeyHash, hash); err != nil {
		return Device{}, fmt.Errorf("the key hash of device %s: %w", d.ID, err)
	}
	d.Addresses = s.pools.at(number)
	d.EnrolledAt, d.LastSeen, d.RevokedAt = at(enrolled), at(seen), maybe(revoked)
	return d, nil
}

// querier is a transaction or the readers' pool.
type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func (s *Store) device(ctx context.Context, q querier, id string) (Device, error) {
	d, err := s.scanDevice(q.QueryRowContext(ctx, deviceColumns+` WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Device{}, fmt.Errorf("reading device %q: %w", id, err)
	}
	return d, nil
}

// Device returns one device, revoked or not, or ErrNotFound.
func (s *Store) Device(ctx context.Context, id string) (Device, error) {
	return s.device(ctx, s.r, id)
}

// Devices returns all devices, also revoked ones, in the order of enrolment.
func (s *Store) Devices(ctx context.Context) ([]Device, error) {
	rows, err := s.r.QueryContext(ctx, deviceColumns+` ORDER BY number`)
	if err != nil {
		return nil, fmt.Errorf("reading devices: %w", err)
	}
	var ds []Device
	err = each(rows, func() error {
		d, err := s.scanDevice(rows)
		ds = append(ds, d)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading devices: %w", err)
	}
	return ds, nil
}

// TouchDevice notes that the device was seen; an earlier time than the one
// noted changes nothing. ErrNotFound if there is no such device.
func (s *Store) TouchDevice(ctx context.Context, id string, seen time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE devices SET last_seen = ? WHERE id = ? AND last_seen < ?`, nanos(seen), id, nanos(seen))
		if err == nil {
			_, err = s.device(ctx, tx, id)
		}
		return err
	})
}

// RevokeDevice takes a device away for good: in one write it is marked, its
// registration is deleted and its sessions end. A second revocation changes
// nothing and returns what the first one noted. ErrNotFound if there is no
// such device.
func (s *Store) RevokeDevice(ctx context.Context, r Revocation) (d Device, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE devices SET revoked_at = ?, revoked_reason = ?, revoked_by = ? WHERE id = ? AND revoked_at IS NULL`,
			nanos(r.At), r.Reason, r.By, r.DeviceID); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM registrations WHERE device_id = ?`, r.DeviceID); err != nil {
			return err
		}
		if err := endOpen(ctx, tx, r.DeviceID, "", EndDeviceRevoked, r.By, r.At); err != nil {
			return err
		}
		d, err = s.device(ctx, tx, r.DeviceID)
		return err
	})
	if err != nil {
		return Device{}, fmt.Errorf("revoking a device: %w", err)
	}
	return d, nil
}

// live returns ErrNotFound or ErrRevoked for a device that may not act.
func (s *Store) live(ctx context.Context, tx *sql.Tx, id string) error {
	d, err := s.device(ctx, tx, id)
	if err == nil && d.Revoked() {
		err = ErrRevoked
	}
	return err
}

func affected(r sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

// nanos and at are how times are stored. A time outside of 1678 to 2262 would
// not survive; nobody has one.
func nanos(t time.Time) int64    { return t.UnixNano() }
func at(n int64) time.Time       { return time.Unix(0, n).UTC() }
func norm(t time.Time) time.Time { return at(nanos(t)) }

func maybe(n sql.NullInt64) time.Time {
	if !n.Valid {
		return time.Time{}
	}
	return at(n.Int64)
}

func fill(dst *[32]byte, b []byte) error {
	if len(b) != len(dst) {
		return fmt.Errorf("it has %d bytes, not %d", len(b), len(dst))
	}
	copy(dst[:], b)
	return nil
}
