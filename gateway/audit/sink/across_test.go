package sink_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
	"github.com/portvakt/portvakt/gateway/audit/sink"
)

// A sink goes on over the files of several days, and begins with what is there.
func TestAcrossFiles(t *testing.T) {
	b := newBench(t)
	lines := func(from, to int) []byte {
		var text []byte
		for seq := from; seq <= to; seq++ {
			text = fmt.Appendf(text, `{"seq":%d,"time":"2026-03-04T08:00:00Z","kind":"start"}`+"\n", seq)
		}
		return text
	}
	log := filepath.Join(t.TempDir(), audit.FileName)
	day := func(first int) string {
		return filepath.Join(filepath.Dir(log), fmt.Sprintf("audit-%020d.jsonl", first))
	}
	write := func(path string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(day(1), lines(1, 300))
	write(day(301), lines(301, 900))
	write(log, lines(901, 905))
	cfg := b.config("file", "jsonl", filepath.Join(b.dir, "out"))
	cfg.Decisions = export.Log{File: log}
	whole := func(n int) {
		t.Helper()
		b.during(cfg, func(s *sink.Sink) { b.until("sending", func() bool { return s.Sent() == uint64(n) }) })
		text, err := os.ReadFile(cfg.To)
		if err != nil {
			t.Fatal(err)
		}
		got := strings.Split(strings.TrimSpace(string(text)), "\n")
		for i, line := range got {
			if !strings.Contains(line, fmt.Sprintf(`"seq":%d,`, i+1)) {
				t.Fatalf("line %d is %s", i+1, line)
			}
		}
		if len(got) != n {
			t.Errorf("%d records, want %d", len(got), n)
		}
	}
	whole(905)
	if err := os.Rename(log, day(901)); err != nil { // while the sink is away
		t.Fatal(err)
	}
	write(log, lines(906, 910))
	whole(910)
	for _, first := range []int{1, 301} {
		if err := os.Remove(day(first)); err != nil {
			t.Fatal(err)
		}
	}
	write(log, lines(906, 920))
	whole(920)
	cfg.Name, cfg.To = "late", filepath.Join(b.dir, "late")
	b.during(cfg, func(s *sink.Sink) { b.until("sending", func() bool { return s.Sent() == 920 }) })
	if text, err := os.ReadFile(cfg.To); err != nil || !strings.HasPrefix(string(text), `{"node":"gw1","seq":901,`) {
		t.Errorf("a sink that is new: %.60s %v", text, err)
	}
}
