package notary_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

type office struct {
	t         *testing.T
	log       string
	key, tree string
	records   int
	verifier  note.Verifier
}

func newOffice(t *testing.T) *office {
	t.Helper()
	dir := t.TempDir()
	o := officeIn(t, dir)
	if err := os.Mkdir(filepath.Dir(o.log), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Dir(o.key), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(o.log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

// officeIn is laid out as data_dir is.
func officeIn(t *testing.T, dir string) *office {
	return &office{t: t, log: filepath.Join(dir, "audit", "audit.jsonl"), key: filepath.Join(dir, "keys", "checkpoint.key"), tree: filepath.Join(dir, "audit", "tree")}
}

func line(n int) string {
	return fmt.Sprintf(`{"seq":%d,"time":"2026-03-04T08:00:00Z","kind":"decision","decision":"d-%04d","allow":true}`, n, n)
}

// write appends n records.
func (o *office) write(n int) {
	o.t.Helper()
	var b strings.Builder
	for range n {
		o.records++
		b.WriteString(line(o.records) + "\n")
	}
	f, err := os.OpenFile(o.log, os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		o.t.Fatal(err)
	}
	_, werr := f.WriteString(b.String())
	if err := errors.Join(werr, f.Close()); err != nil {
		o.t.Fatal(err)
	}
}

// verifierIn reads the verifier key that a notary wrote.
func verifierIn(t testing.TB, tree string) note.Verifier {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(tree, notary.FileVerifier))
	if err != nil {
		t.Fatal(err)
	}
	v, err := notary.ParseVerifier(string(key))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// sign lets a notary that starts anew run until it has signed what there is.
func (o *office) sign() error {
	o.t.Helper()
	n, err := notary.New(notary.Config{LogFile: o.log, Dir: o.tree, KeyFile: o.key})
	if err != nil {
		o.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := n.Run(ctx); err != nil {
		o.t.Fatal(err)
	}
	if n.Healthy() == nil {
		o.verifier = verifierIn(o.t, o.tree)
	}
	return n.Healthy()
}

func (o *office) checkpoint() []byte {
	o.t.Helper()
	b, err := os.ReadFile(filepath.Join(o.tree, notary.FileCheckpoint))
	if err != nil {
		o.t.Fatal(err)
	}
	return b
}

// change rewrites the log through fn, which gets its lines.
func (o *office) change(fn func([]string) []string) {
	o.t.Helper()
	b, err := os.ReadFile(o.log)
	if err != nil {
		o.t.Fatal(err)
	}
	ls := fn(strings.SplitAfter(string(b), "\n"))
	if err := os.WriteFile(o.log, []byte(strings.Join(ls, "")), 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// reference is the root by the definition in RFC 6962, section 2.1.
func reference(ls []string) tlog.Hash {
	if len(ls) == 1 {
		return tlog.RecordHash([]byte(ls[0]))
	}
	k := 1
	for 2*k < len(ls) {
		k *= 2
	}
	return tlog.NodeHash(reference(ls[:k]), reference(ls[k:]))
}

func TestRootsAreThoseOfTheRFC(t *testing.T) {
	o := newOffice(t)
	var ls []string
	var kept [][]byte
	for _, grow := range []int{1, 1, 1, 4, 248, 1, 1, 255, 700, 3} {
		o.write(grow)
		for len(ls) < o.records {
			ls = append(ls, line(len(ls)+1))
		}
		if err := o.sign(); err != nil {
			t.Fatal(err)
		}
		c, err := notary.OpenCheckpoint(o.checkpoint(), o.verifier)
		if err != nil {
			t.Fatal(err)
		}
		if c.Size != int64(o.records) || c.Root != reference(ls) {
			t.Fatalf("%d records: checkpoint over %d, root %v, want %v", o.records, c.Size, c.Root, reference(ls))
		}
		kept = append(kept, o.checkpoint())
	}
	o.write(5)
	rep, err := notary.Verify(o.log, o.tree, o.verifier, kept...)
	if err != nil || rep.Records != int64(o.records) || rep.Signed != int64(o.records-5) || rep.Earlier != len(kept) {
		t.Fatalf("%+v %v", rep, err)
	}
}

func TestVerifyNamesTheFirstBadRecord(t *testing.T) {
	const records = 700
	for name, c := range map[string]struct {
		change func([]string) []string
		seq    int64
	}{
		"one byte":  {func(l []string) []string { l[299] = strings.Replace(l[299], "true", "fals", 1); return l }, 300},
		"the first": {func(l []string) []string { l[0] = strings.Replace(l[0], "08:00", "09:00", 1); return l }, 1},
		"the last":  {func(l []string) []string { l[699] = strings.Replace(l[699], "08:00", "09:00", 1); return l }, 700},
		"removed":   {func(l []string) []string { return append(l[:299], l[300:]...) }, 300},
		"removed, numbers mended": {func(l []string) []string {
			l = append(l[:299], l[300:]...)
			for i := 299; i < len(l)-1; i++ {
				l[i] = line(i+1) + "\n"
				l[i] = strings.Replace(l[i], fmt.Sprintf("d-%04d", i+1), fmt.Sprintf("d-%04d", i+2), 1)
			}
			return l
		}, 300},
		"added":       {func(l []string) []string { return append(l[:10:10], append([]string{line(11) + " \n"}, l[10:]...)...) }, 11},
		"swapped":     {func(l []string) []string { l[5], l[6] = l[6], l[5]; return l }, 6},
		"cut short":   {func(l []string) []string { return l[:650] }, 651},
		"no newline":  {func(l []string) []string { l[699] = strings.TrimSuffix(l[699], "\n"); return l[:700] }, 700},
		"emptied":     {func([]string) []string { return nil }, 1},
		"not records": {func(l []string) []string { l[99] = "hello\n"; return l }, 100},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOffice(t)
			o.write(records)
			if err := o.sign(); err != nil {
				t.Fatal(err)
			}
			o.change(c.change)
			_, err := notary.Verify(o.log, o.tree, o.verifier)
			var bad *notary.BadRecord
			if !errors.As(err, &bad) || bad.Seq != c.seq || !errors.Is(err, notary.ErrChanged) {
				t.Errorf("error %v, want record %d", err, c.seq)
			}
		})
	}
}

// Whoever holds the machine can make a tree and a checkpoint of a changed log;
// a checkpoint kept elsewhere shows it.
func TestAnOldCheckpointCatchesARewrittenLog(t *testing.T) {
	o := newOffice(t)
	o.write(300)
	if err := o.sign(); err != nil {
		t.Fatal(err)
	}
	kept := o.checkpoint()
	o.change(func(l []string) []string { l[99] = strings.Replace(l[99], "true", "fals", 1); return l })
	o.takeOver()
	o.write(10)
	if err := o.sign(); err != nil {
		t.Fatal(err)
	}
	if _, err := notary.Verify(o.log, o.tree, o.verifier); err != nil {
		t.Fatalf("by itself the new log holds: %v", err)
	}
	if _, err := notary.Verify(o.log, o.tree, o.verifier, kept); !errors.Is(err, notary.ErrChanged) {
		t.Errorf("with the old checkpoint: %v", err)
	}
}

func TestOnlyTheKeysCheckpointsCount(t *testing.T) {
	o := newOffice(t)
	o.write(3)
	if err := o.sign(); err != nil {
		t.Fatal(err)
	}
	other := newOffice(t)
	other.write(3)
	if err := other.sign(); err != nil {
		t.Fatal(err)
	}
	if _, err := notary.Verify(o.log, o.tree, other.verifier); err == nil {
		t.Error("another gateway's key checked it")
	}
	forged := bytes.Replace(o.checkpoint(), []byte("\n3\n"), []byte("\n2\n"), 1)
	if _, err := notary.OpenCheckpoint(forged, o.verifier); err == nil {
		t.Error("a changed checkpoint was taken")
	}
}

// A notary that finds another log than it signed signs nothing more.
func TestNothingIsSignedOverAChangedLog(t *testing.T) {
	for name, change := range map[string]func([]string) []string{
		"shorter": func(l []string) []string { return l[:100] },
		"a gap":   func(l []string) []string { return append(l[:299], line(301)+"\n") },
	} {
		o := newOffice(t)
		o.write(299)
		if err := o.sign(); err != nil {
			t.Fatal(err)
		}
		before := o.checkpoint()
		o.change(change)
		if err := o.sign(); !errors.Is(err, notary.ErrChanged) {
			t.Errorf("%s: %v", name, err)
		}
		if !bytes.Equal(before, o.checkpoint()) {
			t.Errorf("%s: it was signed", name)
		}
	}
}

// After a power failure tiles may be missing or empty: the log has everything.
func TestDamagedTilesAreMadeAnew(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"missing": os.Remove,
		"empty":   func(p string) error { return os.Truncate(p, 0) },
		"zeroed": func(p string) error {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			return os.WriteFile(p, make([]byte, len(b)), 0o600)
		},
	} {
		o := newOffice(t)
		o.write(600)
		if err := o.sign(); err != nil {
			t.Fatal(err)
		}
		n := 0
		err := filepath.WalkDir(filepath.Join(o.tree, "tile"), func(p string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			n++
			return damage(p)
		})
		if err != nil || n < 3 {
			t.Fatalf("%d tiles, %v", n, err)
		}
		o.write(1)
		if err := o.sign(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if rep, err := notary.Verify(o.log, o.tree, o.verifier); err != nil || rep.Signed != 601 {
			t.Errorf("%s: %+v %v", name, rep, err)
		}
	}
}

func TestVerifyWithDamagedTilesStillKnowsTheRoot(t *testing.T) {
	o := newOffice(t)
	o.write(600)
	if err := o.sign(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(o.tree, "tile")); err != nil {
		t.Fatal(err)
	}
	if _, err := notary.Verify(o.log, o.tree, o.verifier); err != nil {
		t.Errorf("the log is right: %v", err)
	}
	o.change(func(l []string) []string { l[9] = strings.Replace(l[9], "true", "fals", 1); return l })
	if _, err := notary.Verify(o.log, o.tree, o.verifier); !errors.Is(err, notary.ErrChanged) {
		t.Errorf("the log is wrong: %v", err)
	}
}

func TestProofs(t *testing.T) {
	o := newOffice(t)
	o.write(777)
	if err := o.sign(); err != nil {
		t.Fatal(err)
	}
	o.write(1)
	with := func(id string) func([]byte) bool {
		return func(l []byte) bool { return bytes.Contains(l, []byte(id)) }
	}
	for _, seq := range []int{1, 2, 255, 256, 257, 512, 776, 777} {
		p, err := notary.Prove(o.log, o.tree, o.verifier, with(fmt.Sprintf("d-%04d", seq)))
		if err != nil || p.Seq != int64(seq) {
			t.Fatalf("%d: %+v %v", seq, p, err)
		}
		if c, err := notary.CheckProof(p, o.verifier); err != nil || c.Size != 777 {
			t.Errorf("%d: %+v %v", seq, c, err)
		}
		for what, forge := range map[string]func(*notary.Proof){
			"line":      func(p *notary.Proof) { p.Record = strings.Replace(p.Record, "true", "fals", 1) },
			"number":    func(p *notary.Proof) { p.Seq++ },
			"hashes":    func(p *notary.Proof) { p.Hashes = p.Hashes[1:] },
			"no hash":   func(p *notary.Proof) { p.Hashes[0] = "AAAA" },
			"signature": func(p *notary.Proof) { p.Checkpoint = strings.Replace(p.Checkpoint, "777", "778", 1) },
		} {
			bad := p
			bad.Hashes = append([]string(nil), p.Hashes...)
			forge(&bad)
			if _, err := notary.CheckProof(bad, o.verifier); err == nil {
				t.Errorf("%d: another %s was taken", seq, what)
			}
		}
	}
	if _, err := notary.Prove(o.log, o.tree, o.verifier, with("d-0778")); !errors.Is(err, notary.ErrUnsigned) {
		t.Errorf("too new: %v", err)
	}
	if _, err := notary.Prove(o.log, o.tree, o.verifier, with("d-9999")); !errors.Is(err, notary.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
}

// Half a line is not a record yet, and new records are signed within 10 s.
func TestRunSignsInTime(t *testing.T) {
	o := newOffice(t)
	synctest.Test(t, func(t *testing.T) {
		n, err := notary.New(notary.Config{LogFile: o.log, Dir: o.tree, KeyFile: o.key})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- n.Run(ctx) }()
		for round := 1; round <= 3; round++ {
			o.write(2)
			f, err := os.OpenFile(o.log, os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			half := line(o.records + 1)
			if _, err := f.WriteString(half[:20]); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if c := n.Last(); c.Size != int64(o.records) {
				t.Errorf("after 10 s %d of %d records are signed", c.Size, o.records)
			}
			o.records++
			if _, err := f.WriteString(half[20:] + "\n"); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if c := n.Last(); c.Size != int64(o.records) {
			t.Errorf("at the end %d of %d records are signed", c.Size, o.records)
		}
	})
}

func TestKeyFile(t *testing.T) {
	o := newOffice(t)
	if err := o.sign(); err != nil {
		t.Fatal(err)
	}
	key := o.verifier.KeyHash()
	if err := o.sign(); err != nil || o.verifier.KeyHash() != key {
		t.Errorf("another key after a restart: %v", err)
	}
	if err := os.Chmod(o.key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := notary.New(notary.Config{LogFile: o.log, Dir: o.tree, KeyFile: o.key}); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: %v", err)
	}
	if err := os.WriteFile(o.key, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(o.key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := notary.New(notary.Config{LogFile: o.log, Dir: o.tree, KeyFile: o.key}); err == nil || !strings.Contains(err.Error(), "backup") {
		t.Errorf("a damaged key: %v", err)
	}
}

// The example in docs/ is written from the documentation alone, in another
// language: what it agrees with is documented.
func TestTheDocumentedVerifierAgrees(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed: the example verifier is not tested")
	}
	o := newOffice(t)
	verify := func() (string, error) {
		out, err := exec.Command(python, "../../../docs/verify_audit.py", o.log,
			filepath.Join(o.tree, notary.FileCheckpoint), filepath.Join(o.tree, notary.FileVerifier)).CombinedOutput()
		return string(out), err
	}
	for _, grow := range []int{1, 299, 213} {
		o.write(grow)
		if err := o.sign(); err != nil {
			t.Fatal(err)
		}
		if out, err := verify(); err != nil || !strings.Contains(out, fmt.Sprintf("the first %d records are", o.records)) {
			t.Errorf("%d records: %v %s", o.records, err, out)
		}
	}
	o.change(func(l []string) []string { l[99] = strings.Replace(l[99], "true", "fals", 1); return l })
	if out, err := verify(); err == nil || !strings.Contains(out, "not the ones that were signed") {
		t.Errorf("a changed log: %v %s", err, out)
	}
	other := newOffice(t)
	if err := other.sign(); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(filepath.Join(other.tree, notary.FileVerifier))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(o.tree, notary.FileVerifier), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(); err == nil || !strings.Contains(out, "not signed with this key") {
		t.Errorf("another key: %v %s", err, out)
	}
}

func FuzzOpenCheckpoint(f *testing.F) {
	f.Add([]byte("portvakt.audit/v1\n3\nAAAA\ntime 2026-03-04T08:00:00Z\n\n— x AAAA\n"))
	f.Add([]byte(""))
	if _, err := notary.ParseVerifier("portvakt-audit+00000000+AAAA"); err == nil {
		f.Fatal("a verifier without a key was taken")
	}
	_, public, err := note.GenerateKey(rand.Reader, "portvakt-audit")
	if err != nil {
		f.Fatal(err)
	}
	v, err := notary.ParseVerifier(public)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		if c, err := notary.OpenCheckpoint(msg, v); err == nil {
			t.Fatalf("taken without the key: %+v", c)
		}
	})
}
