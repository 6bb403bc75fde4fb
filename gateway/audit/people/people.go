// Package people keeps the keys under which the decision log holds personal
// data. They are outside of the log, so that destroying a key erases what was
// written under it, while every line stays what it was and the Merkle tree over
// the lines still verifies.
//
// A record has a key for each [Field], which follows from two secrets: one of
// the person, one of the day and field. Destroying the person's erases that
// person, destroying a day's erases that field of that day of everybody.
package people

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"
)

// Keys are all secrets. Its methods are safe for concurrent use.
type Keys struct {
	dir   string
	place fs.FileInfo // of dir, when it was opened

	// mu guards the maps, destroyed and each person's seen.
	mu     sync.RWMutex
	byName map[string]*person
	byID   map[string]*person
	days   map[string]*day // of a day of which nothing is left there is none
	// destroyed is the last day whose key expired, by field; see [Keys.loadDestroyed].
	destroyed [fields]string

	saving  sync.Mutex      // held by who writes or destroys files; taken before mu
	changed map[string]bool // directories to sync; guarded by saving
	// changes counts what has to be stored, stored how much of it was.
	changes, stored atomic.Uint64
}

// secret is 32 random bytes; saved says whether they are on the disk.
type secret struct {
	bytes [32]byte
	saved bool // guarded by mu
}

// day has a secret for each Field; nil: there is none, or none any more.
type day [fields]*secret

// person is somebody, or something that stands for somebody, whose data is in
// the log.
type person struct {
	secret
	id, name string
	seen     string                 // the latest day something was sealed; guarded by mu
	touched  string                 // what the file's time says about that; guarded by mu
	latest   atomic.Pointer[Sealer] // of the day it was asked for last
}

// Sealer seals one person's data of one day.
type Sealer struct {
	ID  string // what the log calls the person; it tells nobody who that is
	day string
	nth int64 // that day, counted from 1970
	of  [fields]key
}

// key opens and seals a Field of one person and day.
type key struct {
	aead cipher.AEAD
	data []byte // additional data
}

const (
	dayForm     = time.DateOnly
	dayFile     = "day-"
	personFile  = "p-"
	fileEnding  = ".key"
	secretBytes = 32
	daySeconds  = 24 * 60 * 60
)

// stored is the form of a person's file.
type stored struct {
	Name string `json:"name"`
	Key  []byte `json:"key"`
}

// Open reads the keys in dir, which is made if it is missing, and destroys what a
// crash left half written. A file that holds
// no key is an error: what was sealed under it would be taken for erased.
func Open(dir string) (*Keys, error) {
	k := &Keys{dir: dir, byName: map[string]*person{}, byID: map[string]*person{}, days: map[string]*day{}, changed: map[string]bool{dir: true}} // new directories are in it
	for f := range fields {
		if err := os.MkdirAll(filepath.Join(dir, f.dir()), 0o700); err != nil {
			return nil, fmt.Errorf("opening the keys of personal data: %w", err)
		}
	}
	var err error
	if k.place, err = os.Stat(dir); err != nil || k.place.Mode().Perm()&0o077 != 0 {
		return nil, errors.Join(err, fmt.Errorf("opening the keys of personal data: %s is open to others; run: chmod 700 %s", dir, dir))
	}
	if err := k.loadDestroyed(); err != nil {
		return nil, err
	}
	for f := range fields {
		entries, err := os.ReadDir(filepath.Join(dir, f.dir()))
		if err != nil {
			return nil, fmt.Errorf("opening the keys of personal data: %w", err)
		}
		for _, e := range entries {
			file := filepath.Join(dir, f.dir(), e.Name())
			if leftover(e) {
				if err := wipe(file); err != nil {
					return nil, err
				}
				continue
			}
			if err := k.load(f, file, e); err != nil {
				return nil, fmt.Errorf("reading %s: %w; restore it from a backup, or remove it, which erases what was written under it", file, err)
			}
		}
	}
	return k, nil
}

// leftover tells a temporary file that a crash left between its writing and its
// renaming: it holds a key, and a name, that no erasure would find.
func leftover(e fs.DirEntry) bool {
	name := e.Name()
	return e.Type().IsRegular() && (strings.HasPrefix(name, "."+personFile) || strings.HasPrefix(name, "."+dayFile))
}

