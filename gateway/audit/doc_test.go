package audit_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
)

// docs/audit.md shows one line of every Kind, each a line that the log could
// have written, and names every member.
func TestDocumentation(t *testing.T) {
	b, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "```json\n")
	lines, _, ok2 := strings.Cut(rest, "```\n")
	if !ok || !ok2 {
		t.Fatal("it has no json block")
	}
	var shown []string
	for i, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		var r audit.Record
		if err := d.Decode(&r); err != nil || r.Seq != uint64(i)+1 || r.Time.IsZero() {
			t.Errorf("%v in %s", err, line)
			continue
		}
		again, err := json.Marshal(r)
		if err != nil || string(again) != line {
			t.Errorf("the log would write\n%s\nnot\n%s", again, line)
		}
		if !slices.Contains(shown, string(r.Kind)) {
			shown = append(shown, string(r.Kind))
		}
		if !strings.Contains(string(b), "\n| `"+string(r.Kind)+"` |") {
			t.Errorf("the table of kinds lacks %q", r.Kind)
		}
	}
	slices.Sort(shown)
	want := kinds(t)
	slices.Sort(want)
	if !slices.Equal(shown, want) {
		t.Errorf("it shows %v\nthere are %v", shown, want)
	}
	for f := range reflect.TypeFor[audit.Record]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !strings.Contains(string(b), "`"+name+"`") {
			t.Errorf("member %q is not described", name)
		}
	}
}

// kinds returns the constants of type Kind.
func kinds(t *testing.T) (all []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "record.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := v.Type.(*ast.Ident); ok && id.Name == "Kind" {
			s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		return true
	})
	return all
}
