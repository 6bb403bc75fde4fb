package policy_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/tester"
)

func tarNames(t *testing.T, r io.Reader) []string {
	t.Helper()
	zip, err := gzip.NewReader(r)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for archive := tar.NewReader(zip); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
}

// TestRego runs policy/rego/*_test.rego, as `opa test policy/rego` does.
func TestRego(t *testing.T) {
	paths, err := filepath.Glob("rego/*.rego")
	if err != nil {
		t.Fatal(err)
	}
	modules := map[string]*ast.Module{}
	for _, path := range paths {
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		m, err := ast.ParseModule(path, string(src))
		if err != nil {
			t.Fatal(err)
		}
		modules[path] = m
	}
	results, err := tester.NewRunner().SetCompiler(ast.NewCompiler()).SetModules(modules).RunTests(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for r := range results {
		ran++
		if !r.Pass() {
			t.Errorf("%s", strings.TrimSpace(r.String()))
		}
	}
	if ran < 10 {
		t.Errorf("only %d Rego tests ran", ran)
	}
}
