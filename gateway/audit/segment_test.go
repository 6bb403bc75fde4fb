package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// calendar is a clock that tests turn.
type calendar struct{ at atomic.Int64 }

func newCalendar() *calendar {
	c := &calendar{}
	c.at.Store(time.Date(2026, 3, 2, 23, 59, 0, 0, time.UTC).UnixNano())
	return c
}

func (c *calendar) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *calendar) forward(d time.Duration) { c.at.Add(int64(d)) }

func openDaily(t *testing.T, dir string, c *calendar) *Log {
	t.Helper()
	l, err := Open(Options{Dir: dir, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func files(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (l *Log) mustRotate(t *testing.T) {
	t.Helper()
	if err := l.rotateIfDue(); err != nil {
		t.Fatal(err)
	}
}

func appendSome(t *testing.T, l *Log, n int) {
	t.Helper()
	for range n {
		if err := l.Append(&Record{Kind: KindDecision}); err != nil {
			t.Fatal(err)
		}
	}
}

// A day's records are in a file of their own; readers see one log.
func TestEachDayHasItsFile(t *testing.T) {
	dir, c := t.TempDir(), newCalendar()
	l := openDaily(t, dir, c)
	seen, ctx, path := make(chan uint64, 1000), t.Context(), l.Path()
	followed := make(chan error, 1)
	go func() {
		followed <- Follow(ctx, path, false, func(_ []byte, r *Record) bool {
			seen <- r.Seq
			return r.Seq < 30
		})
	}()
	place, taken := Place{}, uint64(0)
	for day := range 4 {
		appendSome(t, l, 5)
		l.mustRotate(t) // the same day: nothing to do
		if err := Lines(l.Path(), taken, &place, func(line []byte) (bool, error) {
			if seq, ok := Sequence(line); !ok || seq != taken+1 {
				t.Fatalf("behind %d comes %s", taken, line)
			}
			taken++
			return true, nil
		}); err != nil || taken != uint64(day+1)*5 {
			t.Fatalf("day %d: %d were read, %v", day, taken, err)
		}
		c.forward(24 * time.Hour)
		l.mustRotate(t)
		l.mustRotate(t)                           // the new file is empty
		if n := len(seqs(t, l)); n != (day+1)*5 { // and without a gap
			t.Errorf("day %d: %d records", day, n)
		}
		if day == 1 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = openDaily(t, dir, c) // with an empty file
		}
	}
	appendSome(t, l, 10)
	want := []string{"audit-00000000000000000001.jsonl", "audit-00000000000000000006.jsonl", "audit-00000000000000000011.jsonl", "audit-00000000000000000016.jsonl", "audit.jsonl"}
	if got := files(t, dir); !slices.Equal(got, want) {
		t.Errorf("the files are %v", got)
	}
	for want := uint64(1); want <= 30; want++ {
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("saw %d, want %d", got, want)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("did not see %d", want)
		}
	}
	if err := <-followed; err != nil {
		t.Error(err)
	}
	for after := range uint64(30) { // from any place, known or not
		var got []uint64
		at := Place{}
		if err := Lines(l.Path(), after, &at, func(line []byte) (bool, error) {
			seq, _ := Sequence(line)
			got = append(got, seq)
			return len(got) < 7, nil
		}); err != nil || len(got) == 0 || got[0] != after+1 || len(got) != int(min(7, 30-after)) {
			t.Fatalf("behind %d: %v %v", after, got, err)
		}
		if len(got) == 7 { // the seventh was not taken
			if err := Lines(l.Path(), after+6, &at, func(line []byte) (bool, error) {
				if seq, _ := Sequence(line); seq != after+7 {
					t.Errorf("behind %d, going on: %d", after, seq)
				}
				return false, nil
			}); err != nil {
				t.Error(err)
			}
		}
	}
	if err := Lines(l.Path(), 31, &Place{}, nil); !errors.Is(err, ErrShorter) {
		t.Errorf("behind what is not there: %v", err)
	}
}

// A crash between the two steps of a rotation leaves no active file.
func TestACrashWithinARotation(t *testing.T) {
	dir, c := t.TempDir(), newCalendar()
	l := openDaily(t, dir, c)
	appendSome(t, l, 5)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(l.Path(), filepath.Join(dir, segmentName(1))); err != nil {
		t.Fatal(err)
	}
	if n := len(seqs(t, l)); n != 5 {
		t.Errorf("without an active file: %d records", n)
	}
	l = openDaily(t, dir, c)
	appendSome(t, l, 5)
	if n := len(seqs(t, l)); n != 10 {
		t.Errorf("%d records", n)
	}
}

// Who waits for the disk is told the truth while the file changes, and nothing
// is written twice or not at all.
func TestRotationUnderLoad(t *testing.T) {
	dir, c := t.TempDir(), newCalendar()
	l := openDaily(t, dir, c)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- l.Run(ctx) }()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 60 {
				r := Record{Kind: KindDecision}
				record := l.Append
				if i%2 == 0 {
					record = l.AppendDurable
				}
				if err := record(&r); err != nil {
					t.Error(err)
				}
				l.NoteEnd(Record{Kind: KindFlowClose})
			}
		})
	}
	for range 10 {
		c.forward(24 * time.Hour)
		l.mustRotate(t)
		time.Sleep(2 * time.Millisecond)
	}
	wg.Wait()
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	if n := len(seqs(t, l)); n != 2*8*60 {
		t.Errorf("%d records", n)
	}
	if n := len(files(t, dir)); n < 3 {
		t.Errorf("only %d files", n)
	}
}

