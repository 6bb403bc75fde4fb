package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// PutRegistration replaces the device's registration; the old tunnel key dies
// in the same write. In that write too, the device's active session is taken
// along and returned if it began in the same boot and was seen at most
// ResumeWithin before r.CreatedAt; any other open session of the device ends.
// ErrNotFound and ErrRevoked are about the device; ErrKeyTaken says that
// another device has this tunnel key.
func (s *Store) PutRegistration(ctx context.Context, r Registration) (resumed *Session, err error) {
	if r.TunnelKey == ([32]byte{}) {
		return nil, errors.New("storing a registration: it has no tunnel key")
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		if err := s.live(ctx, tx, r.DeviceID); err != nil {
			return err
		}
		var owner string
		err := tx.QueryRowContext(ctx, `SELECT device_id FROM registrations WHERE tunnel_key = ? AND device_id <> ?`, r.TunnelKey[:], r.DeviceID).Scan(&owner)
		if err == nil {
			return ErrKeyTaken
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if resumed, err = s.carry(ctx, tx, r); err != nil {
			return err
		}
		keep := ""
		if resumed != nil {
			keep = resumed.ID
		}
		if err := endOpen(ctx, tx, r.DeviceID, keep, EndSuperseded, "", r.CreatedAt); err != nil {
			return err
		}
		// The same key again keeps what is known of its tunnel.
		if _, err := tx.ExecContext(ctx, `DELETE FROM registrations WHERE device_id = ? AND tunnel_key <> ?`, r.DeviceID, r.TunnelKey[:]); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx,
			`INSERT INTO registrations (device_id, tunnel_key, psk_sealed, token_hash, boot_id, agent_version, post_quantum, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (device_id) DO UPDATE SET psk_sealed = excluded.psk_sealed, token_hash = excluded.token_hash, boot_id = excluded.boot_id,
				agent_version = excluded.agent_version, post_quantum = excluded.post_quantum, created_at = excluded.created_at, expires_at = excluded.expires_at`,
			r.DeviceID, r.TunnelKey[:], s.seal.sealPSK(r), r.TokenHash[:], r.BootID, r.AgentVersion, r.PostQuantum, nanos(r.CreatedAt), nanos(r.ExpiresAt))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("storing the registration of device %q: %w", r.DeviceID, err)
	}
	return resumed, nil
}

// carry returns the session that r takes along, or nil.
func (s *Store) carry(ctx context.Context, tx *sql.Tx, r Registration) (*Session, error) {
	if r.BootID == "" {
		return nil, nil // two unknown boots are not the same boot
	}
	se, err := scanSession(tx.QueryRowContext(ctx,
		sessionColumns+` WHERE device_id = ? AND ended_at IS NULL AND boot_id = ? AND expires_at > ? AND last_seen >= ?`,
		r.DeviceID, r.BootID, nanos(r.CreatedAt), nanos(r.CreatedAt.Add(-ResumeWithin))))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &se, nil
}

// ExtendRegistration sets the end of the device's registration. ErrNotFound if
// it has none.
func (s *Store) ExtendRegistration(ctx context.Context, deviceID string, until time.Time) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		n, err := affected(tx.ExecContext(ctx, `UPDATE registrations SET expires_at = ? WHERE device_id = ?`, nanos(until), deviceID))
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		if err != nil {
			return fmt.Errorf("extending the registration of device %q: %w", deviceID, err)
		}
		return nil
	})
}

