// Package store keeps what must outlive the gateway's process: devices,
// enrolment codes, registrations, sessions and the inner addresses of devices
// and apps. It is an SQLite file; the SQL is plain enough for PostgreSQL.
//
// Every method is one read or one write transaction, so that a crash between
// two statements leaves nothing half done, and may be called concurrently,
// also from several processes that have the same file open.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"modernc.org/sqlite" // the driver
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed schema_*.sql
var schema embed.FS

// migrations lists the schema's steps in order; step i brings a store to
// version i+1. A released step never changes.
var migrations = []string{"schema_1.sql", "schema_2.sql", "schema_3.sql", "schema_4.sql", "schema_5.sql", "schema_6.sql"}

// Options say where a store is and what it hands out.
type Options struct {
	// Path of the file. Its directory is made (0700) if it is missing, and
	// refused if others may write to it.
	Path string
	// IPv4 (/10 to /24) and IPv6 (/32 to /112) are the pools of inner
	// addresses. They are kept with the first start and cannot change later.
	IPv4, IPv6 netip.Prefix
	// SealKey encrypts preshared keys in the file.
	SealKey [32]byte
	// Now is the clock that [SessionFilter] compares with; nil means time.Now.
	Now func() time.Time
}

// Store is an open store.
type Store struct {
	// w is the one connection that writes: SQLite has one writer anyway, and
	// waiting for it in Go is fair where SQLite's busy timeout is not.
	w *sql.DB
	// r are connections that only read.
	r     *sql.DB
	pools pools
	seal  sealer
	now   func() time.Time
}

// Open opens or creates a store and brings its schema up to date.
func Open(ctx context.Context, opt Options) (*Store, error) {
	s, err := open(ctx, opt)
	if err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	return s, nil
}

func open(ctx context.Context, opt Options) (*Store, error) {
	p, err := newPools(opt.IPv4, opt.IPv6)
	if err != nil {
		return nil, err
	}
	seal, err := newSealer(opt.SealKey)
	if err != nil {
		return nil, err
	}
	path, err := filepath.Abs(opt.Path)
	if err != nil {
		return nil, err
	}
	if err := prepareFile(path); err != nil {
		return nil, err
	}
	s := &Store{pools: p, seal: seal, now: opt.Now}
	if s.now == nil {
		s.now = time.Now
	}
	// IMMEDIATE: a write transaction takes the writer's lock when it begins,
	// so that what it read still holds when it writes.
	if s.w, err = connect(path, "&_txlock=immediate", 1); err != nil {
		return nil, err
	}
	if s.r, err = connect(path, "&_pragma=query_only(1)", 4); err != nil {
		return nil, errors.Join(err, s.w.Close())
	}
	// The first connection switches the journal to WAL; for that one lock SQLite
	// does not wait, whatever busy_timeout says.
	for end := time.Now().Add(busyTimeout); ; time.Sleep(10 * time.Millisecond) {
		err = s.write(ctx, func(tx *sql.Tx) error { return s.prepare(ctx, tx) })
		var busy *sqlite.Error
		if !errors.As(err, &busy) || busy.Code()&0xff != sqlite3.SQLITE_BUSY || time.Now().After(end) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), s.Close())
	}
	return s, nil
}

// busyTimeout is how long a lock of another connection is waited for.
const busyTimeout = 10 * time.Second

func connect(path, extra string, conns int) (*sql.DB, error) {
	// FULL: a commit is on the disk when it returns. A used code stays used
	// and a revoked device stays revoked when the power fails.
	pragmas := fmt.Sprintf("_pragma=busy_timeout(%d)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)", busyTimeout.Milliseconds())
	u := url.URL{Scheme: "file", Path: path, RawQuery: pragmas + extra}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// prepareFile makes the file before SQLite does, which would let the umask
// decide who may read it. SQLite gives its other two files the same mode.
func prepareFile(path string) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to %s (mode %04o): run chmod 700 %s", dir, st.Mode().Perm(), dir)
	}
	// A file that is there is only looked at: closing a descriptor of it would
	// drop the locks that another Store of this process holds (POSIX fcntl).
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		f, cerr := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if cerr == nil {
			return f.Close()
		}
		if !errors.Is(cerr, fs.ErrExist) {
			return cerr
		}
		fi, err = os.Lstat(path) // another process was first
	}
	switch {
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case fi.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("others may read or write %s (mode %04o): run chmod 600 %s", path, fi.Mode().Perm(), path)
	}
	return nil
}

// Close closes the store.
func (s *Store) Close() error { return errors.Join(s.r.Close(), s.w.Close()) }

// GatewayAddresses returns the gateway's own inner addresses, IPv4 and IPv6:
// the first of each pool.
func (s *Store) GatewayAddresses() [2]netip.Addr { return s.pools.at(gatewayNumber) }

// write runs f in one write transaction.
func (s *Store) write(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.w.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return errors.Join(err, rollback(tx))
	}
	return tx.Commit()
}

// rollback ends tx; that it ended with its context is no error of its own.
func rollback(tx *sql.Tx) error {
	if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
		return err
	}
	return nil
}

// Keys of the meta table.
const (
	metaSchema = "schema"
	metaIPv4   = "ipv4"
	metaIPv6   = "ipv6"
	metaSeal   = "seal"
)

// prepare migrates the schema and compares the options with those of the
// first start.
func (s *Store) prepare(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)`); err != nil {
		return err
	}
	if err := migrate(ctx, tx); err != nil {
		return err
	}
	for _, pool := range []struct{ name, what, want string }{
		{metaIPv4, "IPv4", s.pools.v4.String()},
		{metaIPv6, "IPv6", s.pools.v6.String()},
	} {
		got, err := meta(ctx, tx, pool.name, pool.want)
		if err != nil {
			return err
		}
		if got != pool.want {
			return fmt.Errorf("its %s pool is %s, the configuration says %s: a pool cannot change once devices have addresses; set it back to %s",
				pool.what, got, pool.want, got)
		}
	}
	proof, err := meta(ctx, tx, metaSeal, s.seal.proof())
	if err != nil {
		return err
	}
	if err := s.seal.check(proof); err != nil {
		return errors.New("it was sealed with another key: put the key file back that belongs to this store")
	}
	return nil
}

func migrate(ctx context.Context, tx *sql.Tx) error {
	text, err := meta(ctx, tx, metaSchema, "0")
	if err != nil {
		return err
	}
	version, err := strconv.Atoi(text)
	if err != nil || version < 0 {
		return fmt.Errorf("its schema version %q is no number", text)
	}
	if version > len(migrations) {
		return fmt.Errorf("its schema is version %d and this gateway knows up to %d: a newer gateway wrote it; run that one, or restore a backup",
			version, len(migrations))
	}
	for ; version < len(migrations); version++ {
		step, err := schema.ReadFile(migrations[version])
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, string(step)); err != nil {
			return fmt.Errorf("migrating to schema %d: %w", version+1, err)
		}
		if _, err := tx.ExecContext(ctx, `UPDATE meta SET value = ? WHERE name = ?`, strconv.Itoa(version+1), metaSchema); err != nil {
			return fmt.Errorf("migrating to schema %d: %w", version+1, err)
		}
	}
	return nil
}

// meta returns the value under name, which is first if there is none yet.
func meta(ctx context.Context, tx *sql.Tx, name, first string) (string, error) {
	var value string
	err := tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE name = ?`, name).Scan(&value)
	if !errors.Is(err, sql.ErrNoRows) {
		return value, err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO meta (name, value) VALUES (?, ?)`, name, first)
	return first, err
}
