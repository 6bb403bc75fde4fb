package notary_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// endDay closes the active file, whose first record has that number.
func (o *office) endDay(first int) {
	o.t.Helper()
	if err := errors.Join(os.Rename(o.log, o.day(first)), os.WriteFile(o.log, nil, 0o600)); err != nil {
		o.t.Fatal(err)
	}
}

func (o *office) day(first int) string {
	return filepath.Join(filepath.Dir(o.log), fmt.Sprintf("audit-%020d.jsonl", first))
}

// tell writes the record that retention is about to remove.
func (o *office) tell(to int) {
	o.t.Helper()
	o.records++
	f, err := os.OpenFile(o.log, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		o.t.Fatal(err)
	}
	_, werr := fmt.Fprintf(f, `{"seq":%d,"time":"2026-03-04T08:00:00Z","kind":"erase","actor":"retention","detail":{"from":"1","to":"%d"}}`+"\n", o.records, to)
	if err := errors.Join(werr, f.Close()); err != nil {
		o.t.Fatal(err)
	}
}

func (o *office) mustSign() {
	o.t.Helper()
	if err := o.sign(); err != nil {
		o.t.Fatal(err)
	}
}

// python runs the documented verifier.
func (o *office) python() (string, error) {
	out, err := exec.Command("python3", "../../../docs/verify_audit.py", o.log,
		filepath.Join(o.tree, notary.FileCheckpoint), filepath.Join(o.tree, notary.FileVerifier)).CombinedOutput()
	return string(out), err
}

// newArchive is a log of two closed days of 300 and of second records and one that is
// open, whose first day retention has removed; early is a checkpoint within it.
func newArchive(t *testing.T, second int) (o *office, early []byte) {
	t.Helper()
	o = newOffice(t)
	o.write(100)
	o.mustSign()
	early = o.checkpoint()
	o.write(200)
	o.endDay(1)
	o.write(second)
	o.endDay(301)
	o.write(10)
	o.tell(300)
	o.mustSign()
	if err := os.Remove(o.day(1)); err != nil {
		t.Fatal(err)
	}
	return o, early
}

// What retention removed stays proven: by its hashes, and a signed record.
func TestRemovedRecordsStayProven(t *testing.T) {
	o, early := newArchive(t, 70_000)
	for range 2 {
		rep, err := notary.Verify(o.log, o.tree, o.verifier, early)
		if err != nil || rep.First != 301 || rep.Signed != int64(o.records) || rep.Records != int64(o.records)-300 || rep.Earlier != 1 {
			t.Fatalf("%+v %v", rep, err)
		}
		if out, err := o.python(); err != nil || !strings.Contains(out, "records 1 to 300 were removed") || !strings.Contains(out, fmt.Sprintf("the first %d records are", o.records)) {
			t.Errorf("%v %s", err, out)
		}
		o.write(5)
		o.mustSign() // the notary goes on
	}
	with := func(id string) func([]byte) bool {
		return func(l []byte) bool { return strings.Contains(string(l), id) }
	}
	p, err := notary.Prove(o.log, o.tree, o.verifier, with("d-0400"))
	if err != nil || p.Seq != 400 {
		t.Fatalf("%+v %v", p, err)
	}
	if _, err := notary.CheckProof(p, o.verifier); err != nil {
		t.Error(err)
	}
	if _, err := notary.Prove(o.log, o.tree, o.verifier, with("d-0200")); !errors.Is(err, notary.ErrNotFound) {
		t.Errorf("of what was removed: %v", err)
	}
}

