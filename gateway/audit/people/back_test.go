package people_test

import (
	"os"
	"path/filepath"
	"testing"
)

// Somebody who comes back while it is being recorded that they are forgotten
// loses what is old, not what is new.
func TestBackBeforeForgotten(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "people")
	k := open(t, dir)
	limit, now := monday.AddDate(0, 3, 0), monday.AddDate(0, 6, 0)
	anna, ben := seal(k, "iss#anna", monday), seal(k, "iss#ben", monday)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	days, persons := k.Due(limit)
	if len(days) != 1 || len(persons) != 2 {
		t.Fatalf("due are %v and %v", days, persons)
	}
	back := seal(k, "iss#anna", now)
	if err := k.Save(); err != nil {
		t.Fatal(err)
	}
	if err := k.Expire(limit, days, persons); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		check(t, k, anna, "")
		check(t, k, ben, "")
		check(t, k, back, "about iss#anna")
		if _, known := k.ID("iss#ben"); known {
			t.Error("who did not come back is still known")
		}
		k = open(t, dir)
	}
}

// A key that could not be destroyed is due until it is, and goes with its owner
// when they are erased, also when they have a new one by then.
func TestKeyThatCannotBeDestroyed(t *testing.T) {
	for _, erased := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "people")
		k := open(t, dir)
		limit, now := monday.AddDate(0, 3, 0), monday.AddDate(0, 6, 0)
		old := seal(k, "iss#anna", monday)
		if err := k.Save(); err != nil {
			t.Fatal(err)
		}
		_, persons := k.Due(limit)
		path := filepath.Join(dir, old.id+".key")
		move := func(from, to string) {
			t.Helper()
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		aside := path + ".aside"
		move(path, aside)
		if err := os.Mkdir(path, 0o700); err != nil { // it can neither be written nor destroyed
			t.Fatal(err)
		}
		if err := k.Expire(limit, nil, persons); err == nil {
			t.Fatal("nothing was said")
		}
		if _, persons := k.Due(limit); len(persons) != 1 {
			t.Errorf("due are %v", persons)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		move(aside, path)
		if !erased {
			if err := k.Expire(limit, nil, persons); err != nil {
				t.Error(err)
			}
			check(t, open(t, dir), old, "")
			continue
		}
		// As a start finds them when it failed and she came back meanwhile.
		other := filepath.Join(t.TempDir(), "people")
		again := open(t, other)
		anew := seal(again, "iss#anna", now)
		if err := again.Save(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{anew.id, "day-" + now.Format("2006-01-02")} {
			move(filepath.Join(other, name+".key"), filepath.Join(dir, name+".key"))
		}
		k = open(t, dir)
		if id, _ := k.ID("iss#anna"); id != anew.id {
			t.Errorf("known as %s, want the one seen last, %s", id, anew.id)
		}
		if err := k.Erase(anew.id); err != nil {
			t.Error(err)
		}
		for range 2 {
			check(t, k, old, "")
			check(t, k, anew, "")
			k = open(t, dir)
		}
	}
}
