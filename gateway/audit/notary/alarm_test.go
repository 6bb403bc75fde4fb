package notary_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// takeOver leaves of what was signed only the key, as who has full control of
// the machine can.
func (o *office) takeOver() {
	o.t.Helper()
	if err := errors.Join(os.RemoveAll(o.tree), os.WriteFile(o.mark(), nil, 0o600)); err != nil {
		o.t.Fatal(err)
	}
}

func (o *office) mark() string { return filepath.Join(filepath.Dir(o.key), notary.FileMark) }

// other is a record with that number that is not the one [office.write] writes.
func other(n int) string { return strings.Replace(line(n), "d-", "e-", 1) + "\n" }

// Somebody changes the log while nobody looks, and it grows on. A record that
// has the signed number is not the signed one, however many follow it.
func TestTheAlarmStaysWhenTheLogGrowsOn(t *testing.T) {
	const signed = 600
	regrow := func(l []string, first int) []string {
		l = l[:100]
		for len(l) < signed-first+1 {
			l = append(l, other(first+len(l)))
		}
		return l
	}
	for name, change := range map[string]func(l []string, first int) []string{
		"cut and grown again": regrow,
		"cut and grown again up to the last signed record": func(l []string, first int) []string {
			return append(regrow(l, first)[:signed-first], line(signed)+"\n")
		},
		"one record": func(l []string, first int) []string { l[9] = other(first + 9); return l },
		"the last":   func(l []string, first int) []string { l[signed-first] = other(signed); return l },
		"none":       func([]string, int) []string { return nil },
	} {
		for _, first := range []int{1, 301} {
			o := newOffice(t)
			if first > 1 {
				o.write(first - 1)
				o.endDay(1)
			}
			o.write(signed - o.records)
			o.mustSign()
			before := o.checkpoint()
			o.change(func(l []string) []string { return change(l, first) })
			for range 3 {
				if err := o.sign(); !errors.Is(err, notary.ErrChanged) {
					t.Errorf("%s, from %d: %v", name, first, err)
				}
				o.write(4)
			}
			if !bytes.Equal(before, o.checkpoint()) {
				t.Errorf("%s, from %d: it was signed", name, first)
			}
		}
	}
}

// Nothing that who writes to the log's directory can take away, or put back,
// makes a new beginning of what was signed. What is missing is named, and what
// the text says mends it.
func TestAMissingCheckpointIsNoNewBeginning(t *testing.T) {
	const signed = 600
	in := func(o *office, name string) string { return filepath.Join(o.tree, name) }
	forge := func(o *office) error {
		o.change(func(l []string) []string { l[4] = other(5); return l })
		return os.Remove(in(o, notary.FileCheckpoint))
	}
	copyMark := func(o *office) error {
		b, err := os.ReadFile(o.mark())
		return errors.Join(err, os.MkdirAll(o.tree, 0o700), os.WriteFile(in(o, notary.FileCheckpoint), b, 0o600))
	}
	// early is what the tree's checkpoint and the log were after 300 records.
	for name, c := range map[string]struct {
		harm   func(o *office, early, log []byte) error
		want   string
		remedy func(o *office) error // nil: there is none
	}{
		"a changed record, and the checkpoint": {func(o *office, _, _ []byte) error { return forge(o) }, "600 records were signed: restore", nil},
		"the checkpoint":                       {func(o *office, _, _ []byte) error { return os.Remove(in(o, notary.FileCheckpoint)) }, "checkpoint.mark", copyMark},
		"the tree":                             {func(o *office, _, _ []byte) error { return os.RemoveAll(o.tree) }, "from a backup", copyMark},
		"the log's directory": {func(o *office, _, _ []byte) error {
			return errors.Join(os.RemoveAll(filepath.Dir(o.log)), os.Mkdir(filepath.Dir(o.log), 0o700), os.WriteFile(o.log, nil, 0o600))
		}, "600 records were signed", nil},
		"an older checkpoint": {func(o *office, early, _ []byte) error {
			return os.WriteFile(in(o, notary.FileCheckpoint), early, 0o600)
		}, "over 300 records, and 600 were signed", copyMark},
		"an older log with its checkpoint": {func(o *office, early, log []byte) error {
			return errors.Join(os.WriteFile(in(o, notary.FileCheckpoint), early, 0o600), os.WriteFile(o.log, log, 0o600))
		}, "over 300 records, and 600 were signed", func(o *office) error { return os.Remove(o.mark()) }},
		"the key": {func(o *office, _, _ []byte) error { return os.Rename(o.key, o.key+".kept") }, "is not the key that signed the log", func(o *office) error { return os.Rename(o.key+".kept", o.key) }},
		"all its keys": {func(o *office, _, _ []byte) error {
			return errors.Join(os.Rename(filepath.Dir(o.key), filepath.Dir(o.key)+".kept"), os.Mkdir(filepath.Dir(o.key), 0o700))
		}, "the key", func(o *office) error {
			return errors.Join(os.RemoveAll(filepath.Dir(o.key)), os.Rename(filepath.Dir(o.key)+".kept", filepath.Dir(o.key)))
		}},
		// What a version that kept no mark left.
		"no mark: the checkpoint": {func(o *office, _, _ []byte) error {
			return errors.Join(os.Remove(o.mark()), os.Remove(in(o, notary.FileCheckpoint)))
		}, "there is {tree}/tile", nil},
		"no mark: all but what was cosigned": {func(o *office, early, _ []byte) error {
			return errors.Join(os.Remove(o.mark()), os.RemoveAll(o.tree), os.Mkdir(o.tree, 0o700), os.WriteFile(in(o, notary.FileCosigned), early, 0o600))
		}, "there is {tree}/cosigned", nil},
		"no mark: all of the tree": {func(o *office, _, _ []byte) error { return errors.Join(os.Remove(o.mark()), os.RemoveAll(o.tree)) }, "there is a log with the key", nil},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			o.write(signed / 2)
			o.mustSign()
			early := o.checkpoint()
			log, err := os.ReadFile(o.log)
			if err != nil {
				t.Fatal(err)
			}
			o.write(signed / 2)
			o.mustSign()
			verifier := o.verifier
			if err := c.harm(o, early, log); err != nil {
				t.Fatal(err)
			}
			want := strings.ReplaceAll(c.want, "{tree}", o.tree)
			for range 3 {
				err := o.sign()
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %q", err, want)
				}
				o.write(4)
			}
			if c.remedy == nil {
				return
			}
			if err := c.remedy(o); err != nil {
				t.Fatal(err)
			}
			if name == "an older log with its checkpoint" {
				if err := os.WriteFile(o.log, log, 0o600); err != nil { // as the backup has it
					t.Fatal(err)
				}
				o.records = signed / 2
			}
			o.write(2)
			o.mustSign()
			if rep, err := notary.Verify(o.log, o.tree, verifier); err != nil || rep.Signed != int64(o.records) {
				t.Errorf("%+v %v", rep, err)
			}
		})
	}
}

