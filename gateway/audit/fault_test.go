package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func openFault(t *testing.T) *Log {
	t.Helper()
	l, err := Open(Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func seqs(t *testing.T, l *Log) []Kind {
	t.Helper()
	var ks []Kind
	if err := Scan(l.path, func(_ []byte, r *Record) bool {
		ks = append(ks, r.Kind)
		if r.Seq != uint64(len(ks)) {
			t.Fatalf("record %d has number %d", len(ks), r.Seq)
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return ks
}

// A write that fails after any number of bytes of a batch: whole lines count,
// the rest is cut off, nothing is there twice.
func TestWriteFailsAtEveryByte(t *testing.T) {
	for n := range 170 {
		l := openFault(t)
		real := l.write
		l.write = func(b []byte) (int, error) {
			n, _ := real(b[:min(n, len(b))])
			if n == len(b) {
				return n, nil
			}
			return n, syscall.ENOSPC
		}
		l.Note(Record{Kind: KindFlowCut})
		l.Note(Record{Kind: KindFlowClose})
		l.drain()
		b, err := os.ReadFile(l.path)
		if err != nil || len(b) > 0 && b[len(b)-1] != '\n' {
			t.Fatalf("%d bytes: the file ends in %q, %v", n, b, err)
		}
		l.write = real
		if err := l.Append(&Record{Kind: KindLogin}); err != nil {
			t.Fatal(err)
		}
		count := map[Kind]int{}
		for _, k := range seqs(t, l) {
			count[k]++
		}
		if count[KindFlowCut] != 1 || count[KindFlowClose] != 1 || count[KindLogin] != 1 || count[KindRecovered] > 1 {
			t.Fatalf("%d bytes: %v", n, count)
		}
		_ = l.Close()
	}
}

// Appends that share a write which fails within: each is told the truth about
// its own record.
func TestSharedWriteFails(t *testing.T) {
	l := openFault(t)
	var calls atomic.Int64
	real := l.write
	l.write = func(b []byte) (int, error) {
		time.Sleep(200 * time.Microsecond) // others come meanwhile
		if calls.Add(1)%3 != 0 {
			return real(b)
		}
		n, _ := real(b[:len(b)*2/3])
		return n, syscall.ENOSPC
	}
	var mu sync.Mutex
	kept, refused := map[uint64]string{}, 0
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := range 20 {
				r := Record{Kind: KindDecision, Flow: fmt.Sprintf("%d.%d", w, i)}
				err := l.Append(&r)
				mu.Lock()
				if err == nil {
					kept[r.Seq] = r.Flow
				} else {
					refused++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	l.write = real
	if err := l.Append(&Record{Kind: KindLogin}); err != nil {
		t.Fatal(err)
	}
	seqs(t, l)
	found := map[uint64]string{}
	if err := Scan(l.path, func(_ []byte, r *Record) bool {
		if r.Kind == KindDecision {
			found[r.Seq] = r.Flow
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(kept, found); d != "" || len(kept)+refused != 32*20 || refused == 0 {
		t.Errorf("%d kept, %d refused; in the file (-told +found): %s", len(kept), refused, d)
	}
	if n := calls.Load(); n > 32*20 {
		t.Errorf("%d writes for %d records: none was shared", n, 32*20)
	}
}

// When even the cutting fails, nothing is written behind the damage.
func TestTruncateFails(t *testing.T) {
	l := openFault(t)
	write, truncate := l.write, l.truncate
	l.write = func(b []byte) (int, error) {
		n, _ := write(b[:len(b)/2])
		return n, syscall.EIO
	}
	l.truncate = func(int64) error { return syscall.EROFS }
	if err := l.Append(&Record{Kind: KindLogin}); !errors.Is(err, syscall.EIO) || !errors.Is(err, syscall.EROFS) {
		t.Fatalf("%v", err)
	}
	l.write = write
	if err := l.Append(&Record{Kind: KindLogin}); !errors.Is(err, syscall.EROFS) {
		t.Fatalf("%v", err)
	}
	if ks := seqs(t, l); len(ks) != 0 {
		t.Fatalf("a reader sees %v", ks)
	}
	l.truncate = truncate
	r := Record{Kind: KindLogin}
	if err := l.Append(&r); err != nil || r.Seq != 2 {
		t.Fatalf("seq %d, %v", r.Seq, err)
	}
	if ks := seqs(t, l); len(ks) != 2 || ks[0] != KindRecovered {
		t.Errorf("%v", ks)
	}
}

// Run makes the log healthy by itself when space returns, without an Append.
func TestRunRecovers(t *testing.T) {
	l := openFault(t)
	write := l.write
	l.write = func([]byte) (int, error) { return 0, syscall.ENOSPC }
	for range 3 {
		if err := l.Append(&Record{Kind: KindLogin}); !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
	l.Note(Record{Kind: KindFlowCut})
	if l.Healthy() == nil {
		t.Error("healthy")
	}
	l.write = write
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	for end := time.Now().Add(5 * time.Second); l.Healthy() != nil && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	line, _, err := l.Find("1")
	if err != nil || !strings.Contains(string(line), `"refused":"3"`) || !strings.Contains(string(line), "no space left") {
		t.Errorf("%s %v", line, err)
	}
	if ks := seqs(t, l); len(ks) != 2 || ks[0] != KindRecovered || ks[1] != KindFlowCut {
		t.Errorf("%v", ks)
	}
}

func TestNoteNeverWaitsForTheDisk(t *testing.T) {
	l := openFault(t)
	write := l.write
	stuck, entered := make(chan struct{}), make(chan struct{})
	l.write = func(b []byte) (int, error) {
		close(entered)
		<-stuck
		return write(b)
	}
	done := make(chan error)
	go func() { done <- l.Append(&Record{Kind: KindLogin}) }()
	<-entered
	for range maxNotes + 1 { // a Note that waits would hang the test
		l.Note(Record{Kind: KindFlowCut})
	}
	if l.Lost() != 1 {
		t.Errorf("lost %d", l.Lost())
	}
	close(stuck)
	if err := <-done; err != nil {
		t.Error(err)
	}
	l.write = write
}

func TestQueueIsBoundedInBytes(t *testing.T) {
	l := openFault(t)
	big := strings.Repeat("x", MaxString)
	for range 3000 {
		l.Note(Record{Kind: KindFlowCut, Path: big, Host: big})
	}
	if l.queue.bytes > maxNotesBytes || l.Lost() == 0 || uint64(l.Pending())+l.Lost() != 3000 {
		t.Errorf("%d bytes, %d pending, %d lost", l.queue.bytes, l.Pending(), l.Lost())
	}
	l.drain()
	if ks := seqs(t, l); l.queue.bytes != 0 || ks[len(ks)-1] != KindLost {
		t.Errorf("%d bytes are left, the last record is %v", l.queue.bytes, ks[len(ks)-1])
	}
}

// Each durable record is covered by a sync that began after it was written, and
// those that come together share one.
func TestDurableRecordsShareASync(t *testing.T) {
	l := openFault(t)
	const connections, each = 32, 8
	var begun, ended atomic.Uint64 // Seq of the last record written before the sync that began, ended, last
	syncs := 0
	write := l.write
	written := atomic.Uint64{}
	l.write = func(b []byte) (int, error) {
		n, err := write(b)
		written.Add(uint64(strings.Count(string(b[:n]), "\n")))
		return n, err
	}
	l.sync = func() error {
		syncs++
		begun.Store(written.Load())
		time.Sleep(time.Millisecond)
		ended.Store(begun.Load())
		return nil
	}
	var wg sync.WaitGroup
	for range connections {
		wg.Go(func() {
			for range each {
				r := Record{Kind: KindDecision}
				if err := l.AppendDurable(&r); err != nil || ended.Load() < r.Seq {
					t.Errorf("record %d is back, synced are %d, %v", r.Seq, ended.Load(), err)
				}
			}
		})
	}
	wg.Wait()
	if syncs > connections*each/4 {
		t.Errorf("%d syncs for %d records", syncs, connections*each)
	}
	before := syncs
	if err := l.Append(&Record{Kind: KindDecision}); err != nil || syncs != before {
		t.Errorf("an ordinary record waited for the disk, %v", err)
	}
}

func TestADurableRecordThatIsNotSyncedIsRefused(t *testing.T) {
	l := openFault(t)
	l.sync = func() error { return syscall.EIO }
	if err := l.AppendDurable(&Record{Kind: KindDecision}); !errors.Is(err, syscall.EIO) {
		t.Errorf("%v", err)
	}
	l.sync = func() error { return nil } // as the kernel would say when it is asked again
	for _, record := range []func(*Record) error{l.Append, l.AppendDurable} {
		if err := record(&Record{Kind: KindDecision}); !errors.Is(err, syscall.EIO) {
			t.Errorf("after it: %v", err)
		}
	}
	if err := l.Run(t.Context()); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "the gateway stops: check the disk") {
		t.Errorf("Run ends with %v", err)
	}
}

func TestSyncOnlyWhatWasWritten(t *testing.T) {
	l := openFault(t)
	syncs := 0
	l.sync = func() error { syncs++; return nil }
	for range 3 {
		if err := l.fsync(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Append(&Record{Kind: KindLogin}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil || syncs != 1 {
		t.Errorf("%d syncs, %v", syncs, err)
	}
}

func TestCloseSaysWhatItCouldNotKeep(t *testing.T) {
	l := openFault(t)
	l.write = func([]byte) (int, error) { return 0, syscall.ENOSPC }
	l.Note(Record{Kind: KindFlowCut})
	if err := l.Close(); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "1 records") {
		t.Errorf("%v", err)
	}
}

func TestLossesToldWhileMoreAreLost(t *testing.T) {
	var q queue
	at := time.Unix(0, 0)
	q.lose(KindFlowCut, at)
	snapshot := q.lost
	q.lose(KindFlowCut, at)
	q.lose(KindFlowClose, at)
	if snapshot.kinds[KindFlowCut] != 1 {
		t.Error("the snapshot changed")
	}
	q.told(snapshot)
	if d := q.lost.detail(); d["count"] != "2" || d["kind.flow_cut"] != "1" || d["kind.flow_close"] != "1" {
		t.Errorf("%v", d)
	}
	q.told(q.lost)
	if !q.empty() {
		t.Error("not empty")
	}
}
