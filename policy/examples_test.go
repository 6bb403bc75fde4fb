package policy_test

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/policy"
)

const examples = "../deploy/config/apps"

// TestExamples: the shipped examples load, and do what their comments say.
func TestExamples(t *testing.T) {
	r, err := policy.Load(examples, policy.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := policy.NewEngine(policy.EngineOptions{Timeout: 10 * time.Second})
	e.Activate(r)
	for want, changes := range map[string][]string{
		"allowed crm.access[0]":          {"path=/customers/7"},
		"path_not_allowed crm.access[0]": {"path=/customers/7/8"},
		"location_not_allowed":           {"country=DE"},
		"policy_denied":                  {"country=NO", "claim.employment=temporary"},
		"allowed desk.access[0]":         {"app=desk", "protocol=tcp", "port=5432"},
		"outside_hours voice.access[1]":  {"app=voice", "protocol=udp", "port=5060"},
	} {
		in := baseInput()
		for _, c := range changes {
			change(t, in, c)
		}
		d := e.Decide(context.Background(), in)
		if got := string(d.Reason) + " " + d.Rule; !strings.HasPrefix(got, want) {
			t.Errorf("%v: %s, want %s (%v)", changes, got, want, d.Fact)
		}
	}
}

// TestExamplesShowEveryKey takes the keys from what the loader says is known.
func TestExamplesShowEveryKey(t *testing.T) {
	var text, guide strings.Builder
	paths, err := filepath.Glob(examples + "/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(paths, "../docs/policy.md") {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(p, ".md") {
			guide.Write(data)
			continue
		}
		text.Write(data)
	}
	_, err = policy.Load(writeFiles(t, map[string]string{
		"a.yaml": "x: 1",
		"b.yaml": crmApp + "  x: 1\n",
		"c.yaml": crmApp + "  hours: {x: 1}\n",
		"d.yaml": crmApp + "  posture: {x: pass}\n",
	}), policy.LoadOptions{})
	var keys []string
	for line := range strings.Lines(err.Error()) {
		if _, list, ok := strings.Cut(strings.TrimSpace(line), "the keys here are "); ok {
			keys = append(keys, strings.Split(list, ", ")...)
		}
	}
	slices.Sort(keys)
	if len(keys) < 30 {
		t.Fatalf("the loader names only %v (%v)", keys, err)
	}
	for _, key := range slices.Compact(keys) {
		shown := regexp.MustCompile(`(?m)^(?:# )?[^#\n]*\b` + key + `:`)
		if slices.Contains(policy.Signals, key) {
			shown = regexp.MustCompile(`\b` + key + `\b`)
		}
		if !shown.MatchString(text.String()) {
			t.Errorf("no example shows %s", key)
		}
		if !strings.Contains(guide.String(), "`"+key+"`") {
			t.Errorf("docs/policy.md does not explain %s", key)
		}
	}
}

// docs/policy.md explains every Reason, and none that is not.
func TestGuideExplainsEveryReason(t *testing.T) {
	data, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, ok := strings.Cut(string(data), "### All reasons\n")
	table, _, ok2 := strings.Cut(table, "\n## ")
	if !ok || !ok2 {
		t.Fatal("docs/policy.md has no section All reasons")
	}
	var explained, all []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|").FindAllStringSubmatch(table, -1) {
		explained = append(explained, m[1])
	}
	for r := range policy.Reasons {
		all = append(all, string(r))
	}
	slices.Sort(explained)
	slices.Sort(all)
	if !slices.Equal(explained, all) {
		t.Errorf("explained\n%q, there are\n%q", explained, all)
	}
}
