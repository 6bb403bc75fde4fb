package people_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/gateway/audit/people"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var monday = time.Date(2026, 3, 2, 8, 0, 0, 0, time.UTC)

func open(t *testing.T, dir string) *people.Keys {
	t.Helper()
	k, err := people.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// sealed is something of somebody.
type sealed struct {
	id   string
	at   time.Time
	text []byte
}

func seal(k *people.Keys, name string, at time.Time) sealed {
	s := k.For(name, at)
	return sealed{s.ID, at, s.Seal(people.Person, nil, []byte("about "+name))}
}

func check(t *testing.T, k *people.Keys, s sealed, want string) {
	t.Helper()
	got, err := k.Open(people.Person, s.id, s.at, s.text)
	switch {
	case want == "" && !errors.Is(err, people.ErrErased):
		t.Errorf("%s of %s: %q %v, want it erased", s.id, s.at.Format(time.DateOnly), got, err)
	case want != "" && (err != nil || string(got) != want):
		t.Errorf("%s of %s: %q %v, want %q", s.id, s.at.Format(time.DateOnly), got, err, want)
	}
}

func TestSealedSurvivesARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	anna, ben := seal(k, "iss#anna", monday), seal(k, "iss#ben", monday)
	later := seal(k, "iss#anna", monday.AddDate(0, 0, 1))
	if again := seal(k, "iss#anna", monday); again.id != anna.id || bytes.Equal(again.text, anna.text) {
		t.Error("another name for the same person, or the same bytes for the same data")
	}
	if anna.id == ben.id || strings.Contains(anna.id, "anna") {
		t.Errorf("names %s and %s", anna.id, ben.id)
	}
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	k = open(t, dir)
	check(t, k, anna, "about iss#anna")
	check(t, k, ben, "about iss#ben")
	check(t, k, later, "about iss#anna")
	if seal(k, "iss#anna", monday).id != anna.id {
		t.Error("another name after a restart")
	}
	swapped := anna
	swapped.id = ben.id
	if _, err := k.Open(people.Person, swapped.id, swapped.at, swapped.text); err == nil || errors.Is(err, people.ErrErased) {
		t.Errorf("another's data: %v", err)
	}
	moved := anna
	moved.at = later.at
	if _, err := k.Open(people.Person, moved.id, moved.at, moved.text); err == nil || errors.Is(err, people.ErrErased) {
		t.Errorf("another day's data: %v", err)
	}
	for _, damage := range [][]byte{nil, anna.text[:11], anna.text[:len(anna.text)-1], append(bytes.Clone(anna.text), 0)} {
		if _, err := k.Open(people.Person, anna.id, anna.at, damage); err == nil {
			t.Errorf("%d of %d bytes were opened", len(damage), len(anna.text))
		}
	}
}

func TestErase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	anna, ben := seal(k, "iss#anna", monday), seal(k, "iss#ben", monday)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	if err := k.Erase(anna.id); err != nil {
		t.Fatal(err)
	}
	if err := k.Erase(anna.id); !errors.Is(err, people.ErrErased) {
		t.Errorf("twice: %v", err)
	}
	after := seal(k, "iss#anna", monday) // she comes back
	if after.id == anna.id {
		t.Error("the same name as before")
	}
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		check(t, k, anna, "")
		check(t, k, ben, "about iss#ben")
		check(t, k, after, "about iss#anna")
		k = open(t, dir)
	}
	unsaved := seal(k, "iss#cleo", monday)
	if err := k.Erase(unsaved.id); err != nil {
		t.Error(err)
	}
	if err := k.Save(); err != nil {
		t.Error(err)
	}
	check(t, open(t, dir), unsaved, "")
}

