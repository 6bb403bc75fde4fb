package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestBoundsAreWhereTheDocsSay: every row of the table of bounds in
// docs/dataplane.md names where in the code its bound is, and it is there.
func TestBoundsAreWhereTheDocsSay(t *testing.T) {
	const root = "../.."
	doc, err := os.ReadFile(filepath.Join(root, "docs/dataplane.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(doc), "| In the code |\n")
	if !ok {
		t.Fatal("docs/dataplane.md has no table of bounds")
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		rows++
		names := quoted.FindAllStringSubmatch(cells[len(cells)-1], -1)
		if len(cells) < 3 || len(names) == 0 {
			t.Errorf("no place in the code: %s", line)
			continue
		}
		var declared map[string]bool
		for _, n := range names {
			// A package, and then what it declares.
			if info, err := os.Stat(filepath.Join(root, n[1])); err == nil && info.IsDir() {
				declared = declarations(t, filepath.Join(root, n[1]))
			} else if !declared[n[1]] {
				t.Errorf("%s is not declared there: %s", n[1], line)
			}
		}
	}
	if rows < 20 {
		t.Errorf("the table has %d rows", rows)
	}
}

// declarations are the names of a package's constants, variables, types, fields
// and functions.
func declarations(t *testing.T, dir string) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for _, id := range n.Names {
					names[id.Name] = true
				}
			case *ast.Field:
				for _, id := range n.Names {
					names[id.Name] = true
				}
			case *ast.TypeSpec:
				names[n.Name.Name] = true
			case *ast.FuncDecl:
				names[n.Name.Name] = true
			}
			return true
		})
	}
	return names
}