// load takes the key in a file of the directory of f.
func (k *Keys) load(f Field, file string, e fs.DirEntry) error {
	name, ok := strings.CutSuffix(e.Name(), fileEnding)
	if !ok || e.IsDir() {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if date, ok := strings.CutPrefix(name, dayFile); ok {
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
		if _, terr := time.Parse(dayForm, date); err != nil || terr != nil || len(b) != secretBytes {
			return errors.New("it is not the key of a day")
		}
		if k.days[date] == nil {
			k.days[date] = &day{}
		}
		k.days[date][f] = &secret{[32]byte(b), true}
		return nil
	}
	var s stored
	if f != Person {
		return errors.New("it is not the key of a day")
	}
	if err := json.Unmarshal(text, &s); err != nil || len(s.Key) != secretBytes || s.Name == "" || !strings.HasPrefix(name, personFile) {
		return errors.New("it is not the key of a person")
	}
	st, err := e.Info()
	if err != nil {
		return err
	}
	seen := st.ModTime().UTC().Format(dayForm)
	p := &person{secret: secret{[32]byte(s.Key), true}, id: name, name: s.Name, seen: seen, touched: seen}
	k.byID[p.id] = p
	if other := k.byName[p.name]; other == nil || other.seen < p.seen {
		k.byName[p.name] = p
	}
	return nil
}

// For returns who seals a person's data at a time; name is a subject, or
// whatever else stands for somebody. It never waits for the disk: what is new
// is stored by [Keys.Save].
func (k *Keys) For(name string, at time.Time) *Sealer {
	k.mu.RLock()
	p := k.byName[name]
	k.mu.RUnlock()
	if p != nil {
		if s := p.latest.Load(); s != nil && at.Unix()/daySeconds == s.nth {
			return s
		}
	}
	date := at.UTC().Format(dayForm)
	k.mu.Lock()
	defer k.mu.Unlock()
	if p = k.byName[name]; p == nil {
		p = &person{name: name}
		rand.Read(p.bytes[:])
		var id [8]byte
		rand.Read(id[:])
		p.id = personFile + hex.EncodeToString(id[:])
		k.byName[name], k.byID[p.id] = p, p
		k.changes.Add(1)
	}
	d := k.days[date]
	if d == nil {
		d = &day{}
		k.days[date] = d
	}
	for f := range d {
		if d[f] == nil { // also on the day on which a field's first key is made
			d[f] = &secret{}
			rand.Read(d[f].bytes[:])
			k.changes.Add(1)
		}
	}
	s := sealer(p, d, date)
	s.nth = at.Unix() / daySeconds
	p.latest.Store(s) // also of a day before the last, when the clock was ahead
	if date > p.seen {
		p.seen = date
		k.changes.Add(1)
	}
	return s
}

func sealer(p *person, d *day, date string) *Sealer {
	s := &Sealer{ID: p.id, day: date}
	for f := range fields {
		s.of[f] = keyOf(f, p, d[f], date)
	}
	return s
}

func keyOf(f Field, p *person, of *secret, date string) key {
	mac := hmac.New(sha256.New, of.bytes[:])
	mac.Write([]byte("portvakt personal data\x00"))
	mac.Write(p.bytes[:])
	block, err := aes.NewCipher(mac.Sum(nil))
	if err != nil {
		panic("people: " + err.Error()) // 32 bytes are a key
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic("people: " + err.Error())
	}
	return key{aead, []byte(path.Join(p.id, date, f.dir()))}
}

// Seal appends data of a field, sealed: a random nonce of 12 bytes, AES-256-GCM,
// its tag.
func (s *Sealer) Seal(f Field, to, data []byte) []byte {
	return s.of[f].aead.Seal(to, nil, data, s.of[f].data)
}

// Why data cannot be opened.
var (
	ErrErased  = errors.New("the key of this personal data was destroyed")
	ErrExpired = errors.New("the key of this field of that day was destroyed")
)

// Open returns what the person of that ID had sealed of a field on the day of
// at. ErrErased says that nothing of theirs of that day can be opened,
// ErrExpired that other fields perhaps can, any other error that this was not
// sealed under the key there is.
func (k *Keys) Open(f Field, id string, at time.Time, sealed []byte) ([]byte, error) {
	date := at.UTC().Format(dayForm)
	k.mu.RLock()
	p, d := k.byID[id], k.days[date]
	var of *secret
	if d != nil {
		of = d[f] // which For may put there meanwhile
	}
	anew := date <= k.destroyed[f]
	k.mu.RUnlock()
	switch {
	case p == nil || d == nil:
		return nil, ErrErased
	case of == nil:
		return nil, ErrExpired
	}
	var with key
	if s := p.latest.Load(); s != nil && s.day == date {
		with = s.of[f]
	} else {
		with = keyOf(f, p, of, date)
	}
	data, err := with.aead.Open(nil, nil, sealed, with.data)
	if err != nil && anew {
		return nil, ErrExpired // it was sealed under the key that the day had before
	}
	if err != nil {
		return nil, fmt.Errorf("opening personal data (%s) of %s of %s: %w", f, id, date, err)
	}
	return data, nil
}

// ID returns what the log calls a person.
func (k *Keys) ID(name string) (id string, ok bool) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if p := k.byName[name]; p != nil {
		return p.id, true
	}
	return "", false
}

