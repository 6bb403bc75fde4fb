package audit

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/portvakt/portvakt/policy"
)

// FuzzLog opens any bytes as a log: reading never panics, what is read is what
// stands there, and a log that can be opened goes on behind its last record.
func FuzzLog(f *testing.F) {
	f.Add([]byte(`{"seq":1,"time":"2026-01-01T00:00:00Z","kind":"start"}` + "\n" + `{"seq":2,"ti`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var last uint64
		n, err := scan(bytes.NewReader(data), func(line []byte, r *Record) bool {
			if bytes.IndexByte(line, '\n') >= 0 || !json.Valid(line) || r.Seq == 0 || r.Kind == "" {
				t.Fatalf("%q was taken for a record", line)
			}
			last = r.Seq
			return true
		})
		if n > int64(len(data)) || n > 0 && data[n-1] != '\n' {
			t.Fatalf("read %d of %d bytes", n, len(data))
		}
		if err != nil || last > 1<<62 || len(data) > 64<<10 {
			return
		}
		path := filepath.Join(t.TempDir(), FileName)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		seq, end, tail, err := lastRecord(file)
		if err != nil {
			if n > 0 {
				t.Fatalf("a reader saw records and the writer none: %v", err)
			}
			return
		}
		if seq != last || end != n || !bytes.Equal(tail, data[n:]) {
			t.Fatalf("the writer sees %d ending at %d, a reader %d at %d", seq, end, last, n)
		}
	})
}

// FuzzEncode writes any text: it stays in its line and reads back.
func FuzzEncode(f *testing.F) {
	f.Add("/path\r\n", "\x1b[31m\u202E\xff", []byte(`{"a":1}`))
	f.Fuzz(func(t *testing.T, path, detail string, input []byte) {
		r := Record{
			Time: time.Unix(0, 0).UTC(), Kind: KindDecision, Path: path, Input: input,
			Fact: &policy.Fact{Value: detail}, Detail: map[string]string{detail: path},
		}
		body, err := encode(&r)
		if err != nil {
			if json.Valid(input) {
				t.Fatalf("not encoded: %v", err)
			}
			return
		}
		b := appendLine(nil, 7, body)
		if bytes.IndexByte(b, '\n') != len(b)-1 || !utf8.Valid(b) || bytes.ContainsFunc(b[:len(b)-1], hidden) || len(b) > MaxLine {
			t.Fatalf("%q", b)
		}
		got, err := parseLine(b[:len(b)-1])
		if err != nil {
			t.Fatalf("%v: %q", err, b)
		}
		if utf8.ValidString(path) && len(path) <= MaxString && got.Path != path {
			t.Fatalf("read %q, wrote %q", got.Path, path)
		}
		// What was read is written the same again.
		again, err := encode(got)
		if err != nil || len(path) <= MaxString && len(detail) <= MaxString && !cmp.Equal(string(again), string(body)) {
			t.Fatalf("%v\n%s\n%s", err, body, again)
		}
	})
}
