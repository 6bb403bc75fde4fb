// Package people keeps the keys under which the decision log holds personal
// data. They are outside of the log, so that destroying a key erases what was
// written under it, while every line stays what it was and the Merkle tree over
// the lines still verifies.
//
// A record's key follows from two secrets: one of the person, one of the day.
// Destroying the person's erases that person, destroying the day's erases that
// day of everybody.
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
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"
)

// Keys are all secrets. Its methods are safe for concurrent use.
type Keys struct {
	dir string

	// mu guards the maps and each person's seen.
	mu     sync.RWMutex
	byName map[string]*person
	byID   map[string]*person
	days   map[string]*secret

	saving sync.Mutex // held by who writes or destroys files; taken before mu
	// changes counts what has to be stored, stored how much of it was.
	changes, stored atomic.Uint64
}

// secret is 32 random bytes; saved says whether they are on the disk.
type secret struct {
	bytes [32]byte
	saved bool // guarded by mu
}

// person is somebody, or something that stands for somebody, whose data is in
// the log.
type person struct {
	secret
	id, name string
	seen     string                 // the latest day something was sealed; guarded by mu
	touched  string                 // what the file's time says about that; guarded by mu
	latest   atomic.Pointer[Sealer] // of that day
}

// Sealer seals one person's data of one day.
type Sealer struct {
	ID   string // what the log calls the person; it tells nobody who that is
	day  string
	nth  int64 // that day, counted from 1970
	aead cipher.AEAD
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
	k := &Keys{dir: dir, byName: map[string]*person{}, byID: map[string]*person{}, days: map[string]*secret{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the keys of personal data: %w", err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm()&0o077 != 0 {
		return nil, errors.Join(err, fmt.Errorf("opening the keys of personal data: %s is open to others; run: chmod 700 %s", dir, dir))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the keys of personal data: %w", err)
	}
	for _, e := range entries {
		if leftover(e) {
			if err := wipe(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		if err := k.load(e); err != nil {
			return nil, fmt.Errorf("reading %s: %w; restore it from a backup, or remove it, which erases what was written under it", filepath.Join(dir, e.Name()), err)
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

func (k *Keys) load(e fs.DirEntry) error {
	name, ok := strings.CutSuffix(e.Name(), fileEnding)
	if !ok || e.IsDir() {
		return nil
	}
	text, err := os.ReadFile(filepath.Join(k.dir, e.Name()))
	if err != nil {
		return err
	}
	if day, ok := strings.CutPrefix(name, dayFile); ok {
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(text)))
		if _, terr := time.Parse(dayForm, day); err != nil || terr != nil || len(b) != secretBytes {
			return errors.New("it is not the key of a day")
		}
		k.days[day] = &secret{[32]byte(b), true}
		return nil
	}
	var s stored
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
	day := at.UTC().Format(dayForm)
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
	d := k.days[day]
	if d == nil {
		d = &secret{}
		rand.Read(d.bytes[:])
		k.days[day] = d
		k.changes.Add(1)
	}
	s := sealer(p, d, day)
	s.nth = at.Unix() / daySeconds
	if day >= p.seen {
		p.latest.Store(s)
	}
	if day > p.seen {
		p.seen = day
		k.changes.Add(1)
	}
	return s
}

func sealer(p *person, d *secret, day string) *Sealer {
	mac := hmac.New(sha256.New, d.bytes[:])
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
	return &Sealer{ID: p.id, day: day, aead: aead}
}

// Overhead is how much longer than the data what is sealed is, in bytes.
func (s *Sealer) Overhead() int { return s.aead.Overhead() }

// Seal appends data, sealed: a random nonce of 12 bytes, AES-256-GCM, its tag.
func (s *Sealer) Seal(to, data []byte) []byte {
	return s.aead.Seal(to, nil, data, []byte(s.ID+"/"+s.day))
}

// ErrErased is returned for data whose key was destroyed.
var ErrErased = errors.New("the key of this personal data was destroyed")

// Open returns what the person of that ID had sealed on the day of at.
func (k *Keys) Open(id string, at time.Time, sealed []byte) ([]byte, error) {
	day := at.UTC().Format(dayForm)
	k.mu.RLock()
	p, d := k.byID[id], k.days[day]
	k.mu.RUnlock()
	if p == nil || d == nil {
		return nil, ErrErased
	}
	s := p.latest.Load()
	if s == nil || s.day != day {
		s = sealer(p, d, day)
	}
	data, err := s.aead.Open(nil, nil, sealed, []byte(id+"/"+day))
	if err != nil {
		return nil, fmt.Errorf("opening personal data of %s of %s: %w", id, day, err)
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
		err = syncDir(k.dir)
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
	for day, d := range k.days {
		if !d.saved {
			changes = append(changes, change{name: dayFile + day, text: []byte(base64.StdEncoding.EncodeToString(d.bytes[:]) + "\n"), of: d})
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
		if err := renameio.WriteFile(k.path(c.name), c.text, 0o600, renameio.WithTempDir(k.dir)); err != nil {
			return err
		}
	}
	if c.person != nil {
		day, err := time.Parse(dayForm, c.seen)
		if err != nil {
			return err
		}
		if err := os.Chtimes(k.path(c.name), day, day); err != nil {
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

func (k *Keys) path(name string) string { return filepath.Join(k.dir, name+fileEnding) }

// Erase destroys the key of the person of that ID, on the disk first; also an
// older one of the same name that [Keys.Expire] could not destroy.
func (k *Keys) Erase(id string) error {
	k.saving.Lock()
	defer k.saving.Unlock()
	k.mu.RLock()
	p := k.byID[id]
	var all []*person
	for _, other := range k.byID {
		if p != nil && other.name == p.name {
			all = append(all, other)
		}
	}
	k.mu.RUnlock()
	if p == nil {
		return ErrErased
	}
	for _, p := range all {
		if err := k.destroy(p.id); err != nil {
			return err
		}
		k.mu.Lock()
		k.remove(p)
		k.mu.Unlock()
	}
	return syncDir(k.dir)
}

// Due lists the days before a time, and how many people nothing was sealed of
// since.
func (k *Keys) Due(before time.Time) (days []string, persons []string) {
	limit := before.UTC().Format(dayForm)
	k.mu.RLock()
	defer k.mu.RUnlock()
	for day := range k.days {
		if day < limit {
			days = append(days, day)
		}
	}
	for id, p := range k.byID {
		if p.seen < limit {
			persons = append(persons, id)
		}
	}
	return days, persons
}

// Expire destroys what [Keys.Due] listed before that time; somebody who came
// back since then stays.
func (k *Keys) Expire(before time.Time, days, persons []string) error {
	limit := before.UTC().Format(dayForm)
	k.saving.Lock()
	defer k.saving.Unlock()
	for _, day := range days {
		if err := k.destroy(dayFile + day); err != nil {
			return err
		}
		k.mu.Lock()
		delete(k.days, day)
		k.mu.Unlock()
	}
	for _, id := range persons {
		if err := k.forget(id, limit); err != nil {
			return err
		}
	}
	return syncDir(k.dir)
}

// forget destroys the key of a person of whom nothing was sealed since the day
// limit. From the moment that is certain nobody is given the key any more: who
// comes back then is somebody new. saving is held.
func (k *Keys) forget(id, limit string) error {
	k.mu.Lock()
	p := k.byID[id]
	if p == nil || p.seen >= limit {
		k.mu.Unlock()
		return nil
	}
	k.remove(p)
	k.mu.Unlock()
	err := k.destroy(id)
	if err != nil { // it is still there, and due
		k.mu.Lock()
		k.byID[id] = p
		if k.byName[p.name] == nil {
			k.byName[p.name] = p
		}
		k.mu.Unlock()
	}
	return err
}

// remove takes a person out of the maps. mu is held.
func (k *Keys) remove(p *person) {
	delete(k.byID, p.id)
	if k.byName[p.name] == p {
		delete(k.byName, p.name)
	}
}

// destroy wipes a key's file. saving is held.
func (k *Keys) destroy(name string) error { return wipe(k.path(name)) }

// wipe overwrites a file before it removes it: not every file system forgets
// what was removed.
func wipe(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it never was on the disk, or a crash came after the removal
	}
	if err != nil {
		return fmt.Errorf("destroying a key: %w", err)
	}
	st, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, st.Size()), 0)
	}
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("destroying a key: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("destroying a key: %w", err)
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
