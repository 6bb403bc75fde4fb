package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// rotateIfDue closes the active segment when its first record is of another day
// (UTC) than now, a later one too: the clock was ahead. Only Run calls it.
func (l *Log) rotateIfDue() error {
	l.mu.Lock()
	due := l.size > 0 && !l.began.IsZero() && l.began.UTC().Format(time.DateOnly) != l.now().UTC().Format(time.DateOnly)
	l.mu.Unlock()
	if !due {
		return nil
	}
	// No sync may run on the file that goes: those who wait for one find that
	// all of it is on the disk.
	l.smu.Lock()
	for l.syncing {
		l.done.Wait()
	}
	l.syncing = true
	l.smu.Unlock()
	seq, err := l.rotate()
	l.smu.Lock()
	l.syncing = false
	if seq > 0 {
		l.synced = seq
	}
	l.done.Broadcast()
	l.smu.Unlock()
	return err
}

// rotate renames the active file and begins a new one. It returns the last
// record that is on the disk for sure, 0 when nothing is known. The error is a
// failed sync, which is fatal; whatever else fails is tried again.
func (l *Log) rotate() (synced uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.usable() != nil || l.down != nil || l.torn || l.size == 0 {
		return 0, nil
	}
	if err := l.sync(); err != nil {
		return 0, l.fail(err)
	}
	closed := filepath.Join(filepath.Dir(l.path), segmentName(l.first))
	err = l.begin(closed)
	if err != nil && (l.unbegun == nil || err.Error() != l.unbegun.Error()) { // it is tried again each second
		l.log.Warn("the audit log could not begin the day's file; it goes on in the old one", "err", err)
	}
	l.unbegun = err
	if l.fatal != nil {
		return 0, l.fatal
	}
	return l.seq, nil
}

// begin takes a new file in the place of the active one, which gets the name
// closed. A crash in between leaves no active file, and the next start makes
// one. When the names cannot be synced nobody knows whether the new file has one
// on the disk, which is as fatal as for its records. mu is held.
func (l *Log) begin(closed string) error {
	// Nobody else makes files here while the lock is held, so one is there because
	// the active file was restored from a backup: it is evidence.
	if _, err := os.Lstat(closed); !errors.Is(err, os.ErrNotExist) {
		return cmp.Or(err, fmt.Errorf("%s is there already, and is not overwritten: was only a part of the log restored from a backup? Move that file away", closed))
	}
	dir, err := os.Open(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := os.Rename(l.path, closed); err != nil {
		return err
	}
	f, err := openFile(l.path)
	if err != nil {
		return errors.Join(err, os.Rename(closed, l.path))
	}
	old := l.f
	l.use(f)
	l.size, l.first, l.began = 0, l.seq+1, time.Time{}
	if err := l.syncNames(dir); err != nil {
		_ = l.fail(err) // said by whoever writes next, and by Run
	}
	if err := old.Close(); err != nil {
		l.log.Warn("closing a file of the audit log", "err", err)
	}
	return nil
}

func (l *Log) use(f *os.File) {
	l.f, l.write, l.truncate, l.sync = f, f.Write, f.Truncate, f.Sync
}

// Keep is what Forget needs to know from whoever signs the log.
type Keep struct {
	// Signed is the number of the last record that is signed.
	Signed func() uint64
	// Provable makes sure that records are the ones that were signed, and that
	// this stays provable without them.
	Provable func(first, last uint64) error
	// Unsent names the sinks that have not got a record; nil: there are none.
	// For them a record is kept for so much longer.
	Unsent func(seq uint64) []string
	Wait   time.Duration
}

// forget removes the closed segments whose records are all older than before
// and signed, but never the latest, and with every sink or older by keep.Wait.
// What it does is recorded first.
func (l *Log) forget(ctx context.Context, before time.Time, keep Keep) error {
	closed, err := closedSegments(l.path)
	if err != nil {
		return fmt.Errorf("looking for old records: %w", err)
	}
	var old []segment
	var last uint64
	var unsent []string
	for i := range max(0, len(closed)-1) {
		r, err := lastOf(closed[i].path)
		if err != nil {
			return fmt.Errorf("looking for old records: %w", err)
		}
		if next := closed[i+1].first; r.Seq+1 != next {
			return fmt.Errorf("looking for old records: %s ends with record %d, and the next file begins with %d", closed[i].path, r.Seq, next)
		}
		if r.Time.After(l.now()) {
			continue // the clock was ahead: it is as old as what comes behind it
		}
		if !r.Time.Before(before) || r.Seq > keep.Signed() {
			break
		}
		if keep.Unsent != nil {
			missing := keep.Unsent(r.Seq)
			if len(missing) > 0 && !r.Time.Before(before.Add(-keep.Wait)) {
				l.log.Warn("old records of the audit log are kept for sinks that have not got them", "from", closed[i].first, "sinks", missing)
				break
			}
			unsent = missing // of the last to go, so of all
		}
		old, last = closed[:i+1], r.Seq
	}
	if len(old) == 0 {
		return nil
	}
	// How old they are is what the file says. Who changed it must not have the
	// gateway remove what it was, and tell that in a signed record.
	if err := keep.Provable(old[0].first, last); err != nil {
		return fmt.Errorf("removing old records: %w", err)
	}
	// Whoever verifies the log believes that these went by themselves only when
	// a signed record says so.
	said := &Record{Kind: KindErase, Actor: "retention", Detail: map[string]string{
		"before": before.UTC().Format(time.DateOnly), "from": strconv.FormatUint(old[0].first, 10), "to": strconv.FormatUint(last, 10),
	}}
	if len(unsent) > 0 {
		said.Detail["unsent"] = strings.Join(unsent, " ")
	}
	if err := l.Append(said); err != nil {
		return err
	}
	if err := waitSigned(ctx, said.Seq, keep.Signed); err != nil {
		return fmt.Errorf("removing old records: %w", err)
	}
	for _, s := range old {
		if err := os.Remove(s.path); err != nil {
			return fmt.Errorf("removing old records: %w", err)
		}
	}
	return syncDir(filepath.Dir(l.path))
}

const (
	signedWithin = time.Minute
	signedEvery  = 100 * time.Millisecond
)

// waitSigned waits until a record is signed.
func waitSigned(ctx context.Context, seq uint64, signed func() uint64) error {
	tick := time.NewTicker(signedEvery)
	defer tick.Stop()
	late := time.NewTimer(signedWithin)
	defer late.Stop()
	for signed() < seq {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-late.C:
			return errors.New("the record of it is not signed")
		case <-tick.C:
		}
	}
	return nil
}

// lastOf reads the last record of a closed segment.
func lastOf(path string) (*Record, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	seq, end, tail, err := lastRecord(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if seq == 0 || len(tail) > 0 {
		return nil, fmt.Errorf("%s ends in no record", path)
	}
	return recordBefore(f, end)
}
