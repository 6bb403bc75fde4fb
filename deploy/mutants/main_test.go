package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The table fits the product it is of: each text is there once, and each test
// exists.
func TestTable(t *testing.T) {
	if len(mutants) < 12 {
		t.Errorf("%d mutants", len(mutants))
	}
	seen := map[string]bool{}
	for _, m := range mutants {
		if seen[m.name] {
			t.Errorf("%s is there twice", m.name)
		}
		seen[m.name] = true
		for _, e := range m.edits() {
			if _, err := e.apply("../.."); err != nil || e.old == e.new {
				t.Errorf("%s: %v", m.name, err)
			}
		}
		test, _, _ := strings.Cut(m.test, "/")
		files, _ := filepath.Glob(filepath.Join("../..", m.pkg, "*_test.go"))
		found := false
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(text), "\nfunc "+test+"(t *testing.T)")
		}
		if !found {
			t.Errorf("%s: %s has no %s", m.name, m.pkg, test)
		}
	}
}
