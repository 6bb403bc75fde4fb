package people_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit/people"
)

// A day whose key was destroyed while the clock was ahead gets another one when
// the clock shows that day again: what was sealed before has expired, what is
// sealed from then on is read.
func TestDayThatComesAgain(t *testing.T) {
	for name, destroy := range map[string]func(k *people.Keys) error{
		"a field": func(k *people.Keys) error {
			return k.ExpireOf(people.Person, k.DueOf(people.Person, monday.AddDate(0, 0, 1)))
		},
		"all of a day": func(k *people.Keys) error {
			days, _ := k.Due(monday.AddDate(0, 0, 1))
			return k.Expire(monday.AddDate(0, 0, 1), days, nil)
		},
	} {
		for _, restarted := range []bool{false, true} {
			dir := filepath.Join(t.TempDir(), "people")
			k := open(t, dir)
			before, later := seal(k, "iss#anna", monday), seal(k, "iss#anna", monday.AddDate(0, 0, 1))
			if err := errors.Join(k.Save(), destroy(k)); err != nil {
				t.Fatal(err)
			}
			if restarted {
				k = open(t, dir)
			}
			for range 2 {
				again := seal(k, "iss#anna", monday)
				if err := k.Save(); err != nil {
					t.Fatal(err)
				}
				if got, err := k.Open(people.Person, before.id, monday, before.text); !errors.Is(err, people.ErrExpired) {
					t.Errorf("%s, %t: what was sealed before: %q %v", name, restarted, got, err)
				}
				check(t, k, again, "about iss#anna")
				check(t, k, later, "about iss#anna")
				k = open(t, dir)
			}
			later.text[20] ^= 1
			if _, err := k.Open(people.Person, later.id, later.at, later.text); err == nil || errors.Is(err, people.ErrExpired) || errors.Is(err, people.ErrErased) {
				t.Errorf("what was changed, of a day whose key was never destroyed: %v", err)
			}
		}
	}
}

// What cannot be noted is not destroyed, and a damaged note is said.
func TestNoteOfDestroyedKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	s := seal(k, "iss#anna", monday)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(dir, "destroyed.json")
	if err := os.MkdirAll(filepath.Join(note, "x"), 0o700); err != nil { // it cannot be written
		t.Fatal(err)
	}
	days := k.DueOf(people.Person, monday.AddDate(0, 0, 1))
	if err := k.ExpireOf(people.Person, days); err == nil {
		t.Error("nothing was said")
	}
	check(t, k, s, "about iss#anna")
	if err := os.RemoveAll(note); err != nil {
		t.Fatal(err)
	}
	if err := k.ExpireOf(people.Person, days); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"", "{", `{"person":"yesterday"}`} {
		if err := os.WriteFile(note, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := people.Open(dir); err == nil || !strings.Contains(err.Error(), "destroyed.json") || !strings.Contains(err.Error(), "remove it") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
