package policy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// The guide's table is what is done: every Reason is in the row of its Loss, and
// a Reason that nobody sorted cuts.
func TestGuideSaysWhatIsCut(t *testing.T) {
	data, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(data), "## Finishing a call")
	if !ok {
		t.Fatal("the guide has no such section")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	rows := map[policy.Loss]string{}
	for line := range strings.Lines(section) {
		switch {
		case strings.Contains(line, "when a publish of policy"):
			rows[policy.LossByPublish] = line
		case strings.Contains(line, "time has passed"):
			rows[policy.LossSoft] = line
		case strings.Contains(line, "cut at once"):
			rows[policy.LossHard] = line
		}
	}
	for reason := range policy.Reasons {
		for loss, row := range rows {
			first, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " | ")
			if named := strings.Contains(first, "`"+string(reason)+"`"); named && loss != reason.Loss() || !named && loss == reason.Loss() && loss != policy.LossHard {
				t.Errorf("%s: the guide and Loss (%d) differ in the row %s", reason, reason.Loss(), row)
			}
		}
	}
	if len(rows) != 3 || policy.Reason("new").Loss() != policy.LossHard {
		t.Errorf("%d rows; an unknown reason is %d", len(rows), policy.Reason("new").Loss())
	}
	for _, lang := range policy.Languages {
		if policy.Finish[lang] == "" {
			t.Errorf("nobody who speaks %s is told that they may finish", lang)
		}
	}
}

func TestOnLoss(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 0, "on_loss: cut\n": 0, "on_loss: {drain: 15m}\n": 15 * time.Minute, "on_loss:\n  drain: 90s\n": 90 * time.Second,
		"on_loss: {drain: 30m}\n": policy.MaxDrain, "on_loss: {drain: 1s}\n": time.Second, "on_loss: {drain: \"5m\"}\n": 5 * time.Minute,
	} {
		dir := t.TempDir()
		app := "name: desk\nprotocol: tcp\nupstream: 10.0.0.1\nports: [5004]\n" + text
		if err := os.WriteFile(filepath.Join(dir, "desk.yaml"), []byte(app), 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := policy.Load(dir, policy.LoadOptions{})
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got := r.Apps()[0].OnLoss.Drain; got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "cut", 15 * time.Minute: "drain 15m", 90 * time.Second: "drain 1m30s", 30 * time.Second: "drain 30s"} {
		if got := (policy.OnLoss{Drain: d}).String(); got != want {
			t.Errorf("%s is written %q, want %q", d, got, want)
		}
	}
}