// What a kill left between the writing of a key's file and its renaming is gone
// when the keys are opened: no erasure would find it.
func TestNoTemporaryFileOutlivesAnErasure(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	anna := seal(k, "iss#anna", monday)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	day := "day-" + monday.Format(time.DateOnly)
	for _, name := range []string{anna.id, day, filepath.Join("facts", day)} {
		text, err := os.ReadFile(filepath.Join(dir, name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"1", "4711"} {
			if err := os.WriteFile(filepath.Join(dir, filepath.Dir(name), "."+filepath.Base(name)+".key"+n), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	k = open(t, dir)
	check(t, k, anna, "about iss#anna")
	for _, in := range []string{dir, filepath.Join(dir, "facts")} {
		left, err := filepath.Glob(filepath.Join(in, ".*"))
		keys, kerr := filepath.Glob(filepath.Join(in, "*.key"))
		if err != nil || kerr != nil || len(left) != 0 || len(keys) == 0 {
			t.Errorf("%v %v: %v, want the keys alone: %v", err, kerr, left, keys)
		}
	}
}

// After so many days nothing of them can be opened, and who was not there since
// is forgotten by name too.
func TestExpire(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	var of []sealed
	for day := range 5 {
		of = append(of, seal(k, "iss#anna", monday.AddDate(0, 0, day)))
		if day < 2 {
			seal(k, "iss#gone", monday.AddDate(0, 0, day))
		}
		if err := k.Save(); err != nil {
			t.Fatal(err)
		}
	}
	k = open(t, dir)
	days, persons := k.Due(monday.AddDate(0, 0, 3))
	if len(days) != 3 || len(persons) != 1 {
		t.Fatalf("due are %v and %v", days, persons)
	}
	if err := k.Expire(monday.AddDate(0, 0, 3), days, persons); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for day, s := range of {
			want := "about iss#anna"
			if day < 3 {
				want = ""
			}
			check(t, k, s, want)
		}
		if _, known := k.ID("iss#gone"); known {
			t.Error("who was not there since is still known")
		}
		if days, persons := k.Due(monday.AddDate(0, 0, 3)); len(days)+len(persons) != 0 {
			t.Errorf("still due: %v %v", days, persons)
		}
		k = open(t, dir)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*.key"))
	if err != nil || len(left) != 3 { // two days, one person
		t.Errorf("left are %v, %v", left, err)
	}
	others, err := filepath.Glob(filepath.Join(dir, "*", "*.key"))
	if err != nil || len(others) != 2*4 { // the other fields of two days
		t.Errorf("left are %v, %v", others, err)
	}
}

// A field expires for everybody and alone; the last one of a day takes the day
// with it.
func TestFieldsExpireAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	names := people.Names()
	text := map[people.Field][]byte{}
	s := k.For("iss#anna", monday)
	for f := range people.Field(len(names)) {
		text[f] = s.Seal(f, nil, []byte(f.String()))
	}
	later := seal(k, "iss#anna", monday.AddDate(0, 0, 1))
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(people.Device, s.ID, monday, text[people.Address]); err == nil || errors.Is(err, people.ErrErased) || errors.Is(err, people.ErrExpired) {
		t.Errorf("one field as another: %v", err)
	}
	held, err := os.Open(filepath.Join(dir, "address", "day-2026-03-02.key"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	for gone := range people.Field(len(names)) {
		days := k.DueOf(gone, monday.AddDate(0, 0, 1))
		if len(days) != 1 || days[0] != "2026-03-02" {
			t.Fatalf("due of %s are %v", gone, days)
		}
		if err := k.ExpireOf(gone, days); err != nil {
			t.Fatal(err)
		}
		if days := k.DueOf(gone, monday.AddDate(0, 0, 1)); len(days) != 0 {
			t.Errorf("still due of %s: %v", gone, days)
		}
		for range 2 {
			for f, b := range text {
				got, err := k.Open(f, s.ID, monday, b)
				switch {
				case int(gone) == len(names)-1 && !errors.Is(err, people.ErrErased):
					t.Errorf("%s, when nothing is left: %v", f, err)
				case int(gone) < len(names)-1 && f <= gone && !errors.Is(err, people.ErrExpired):
					t.Errorf("%s, after %s expired: %q %v", f, gone, got, err)
				case f > gone && (err != nil || string(got) != f.String()):
					t.Errorf("%s, after %s expired: %q %v", f, gone, got, err)
				}
			}
			check(t, k, later, "about iss#anna")
			k = open(t, dir)
		}
	}
	b := make([]byte, 4096)
	if n, _ := held.Read(b); n == 0 || len(bytes.Trim(b[:n], "\x00")) != 0 {
		t.Errorf("what was removed still holds %q", b[:n])
	}
}

func TestDestroyedKeysAreOverwritten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	s := seal(k, "iss#anna", monday)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	kept, err := os.Open(filepath.Join(dir, s.id+".key"))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	if err := k.Erase(s.id); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, _ := kept.Read(b)
	if n == 0 || len(bytes.Trim(b[:n], "\x00")) != 0 {
		t.Errorf("what was removed still holds %q", b[:n])
	}
}

func TestDamagedFilesAreSaid(t *testing.T) {
	for name, text := range map[string]string{
		"p-00.key": "{}", "p-01.key": `{"name":"x","key":"AAAA"}`, "day-2026-03-02.key": "AAAA", "day-nonsense.key": strings.Repeat("A", 43) + "=", "else.key": "x",
		"facts/day-2026-03-02.key": "AAAA", "address/p-02.key": `{"name":"x","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`,
	} {
		dir := filepath.Join(t.TempDir(), "people")
		open(t, dir)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := people.Open(dir); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := filepath.Join(t.TempDir(), "people")
	open(t, dir)
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := people.Open(dir); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a directory others may read: %v", err)
	}
}

// What cannot be stored stays to be stored.
func TestSaveFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	s := seal(k, "iss#anna", monday)
	away := dir + ".away"
	if err := os.Rename(dir, away); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := k.Save(); err == nil {
			t.Fatal("stored in a directory that is not there")
		}
	}
	if err := os.Rename(away, dir); err != nil {
		t.Fatal(err)
	}
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	check(t, open(t, dir), s, "about iss#anna")
	// Another directory in its place, as when it is not mounted, has nobody erased.
	later := seal(k, "iss#anna", monday.AddDate(0, 0, 1))
	if err := errors.Join(os.Rename(dir, away), os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := k.Save(); err == nil {
		t.Fatal("stored in another directory")
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(away, dir)); err != nil {
		t.Fatal(err)
	}
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*people.Keys{k, open(t, dir)} {
		check(t, k, s, "about iss#anna")
		check(t, k, later, "about iss#anna")
	}
}

// Who removes somebody's key while the gateway runs erases them, and stops nobody
// else: the day's first record of them finds out.
func TestKeyThatSomebodyRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	tuesday := monday.AddDate(0, 0, 1)
	anna, ben := seal(k, "iss#anna", monday), seal(k, "iss#ben", monday)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, anna.id+".key")); err != nil {
		t.Fatal(err)
	}
	lost, also := seal(k, "iss#anna", tuesday), seal(k, "iss#ben", tuesday)
	if err := k.Save(); err == nil {
		t.Error("a record whose key is not there may be written")
	}
	again := seal(k, "iss#anna", tuesday)
	if again.id == anna.id {
		t.Error("the key that was removed is used again")
	}
	if err := k.Save(); err != nil {
		t.Error(err)
	}
	for range 2 {
		check(t, k, anna, "")
		check(t, k, lost, "")
		check(t, k, ben, "about iss#ben")
		check(t, k, also, "about iss#ben")
		check(t, k, again, "about iss#anna")
		k = open(t, dir)
	}
}

func TestManyAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var all []sealed
	var names []string
	for worker := range 8 {
		wg.Go(func() {
			for i := range 40 {
				name := fmt.Sprintf("iss#%d", (worker+i)%20)
				s := seal(k, name, monday.AddDate(0, 0, i%3))
				if err := k.Save(); err != nil {
					t.Error(err)
				}
				mu.Lock()
				all, names = append(all, s), append(names, "about "+name)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	k = open(t, dir)
	for i, s := range all {
		check(t, k, s, names[i])
	}
}
