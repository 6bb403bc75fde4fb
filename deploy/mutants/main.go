// Mutants breaks the product on purpose, one promise at a time, and sees that
// the test that stands for the promise fails. It prints "caught N of N".
//
// The broken code is nowhere in the product: each mutant replaces a piece of a
// file for one run of go test (-overlay). docs/adr/0008 says why.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	root := flag.String("root", "..", "directory of the product's go.mod")
	only := flag.String("only", "", "run the mutants whose names match this regular expression")
	jobs := flag.Int("jobs", 2, "mutants at a time")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *root, *only, *jobs); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, only string, jobs int) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if root, err = filepath.Abs(root); err != nil {
		return err
	}
	chosen := slices.DeleteFunc(slices.Clone(mutants), func(m mutant) bool { return !match.MatchString(m.name) })
	if len(chosen) == 0 {
		return fmt.Errorf("no mutant matches %q", only)
	}
	if err := baseline(ctx, root, chosen); err != nil {
		return err
	}
	verdicts := make([]string, len(chosen))
	var all errgroup.Group
	all.SetLimit(jobs)
	for i, m := range chosen {
		all.Go(func() error {
			began := time.Now()
			verdicts[i] = m.try(ctx, root)
			fmt.Printf("%-24s %-72s %s: %s (%.1f s)\n", m.name, m.breaks, m.test, verdicts[i], time.Since(began).Seconds())
			return nil
		})
	}
	_ = all.Wait()
	n := 0
	for _, v := range verdicts {
		if v == caught {
			n++
		}
	}
	fmt.Printf("caught %d of %d\n", n, len(chosen))
	if n != len(chosen) {
		return errors.New("a promise can be broken without a test that says so")
	}
	return nil
}

// baseline runs the tests on the product as it is: a test that fails anyway
// catches nothing.
func baseline(ctx context.Context, root string, chosen []mutant) error {
	tests := map[string][]string{}
	for _, m := range chosen {
		test, _, _ := strings.Cut(m.test, "/")
		tests[m.pkg] = append(tests[m.pkg], test)
	}
	for pkg, names := range tests {
		slices.Sort(names)
		out, err := goTest(ctx, root, "-run", "^("+strings.Join(slices.Compact(names), "|")+")$", pkg)
		if err != nil || strings.Contains(out, "no tests to run") {
			return fmt.Errorf("without any mutant, %s: %w\n%s", pkg, err, out)
		}
	}
	return nil
}

const caught = "caught"

// try runs the mutant's test and says what came of it.
func (m mutant) try(ctx context.Context, root string) string {
	dir, err := os.MkdirTemp("", "portvakt-mutant-")
	if err != nil {
		return err.Error()
	}
	defer os.RemoveAll(dir)
	replace := map[string]string{}
	for i, e := range m.edits() {
		broken, err := e.apply(root)
		if err != nil {
			return err.Error()
		}
		file := filepath.Join(dir, fmt.Sprint(i)+filepath.Ext(e.file))
		if err := os.WriteFile(file, []byte(broken), 0o600); err != nil {
			return err.Error()
		}
		replace[filepath.Join(root, e.file)] = file
	}
	overlay := filepath.Join(dir, "overlay.json")
	text, _ := json.Marshal(map[string]any{"Replace": replace})
	if err := os.WriteFile(overlay, text, 0o600); err != nil {
		return err.Error()
	}
	pattern := "^" + strings.ReplaceAll(m.test, "/", "$/^") + "$"
	out, err := goTest(ctx, root, "-overlay", overlay, "-failfast", "-run", pattern, m.pkg)
	test, _, _ := strings.Cut(m.test, "/")
	switch {
	case err == nil:
		return "SURVIVED"
	case strings.Contains(out, "\n--- FAIL: "+test), strings.HasPrefix(out, "--- FAIL: "+test):
		return caught
	}
	// It does not build, it crashed, or it went on for ever: no test said anything.
	return "BROKEN, and no test says so:\n" + out[max(0, len(out)-2000):]
}

func (m mutant) edits() []edit { return append([]edit{m.edit}, m.also...) }

// apply returns the file with the edit made.
func (e edit) apply(root string) (string, error) {
	data, err := os.ReadFile(filepath.Join(root, e.file))
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(data), e.old); n != 1 {
		return "", fmt.Errorf("%s has the text %q %d times, not once", e.file, e.old, n)
	}
	return strings.Replace(string(data), e.old, e.new, 1), nil
}

func goTest(ctx context.Context, root string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"test", "-count=1", "-timeout=90s"}, args...)...)
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	return string(out), err
}
