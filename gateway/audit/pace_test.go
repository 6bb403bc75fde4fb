package audit

import (
	"context"
	"errors"
	"strconv"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// within is what docs/audit.md promises of a write: it is on its way to the disk
// by then.
const within = 100 * time.Millisecond

// Every write is followed by a sync that begins within 100 ms, whatever comes
// when: single records, noted ones, folded ones, a steady stream; also while each
// sync takes most of the time until the next.
func TestEachWriteIsSyncedInTime(t *testing.T) {
	for _, slow := range []time.Duration{0, 30 * time.Millisecond} {
		t.Run(slow.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { eachWriteIsSynced(t, slow) })
		})
	}
}

func eachWriteIsSynced(t *testing.T, slow time.Duration) {
	l := openFault(t)
	var writes, syncs []time.Time
	write, fsync := l.write, l.sync
	l.write = func(b []byte) (int, error) {
		writes = append(writes, time.Now())
		return write(b)
	}
	l.sync = func() error { // one at a time
		syncs = append(syncs, time.Now())
		time.Sleep(slow)
		return fsync()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	appendOne := func() {
		if err := l.Append(&Record{Kind: KindDecision}); err != nil {
			t.Error(err)
		}
	}
	for wait := time.Duration(0); wait < 230*time.Millisecond; wait += 7 * time.Millisecond {
		time.Sleep(wait)
		appendOne()
	}
	for range 300 {
		time.Sleep(time.Millisecond)
		appendOne()
	}
	refused := NewRefusals(l, time.Now)
	for i := range 2000 { // most of them are folded
		refused.Note(Record{Kind: KindConnectRefused, Reason: "r" + strconv.Itoa(i%3)})
		l.Note(Record{Kind: KindLogout})
		time.Sleep(5 * time.Millisecond)
	}
	time.Sleep(10 * time.Second)
	synctest.Wait()
	idle := len(syncs)
	time.Sleep(time.Minute)
	synctest.Wait()
	if len(syncs) != idle {
		t.Errorf("%d syncs of nothing", len(syncs)-idle)
	}
	next := 0
	for _, at := range writes {
		for next < len(syncs) && syncs[next].Before(at) {
			next++
		}
		if next == len(syncs) {
			t.Fatalf("what was written at %v was never synced", at)
		}
		if d := syncs[next].Sub(at); d > within {
			t.Errorf("synced %v after it was written", d)
		}
	}
	if len(writes) < 1000 || len(syncs) < 100 {
		t.Errorf("%d writes, %d syncs", len(writes), len(syncs))
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFailedSyncIsFatal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := openFault(t)
		syncs := 0
		l.sync = func() error { syncs++; return syscall.EIO }
		if err := l.Append(&Record{Kind: KindLogin}); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := l.Run(t.Context()); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%v", err)
		}
		if d := time.Since(begin); d > within {
			t.Errorf("synced after %v", d)
		}
		if err := l.Append(&Record{Kind: KindLogin}); !errors.Is(err, syscall.EIO) {
			t.Errorf("appended: %v", err)
		}
		if err := l.Healthy(); !errors.Is(err, syscall.EIO) {
			t.Errorf("healthy: %v", err)
		}
		if err := l.Close(); !errors.Is(err, syscall.EIO) {
			t.Errorf("close: %v", err)
		}
		if syncs != 1 {
			t.Errorf("a failed fsync was asked again: %d", syncs)
		}
	})
}
