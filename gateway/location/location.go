// Package location tells in which country an address is, from a MaxMind
// database file that the operator provides and renews.
package location

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/portvakt/portvakt/policy"
)

// pollFile is how often the file is looked at.
const pollFile = time.Second

// fullCheckSize is up to which size, in bytes, every node and record of a file
// is checked when it is opened. Country databases are below it; a city
// database would take seconds and is checked as far as its structure goes.
const fullCheckSize = 16 << 20

const hint = "get a GeoLite2-Country, GeoIP2-Country or DB-IP country file (.mmdb), or leave the path empty to do without countries"

// Config says which file to use.
type Config struct {
	// Path of the database. Empty means none: no address has a country then.
	Path string
	// OnChange is called from Run after a changed file came into force; nil
	// means that nobody asks.
	OnChange func()
	// Log may be nil.
	Log *slog.Logger
}

// DB answers from the last good state of the file. It is safe for concurrent
// use, and lookups take no lock.
type DB struct {
	cfg Config
	log *slog.Logger
	cur atomic.Pointer[snapshot] // nil when there is no Path
}

type snapshot struct {
	reader *maxminddb.Reader
	stamp  stamp
}

// stamp tells one state of the file from another; info also tells files apart
// when one is moved into place with the other's time and size.
type stamp struct {
	time time.Time
	size int64
	info os.FileInfo
}

func (s stamp) same(o stamp) bool {
	if s.info == nil || o.info == nil {
		return s.info == o.info
	}
	return s.time.Equal(o.time) && s.size == o.size && os.SameFile(s.info, o.info)
}

// Open reads the database. A file that is missing, garbled, or knows no
// countries is an error that names the path and says what to do.
func Open(cfg Config) (*DB, error) {
	db := &DB{cfg: cfg, log: cfg.Log}
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Path == "" {
		return db, nil
	}
	s, err := load(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("opening location database %s: %w; %s", cfg.Path, err, hint)
	}
	db.cur.Store(s)
	return db, nil
}

// load reads the whole file into memory. A mapping would be smaller, but an
// operator who copies a new file over the old one would then crash the
// gateway with SIGBUS.
func load(path string) (*snapshot, error) {
	before, err := stat(path)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	after, err := stat(path)
	if err != nil {
		return nil, err
	}
	if !before.same(after) || int64(len(data)) != after.size {
		return nil, errors.New("the file changed while it was read")
	}
	if len(data) == 0 {
		return nil, errors.New("the file is empty")
	}
	if head := data[:min(len(data), 64)]; bytes.HasPrefix(head, []byte{0x1f, 0x8b}) {
		return nil, errors.New("the file is a compressed archive; unpack the .mmdb file in it")
	}
	r, err := maxminddb.OpenBytes(data)
	if err != nil {
		return nil, fmt.Errorf("not a whole MaxMind database: %w", err)
	}
	if err := check(r, len(data) <= fullCheckSize); err != nil {
		return nil, err
	}
	return &snapshot{reader: r, stamp: after}, nil
}

func stat(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	if !info.Mode().IsRegular() {
		return stamp{}, errors.New("not a file")
	}
	return stamp{info.ModTime(), info.Size(), info}, nil
}

// check walks the networks and decodes each record once, all of them if full
// is set and else up to the first country. It also catches a database of the
// wrong kind, with which every address would silently be nowhere. (The
// library's own Verify refuses good files for an empty description.)
func check(r *maxminddb.Reader, full bool) error {
	found := false
	seen := make(map[uintptr]bool)
	for res := range r.Networks() {
		if err := res.Err(); err != nil {
			return fmt.Errorf("the file is damaged: %w", err)
		}
		if seen[res.Offset()] {
			continue
		}
		seen[res.Offset()] = true
		var v any
		if err := res.Decode(&v); err != nil {
			return fmt.Errorf("the file is damaged: %w", err)
		}
		found = found || country(res) != ""
		if found && !full {
			return nil
		}
	}
	if !found {
		return fmt.Errorf("a %q database holds no countries", r.Metadata.DatabaseType)
	}
	return nil
}

// country returns the record's ISO 3166-1 alpha-2 code in upper case, or ""
// when there is none or it is not one: a missing fact, not a guess.
func country(res maxminddb.Result) string {
	var iso string
	if err := res.DecodePath(&iso, "country", "iso_code"); err != nil || len(iso) != 2 {
		return ""
	}
	b := []byte(iso)
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			b[i] = c - 'a' + 'A'
		} else if c < 'A' || c > 'Z' {
			return ""
		}
	}
	return string(b)
}

// Lookup returns the place of an outer address. IPv4-mapped addresses are
// taken for IPv4, zones are dropped; the zero Addr has no place.
func (db *DB) Lookup(addr netip.Addr) policy.Location {
	if !addr.IsValid() {
		return policy.Location{}
	}
	addr = addr.Unmap().WithZone("")
	loc := policy.Location{Address: addr.String()}
	s := db.cur.Load()
	if s == nil || (addr.Is6() && s.reader.Metadata.IPVersion == 4) {
		return loc
	}
	loc.Country = country(s.reader.Lookup(addr))
	return loc
}

// Run follows the file until ctx is done and then returns nil. A new state
// that is missing or garbled leaves the last good one in force and is logged
// once.
func (db *DB) Run(ctx context.Context) error {
	s := db.cur.Load()
	if s == nil {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(pollFile)
	defer tick.Stop()
	seen, said := s.stamp, ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		now, err := stat(db.cfg.Path)
		if err == nil && now.same(seen) {
			continue
		}
		var next *snapshot
		if err == nil {
			next, err = load(db.cfg.Path)
		}
		if err != nil {
			// The same trouble is tried again without a word: a file that is
			// still being copied gets another stamp, or becomes whole.
			if msg := err.Error(); msg != said {
				db.log.Error("the location database changed and cannot be used; the last good one stays", "path", db.cfg.Path, "err", err)
				said = msg
			}
			seen = now // zero when it is missing
			continue
		}
		seen, said = next.stamp, ""
		db.cur.Store(next)
		db.log.Info("location database replaced", "path", db.cfg.Path, "built", next.reader.Metadata.BuildTime())
		if db.cfg.OnChange != nil {
			db.cfg.OnChange()
		}
	}
}
