package audit_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/policy"
)

func open(t *testing.T, dir string) *audit.Log {
	t.Helper()
	l, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// run runs l until the test or stop ends it.
func run(t *testing.T, l *audit.Log) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func records(t *testing.T, path string) []audit.Record {
	t.Helper()
	var rs []audit.Record
	if err := audit.Scan(path, func(_ []byte, r *audit.Record) bool {
		rs = append(rs, *r)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return rs
}

// gapless fails unless the records are numbered 1, 2, 3, ...
func gapless(t *testing.T, rs []audit.Record) {
	t.Helper()
	for i, r := range rs {
		if r.Seq != uint64(i)+1 {
			t.Fatalf("record %d has number %d", i+1, r.Seq)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "audit")
	now := time.Date(2026, 3, 4, 5, 6, 7, 891_000_000, time.FixedZone("CET", 3600))
	l, err := audit.Open(audit.Options{Dir: dir, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	d := policy.NewDecision(policy.ReasonPostureFailed, &policy.Fact{Name: "posture.host_firewall", Value: "fail", Wanted: "pass"})
	d.ID, d.App, d.Rule, d.Revision = "d1", "crm", "crm.access[0]", "sha256-0"
	in, err := json.MarshalIndent(policy.Input{Action: policy.ActionRequest}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want := audit.Record{
		Kind: audit.KindDecision, Subject: "https://idp#1", Device: "dev", Session: "s", Flow: "f",
		Method: "GET", Host: "crm.example", Path: "/a&b<c>", Remote: "192.0.2.1", Actor: "os:0:root",
		Outcome: "denied", Status: 403, BytesIn: 1, BytesOut: 2, DurationMS: 3,
		Detail: map[string]string{"k": "v"}, Input: in,
	}
	want.SetDecision(d)
	if err := l.Append(&want); err != nil {
		t.Fatal(err)
	}
	if want.Seq != 1 || !want.Time.Equal(now) {
		t.Errorf("seq %d time %v", want.Seq, want.Time)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(&audit.Record{Kind: audit.KindStop}); err == nil {
		t.Error("a closed log took a record")
	}
	got := records(t, l.Path())
	if len(got) != 1 {
		t.Fatalf("%d records", len(got))
	}
	var a, b any
	if json.Unmarshal(got[0].Input, &a) != nil || json.Unmarshal(in, &b) != nil || !cmp.Equal(a, b) {
		t.Errorf("input: %s", got[0].Input)
	}
	got[0].Input, want.Input = nil, nil
	if diff := cmp.Diff(want, got[0]); diff != "" {
		t.Errorf("-written +read\n%s", diff)
	}
	for name, mode := range map[string]os.FileMode{dir: 0o700, l.Path(): 0o600} {
		if st, err := os.Stat(name); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %v", name, st.Mode().Perm(), err, mode)
		}
	}
}

func TestZeroDecisionIsWrittenAsDenial(t *testing.T) {
	l := open(t, t.TempDir())
	r := audit.Record{Kind: audit.KindFlowOpen}
	r.SetDecision(policy.Decision{})
	if err := l.Append(&r); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(l.Path())
	if err != nil || !strings.Contains(string(b), `"allow":false`) {
		t.Errorf("%s %v", b, err)
	}
}

func TestAppendRefusesWhatItCannotKeep(t *testing.T) {
	l := open(t, t.TempDir())
	for name, r := range map[string]*audit.Record{
		"no kind":        {},
		"input not JSON": {Kind: audit.KindDecision, Input: json.RawMessage("{")},
	} {
		if err := l.Append(r); err == nil {
			t.Errorf("%s: appended", name)
		}
	}
	if err := l.Append(&audit.Record{Kind: audit.KindStart}); err != nil || l.Healthy() != nil {
		t.Errorf("a refused record harmed the log: %v %v", err, l.Healthy())
	}
	gapless(t, records(t, l.Path()))
}

func TestSeqContinuesOverRestarts(t *testing.T) {
	dir := t.TempDir()
	for i := range 5 {
		l := open(t, dir)
		for range i { // the first one writes nothing
			if err := l.Append(&audit.Record{Kind: audit.KindStart}); err != nil {
				t.Fatal(err)
			}
		}
		l.Note(audit.Record{Kind: audit.KindStop})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	rs := records(t, filepath.Join(dir, audit.FileName))
	gapless(t, rs)
	if len(rs) != 0+1+2+3+4+5 {
		t.Errorf("%d records", len(rs))
	}
}

func TestSecondWriterIsRefused(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if _, err := audit.Open(audit.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("second open: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, dir)
}

func TestOpenRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(dir string) error
		want    string
	}{
		"directory open to others": {func(d string) error { return os.Chmod(d, 0o770) }, "chmod 700"},
		"file open to others": {func(d string) error {
			p := filepath.Join(d, audit.FileName)
			return errors.Join(os.WriteFile(p, nil, 0o600), os.Chmod(p, 0o666))
		}, "chmod 600"},
		"symlink":      {func(d string) error { return os.Symlink("/dev/null", filepath.Join(d, audit.FileName)) }, "symbolic"},
		"not a log":    {func(d string) error { return os.WriteFile(filepath.Join(d, audit.FileName), []byte("a\nb\n"), 0o600) }, "no record"},
		"a directory":  {func(d string) error { return os.Mkdir(filepath.Join(d, audit.FileName), 0o700) }, "directory"},
		"no directory": {func(d string) error { return errors.Join(os.Remove(d), os.WriteFile(d, nil, 0o600)) }, "not a directory"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "d")
			if err := errors.Join(os.Mkdir(dir, 0o700), c.prepare(dir)); err != nil {
				t.Fatal(err)
			}
			l, err := audit.Open(audit.Options{Dir: dir})
			if err == nil {
				_ = l.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v does not say %q", err, c.want)
			}
		})
	}
	if _, err := audit.Open(audit.Options{}); err == nil {
		t.Error("opened without a directory")
	}
}

func TestConcurrentAppend(t *testing.T) {
	l := open(t, t.TempDir())
	stop := run(t, l)
	const writers, each = 64, 50
	var mu sync.Mutex
	seen := map[uint64]string{}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				r := audit.Record{Kind: audit.KindDecision, Flow: fmt.Sprintf("%d.%d", w, i)}
				if err := l.Append(&r); err != nil {
					t.Error(err)
					return
				}
				l.Note(audit.Record{Kind: audit.KindFlowClose, Flow: r.Flow})
				mu.Lock()
				seen[r.Seq] = r.Flow
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	stop()
	rs := records(t, l.Path())
	gapless(t, rs)
	if len(rs) != 2*writers*each || l.Appended() != uint64(len(rs)) || l.Lost() != 0 || l.Pending() != 0 {
		t.Errorf("%d records, appended %d, lost %d, pending %d", len(rs), l.Appended(), l.Lost(), l.Pending())
	}
	open := map[string]bool{}
	for _, r := range rs {
		if r.Kind == audit.KindFlowClose {
			if !open[r.Flow] {
				t.Fatalf("flow %s closed before it was opened", r.Flow)
			}
			continue
		}
		open[r.Flow] = true
		if seen[r.Seq] != r.Flow {
			t.Fatalf("number %d was given to %q and is of %q", r.Seq, seen[r.Seq], r.Flow)
		}
	}
}

func TestNotesKeepTheirPlaceBeforeALaterAppend(t *testing.T) {
	l := open(t, t.TempDir())
	l.Note(audit.Record{Kind: audit.KindFlowCut})
	if err := l.Append(&audit.Record{Kind: audit.KindLogin}); err != nil {
		t.Fatal(err)
	}
	rs := records(t, l.Path())
	gapless(t, rs)
	if len(rs) != 2 || rs[0].Kind != audit.KindFlowCut {
		t.Errorf("%v", rs)
	}
}

func TestNoteWithoutRunIsBoundedAndCounted(t *testing.T) {
	l := open(t, t.TempDir())
	for range 4096 + 10 {
		l.Note(audit.Record{Kind: audit.KindFlowClose})
	}
	l.Note(audit.Record{Kind: audit.KindFlowCut})
	if l.Lost() != 11 || l.Pending() != 4096 || l.Appended() != 0 {
		t.Errorf("lost %d, pending %d, appended %d", l.Lost(), l.Pending(), l.Appended())
	}
	stop := run(t, l)
	stop()
	rs := records(t, l.Path())
	gapless(t, rs)
	last := rs[len(rs)-1]
	if len(rs) != 4097 || last.Kind != audit.KindLost ||
		last.Detail["count"] != "11" || last.Detail["kind.flow_close"] != "10" || last.Detail["kind.flow_cut"] != "1" {
		t.Errorf("%d records, last %+v", len(rs), last)
	}
}

func TestNoteThatCannotBeEncodedIsKeptWithoutItsInput(t *testing.T) {
	l := open(t, t.TempDir())
	l.Note(audit.Record{Kind: audit.KindFlowCut, Flow: "f", Input: json.RawMessage("{")})
	l.Note(audit.Record{})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	rs := records(t, l.Path())
	if len(rs) != 2 || rs[0].Flow != "f" || rs[0].Detail["error"] == "" || rs[1].Kind != audit.KindAdmin {
		t.Errorf("%+v", rs)
	}
}

// A torn tail of every length, behind a whole record and as the only one.
func TestTornTailAtEveryByte(t *testing.T) {
	whole := `{"seq":1,"time":"2026-01-01T00:00:00Z","kind":"start"}` + "\n"
	last := `{"seq":2,"time":"2026-01-01T00:00:01Z","kind":"login","subject":"ü"}`
	for _, before := range []string{"", whole} {
		for cut := 1; cut <= len(last); cut++ {
			dir := t.TempDir()
			path := filepath.Join(dir, audit.FileName)
			if err := os.WriteFile(path, []byte(before+last[:cut]), 0o600); err != nil {
				t.Fatal(err)
			}
			if n := len(records(t, path)); n != strings.Count(before, "\n") {
				t.Fatalf("cut %d: a reader saw %d records", cut, n)
			}
			l := open(t, dir)
			r := audit.Record{Kind: audit.KindStop}
			if err := l.Append(&r); err != nil {
				t.Fatal(err)
			}
			rs := records(t, path)
			gapless(t, rs)
			n := strings.Count(before, "\n")
			if len(rs) != n+2 || rs[n].Kind != audit.KindTorn || rs[n].Detail["bytes"] != strconv.Itoa(cut) {
				t.Fatalf("cut %d: %+v", cut, rs)
			}
			aside, err := os.ReadFile(filepath.Join(dir, rs[n].Detail["file"]))
			if err != nil || string(aside) != last[:cut] {
				t.Fatalf("cut %d: moved aside %q, %v", cut, aside, err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDamagedLastLineIsMovedAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, audit.FileName)
	whole := `{"seq":7,"time":"2026-01-01T00:00:00Z","kind":"start"}` + "\n"
	if err := os.WriteFile(path, []byte(whole+"\x00\x00\n{\"seq\":8}\n{\"se"), 0o600); err != nil {
		t.Fatal(err)
	}
	l := open(t, dir)
	rs := records(t, l.Path())
	if len(rs) != 2 || rs[0].Seq != 7 || rs[1].Seq != 8 || rs[1].Kind != audit.KindTorn {
		t.Errorf("%+v", rs)
	}
}

func TestLogThatIsMovedOrChangedGrantsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		harm, mend func(path string) error
	}{
		"removed": {os.Remove, nil},
		"moved": {
			func(p string) error { return os.Rename(p, p+".1") },
			func(p string) error { return os.Rename(p+".1", p) },
		},
		"emptied": {func(p string) error { return os.Truncate(p, 0) }, nil},
		"appended to": {func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("{}\n")
			return errors.Join(err, f.Close())
		}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := open(t, t.TempDir())
			run(t, l)
			if err := l.Append(&audit.Record{Kind: audit.KindStart}); err != nil {
				t.Fatal(err)
			}
			if err := c.harm(l.Path()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "trouble is seen", func() bool { return l.Healthy() != nil })
			if err := l.Append(&audit.Record{Kind: audit.KindLogin}); err == nil {
				t.Error("appended")
			}
			if c.mend == nil {
				return
			}
			if err := c.mend(l.Path()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "recovery", func() bool { return l.Healthy() == nil })
			rs := records(t, l.Path())
			gapless(t, rs)
			if len(rs) != 2 || rs[1].Kind != audit.KindRecovered || rs[1].Detail["refused"] != "1" {
				t.Errorf("%+v", rs)
			}
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 5 s: %s", what)
		}
	}
}

func child(t *testing.T, role, dir string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), childEnv+"="+role+":"+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// Every acknowledged number is in the file once, whenever the process dies.
func TestKill(t *testing.T) {
	const rounds = 20
	dir := t.TempDir()
	acked := map[uint64]bool{}
	for i := range rounds {
		cmd := child(t, "write", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		n := 0
		for sc := bufio.NewScanner(out); sc.Scan(); n++ {
			seq, err := strconv.ParseUint(sc.Text(), 10, 64)
			if err != nil { // a pipe takes a short line whole or not at all
				t.Fatal(err)
			}
			if acked[seq] {
				t.Fatalf("number %d was given twice", seq)
			}
			acked[seq] = true
			if n == 50+i*7 {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if n < 50 {
			t.Fatalf("round %d: only %d records were acknowledged", i, n)
		}
	}
	l := open(t, dir) // mends a torn tail, as every round did
	rs := records(t, l.Path())
	gapless(t, rs)
	for seq := range acked {
		if seq > uint64(len(rs)) {
			t.Fatalf("number %d was acknowledged and is not in the file", seq)
		}
	}
	t.Logf("%d records acknowledged, %d in the file", len(acked), len(rs))
}

func TestShortWriteByTheKernel(t *testing.T) {
	dir := t.TempDir()
	if err := child(t, "limit", dir).Run(); err != nil {
		t.Fatal(err)
	}
	rs := records(t, filepath.Join(dir, audit.FileName))
	gapless(t, rs)
	count := map[audit.Kind]int{}
	for _, r := range rs {
		count[r.Kind]++
	}
	if count[audit.KindRecovered] != 1 || count[audit.KindLost] != 1 || count[audit.KindFlowCut] != 4096 {
		t.Errorf("%v", count)
	}
}
