package audit_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
)

func rec(seq int) string {
	return fmt.Sprintf(`{"seq":%d,"time":"2026-01-01T00:00:00Z","kind":"start"}`+"\n", seq)
}

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), audit.FileName)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestScan(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	for name, c := range map[string]struct {
		text string
		want int
		err  string
	}{
		"empty":                  {"", 0, ""},
		"two":                    {rec(1) + rec(2), 2, ""},
		"torn":                   {rec(1) + rec(2)[:20], 1, ""},
		"last line no record":    {rec(1) + "\x00\x00\n", 1, ""},
		"damage in the middle":   {rec(1) + "garbage\n" + rec(2), 1, "line 2 (byte 55) is not a record"},
		"no seq":                 {`{"time":"2026-01-01T00:00:00Z","kind":"start"}` + "\n" + rec(2), 0, "no seq"},
		"no kind":                {`{"seq":1,"time":"2026-01-01T00:00:00Z"}` + "\n" + rec(2), 0, "no kind"},
		"no time":                {`{"seq":1,"kind":"start"}` + "\n" + rec(2), 0, "no time"},
		"negative seq":           {`{"seq":-1,"time":"2026-01-01T00:00:00Z","kind":"start"}` + "\n" + rec(2), 0, "line 1"},
		"a member from tomorrow": {`{"seq":1,"time":"2026-01-01T00:00:00Z","kind":"new","leaf":"abc"}` + "\n", 1, ""},
		"a long line":            {`{"seq":1,"time":"2026-01-01T00:00:00Z","kind":"start","path":"` + long + `"}` + "\n" + rec(2), 2, ""},
		"too long a line":        {rec(1) + strings.Repeat("x", audit.MaxLine+100<<10) + "\n" + rec(2), 1, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			err := audit.Scan(file(t, c.text), func(line []byte, r *audit.Record) bool {
				n++
				if !json.Valid(line) || r.Seq != uint64(n) {
					t.Errorf("record %d: %q", n, line)
				}
				return true
			})
			if n != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%d records, %v", n, err)
			}
		})
	}
	n := 0
	if err := audit.Scan(file(t, rec(1)+rec(2)), func([]byte, *audit.Record) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("did not stop: %d %v", n, err)
	}
	if err := audit.Scan(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("read a file that is not there")
	}
}

func TestFind(t *testing.T) {
	dec := func(seq int, kind, id, more string) string {
		return fmt.Sprintf(`{"seq":%d,"time":"2026-01-01T00:00:00Z","kind":"%s","decision":"%s"%s}`+"\n", seq, kind, id, more)
	}
	path := file(t, rec(1)+dec(2, "flow_open", "d1", `,"input":{}`)+dec(3, "flow_close", "d1", "")+
		dec(4, "upstream_error", "d2", "")+dec(5, "decision", "d2", `,"input":{}`)+dec(6, "flow_cut", "d3", "")+dec(7, "flow_close", "d3", ""))
	l := open(t, filepath.Dir(path))
	for id, want := range map[string]uint64{"1": 1, "3": 3, "d1": 2, "d2": 5, "d3": 6, "d4": 0, "8": 0, "": 0, "0": 0, "-1": 0} {
		line, shown, err := l.Find(id)
		if want == 0 {
			if err == nil {
				t.Errorf("%q: found %s", id, line)
			}
			continue
		}
		var r audit.Record
		if err != nil || json.Unmarshal(line, &r) != nil || r.Seq != want || shown.Seq != want {
			t.Errorf("%q: %s %v, want %d", id, line, err, want)
		}
	}
}

// follow runs Follow and passes the numbers it sees to the channel.
func follow(t *testing.T, path string, fromEnd bool) (<-chan uint64, <-chan error, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	seen, done := make(chan uint64, 1000), make(chan error, 1)
	go func() {
		done <- audit.Follow(ctx, path, fromEnd, func(_ []byte, r *audit.Record) bool {
			seen <- r.Seq
			return r.Seq != 99
		})
	}()
	t.Cleanup(cancel)
	return seen, done, cancel
}

func expect(t *testing.T, seen <-chan uint64, want ...uint64) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-seen:
			if got != w {
				t.Fatalf("saw %d, want %d", got, w)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("did not see %d", w)
		}
	}
}

func add(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func ended(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(5 * time.Second):
		t.Fatal("Follow did not end")
		return nil
	}
}

func TestFollow(t *testing.T) {
	t.Run("from the start, over a torn tail that goes", func(t *testing.T) {
		t.Parallel()
		path := file(t, rec(1)+rec(2)[:30])
		seen, done, _ := follow(t, path, false)
		expect(t, seen, 1)
		time.Sleep(150 * time.Millisecond) // it has seen the torn line
		if err := os.Truncate(path, int64(len(rec(1)))); err != nil {
			t.Fatal(err)
		}
		add(t, path, rec(2)+rec(3)[:10])
		expect(t, seen, 2)
		add(t, path, rec(3)[10:]+rec(99)+rec(100))
		expect(t, seen, 3, 99)
		if err := ended(t, done); err != nil { // fn said so
			t.Error(err)
		}
		if len(seen) != 0 {
			t.Error("called again after it said no")
		}
	})
	t.Run("from the end", func(t *testing.T) {
		t.Parallel()
		path := file(t, rec(1)+rec(2)+rec(3)[:10])
		seen, done, cancel := follow(t, path, true)
		time.Sleep(150 * time.Millisecond)
		add(t, path, rec(3)[10:])
		expect(t, seen, 3)
		cancel()
		if err := ended(t, done); err != nil {
			t.Error(err)
		}
	})
	for name, c := range map[string]struct {
		harm func(path string) error
		want string
	}{
		"shortened": {func(p string) error { return os.Truncate(p, 10) }, "shortened"},
		"removed":   {os.Remove, "moved or removed"},
		"replaced": {func(p string) error {
			if err := os.WriteFile(p+".new", []byte(rec(1)), 0o600); err != nil {
				return err
			}
			return os.Rename(p+".new", p)
		}, "replaced"},
		"damaged": {func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteString("garbage\n" + rec(3))
			return err
		}, "not a record"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := file(t, rec(1)+rec(2))
			seen, done, _ := follow(t, path, false)
			expect(t, seen, 1, 2)
			if err := c.harm(path); err != nil {
				t.Fatal(err)
			}
			if err := ended(t, done); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v does not say %q", err, c.want)
			}
		})
	}
	if err := audit.Follow(t.Context(), filepath.Join(t.TempDir(), "none"), false, nil); err == nil {
		t.Error("followed a file that is not there")
	}
}

// A reader beside a writer sees every record once and no half ones.
func TestFollowBesideAWriter(t *testing.T) {
	l := open(t, t.TempDir())
	seen, _, _ := follow(t, l.Path(), false)
	for range 98 {
		if err := l.Append(&audit.Record{Kind: audit.KindDecision, Path: strings.Repeat("p", 5000)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Millisecond)
	}
	for want := uint64(1); want <= 98; want++ {
		expect(t, seen, want)
	}
}