// DeleteRegistration forgets a tunnel key. A newer one of the same device stays.
func (s *Store) DeleteRegistration(ctx context.Context, key [32]byte) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM registrations WHERE tunnel_key = ?`, key[:]); err != nil {
			return fmt.Errorf("deleting a registration: %w", err)
		}
		return nil
	})
}

// KeepTunnels notes what is known of tunnels now, by tunnel key. Keys that are
// not registered any more change nothing.
func (s *Store) KeepTunnels(ctx context.Context, tunnels map[[32]byte]Tunnel) error {
	return s.write(ctx, func(tx *sql.Tx) error {
		for key, t := range tunnels {
			endpoint := ""
			if t.Endpoint.IsValid() {
				endpoint = t.Endpoint.String()
			}
			at := sql.NullInt64{Int64: nanos(t.HandshakeAt), Valid: !t.HandshakeAt.IsZero()}
			if _, err := tx.ExecContext(ctx, `UPDATE registrations SET endpoint = ?, handshake_at = ?, initiation = COALESCE(?, initiation) WHERE tunnel_key = ?`,
				endpoint, at, t.Initiation, key[:]); err != nil {
				return fmt.Errorf("noting the state of tunnels: %w", err)
			}
		}
		return nil
	})
}

// Registrations returns all registrations, also expired ones, by device.
func (s *Store) Registrations(ctx context.Context) ([]Registration, error) {
	rows, err := s.r.QueryContext(ctx,
		`SELECT device_id, tunnel_key, psk_sealed, token_hash, boot_id, agent_version, post_quantum, endpoint, handshake_at, initiation, created_at, expires_at FROM registrations ORDER BY device_id`)
	if err != nil {
		return nil, fmt.Errorf("reading registrations: %w", err)
	}
	var rs []Registration
	err = each(rows, func() error {
		var r Registration
		var key, sealed, token []byte
		var created, expires int64
		var endpoint string
		var handshake sql.NullInt64
		err := rows.Scan(&r.DeviceID, &key, &sealed, &token, &r.BootID, &r.AgentVersion, &r.PostQuantum, &endpoint, &handshake, &r.Tunnel.Initiation, &created, &expires)
		if err != nil {
			return err
		}
		if endpoint != "" {
			if r.Tunnel.Endpoint, err = netip.ParseAddrPort(endpoint); err != nil {
				return fmt.Errorf("the endpoint of device %q: %w", r.DeviceID, err)
			}
		}
		if err := errors.Join(fill(&r.TunnelKey, key), fill(&r.TokenHash, token)); err != nil {
			return fmt.Errorf("the registration of device %q: %w", r.DeviceID, err)
		}
		if r.PresharedKey, err = s.seal.openPSK(sealed, r.DeviceID, r.TunnelKey); err != nil {
			return fmt.Errorf("opening the preshared key of device %q: %w", r.DeviceID, err)
		}
		r.CreatedAt, r.ExpiresAt, r.Tunnel.HandshakeAt = at(created), at(expires), maybe(handshake)
		rs = append(rs, r)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading registrations: %w", err)
	}
	return rs, nil
}

// PutSession stores a session, or what changed in it while it is open, and
// ends every other open session of its device in the same write. ErrNotFound
// and ErrRevoked are about the device. An ended session stays ended.
func (s *Store) PutSession(ctx context.Context, se Session) error {
	subject, err := json.Marshal(se.Subject)
	if err == nil && se.ID == "" {
		err = errors.New("it has no id")
	}
	if err != nil {
		return fmt.Errorf("storing a session: %w", err)
	}
	err = s.write(ctx, func(tx *sql.Tx) error {
		if err := s.live(ctx, tx, se.DeviceID); err != nil {
			return err
		}
		if err := endOpen(ctx, tx, se.DeviceID, se.ID, EndSuperseded, "", se.StartedAt); err != nil {
			return err
		}
		seen := se.LastSeen
		if seen.IsZero() {
			seen = se.StartedAt
		}
		n, err := affected(tx.ExecContext(ctx,
			`UPDATE sessions SET os_user = ?, subject = ?, sid = ?, boot_id = ?, started_at = ?, expires_at = ?, last_seen = ? WHERE id = ? AND device_id = ? AND ended_at IS NULL`,
			se.OSUser, string(subject), se.SID, se.BootID, nanos(se.StartedAt), nanos(se.ExpiresAt), nanos(seen), se.ID, se.DeviceID))
		if err != nil || n == 1 {
			return err
		}
		_, err = tx.ExecContext(ctx,
			`INSERT INTO sessions (id, device_id, os_user, subject, sid, boot_id, started_at, expires_at, last_seen) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			se.ID, se.DeviceID, se.OSUser, string(subject), se.SID, se.BootID, nanos(se.StartedAt), nanos(se.ExpiresAt), nanos(seen))
		return err
	})
	if err != nil {
		return fmt.Errorf("storing session %q: %w", se.ID, err)
	}
	return nil
}

