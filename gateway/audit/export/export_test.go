package export_test

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/audit/export"
	"github.com/portvakt/portvakt/policy"
)

var update = flag.Bool("update", false, "write the golden file")

// documented is a log of one record of every kind: the one in docs/audit.md.
func documented(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "```json\n")
	lines, _, ok := strings.Cut(rest, "```\n")
	if !ok {
		t.Fatal("docs/audit.md has no example")
	}
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t *testing.T, log, name string, within export.Range) (string, int) {
	t.Helper()
	var b bytes.Buffer
	n, err := export.Write(&b, export.Log{File: log}, "gw1", within, export.Formats[name], name)
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), n
}

func TestGolden(t *testing.T) {
	log := documented(t)
	var got txtar.Archive
	for _, name := range export.Names {
		text, n := write(t, log, name, export.Range{})
		if n < 25 {
			t.Errorf("%s: %d records", name, n)
		}
		got.Files = append(got.Files, txtar.File{Name: name, Data: []byte(text)})
	}
	const file = "testdata/formats.txtar"
	if *update {
		if err := os.WriteFile(file, txtar.Format(&got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(txtar.Format(&got))); d != "" {
		t.Errorf("(-want +got; -update rewrites)\n%s", d)
	}
}

// What a kind has besides, a lockdown's scope or how many records were lost, is in
// every form: to some records it is all there is.
func TestDetailIsInEveryForm(t *testing.T) {
	log := documented(t)
	for _, name := range export.Names {
		text, _ := write(t, log, name, export.Range{})
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if name == "csv" {
			lines = lines[1:]
		}
		n := 0
		if err := audit.Scan(log, func(_ []byte, r *audit.Record) bool {
			for _, v := range r.Detail {
				if !strings.Contains(lines[n], v) {
					t.Errorf("%s of a %s lacks %q: %s", name, r.Kind, v, lines[n])
				}
			}
			n++
			return true
		}); err != nil || n != len(lines) {
			t.Errorf("%s: %d records in %d lines, %v", name, n, len(lines), err)
		}
	}
}

func TestRange(t *testing.T) {
	log := documented(t)
	at := func(s string) time.Time {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		within export.Range
		want   int
	}{
		{export.Range{Since: at("2026-03-04T20:00:00Z")}, 1},
		{export.Range{Until: at("2026-03-04T07:58:00.2Z")}, 1},
		{export.Range{Since: at("2026-03-04T12:00:00Z"), Until: at("2026-03-04T12:30:01Z")}, 2},
		{export.Range{Since: at("2027-01-01T00:00:00Z")}, 0},
	} {
		if text, n := write(t, log, "jsonl", c.within); n != c.want || strings.Count(text, "\n") != n {
			t.Errorf("%v: %d records, want %d", c.within, n, c.want)
		}
	}
}

// hostile is a record whose every text tries to break out.
func hostile(evil string) *audit.Record {
	r := &audit.Record{Seq: 7, Time: time.Date(2026, 3, 4, 8, 0, 0, 0, time.UTC), Kind: audit.KindDecision}
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.String && v.Type().Field(i).Name != "Kind" {
			f.SetString(evil)
		}
	}
	r.Fact = &policy.Fact{Name: evil, Value: evil, Wanted: evil}
	r.Detail = map[string]string{"name": evil}
	return r
}

var evils = []string{
	"a\nCEF:0|x", "a|b=c\\d", "=cmd()", "+1", "-1", "@x", "\tx", `"quoted",x`, "\u202eevil", "\u2028", "\x1b[31m", "\U000E0041", "\x85", "'", "é",
}

func FuzzFormats(f *testing.F) {
	for _, e := range evils {
		f.Add(e)
	}
	f.Fuzz(func(t *testing.T, evil string) {
		r := hostile(evil)
		line, err := json.Marshal(r)
		if err != nil {
			return // a text the log does not write either
		}
		for _, name := range export.Names {
			out, err := export.Formats[name](nil, "gw1", line, r)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			text := string(out)
			if strings.Count(text, "\n") != 1 || !strings.HasSuffix(text, "\n") {
				t.Fatalf("%s: not one line: %q", name, text)
			}
			if name == "jsonl" {
				continue // the stored line: the log escaped it
			}
			for _, c := range strings.TrimRight(text, "\r\n") {
				if unicode.In(c, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
					t.Fatalf("%s: %U stands as it is", name, c)
				}
			}
			switch name {
			case "csv":
				rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
				if err != nil || len(rows) != 1 || len(rows[0]) != 30 || !json.Valid([]byte(rows[0][29])) {
					t.Fatalf("%v: %v", err, rows)
				}
				for _, cell := range rows[0] {
					if cell != "" && strings.ContainsRune("=+-@\t", rune(cell[0])) {
						t.Fatalf("a formula: %q", cell)
					}
				}
			case "ocsf":
				var e struct {
					Status string `json:"status_code"`
					Class  int    `json:"class_uid"`
				}
				if err := json.Unmarshal(out, &e); err != nil || e.Class != 4002 {
					t.Fatalf("%v: %s", err, out)
				}
			case "cef":
				if n := strings.Count(strings.ReplaceAll(strings.ReplaceAll(text, `\\`, ""), `\|`, ""), "|"); n < 7 {
					t.Fatalf("%d bars in %q", n, text)
				}
			}
		}
	})
}

// A receiver of CEF splits at unescaped bars: the header has exactly seven.
func TestCEFHeader(t *testing.T) {
	for _, evil := range evils {
		out, err := export.CEF(nil, "gw1", nil, hostile(evil))
		if err != nil {
			t.Fatal(err)
		}
		header, bars := strings.ReplaceAll(string(out), `\\`, "__"), 0
		rest := strings.ReplaceAll(header, `\|`, "__")
		for bars < 7 {
			_, after, ok := strings.Cut(rest, "|")
			if !ok {
				t.Fatalf("%d bars in %q", bars, out)
			}
			bars, rest = bars+1, after
		}
		if !strings.HasPrefix(rest, "rt=") {
			t.Errorf("%q: behind the header comes %q", evil, rest)
		}
	}
}

// What has expired is said, in every form: no reader takes it for what never
// was there.
func TestExpiredIsSaid(t *testing.T) {
	r := audit.Record{
		Seq: 7, Time: time.Date(2026, 3, 4, 8, 0, 0, 0, time.UTC), Kind: audit.KindDecision, Method: "GET", Host: "crm.example.com", Device: "dev-1",
		Expired: []string{"address", "facts", "request"}, Subject: "iss#anna",
	}
	line, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for name, wants := range map[string][]string{
		"jsonl": {`"expired":["address","facts","request"]`, `"subject":"iss#anna"`},
		"ocsf":  {`"expired":["address","facts","request"]`},
		"cef":   {"PortvaktExpired=address facts request"},
	} {
		got, err := export.Formats[name](nil, "gw1", line, &r)
		for _, want := range wants {
			if err != nil || !strings.Contains(string(got), want) {
				t.Errorf("%s lacks %s: %s %v", name, want, got, err)
			}
		}
		if strings.Contains(string(got), "src=expired") || strings.Contains(string(got), `"ip":"expired"`) {
			t.Errorf("%s has a word for an address: %s", name, got)
		}
	}
	cells := func(r audit.Record) map[string]string {
		var b bytes.Buffer
		if _, err := export.Write(&b, export.Log{File: emptyLog(t)}, "gw1", export.Range{}, export.CSV, "csv"); err != nil {
			t.Fatal(err)
		}
		row, err := export.CSV(b.Bytes(), "gw1", nil, &r)
		if err != nil {
			t.Fatal(err)
		}
		all, err := csv.NewReader(bytes.NewReader(row)).ReadAll()
		if err != nil || len(all) != 2 {
			t.Fatalf("%v %q", err, row)
		}
		out := map[string]string{}
		for i, name := range all[0] {
			out[name] = all[1][i]
		}
		return out
	}
	got := cells(r)
	for column, want := range map[string]string{"subject": "iss#anna", "remote": "expired", "path": "expired", "request_hash": "expired", "fact": "expired", "host": "crm.example.com", "app": ""} {
		if got[column] != want {
			t.Errorf("%s is %q, want %q", column, got[column], want)
		}
	}
	if got := cells(audit.Record{Seq: 8, Kind: audit.KindLogin, Expired: []string{"person"}}); got["subject"] != "expired" || got["path"] != "" {
		t.Errorf("of a person: %v", got)
	}
}

func emptyLog(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "audit.jsonl")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