// A log of a version that kept no mark has one from then on; and one whose
// directories were moved away begins anew, with another key.
func TestTheMarkOfAnOlderVersion(t *testing.T) {
	o := newOffice(t)
	o.write(300)
	o.mustSign()
	early := o.checkpoint()
	o.write(300)
	o.mustSign()
	if err := os.Remove(o.mark()); err != nil {
		t.Fatal(err)
	}
	o.mustSign()
	if b, err := os.ReadFile(o.mark()); err != nil || !bytes.Equal(b, o.checkpoint()) {
		t.Errorf("the mark is %q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(o.tree, notary.FileCheckpoint), early, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.sign(); !errors.Is(err, notary.ErrChanged) {
		t.Errorf("with an older checkpoint: %v", err)
	}
	was := o.verifier.KeyHash()
	if err := errors.Join(os.RemoveAll(filepath.Dir(o.log)), os.Remove(o.key), os.Remove(o.mark()),
		os.Mkdir(filepath.Dir(o.log), 0o700), os.WriteFile(o.log, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	o.records = 0
	o.mustSign()
	o.write(5)
	o.mustSign()
	if o.verifier.KeyHash() == was {
		t.Error("a new beginning has the old key")
	}
}

// Hashes that are left of a damaged tree are not thrown away for those of a log
// that is another: they are evidence.
func TestADamagedTreeIsKeptForAnotherLog(t *testing.T) {
	o := newOffice(t)
	o.write(600)
	o.mustSign()
	o.change(func(l []string) []string { l[9] = other(10); return l })
	edge := filepath.Join(o.tree, "tile", "8", "0", "002.p", "88")
	if err := os.Truncate(edge, 0); err != nil {
		t.Fatal(err)
	}
	full := filepath.Join(o.tree, "tile", "8", "0", "000")
	was, err := os.ReadFile(full)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := o.sign(); !errors.Is(err, notary.ErrChanged) {
			t.Error(err)
		}
	}
	if is, err := os.ReadFile(full); err != nil || !bytes.Equal(was, is) {
		t.Errorf("a tile is another now, %v", err)
	}
	o.change(func(l []string) []string { l[9] = line(10) + "\n"; return l })
	o.mustSign()
	if rep, err := notary.Verify(o.log, o.tree, o.verifier); err != nil || rep.Signed != 600 {
		t.Errorf("%+v %v", rep, err)
	}
}

// Another history that the same key signed, as a copy of the gateway does, is not
// the one of the mark, also when it is longer.
func TestAnotherHistoryOfTheSameKey(t *testing.T) {
	o := newOffice(t)
	o.write(10)
	o.mustSign()
	other := o.copyOf(t)
	o.write(1)
	o.change(func(l []string) []string { l[10] = strings.Replace(l[10], "true", "null", 1); return l })
	o.mustSign()
	other.write(5)
	other.mustSign()
	audit := filepath.Dir(o.log)
	if err := errors.Join(os.RemoveAll(audit), os.CopyFS(audit, os.DirFS(filepath.Dir(other.log)))); err != nil {
		t.Fatal(err)
	}
	before := o.checkpoint()
	for range 2 {
		if err := o.sign(); !errors.Is(err, notary.ErrChanged) || !strings.Contains(err.Error(), o.mark()) {
			t.Errorf("%v", err)
		}
		o.records = other.records
		o.write(1)
		other.records++
	}
	if !bytes.Equal(before, o.checkpoint()) {
		t.Error("it was signed")
	}
}