// Has says whether a person of that ID has a key.
func (k *Keys) Has(id string) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.byID[id] != nil
}

// Save stores what is new: nothing that is sealed may be written before its key
// is on the disk. It costs nothing when nothing is new.
func (k *Keys) Save() error {
	if k.stored.Load() == k.changes.Load() {
		return nil
	}
	k.saving.Lock()
	defer k.saving.Unlock()
	upTo, changes, err := k.unsaved()
	for _, c := range changes {
		if err == nil {
			err = k.save(c)
		}
	}
	if err == nil {
		err = k.syncDirs()
	}
	if err != nil {
		return fmt.Errorf("storing the keys of personal data: %w", err)
	}
	k.stored.Store(upTo)
	return nil
}

// change is a file to write, or only to give the time of a day.
type change struct {
	name   string
	text   []byte // nil: the file is there
	of     *secret
	person *person
	seen   string
}

// unsaved lists what is not on the disk, as of a count of changes.
func (k *Keys) unsaved() (upTo uint64, changes []change, err error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	for date, d := range k.days {
		for f, s := range d {
			if s != nil && !s.saved {
				changes = append(changes, change{name: Field(f).file(date), text: []byte(base64.StdEncoding.EncodeToString(s.bytes[:]) + "\n"), of: s})
			}
		}
	}
	for _, p := range k.byID {
		c := change{name: p.id, of: &p.secret, person: p, seen: p.seen}
		if !p.saved {
			text, err := json.Marshal(stored{p.name, p.bytes[:]})
			if err != nil {
				return 0, nil, err
			}
			c.text = append(text, '\n')
		}
		if !p.saved || p.seen != p.touched {
			changes = append(changes, c)
		}
	}
	return k.changes.Load(), changes, nil // For counts with mu held
}

func (k *Keys) save(c change) error {
	if c.text != nil {
		k.changed[filepath.Dir(k.path(c.name))] = true
		if err := renameio.WriteFile(k.path(c.name), c.text, 0o600, renameio.WithTempDir(k.dir)); err != nil {
			return err
		}
	}
	if c.person != nil {
		day, err := time.Parse(dayForm, c.seen)
		if err != nil {
			return err
		}
		err = os.Chtimes(k.path(c.name), day, day)
		if errors.Is(err, fs.ErrNotExist) && k.inPlace() {
			k.gone(c.person)
			return fmt.Errorf("%w: it was removed, which erases who it is of; they get another", err)
		}
		if err != nil {
			return err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c.of.saved = true
	if c.person != nil {
		c.person.touched = c.seen
	}
	return nil
}

// inPlace says whether the directory is the one that was opened: of one that was
// moved, or is not mounted, nothing was removed.
func (k *Keys) inPlace() bool {
	st, err := os.Stat(k.dir)
	return err == nil && os.SameFile(st, k.place)
}

// gone takes a person out whose file somebody removed. What waits to be written
// under the key is not, once: nobody else's records wait for it.
func (k *Keys) gone(p *person) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(p)
	k.changes.Add(1)
}

func (k *Keys) path(name string) string { return filepath.Join(k.dir, name+fileEnding) }

// syncDirs makes the names that were written or removed survive a crash of the
// machine. saving is held.
func (k *Keys) syncDirs() error {
	for dir := range k.changed {
		if err := syncDir(dir); err != nil {
			return err
		}
		delete(k.changed, dir)
	}
	return nil
}

// syncDir makes the names in dir survive a crash of the machine.
func syncDir(dir string) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}
