package notary_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// The test binary runs itself as a child process that signs the log in a
// directory, to be killed.
const childEnv = "PORTVAKT_NOTARY_CHILD"

func init() {
	if os.Getenv(childEnv) != "" {
		runtime.LockOSThread() // so that strace counts all that main writes
	}
}

func TestMain(m *testing.M) {
	dir := os.Getenv(childEnv)
	if dir == "" {
		goleak.VerifyTestMain(m)
		return
	}
	o := officeIn(nil, dir)
	n, err := notary.New(notary.Config{LogFile: o.log, Dir: o.tree, KeyFile: o.key})
	if err == nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err = errors.Join(n.Run(ctx), n.Healthy())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// changing are the system calls that change what is on the disk.
const changing = "write,pwrite64,mkdirat,renameat,renameat2,unlinkat,ftruncate"

// copyOf is a copy of everything.
func (o *office) copyOf(t *testing.T) *office {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Dir(filepath.Dir(o.log)))); err != nil {
		t.Fatal(err)
	}
	out := officeIn(t, dir)
	out.records = o.records
	if err := os.Chmod(out.key, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

// Whatever the notary was about to write when it was killed, the next start
// signs on without anybody's help, and what was signed before holds.
func TestKilledBetweenAnyTwoWrites(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed (Debian: apt-get install strace)")
	}
	for name, prepare := range map[string]func() (o *office, kept []byte){
		"the first start": func() (*office, []byte) { return newOffice(t), nil },
		"the first start with a log": func() (*office, []byte) {
			o := newOffice(t)
			o.write(300)
			return o, nil
		},
		"a log that grew": func() (*office, []byte) {
			o := newOffice(t)
			o.write(250)
			o.mustSign()
			o.write(300)
			return o, o.checkpoint()
		},
		"what was removed cannot be hashed again": func() (*office, []byte) {
			o, _ := newArchive(t, 150)
			o.write(70)
			return o, o.checkpoint()
		},
		"what was removed, and a log that grew by little": func() (*office, []byte) {
			o, _ := newArchive(t, 150) // the upper tile of it is the same after this
			o.write(5)
			return o, o.checkpoint()
		},
		"a damaged tree": func() (*office, []byte) {
			o := newOffice(t)
			o.write(300)
			o.mustSign()
			if err := os.Remove(filepath.Join(o.tree, "tile", "8", "0", "000")); err != nil {
				t.Fatal(err)
			}
			o.write(1)
			return o, o.checkpoint()
		},
		"a log without a mark": func() (*office, []byte) {
			o := newOffice(t)
			o.write(3)
			o.mustSign()
			if err := os.Remove(o.mark()); err != nil {
				t.Fatal(err)
			}
			return o, o.checkpoint()
		},
	} {
		t.Run(name, func(t *testing.T) {
			from, kept := prepare()
			for nth := 1; ; nth++ {
				o := from.copyOf(t)
				cmd := exec.Command(strace, "-qq", "-o", os.DevNull, "-e", "trace="+changing,
					"-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", changing, nth), os.Args[0])
				cmd.Env = append(os.Environ(), childEnv+"="+filepath.Dir(filepath.Dir(o.log)))
				out, err := cmd.CombinedOutput()
				if err == nil {
					if nth < 2 {
						t.Fatalf("only %d writes were seen", nth-1)
					}
					return
				}
				var end *exec.ExitError
				if !errors.As(err, &end) || end.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("before write %d: %v %s", nth, err, out)
				}
				o.write(2)
				if err := o.sign(); err != nil {
					t.Errorf("killed before write %d: %v", nth, err)
					continue
				}
				earlier := [][]byte{kept}
				if kept == nil {
					earlier = nil
				}
				if rep, err := notary.Verify(o.log, o.tree, o.verifier, earlier...); err != nil || rep.Signed != int64(o.records) {
					t.Errorf("killed before write %d: %+v %v", nth, rep, err)
				}
				if b, err := os.ReadFile(o.mark()); err != nil || strings.TrimSpace(string(b)) != strings.TrimSpace(string(o.checkpoint())) {
					t.Errorf("killed before write %d: the mark is %q, %v", nth, b, err)
				}
			}
		})
	}
}

// When the machine dies all that a checkpoint is over is on the disk, and of the
// checkpoint and its mark the checkpoint first.
func TestACheckpointIsBehindWhatItSigns(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("strace is not installed (Debian: apt-get install strace)")
	}
	for _, records := range []int{1, 600, 256 * (maxLoose + 1)} {
		o := newOffice(t)
		o.write(records)
		calls := filepath.Join(t.TempDir(), "calls")
		cmd := exec.Command(strace, "-qq", "-y", "-s", "1000", "-o", calls, "-e", "trace=fsync,syncfs,renameat", os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+filepath.Dir(filepath.Dir(o.log)))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		b, err := os.ReadFile(calls)
		if err != nil {
			t.Fatal(err)
		}
		before, behind, ok := strings.Cut(string(b), `"`+filepath.Join(o.tree, notary.FileCheckpoint)+`"`)
		if !ok {
			t.Fatalf("no checkpoint was written: %s", b)
		}
		synced := func(path string) bool { return strings.Contains(before, "<"+path+">)") }
		if !synced(o.log) {
			t.Errorf("%d: the log is not on the disk", records)
		}
		if records > 256*maxLoose && !strings.Contains(before, "syncfs(") {
			t.Errorf("%d: the tree is not on the disk", records)
		}
		err = filepath.WalkDir(filepath.Join(o.tree, "tile"), func(path string, _ os.DirEntry, err error) error {
			if records <= 256*maxLoose && !synced(path) {
				t.Errorf("%d: %s is not on the disk", records, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		between, _, ok := strings.Cut(behind, `"`+o.mark()+`"`)
		if !ok || !strings.Contains(between, "<"+o.tree+">)") {
			t.Errorf("%d: the mark may be on the disk before the checkpoint: %s", records, behind)
		}
	}
}

// maxLoose is how many tiles are synced one by one.
const maxLoose = 64

// A disk that is full just when a tile is, is tried again, and the tree is right.
func TestAFullTileThatCannotBeWritten(t *testing.T) {
	for _, c := range []struct {
		tile    string
		records int
	}{{"8/0/000", 600}, {"8/1/000", 65_600}} {
		o := newOffice(t)
		n, err := notary.New(notary.Config{LogFile: o.log, Dir: o.tree, KeyFile: o.key})
		if err != nil {
			t.Fatal(err)
		}
		tile := filepath.Join(o.tree, "tile", filepath.FromSlash(c.tile))
		if err := os.MkdirAll(tile, 0o700); err != nil { // nothing can be written there
			t.Fatal(err)
		}
		o.write(c.records)
		for range 3 {
			if err := n.Sign(); err == nil || n.Last().Size != 0 {
				t.Fatalf("%s: signed %+v, %v", c.tile, n.Last(), err)
			}
		}
		if err := os.Remove(tile); err != nil {
			t.Fatal(err)
		}
		if err := n.Sign(); err != nil {
			t.Fatal(err)
		}
		o.mustSign()
		if rep, err := notary.Verify(o.log, o.tree, o.verifier); err != nil || rep.Signed != int64(c.records) {
			t.Errorf("%s: %+v %v", c.tile, rep, err)
		}
	}
}
