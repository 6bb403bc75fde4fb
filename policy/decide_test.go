package policy_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/policy"
)

// TestDecide runs testdata/decide/*.txtar: a policy directory each, and a file
// `cases` with lines
//
//	changes to baseInput -> reason [rule=RULE] [name=N] [value=V] [wanted=W] [message=M] [remedy=R]
//
// Every case is also put to stock OPA with the bundle, which must agree.
func TestDecide(t *testing.T) {
	paths, err := filepath.Glob("testdata/decide/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			files, _ := readTxtar(t, path)
			cases := files["cases"]
			delete(files, "cases")
			e := engine(t, files)
			reference := stock(t, e.Active())
			ran := 0
			for i, line := range strings.Split(cases, "\n") {
				if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				ran++
				facts, want, ok := strings.Cut(line, "->")
				if !ok {
					t.Fatalf("cases:%d: no ->", i+1)
				}
				t.Run(line, func(t *testing.T) {
					in := baseInput()
					for _, w := range words(facts) {
						change(t, in, w)
					}
					d := e.Decide(context.Background(), in)
					checkDecision(t, d, words(want))
					sameAsStock(t, d, reference(in))
				})
			}
			if ran == 0 {
				t.Error("no cases ran")
			}
		})
	}
}

func checkDecision(t *testing.T, d policy.Decision, want []string) {
	t.Helper()
	if string(d.Reason) != want[0] {
		t.Errorf("reason %s, want %s (fact %v)", d.Reason, want[0], d.Fact)
	}
	if d.Allow != (want[0] == "allowed") {
		t.Errorf("allow %v with reason %s", d.Allow, d.Reason)
	}
	for _, w := range want[1:] {
		key, value, _ := strings.Cut(w, "=")
		fact := policy.Fact{}
		if d.Fact != nil {
			fact = *d.Fact
		}
		got, ok := map[string]string{
			"rule": d.Rule, "name": fact.Name, "value": fact.Value, "wanted": fact.Wanted,
			"message": d.Message, "remedy": d.Remedy,
		}[key]
		if !ok {
			t.Fatalf("case expects unknown %q", key)
		}
		if got != value {
			t.Errorf("%s is %q, want %q", key, got, value)
		}
	}
	if d.Message == "" {
		t.Error("no message")
	}
}
