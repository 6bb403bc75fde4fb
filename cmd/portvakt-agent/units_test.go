package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What the systemd units start exists, with these flags.
func TestUnits(t *testing.T) {
	units, err := filepath.Glob("../../deploy/systemd/portvakt-agent*.service")
	if err != nil || len(units) == 0 {
		t.Fatal("no units", err)
	}
	for _, path := range units {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(text), "\nExecStart=")
		line, _, _ = strings.Cut(line, "\n")
		args := strings.Fields(strings.ReplaceAll(line, "${PORTVAKT_UID}", "1000"))
		if len(args) < 2 || filepath.Base(args[0]) != "portvakt-agent" {
			t.Errorf("%s: ExecStart=%s", path, line)
			continue
		}
		cmd, rest, err := newRoot(new(bool)).Find(args[1:])
		if err != nil || cmd.Name() != args[1] {
			t.Errorf("%s: ExecStart=%s: %v", path, line, err)
			continue
		}
		if err := cmd.ParseFlags(rest); err != nil || cmd.Flags().NArg() != 0 {
			t.Errorf("%s: ExecStart=%s: %v, arguments left: %q", path, line, err, cmd.Flags().Args())
		}
	}
}
