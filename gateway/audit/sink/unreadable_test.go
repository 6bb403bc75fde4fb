package sink_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
	"github.com/portvakt/portvakt/gateway/audit/people"
	"github.com/portvakt/portvakt/gateway/audit/sink"
)

// A field that cannot be opened, here because a wrong key was restored, holds up
// neither a sink nor an export nor a reader: the records go out, say which field
// it is, and the gateway's log says so once.
func TestUnreadableFieldHoldsUpNothing(t *testing.T) {
	dir := t.TempDir()
	var said bytes.Buffer
	start := func() *audit.Log {
		t.Helper()
		k, err := people.Open(filepath.Join(dir, "people"))
		if err != nil {
			t.Fatal(err)
		}
		l, err := audit.Open(audit.Options{Dir: filepath.Join(dir, "audit"), People: k, Log: slog.New(slog.NewTextHandler(&said, nil))})
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := start()
	for range 3 {
		if err := l.Append(&audit.Record{Kind: audit.KindDecision, Subject: "iss#anna", Remote: "192.0.2.1", Path: "/p"}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	keys, err := filepath.Glob(filepath.Join(dir, "people", "address", "*.key"))
	if err != nil || len(keys) == 0 {
		t.Fatal(keys, err)
	}
	for _, key := range keys {
		if err := os.WriteFile(key, []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l = start()
	defer l.Close()
	decisions := export.Log{File: l.Path(), Reveal: l.Reveal}
	for format, want := range map[string]string{"jsonl": `"unreadable":["address"]`, "ocsf": `"unreadable":["address"]`, "cef": "PortvaktUnreadable=address", "csv": ",unreadable,"} {
		var out bytes.Buffer
		n, err := export.Write(&out, decisions, "gw1", export.Range{}, export.Formats[format], format)
		if err != nil || n != 3 || strings.Count(out.String(), want) != 3 || strings.Count(out.String(), "iss#anna") < 3 || strings.Contains(out.String(), "192.0.2.1") {
			t.Errorf("%s: %d records, %v:\n%s", format, n, err, out.String())
		}
	}
	if shown, r, err := l.Find("2"); err != nil || fmt.Sprint(r.Unreadable) != "[address]" || r.Path != "/p" || r.Expired != nil || r.Erased {
		t.Errorf("found %s, %v", shown, err)
	}
	b := &bench{t: t, dir: dir, log: l}
	b.during(b.config("file", "jsonl", filepath.Join(dir, "out")), func(s *sink.Sink) {
		b.until("sending", func() bool { return s.Sent() == 3 && s.Healthy() == nil })
	})
	if n := strings.Count(said.String(), "cannot be opened"); n != len(keys) || l.Unreadable() != len(keys) || !strings.Contains(said.String(), "field=address") {
		t.Errorf("said %d times, %d counted:\n%s", n, l.Unreadable(), said.String())
	}
}
