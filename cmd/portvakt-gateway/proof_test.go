package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit/notary"
)

// Who puts an older log back, with the tree that signs it, leaves the mark.
func TestVerifyKnowsWhatWasSignedLast(t *testing.T) {
	dir := t.TempDir()
	at := filepath.Join(dir, "audit")
	cfg := notary.Config{LogFile: filepath.Join(at, "audit.jsonl"), Dir: filepath.Join(at, "tree"), KeyFile: filepath.Join(dir, "keys", "checkpoint.key")}
	if err := errors.Join(os.Mkdir(at, 0o700), os.Mkdir(filepath.Join(dir, "keys"), 0o700)); err != nil {
		t.Fatal(err)
	}
	text := ""
	older := filepath.Join(dir, "older")
	for seq := 1; seq <= 2; seq++ {
		text += fmt.Sprintf(`{"seq":%d,"time":"2026-03-04T08:00:00Z","kind":"start"}`+"\n", seq)
		if err := os.WriteFile(cfg.LogFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := notary.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := errors.Join(n.Run(ctx), n.Healthy()); err != nil {
			t.Fatal(err)
		}
		if seq == 1 {
			if err := os.CopyFS(older, os.DirFS(at)); err != nil {
				t.Fatal(err)
			}
		}
	}
	command(t, 0, "2 records, 2 of them signed", "audit", "verify", "--dir", at)
	if err := errors.Join(os.RemoveAll(at), os.Rename(older, at)); err != nil {
		t.Fatal(err)
	}
	command(t, 1, "a checkpoint over 2 records was signed, the log's own one is over 1", "audit", "verify", "--dir", at)
	if err := os.RemoveAll(filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	command(t, 0, "1 records, 1 of them signed", "audit", "verify", "--dir", at) // as of a copy elsewhere
}

// What people have is the ID on their block page; of a flood it may be the one
// in a fold.
func TestWhichRecordIsCalled(t *testing.T) {
	const fold = `{"seq":7,"time":"2026-03-04T08:00:00Z","kind":"folded","detail":{"count":"3","first_decision":"d-1","kind":"decision","last_decision":"d-3"}}`
	for _, c := range []struct {
		id, line string
		want     bool
	}{
		{"d-1", `{"seq":6,"time":"2026-03-04T08:00:00Z","kind":"decision","decision":"d-1"}`, true},
		{"d-1", `{"seq":6,"time":"2026-03-04T08:00:00Z","kind":"decision","decision":"d-2","path":"/\"decision\":\"d-1\""}`, false},
		{"d-1", `{"seq":6,"time":"2026-03-04T08:00:00Z","kind":"admin","detail":{"first_decision":"d-1"}}`, false},
		{"d-1", fold, true},
		{"d-2", fold, false},
		{"d-3", fold, true},
		{"3", fold, false},
		{"7", fold, true},
		{"", fold, false},
	} {
		if got := called(c.id)([]byte(c.line)); got != c.want {
			t.Errorf("%q of %s: %t", c.id, c.line, got)
		}
	}
}