func TestRotationThatFails(t *testing.T) {
	dir, c := t.TempDir(), newCalendar()
	l := openDaily(t, dir, c)
	appendSome(t, l, 2)
	c.forward(24 * time.Hour)
	if err := os.Mkdir(filepath.Join(dir, segmentName(1)), 0o700); err != nil {
		t.Fatal(err)
	}
	l.mustRotate(t)
	appendSome(t, l, 1) // in the old file
	if err := os.Remove(filepath.Join(dir, segmentName(1))); err != nil {
		t.Fatal(err)
	}
	// As who restores only the active file from a backup has it: what is there
	// is evidence.
	if err := os.WriteFile(filepath.Join(dir, segmentName(1)), []byte("what was\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.mustRotate(t)
	if b, err := os.ReadFile(filepath.Join(dir, segmentName(1))); err != nil || string(b) != "what was\n" {
		t.Errorf("a closed file was overwritten: %q %v", b, err)
	}
	if err := os.Remove(filepath.Join(dir, segmentName(1))); err != nil {
		t.Fatal(err)
	}
	l.mustRotate(t)
	appendSome(t, l, 1)
	if n := len(seqs(t, l)); n != 4 || len(files(t, dir)) != 2 {
		t.Errorf("%d records in %v", n, files(t, dir))
	}
	// The names are a part of what is on the disk: without that of the new file its
	// records are not.
	c.forward(24 * time.Hour)
	names := openDaily(t, t.TempDir(), c)
	appendSome(t, names, 1)
	names.syncNames = func(*os.File) error { return syscall.EIO }
	c.forward(24 * time.Hour)
	if err := names.rotateIfDue(); !errors.Is(err, syscall.EIO) {
		t.Errorf("names that are not on the disk: %v", err)
	}
	if err := names.AppendDurable(&Record{Kind: KindDecision}); !errors.Is(err, syscall.EIO) {
		t.Errorf("after it: %v", err)
	}
	l.sync = func() error { return syscall.EIO }
	if err := l.rotateIfDue(); !errors.Is(err, syscall.EIO) {
		t.Errorf("a day's file that is not on the disk: %v", err)
	}
	if err := l.Append(&Record{Kind: KindDecision}); !errors.Is(err, syscall.EIO) {
		t.Errorf("after it: %v", err)
	}
}

func TestOldRecordsAreRemoved(t *testing.T) {
	dir, c := t.TempDir(), newCalendar()
	l := openDaily(t, dir, c)
	for range 5 { // days 2 to 6, one minute before midnight
		appendSome(t, l, 10)
		c.forward(24 * time.Hour)
		l.mustRotate(t)
	}
	var signed, provable uint64
	keep := Keep{Signed: func() uint64 { return signed }, Provable: func(uint64, uint64) error { provable++; return nil }}
	cut := time.Date(2026, 3, 5, 0, 0, 0, 0, time.UTC)
	forget := func(before time.Time) error { return l.forget(t.Context(), before, keep) }
	if err := forget(cut); err != nil || provable != 0 {
		t.Errorf("unsigned: %v", err)
	}
	signed = 25 // the third day is not signed
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.forget(ctx, cut, keep); !errors.Is(err, context.Canceled) || len(files(t, dir)) != 6 {
		t.Errorf("removed before the record of it was signed: %v %v", err, files(t, dir))
	}
	signed = 1000
	keep.Provable = func(uint64, uint64) error { return syscall.EIO }
	if err := forget(cut); !errors.Is(err, syscall.EIO) || len(files(t, dir)) != 6 {
		t.Errorf("removed what could not be proven: %v %v", err, files(t, dir))
	}
	keep.Provable = func(first, last uint64) error {
		if first != 1 || last != 30 {
			t.Errorf("records %d to %d were looked at", first, last)
		}
		return nil
	}
	second := files(t, dir)[1]
	whole, err := os.ReadFile(filepath.Join(dir, second))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, second), whole[:bytes.LastIndexByte(whole[:len(whole)-1], '\n')+1], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := forget(cut); err == nil || !strings.Contains(err.Error(), "ends with record 19, and the next file begins with 21") || len(files(t, dir)) != 6 {
		t.Errorf("removed a file that ends early: %v %v", err, files(t, dir))
	}
	if err := os.WriteFile(filepath.Join(dir, second), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := forget(cut); err != nil {
		t.Fatal(err)
	}
	keep.Provable = func(uint64, uint64) error { return nil }
	if first, err := First(l.Path()); err != nil || first != 31 {
		t.Errorf("it begins with %d, %v", first, err)
	}
	b, err := os.ReadFile(l.Path())
	if want := `"kind":"erase","actor":"retention","detail":{"before":"2026-03-05","from":"1","to":"30"}}`; err != nil || !bytes.Contains(b, []byte(want)) {
		t.Errorf("%s lacks %s", b, want)
	}
	if err := forget(c.now()); err != nil { // but never the latest
		t.Fatal(err)
	}
	if first, err := First(l.Path()); err != nil || first != 41 {
		t.Errorf("it begins with %d, %v", first, err)
	}
	if err := Lines(l.Path(), 3, &Place{}, nil); !errors.Is(err, ErrRemoved) || !strings.Contains(err.Error(), "41") {
		t.Errorf("behind what was removed: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = openDaily(t, dir, c)
	r := Record{Kind: KindDecision}
	if err := l.Append(&r); err != nil || r.Seq < 51 {
		t.Errorf("after a restart: number %d, %v", r.Seq, err)
	}
}

// Records of a time when the clock was ahead go with what was written behind
// them, and do not keep it.
func TestRecordsOfTheFutureAreRemoved(t *testing.T) {
	dir, c := t.TempDir(), newCalendar()
	l := openDaily(t, dir, c)
	const years = 10 * 365 * 24 * time.Hour
	day := func() {
		appendSome(t, l, 10)
		c.forward(24 * time.Hour)
		l.mustRotate(t)
	}
	day() // 1 to 10, of March 2
	c.forward(years)
	l.mustRotate(t)
	appendSome(t, l, 10) // 11 to 20, years ahead
	c.forward(-years)
	l.mustRotate(t)
	day() // 21 to 30, of March 3
	day()
	day()
	keep := Keep{Signed: func() uint64 { return 1 << 62 }, Provable: func(uint64, uint64) error { return nil }}
	for _, want := range []struct {
		day   int
		first uint64
	}{{3, 11}, {4, 31}} {
		if err := l.forget(t.Context(), time.Date(2026, 3, want.day, 0, 0, 0, 0, time.UTC), keep); err != nil {
			t.Fatal(err)
		}
		if first, err := First(l.Path()); err != nil || first != want.first {
			t.Errorf("on March %d it begins with %d, want %d, %v: %v", want.day, first, want.first, err, files(t, dir))
		}
	}
}

// What a sink has not got is kept for so much longer, and then goes: the record
// of it names the sink.
func TestRetentionWaitsForSinks(t *testing.T) {
	dir, c := t.TempDir(), newCalendar()
	l := openDaily(t, dir, c)
	for range 5 { // days 2 to 6
		appendSome(t, l, 10)
		c.forward(24 * time.Hour)
		l.mustRotate(t)
	}
	const never = 1 << 62
	sent := map[string]uint64{"lake": never, "siem": 15}
	keep := Keep{Signed: func() uint64 { return never }, Provable: func(uint64, uint64) error { return nil }, Wait: 48 * time.Hour}
	keep.Unsent = func(seq uint64) (names []string) {
		for _, name := range []string{"lake", "siem"} {
			if sent[name] < seq {
				names = append(names, name)
			}
		}
		return names
	}
	begins := func(day int, want uint64) {
		t.Helper()
		if err := l.forget(t.Context(), time.Date(2026, 3, day, 0, 0, 0, 0, time.UTC), keep); err != nil {
			t.Fatal(err)
		}
		if first, err := First(l.Path()); err != nil || first != want {
			t.Errorf("it begins with %d, %v, want %d", first, err, want)
		}
	}
	said := func(want string) {
		t.Helper()
		if b, err := os.ReadFile(l.Path()); err != nil || !bytes.Contains(b, []byte(want)) {
			t.Errorf("%v: %s lacks %s", err, b, want)
		}
	}
	begins(5, 11) // the second file is old, and siem has half of it
	said(`{"before":"2026-03-05","from":"1","to":"10"}`)
	sent["siem"] = 20
	begins(5, 21)
	said(`{"before":"2026-03-05","from":"11","to":"20"}`)
	begins(6, 21)
	begins(7, 31) // for two days more
	said(`{"before":"2026-03-07","from":"21","to":"30","unsent":"siem"}`)
	sent["siem"] = never
	begins(7, 41)
}

func TestOnlySegmentsAreTakenForSegments(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{
		"audit-1.jsonl", "audit-0000000000000000000x.jsonl", "audit-00000000000000000000.jsonl", "audit.torn-20260304T190000.000000000Z.jsonl",
		"audit-00000000000000000007.jsonl", "audit-00000000000000000007.jsonl.bak", "audit-000000000000000000007.jsonl",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	closed, err := closedSegments(filepath.Join(dir, FileName))
	if err != nil || len(closed) != 1 || closed[0].first != 7 {
		t.Errorf("%+v %v", closed, err)
	}
	if name := segmentName(1<<63 - 1); name != fmt.Sprintf("audit-%020d.jsonl", uint64(1<<63-1)) || len(name) != len(segmentName(1)) {
		t.Error(name)
	}
}

// A reader whose file is not there any more looks for its place, in the files
// before it too.
func TestAPlaceThatIsGone(t *testing.T) {
	dir, c := t.TempDir(), newCalendar()
	l := openDaily(t, dir, c)
	for range 4 {
		appendSome(t, l, 5)
		c.forward(24 * time.Hour)
		l.mustRotate(t)
	}
	appendSome(t, l, 5)
	for _, segment := range []uint64{2, 7, 12, 20, 22, 1000} { // no file begins with these
		for after := range uint64(25) {
			at, next := Place{Segment: segment, Offset: 3}, uint64(0)
			if err := Lines(l.Path(), after, &at, func(line []byte) (bool, error) {
				next, _ = Sequence(line)
				return false, nil
			}); err != nil || next != after+1 {
				t.Fatalf("behind %d, in the file of %d: %d %v", after, segment, next, err)
			}
		}
	}
	for _, first := range []uint64{1, 6} {
		if err := os.Remove(filepath.Join(dir, segmentName(first))); err != nil {
			t.Fatal(err)
		}
	}
	if err := Lines(l.Path(), 7, &Place{Segment: 6}, nil); !errors.Is(err, ErrRemoved) {
		t.Errorf("behind what was removed: %v", err)
	}
}

// BenchmarkFollow is one look of a reader that follows a log, as each sink does
// five times a second, with the files of so many days.
func BenchmarkFollow(b *testing.B) {
	for _, days := range []int{1, 400} {
		b.Run(fmt.Sprintf("days=%d", days), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), FileName)
			var line []byte
			for n := range days + 1 {
				line = appendLine(nil, uint64(n+1), []byte(`,"time":"2026-03-04T08:00:00Z","kind":"start"}`))
				name := path
				if n < days {
					name = filepath.Join(filepath.Dir(path), segmentName(uint64(n+1)))
				}
				if err := os.WriteFile(name, line, 0o600); err != nil {
					b.Fatal(err)
				}
			}
			at := Place{Segment: uint64(days + 1), Offset: int64(len(line))}
			for b.Loop() {
				if err := Lines(path, at.Segment, &at, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
