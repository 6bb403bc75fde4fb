package sink_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/sink"
)

// What was removed before a sink got it is said in the log, and the sink goes on
// behind it.
func TestGoesOnBehindAGap(t *testing.T) {
	b := newBench(t)
	to := filepath.Join(b.dir, "out")
	cfg := b.config("file", "jsonl", to)
	b.write(3)
	b.during(cfg, func(s *sink.Sink) { b.until("sending", func() bool { return s.Sent() == 3 }) })

	// While it is away, records 4 to 7 come, and go with the file of their day.
	b.write(6)
	text, err := os.ReadFile(b.log.Path())
	if err != nil {
		t.Fatal(err)
	}
	rest := strings.SplitAfter(string(text), "\n")[7:]
	day := filepath.Join(b.dir, fmt.Sprintf("audit-%020d.jsonl", 8))
	if err := os.WriteFile(day, []byte(strings.Join(rest, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(b.dir, "audit.jsonl.removed")
	if err := os.Rename(b.log.Path(), log); err != nil {
		t.Fatal(err)
	}
	var gaps []audit.Record
	refuse := fmt.Errorf("no space left on device")
	cfg.Record = func(r *audit.Record) error {
		if refuse != nil {
			err := refuse
			refuse = nil
			return err
		}
		gaps = append(gaps, *r)
		return nil
	}
	b.during(cfg, func(s *sink.Sink) {
		b.until("sending", func() bool { return s.Sent() == 9 && s.Healthy() == nil })
		if s.Missed() != 4 {
			t.Errorf("%d are missing", s.Missed())
		}
	})
	if len(gaps) != 1 || gaps[0].Kind != audit.KindSinkGap || fmt.Sprint(gaps[0].Detail) != "map[from:4 sink:s to:7]" {
		t.Errorf("recorded: %+v", gaps)
	}
	var in inbox
	f, err := os.Open(to)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	in.read(f)
	if fmt.Sprint(in.seqs) != "[1 2 3 8 9]" {
		t.Errorf("records %v", in.seqs)
	}
}