func TestRemovalIsNoWayAroundTheSignature(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(o *office) error
		want string
	}{
		"another day too": {func(o *office) error { return os.Remove(o.day(301)) }, "no signed record says"},
		"told by a record that is not signed": {func(o *office) error {
			o.tell(1000)
			return os.Remove(o.day(301))
		}, "no signed record says"},
		"a record of what is left": {func(o *office) error {
			b, err := os.ReadFile(o.day(301))
			if err != nil {
				return err
			}
			return os.WriteFile(o.day(301), []byte(strings.Replace(string(b), `"d-0500","allow":true`, `"d-0500","allow":null`, 1)), 0o600)
		}, "record 500 is not the one"},
		"a beginning cut off": {func(o *office) error {
			b, err := os.ReadFile(o.day(301))
			if err != nil {
				return err
			}
			_, rest, _ := strings.Cut(string(b), "\n")
			return os.WriteFile(o.day(301), []byte(rest), 0o600)
		}, "record 301 is missing"},
		"a hash of what is gone": {func(o *office) error {
			path := filepath.Join(o.tree, "tile", "8", "0", "001")
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b[5] ^= 1
			return os.WriteFile(path, b, 0o600)
		}, "not the one that was signed"},
		"the hashes of what is gone": {func(o *office) error { return os.RemoveAll(filepath.Join(o.tree, "tile")) }, "nothing can be said"},
	} {
		t.Run(name, func(t *testing.T) {
			o, _ := newArchive(t, 700)
			if err := c.harm(o); err != nil {
				t.Fatal(err)
			}
			_, err := notary.Verify(o.log, o.tree, o.verifier)
			if !errors.Is(err, notary.ErrChanged) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			if out, err := o.python(); err == nil {
				t.Errorf("the documented verifier says %s", out)
			}
		})
	}
}

// Who makes a record old has not the gateway remove it, and say so in a record
// that it signs.
func TestOnlyWhatWasSignedMayBeRemoved(t *testing.T) {
	o := newOffice(t)
	o.write(300)
	o.endDay(1)
	o.write(400)
	o.endDay(301)
	o.write(10)
	n, err := notary.New(notary.Config{LogFile: o.log, Dir: o.tree, KeyFile: o.key})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := errors.Join(n.Run(ctx), n.Healthy()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Provable(1, 700), n.Provable(301, 700), n.Provable(5, 5)); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(o.day(301))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"older":     strings.Replace(string(whole), "2026-03-04T08:00:00Z\",\"kind\":\"decision\",\"decision\":\"d-0700", "2020-03-04T08:00:00Z\",\"kind\":\"decision\",\"decision\":\"d-0700", 1),
		"cut short": string(whole[:len(whole)/2]),
		"emptied":   "",
	} {
		if err := os.WriteFile(o.day(301), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := n.Provable(1, 300); err != nil {
			t.Errorf("%s, of the day before: %v", name, err)
		}
		if err := n.Provable(301, 700); !errors.Is(err, notary.ErrChanged) || !errors.Is(n.Healthy(), notary.ErrChanged) {
			t.Errorf("%s: %v, and %v", name, err, n.Healthy())
		}
	}
	if err := os.WriteFile(o.day(301), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(n.Provable(1, 700), n.Healthy()); err != nil {
		t.Errorf("mended: %v", err)
	}
	if err := n.Provable(1, 711); err == nil {
		t.Error("what is not there may be removed")
	}
}

// Without its tree a log whose beginning is gone is not signed anew, as if it
// had never had another.
func TestALostTreeIsSaid(t *testing.T) {
	for name, lose := range map[string]func(o *office) error{
		"the tiles": func(o *office) error { return os.RemoveAll(filepath.Join(o.tree, "tile")) },
		"all of it": func(o *office) error { return os.RemoveAll(o.tree) },
	} {
		o, _ := newArchive(t, 700)
		if err := lose(o); err != nil {
			t.Fatal(err)
		}
		if err := o.sign(); err == nil || !strings.Contains(err.Error(), "backup") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A checkpoint over records that are gone counts as any other: who rewrote them
// before retention removed them is found out.
func TestACheckpointOverRemovedRecordsCounts(t *testing.T) {
	o, early := newArchive(t, 150)
	other := newOffice(t) // with the same key, and another history
	if err := os.CopyFS(filepath.Dir(other.key), os.DirFS(filepath.Dir(o.key))); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(other.key, 0o600), os.Remove(other.mark())); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other.mark(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other.write(100)
	other.change(func(l []string) []string { l[49] = strings.Replace(l[49], "true", "fals", 1); return l })
	other.mustSign()
	if _, err := notary.Verify(o.log, o.tree, o.verifier, early); err != nil {
		t.Error(err)
	}
	if _, err := notary.Verify(o.log, o.tree, o.verifier, early, other.checkpoint()); !errors.Is(err, notary.ErrChanged) {
		t.Errorf("two histories: %v", err)
	}
	if _, err := notary.Verify(o.log, o.tree, o.verifier, other.checkpoint()); !errors.Is(err, notary.ErrChanged) {
		t.Errorf("another history: %v", err)
	}
}
