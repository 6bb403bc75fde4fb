package sink

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
)

// killable is a file sink that dies where a test says.
type killable struct {
	t   *testing.T
	cfg Config
	log *audit.Log
	n   uint64
}

func newKillable(t *testing.T) *killable {
	t.Helper()
	dir := t.TempDir()
	l, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return &killable{t: t, log: l, cfg: Config{
		Name: "s", Type: "file", Format: "jsonl", To: filepath.Join(dir, "out"), Decisions: export.Log{File: l.Path()}, Dir: filepath.Join(dir, "sinks"), Node: "gw1",
	}}
}

// send starts the sink and sends n new records. Killed, it dies when they are in
// the file and the position behind them is not kept yet.
func (k *killable) send(n int, killed bool) {
	k.t.Helper()
	for range n {
		k.n++
		if err := k.log.Append(&audit.Record{Kind: audit.KindStart}); err != nil {
			k.t.Fatal(err)
		}
	}
	s, err := New(k.cfg)
	if err != nil {
		k.t.Fatal(err)
	}
	if killed {
		batch, _, err := s.read()
		if err == nil {
			err = s.to.send(context.Background(), batch)
		}
		if err != nil || batch[len(batch)-1].Seq != k.n {
			k.t.Fatal(err)
		}
	} else if _, err := s.step(context.Background()); err != nil || s.at.Seq != k.n {
		k.t.Fatalf("at %d of %d: %v", s.at.Seq, k.n, err)
	}
	if err := s.to.close(); err != nil {
		k.t.Fatal(err)
	}
}

var number = regexp.MustCompile(`"seq":(\d+)`)

func (k *killable) holds(path, want string) {
	k.t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		k.t.Fatal(err)
	}
	var got []string
	for _, m := range number.FindAllStringSubmatch(string(text), -1) {
		got = append(got, m[1])
	}
	if fmt.Sprint(got) != want {
		k.t.Errorf("%s holds %v, want %s", filepath.Base(path), got, want)
	}
}

// Killed with the first batch of a rotated file written, or of the very first
// one, the file has each record once.
func TestKilledInANewFile(t *testing.T) {
	k := newKillable(t)
	k.send(2, true)
	k.send(0, false)
	k.holds(k.cfg.To, "[1 2]")
	rotate := func(to string) {
		t.Helper()
		if err := os.Rename(k.cfg.To, to); err != nil {
			t.Fatal(err)
		}
	}
	rotate(k.cfg.To + ".1")
	k.send(1, true) // shorter than the old file
	k.send(1, false)
	k.holds(k.cfg.To, "[3 4]")
	rotate(k.cfg.To + ".2")
	k.send(20, true) // longer
	k.send(0, true)  // and again
	k.send(0, false)
	k.holds(k.cfg.To, "[5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24]")
	if err := os.Truncate(k.cfg.To, 0); err != nil { // rotation by copying
		t.Fatal(err)
	}
	k.send(1, true)
	k.send(1, false)
	k.holds(k.cfg.To, "[25 26]")
	k.holds(k.cfg.To+".1", "[1 2]")
	k.holds(k.cfg.To+".2", "[3 4]")
}

// A file that took the place of the sink's while it runs keeps what it holds,
// however much that is.
func TestAnotherFileInItsPlace(t *testing.T) {
	k := newKillable(t)
	if err := k.log.Append(&audit.Record{Kind: audit.KindStart}); err != nil {
		t.Fatal(err)
	}
	s, err := New(k.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.to.close()
	step := func() {
		t.Helper()
		if _, err := s.step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	step()
	other := k.cfg.To + ".new"
	if err := os.WriteFile(other, fmt.Appendf(nil, "%0500d", 0), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(other, k.cfg.To); err != nil {
		t.Fatal(err)
	}
	if err := k.log.Append(&audit.Record{Kind: audit.KindStart}); err != nil {
		t.Fatal(err)
	}
	step()
	if text, err := os.ReadFile(k.cfg.To); err != nil || len(text) < 500 || string(text[:500]) != fmt.Sprintf("%0500d", 0) {
		t.Errorf("%v: %s", err, text)
	}
	k.holds(k.cfg.To, "[2]")
}
