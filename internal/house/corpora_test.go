package house_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every fuzz test has a corpus on disk, which plain `go test` runs too.
func TestEveryFuzzTestHasACorpus(t *testing.T) {
	decl := regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f \*testing\.F\)`)
	found := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() && len(name) > 1 && name[0] == '.' && name != ".." {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range decl.FindAllStringSubmatch(string(text), -1) {
			found++
			dir := filepath.Join(filepath.Dir(path), "testdata", "fuzz", m[1])
			if seeds, err := os.ReadDir(dir); err != nil || len(seeds) == 0 {
				t.Errorf("%s has no seeds in %s", m[1], dir)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if found == 0 {
		t.Error("no fuzz test was found")
	}
}