// endOpen ends the open sessions of a device but the one named keep. A session
// that had expired by then ended at its expiry, for that reason.
func endOpen(ctx context.Context, tx *sql.Tx, deviceID, keep, reason, by string, when time.Time) error {
	if _, err := tx.ExecContext(ctx,
		`UPDATE sessions SET ended_at = expires_at, end_reason = ? WHERE device_id = ? AND id <> ? AND ended_at IS NULL AND expires_at <= ?`,
		EndExpired, deviceID, keep, nanos(when)); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx,
		`UPDATE sessions SET ended_at = ?, end_reason = ?, ended_by = ? WHERE device_id = ? AND id <> ? AND ended_at IS NULL`,
		nanos(when), reason, by, deviceID, keep)
	return err
}

// TouchSessions notes that sessions are alive. Ended and unknown ones, and
// earlier times, change nothing.
func (s *Store) TouchSessions(ctx context.Context, ids []string, seen time.Time) error {
	if len(ids) == 0 {
		return nil
	}
	return s.write(ctx, func(tx *sql.Tx) error {
		for _, id := range ids {
			if _, err := tx.ExecContext(ctx, `UPDATE sessions SET last_seen = ? WHERE id = ? AND ended_at IS NULL AND last_seen < ?`,
				nanos(seen), id, nanos(seen)); err != nil {
				return fmt.Errorf("noting that sessions are alive: %w", err)
			}
		}
		return nil
	})
}

// EndSession ends a session and returns it. One that has ended already is
// returned as it ended then. ErrNotFound if there is no such session.
func (s *Store) EndSession(ctx context.Context, e End) (se Session, err error) {
	err = s.write(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE sessions SET ended_at = ?, end_reason = ?, ended_by = ? WHERE id = ? AND ended_at IS NULL`,
			nanos(e.At), e.Reason, e.By, e.SessionID); err != nil {
			return err
		}
		se, err = session(ctx, tx, e.SessionID)
		return err
	})
	if err != nil {
		return Session{}, fmt.Errorf("ending a session: %w", err)
	}
	return se, nil
}

// Session returns one session, ended or not, or ErrNotFound.
func (s *Store) Session(ctx context.Context, id string) (Session, error) {
	return session(ctx, s.r, id)
}

func session(ctx context.Context, q querier, id string) (Session, error) {
	se, err := scanSession(q.QueryRowContext(ctx, sessionColumns+` WHERE id = ?`, id))
	if errors.Is(err, sql.ErrNoRows) {
		err = ErrNotFound
	}
	if err != nil {
		return Session{}, fmt.Errorf("reading session %q: %w", id, err)
	}
	return se, nil
}

// Sessions returns the sessions that f selects, the earliest first.
func (s *Store) Sessions(ctx context.Context, f SessionFilter) ([]Session, error) {
	var where []string
	var args []any
	if f.Active || f.Open {
		where = append(where, `ended_at IS NULL`)
	}
	if f.Active {
		where, args = append(where, `expires_at > ?`), append(args, nanos(s.now()))
	}
	if f.DeviceID != "" {
		where, args = append(where, `device_id = ?`), append(args, f.DeviceID)
	}
	q := sessionColumns
	if len(where) > 0 {
		q += ` WHERE ` + strings.Join(where, ` AND `)
	}
	rows, err := s.r.QueryContext(ctx, q+` ORDER BY started_at, id`, args...)
	if err != nil {
		return nil, fmt.Errorf("reading sessions: %w", err)
	}
	var out []Session
	err = each(rows, func() error {
		se, err := scanSession(rows)
		out = append(out, se)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("reading sessions: %w", err)
	}
	return out, nil
}

const sessionColumns = `SELECT id, device_id, os_user, subject, sid, boot_id, started_at, expires_at, last_seen, ended_at, end_reason, ended_by FROM sessions`

func scanSession(r row) (se Session, err error) {
	var subject string
	var started, expires, seen int64
	var ended sql.NullInt64
	if err := r.Scan(&se.ID, &se.DeviceID, &se.OSUser, &subject, &se.SID, &se.BootID, &started, &expires, &seen, &ended, &se.EndReason, &se.EndedBy); err != nil {
		return Session{}, err
	}
	if err := json.Unmarshal([]byte(subject), &se.Subject); err != nil {
		return Session{}, fmt.Errorf("the subject of session %q: %w", se.ID, err)
	}
	se.StartedAt, se.ExpiresAt, se.LastSeen, se.EndedAt = at(started), at(expires), at(seen), maybe(ended)
	return se, nil
}
