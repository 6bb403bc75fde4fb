package policy_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/policy"
)

// report is one call of a Source.
type report struct {
	revision *policy.Revision
	err      error
}

type watched struct {
	t       *testing.T
	dir     string
	reports chan report
}

// watch runs a Source on dir until the test ends.
func watch(t *testing.T, dir string, opt policy.LoadOptions, interval time.Duration) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watched{t: t, dir: dir, reports: make(chan report, 100)}
	s := &policy.Source{Dir: dir, Load: opt, Interval: interval}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func(r *policy.Revision, err error) { w.reports <- report{r, err} }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
		goleak.VerifyNone(t, goleak.IgnoreCurrent())
	})
	return w
}

func (w *watched) next() report {
	w.t.Helper()
	select {
	case r := <-w.reports:
		if (r.revision == nil) == (r.err == nil) {
			w.t.Fatalf("report %+v", r)
		}
		return r
	case <-time.After(5 * time.Second):
		w.t.Fatal("no report within 5 s")
		return report{}
	}
}

func (w *watched) revision() *policy.Revision {
	w.t.Helper()
	r := w.next()
	if r.err != nil {
		w.t.Fatalf("error instead of a revision: %v", r.err)
	}
	return r.revision
}

func (w *watched) problem(part string) {
	w.t.Helper()
	if r := w.next(); r.err == nil || !strings.Contains(r.err.Error(), part) {
		w.t.Fatalf("report %+v, want an error with %q", r, part)
	}
}

func (w *watched) nothing(d time.Duration) {
	w.t.Helper()
	select {
	case r := <-w.reports:
		w.t.Fatalf("report %+v (error %v), want none", r, r.err)
	case <-time.After(d):
	}
}

func (w *watched) write(name, text string) {
	w.t.Helper()
	// Renamed into place: on a busy machine a truncated file could be still for
	// an interval as short as these tests'.
	tmp := filepath.Join(w.t.TempDir(), "new")
	write(w.t, tmp, text)
	if err := os.Rename(tmp, filepath.Join(w.dir, name)); err != nil {
		w.t.Fatal(err)
	}
}

func TestSource(t *testing.T) {
	dir := writeFiles(t, map[string]string{"crm.yaml": crmApp})
	w := watch(t, dir, policy.LoadOptions{CheckOwner: true}, 20*time.Millisecond)
	first := w.revision()

	w.write("notes.txt", "x")
	w.write(".crm.yaml.swp", "x")
	w.write("crm.yaml~", "x")
	w.write("crm.yaml", "# a comment\n"+crmApp)
	w.nothing(150 * time.Millisecond)

	w.write("crm.yaml", strings.Replace(crmApp, "sales", "staff", 1))
	second := w.revision()
	if second.ID() == first.ID() {
		t.Error("the ID did not change")
	}

	w.write("x.rego", "package portvakt.custom.x\n\ndeny contains {\"message\": \"m\"} if input.app.name == \"crm\"\n")
	third := w.revision()

	w.write("x.rego", "package portvakt.custom.x\n\ndeny contains")
	w.problem("x.rego:")
	w.nothing(100 * time.Millisecond) // said once
	w.write("crm.yaml", "")
	w.problem("crm.yaml: wanted an app")
	w.write("crm.yaml", strings.Replace(crmApp, "sales", "staff", 1))
	w.problem("x.rego:") // another error than the last one

	// Mended to what it was: the caller learns that the error is over.
	w.write("x.rego", "package portvakt.custom.x\n\ndeny contains {\"message\": \"m\"} if input.app.name == \"crm\"\n")
	if again := w.revision(); again.ID() != third.ID() {
		t.Errorf("ID %s, want %s", again.ID(), third.ID())
	}

	chmod(t, filepath.Join(dir, "x.rego"), 0o622)
	w.problem("x.rego: wanted a mode")
	chmod(t, filepath.Join(dir, "x.rego"), 0o644)
	w.revision()

	if err := os.Remove(filepath.Join(dir, "x.rego")); err != nil {
		t.Fatal(err)
	}
	if r := w.revision(); r.ID() != second.ID() {
		t.Errorf("ID %s, want %s", r.ID(), second.ID())
	}

	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	w.problem("no such file")
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	w.revision()
}

// TestSourceStartsBroken: the first report may be an error, and there is more
// to come.
func TestSourceStartsBroken(t *testing.T) {
	w := watch(t, filepath.Join(t.TempDir(), "apps"), policy.LoadOptions{}, 20*time.Millisecond)
	r := w.next()
	if !errors.Is(r.err, os.ErrNotExist) {
		t.Fatalf("report %+v", r)
	}
	if err := os.Mkdir(w.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.write("crm.yaml", crmApp)
	for len(w.revision().Apps()) == 0 { // the empty directory may be seen first
	}
}

// TestSourceSettles: while a file is still being written, nothing of it is
// taken for policy, even where its beginning is valid and says less than the
// whole.
func TestSourceSettles(t *testing.T) {
	dir := writeFiles(t, map[string]string{"crm.yaml": crmApp})
	w := watch(t, dir, policy.LoadOptions{}, 500*time.Millisecond)
	w.revision()
	f, err := os.OpenFile(filepath.Join(dir, "crm.yaml"), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole := strings.Replace(crmApp, "sales", "staff", 1) + "  countries: [SE]\n"
	for line := range strings.Lines(whole) {
		if _, err := f.WriteString(line); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	r := w.revision()
	if app, _ := r.App("crm"); len(app.Access[0].Countries) != 1 {
		t.Errorf("half a file became policy: %+v", app.Access)
	}
}

// TestSourceSameSize: an edit that keeps size and time stamp is still found.
func TestSourceSameSize(t *testing.T) {
	dir := writeFiles(t, map[string]string{"crm.yaml": crmApp})
	path := filepath.Join(dir, "crm.yaml")
	stamp := time.Now()
	if err := os.Chtimes(path, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	w := watch(t, dir, policy.LoadOptions{}, 20*time.Millisecond)
	first := w.revision()
	w.write("crm.yaml", strings.Replace(crmApp, "sales", "staff", 1))
	if err := os.Chtimes(path, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	if r := w.revision(); r.ID() == first.ID() {
		t.Error("the ID did not change")
	}
}

// TestSourceNoticesSoon holds a loose bound on what docs/benchmarks.md measures: a
// machine that tests much at once is slower.
func TestSourceNoticesSoon(t *testing.T) {
	dir := writeFiles(t, map[string]string{"crm.yaml": crmApp})
	w := watch(t, dir, policy.LoadOptions{}, 0)
	w.revision()
	began := time.Now()
	w.write("crm.yaml", strings.Replace(crmApp, "sales", "staff", 1))
	w.revision()
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a change took %v", took)
	}
}

// TestSourceReadRace: the directory goes away and comes back around the looks
// and reads of a Source that is always at it. No state is missed for good.
func TestSourceReadRace(t *testing.T) {
	dir := writeFiles(t, map[string]string{"crm.yaml": crmApp})
	away := dir + ".away"
	w := watch(t, dir, policy.LoadOptions{}, time.Millisecond)
	w.revision()
	for range 50 {
		if err := os.Rename(dir, away); err != nil {
			t.Fatal(err)
		}
		w.problem("no such file")
		if err := os.Rename(away, dir); err != nil {
			t.Fatal(err)
		}
		w.revision()
	}
}
