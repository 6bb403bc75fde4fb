package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
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

// The names that block pages are tried with do nothing to a terminal: no
// control, nothing invisible, and no colour but ours.
func TestNamesOnATerminal(t *testing.T) {
	data, err := os.ReadFile("../../gateway/proxy/testdata/names.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(data), "\n\n")
	for _, text := range strings.Split(strings.TrimSpace(list), "\n") {
		name, err := strconv.Unquote(`"` + text + `"`)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		var out bytes.Buffer
		(&paper{out: &out}).item("person", name, "31")
		for _, r := range out.String() {
			if r != '\n' && (r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)) {
				t.Errorf("%s: %U is printed", text, r)
			}
		}
	}
}
