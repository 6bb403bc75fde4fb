package sink_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
	"github.com/portvakt/portvakt/gateway/audit/sink"
)

// A log that was cut, or restored from a backup, and has grown past where a sink
// was holds other records under the numbers that the receiver has: the sink does
// not go on as if it did not.
func TestALogThatGrewAgainIsAnother(t *testing.T) {
	text := func(what string, from, to int) string {
		var b strings.Builder
		for seq := from; seq <= to; seq++ {
			fmt.Fprintf(&b, `{"seq":%d,"time":"2026-03-04T08:00:00Z","kind":"%s"}`+"\n", seq, what)
		}
		return b.String()
	}
	for name, c := range map[string]struct {
		then   string // the log
		closed string // its first file, if there are two
		goesOn bool
		old    bool // the position is of a version that kept no hash
	}{
		"grown":                {then: text("start", 1, 30), goesOn: true},
		"grown, closed":        {closed: text("start", 1, 20), then: text("start", 21, 30), goesOn: true},
		"closed behind it":     {closed: text("start", 1, 25), then: text("start", 26, 30), goesOn: true},
		"grown, removed":       {then: text("start", 21, 30), goesOn: true},
		"cut":                  {then: text("start", 1, 19)},
		"cut and grown":        {then: text("start", 1, 9) + text("erase", 10, 30)},
		"cut, grown and moved": {closed: text("start", 1, 9) + text("erase", 10, 25), then: text("erase", 26, 30)},
		"cut to the same size": {then: text("start", 1, 9) + text("erase", 10, 20)},
		"begun anew":           {then: text("erase", 1, 30)},
		"an older position":    {then: text("start", 1, 30), goesOn: true, old: true},
	} {
		b := newBench(t)
		log := filepath.Join(t.TempDir(), audit.FileName)
		write := func(path, text string) {
			t.Helper()
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(log, text("start", 1, 20))
		cfg := b.config("file", "jsonl", filepath.Join(b.dir, "out"))
		cfg.Decisions = export.Log{File: log}
		b.during(cfg, func(s *sink.Sink) { b.until(name, func() bool { return s.Sent() == 20 }) })
		position := filepath.Join(cfg.Dir, "s.json")
		if c.old {
			was := map[string]any{}
			kept, err := os.ReadFile(position)
			if err != nil || json.Unmarshal(kept, &was) != nil {
				t.Fatal(err)
			}
			delete(was, "record")
			delete(was, "hash")
			if kept, err = json.Marshal(was); err != nil {
				t.Fatal(err)
			}
			write(position, string(kept))
		}
		write(log, c.then)
		if c.closed != "" {
			write(filepath.Join(filepath.Dir(log), fmt.Sprintf("audit-%020d.jsonl", 1)), c.closed)
		}
		b.during(cfg, func(s *sink.Sink) {
			b.until(name, func() bool { return s.Sent() == 30 || s.Healthy() != nil })
			if err := s.Healthy(); c.goesOn != (err == nil) || err != nil && !strings.Contains(err.Error(), position) {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}
