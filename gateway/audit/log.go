package audit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/audit/people"
)

const (
	// syncEvery is the pace of Run. A written record is on its way to the
	// disk within 100 ms, with room for a late timer.
	syncEvery = 50 * time.Millisecond
	// gatherFor is how long Run lets noted records come together, so that they
	// share a write(2). The next Append takes them along sooner.
	gatherFor = 2 * time.Millisecond
	// placeEvery is how often Run looks whether the file is still in its place.
	placeEvery = time.Second
)

var errClosed = errors.New("the audit log is closed")

// Log is an open decision log. Its methods are safe for concurrent use.
type Log struct {
	path string
	now  func() time.Time
	log  *slog.Logger
	f    *os.File
	// people seal personal data; nil leaves it in the open.
	people   *people.Keys
	unopened unopened
	clock    clock
	newest   time.Time // of the last record that was there at Open
	// How bytes reach f. Tests put a failing disk here before first use.
	write     func([]byte) (int, error)
	truncate  func(int64) error
	sync      func() error
	syncNames func(dir *os.File) error

	// smu guards synced and syncing. mu may be taken with it held.
	smu     sync.Mutex
	synced  uint64     // the last record that is known to be on the disk
	syncing bool       // a sync is under way; Close does not close under it
	done    *sync.Cond // of smu: a sync has ended

	// mu is held while anything is written; it guards what follows.
	mu     sync.Mutex
	seq    uint64    // of the last record
	first  uint64    // of the first record in the file
	began  time.Time // of that record
	size   int64     // of the file, up to and with the last whole record
	torn   bool      // bytes of a failed write may stand behind size
	closed bool
	fatal  error // a failed fsync; for ever
	away   error // the file is not where it was
	down   error // the last write failed
	downAt time.Time
	denied uint64 // Appends that failed since downAt
	buf    []byte // scratch of commit
	ends   []int
	bodies [][]byte     // scratch of writeGroup
	spare  []*appending // an empty group
	// unbegun is why the day's file could not be begun when that was tried last.
	unbegun error

	// gmu guards group and leading. Taken after mu or alone, held for moments
	// only.
	gmu     sync.Mutex
	group   []*appending // wait to be written
	leading bool         // one of them is at it, or told to be

	// qmu guards queue. Taken after mu or alone, held for moments only.
	qmu   sync.Mutex
	queue queue
	wake  chan struct{} // capacity 1: there is something for Run

	// fmu guards folders: who has folds to write. Held for moments only.
	fmu     sync.Mutex
	folders map[*Refusals]struct{}

	appends  sync.Pool // of *appending
	appended atomic.Uint64
	lost     atomic.Uint64
}

// Run writes noted records as they come and syncs the file within 100 ms of a
// write, until ctx is cancelled; then it writes and syncs what is left and
// returns nil. A failed fsync is returned at once and closes the log to
// further records: after one, nobody knows what the disk holds, and asking
// again may wrongly say yes. The process must end.
func (l *Log) Run(ctx context.Context) error {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	place := time.NewTicker(placeEvery)
	defer place.Stop()
	gather, gathering := time.NewTimer(gatherFor), true
	defer gather.Stop()
	for {
		select {
		case <-ctx.Done():
			l.finish()
			return l.fsync()
		case <-l.wake:
			if !gathering {
				gather.Reset(gatherFor)
				gathering = true
			}
		case <-gather.C:
			gathering = false
			l.drain()
		case <-place.C:
			l.checkPlace()
			if err := l.rotateIfDue(); err != nil {
				return err
			}
		case <-tick.C:
			l.writeFolds(false)
			l.drain()
			if err := l.fsync(); err != nil {
				return err
			}
		}
	}
}

// Healthy returns nil, or why the next Append would probably fail. While Run
// runs, a log that can be written again becomes healthy by itself.
func (l *Log) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.usable(); err != nil {
		return err
	}
	return l.down
}

// Appended returns how many records this Log wrote since it was opened.
func (l *Log) Appended() uint64 { return l.appended.Load() }

// Lost returns how many noted records were lost since it was opened.
func (l *Log) Lost() uint64 { return l.lost.Load() }

// Pending returns how many noted records wait to be written.
func (l *Log) Pending() int {
	l.qmu.Lock()
	defer l.qmu.Unlock()
	return len(l.queue.notes)
}

// Path returns the name of the log's file.
func (l *Log) Path() string { return l.path }

// Close writes what is queued, syncs and closes the file. Run must have
// returned. Its error says what could not be kept.
func (l *Log) Close() error {
	l.finish()
	err := l.fsync()
	l.smu.Lock()
	defer l.smu.Unlock()
	for l.syncing {
		l.done.Wait()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	why := cmp.Or(l.fatal, l.away, l.down)
	if n := l.Pending(); n > 0 {
		err = errors.Join(err, fmt.Errorf("closing the audit log: %d records could not be written: %w", n, why))
	}
	l.fmu.Lock()
	sources := len(l.folders)
	l.fmu.Unlock()
	if sources > 0 {
		err = errors.Join(err, fmt.Errorf("closing the audit log: refusals of %d sources were counted and could not be written: %w", sources, why))
	}
	if cerr := l.f.Close(); cerr != nil { // gives the lock back too
		err = errors.Join(err, fmt.Errorf("closing the audit log: %w", cerr))
	}
	return err
}

// finish writes what is queued and folded. The queue may be too short for all
// folds at once; it ends when nothing more can be written.
func (l *Log) finish() {
	for none := false; !none; {
		none = l.writeFolds(true)
		before := l.Appended()
		l.drain()
		if l.Appended() == before {
			return
		}
	}
}

func (l *Log) drain() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.qmu.Lock()
	idle := l.queue.empty() && l.down == nil
	l.qmu.Unlock()
	if !idle {
		l.flush() // what fails stays queued, and Healthy tells
	}
}

// usable returns why nothing may be written at all. mu is held.
func (l *Log) usable() error {
	switch {
	case l.closed:
		return errClosed
	case l.fatal != nil:
		return l.fatal
	}
	return l.away
}

// flush makes a log that failed writable again, and writes what is queued now
// and then what was lost. mu is held.
func (l *Log) flush() error {
	if err := l.usable(); err != nil {
		return err
	}
	l.qmu.Lock()
	left := len(l.queue.notes) // not more: others may go on noting
	l.qmu.Unlock()
	if err := l.saveKeys(); err != nil {
		return err
	}
	if err := l.recover(); err != nil {
		return err
	}
	for left > 0 {
		l.qmu.Lock()
		batch := l.queue.batch(left)
		l.qmu.Unlock()
		n, err := l.commit(batch)
		l.qmu.Lock()
		l.queue.drop(n)
		l.qmu.Unlock()
		if err != nil {
			return err
		}
		left -= n
	}
	return l.tellLost()
}

// saveKeys stores the keys of what is about to be written: a record whose key
// is lost is as good as erased. mu is held.
func (l *Log) saveKeys() error {
	if l.people == nil {
		return nil
	}
	if err := l.people.Save(); err != nil {
		return l.failed(err)
	}
	return nil
}

// recover writes that the log was unwritable, which proves that it no longer
// is. mu is held.
func (l *Log) recover() error {
	if l.down == nil {
		return nil
	}
	body, err := encode(&Record{
		Time: l.now().Round(0), Kind: KindRecovered,
		Detail: map[string]string{
			"since":   l.downAt.UTC().Format(time.RFC3339Nano),
			"cause":   l.down.Error(),
			"refused": strconv.FormatUint(l.denied, 10),
		},
	})
	if err != nil {
		return err
	}
	if _, err := l.commit([][]byte{body}); err != nil {
		return err
	}
	l.log.Info("the audit log can be written again", "since", l.downAt)
	l.down, l.denied = nil, 0
	return nil
}

// tellLost records how many noted records were lost. mu is held.
func (l *Log) tellLost() error {
	l.qmu.Lock()
	lost := l.queue.lost
	l.qmu.Unlock()
	if lost.count == 0 {
		return nil
	}
	body, err := encode(&Record{Time: l.now().Round(0), Kind: KindLost, Detail: lost.detail()})
	if err != nil {
		return err
	}
	if _, err := l.commit([][]byte{body}); err != nil {
		return err
	}
	l.qmu.Lock()
	l.queue.told(lost)
	l.qmu.Unlock()
	return nil
}

// commit writes one line for each body with a single write(2), and returns how
// many of them are in the file. Only those have a number; the bytes of a line
// that did not fit are cut off again, now or before the next write. mu is held.
func (l *Log) commit(bodies [][]byte) (int, error) {
	if l.torn {
		if err := l.cutBack(); err != nil {
			return 0, l.failed(err)
		}
	}
	if cap(l.buf) > 4<<20 {
		l.buf = nil
	}
	buf := l.buf[:0]
	ends := l.ends[:0]
	for i, b := range bodies {
		buf = appendLine(buf, l.seq+uint64(i)+1, b)
		ends = append(ends, len(buf))
	}
	l.buf, l.ends = buf, ends
	n, err := l.write(buf)
	whole := 0
	for whole < len(ends) && ends[whole] <= n {
		whole++
	}
	if whole > 0 {
		if l.size == 0 {
			l.first, l.began = l.seq+1, l.now()
		}
		l.seq += uint64(whole)
		l.size += int64(ends[whole-1])
		l.appended.Add(uint64(whole))
	}
	if whole == len(bodies) {
		return whole, nil
	}
	if err == nil {
		err = io.ErrShortWrite
	}
	l.torn = true
	if cerr := l.cutBack(); cerr != nil {
		err = errors.Join(err, cerr)
	}
	return whole, l.failed(err)
}

// cutBack removes what a failed write left behind the last whole record. mu is
// held.
func (l *Log) cutBack() error {
	if err := l.truncate(l.size); err != nil {
		return fmt.Errorf("cutting an unfinished record off: %w", err)
	}
	l.torn = false
	return nil
}

// failed notes that the log cannot be written. mu is held.
func (l *Log) failed(err error) error {
	if l.down == nil {
		l.downAt = l.now()
		l.log.Error("the audit log cannot be written; nothing new is granted until it can", "err", err)
	}
	l.down = err
	return err
}

// fsync syncs what was written since the last time.
func (l *Log) fsync() error {
	l.mu.Lock()
	seq, fatal, closed := l.seq, l.fatal, l.closed
	l.mu.Unlock()
	if closed {
		return fatal
	}
	return l.syncTo(seq)
}

// syncTo returns nil when record seq is on the disk. Whoever finds no sync
// under way makes one, for all that has been written; the others wait for one
// that began late enough.
func (l *Log) syncTo(seq uint64) error {
	l.smu.Lock()
	defer l.smu.Unlock()
	for l.synced < seq {
		if l.syncing {
			l.done.Wait()
			continue
		}
		l.syncing = true
		l.smu.Unlock()
		written, err := l.syncWritten()
		l.smu.Lock()
		l.syncing = false
		l.done.Broadcast()
		if err != nil {
			return err
		}
		l.synced = written
	}
	return nil
}

// syncWritten syncs the file and returns the last record that it is sure of.
// One goroutine runs it at a time.
func (l *Log) syncWritten() (uint64, error) {
	l.mu.Lock()
	seq, fatal, closed := l.seq, l.fatal, l.closed
	l.mu.Unlock()
	switch {
	case fatal != nil:
		return 0, fatal // asked again, the kernel may wrongly say yes
	case closed:
		return 0, errClosed
	}
	if err := l.sync(); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		return 0, l.fail(err)
	}
	return seq, nil
}

// fail closes the log for ever after a failed sync. mu is held.
func (l *Log) fail(err error) error {
	l.fatal = fmt.Errorf("syncing the audit log: %w; what of its last records is on the disk is not known, so nothing more is granted and the gateway stops: check the disk before it is started again", err)
	return l.fatal
}

// checkPlace sees whether the file under the log's name is still the one that
// is written to, and exactly as long as it must be. Otherwise records would vanish
// with the file, so nothing is granted until it is back.
func (l *Log) checkPlace() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	was := l.away
	l.away = l.place()
	switch {
	case was == nil && l.away != nil:
		if l.down == nil {
			l.down, l.downAt = l.away, l.now()
		}
		l.log.Error("the audit log is not in its place; nothing new is granted", "err", l.away)
	case was != nil && l.away == nil:
		l.log.Info("the audit log is in its place again")
	}
}

func (l *Log) place() error {
	open, err := l.f.Stat()
	if err != nil {
		return fmt.Errorf("looking at the audit log: %w", err)
	}
	named, err := os.Stat(l.path)
	switch {
	case err != nil:
		return fmt.Errorf("%s was moved or removed while the gateway wrote to it: put it back, or restart: %w", l.path, err)
	case !os.SameFile(open, named):
		return fmt.Errorf("%s was replaced while the gateway wrote to it: put it back, or restart", l.path)
	case open.Size() != l.size && !l.torn:
		return fmt.Errorf("%s was changed by someone else (%d bytes, must be %d): restart the gateway", l.path, open.Size(), l.size)
	}
	return nil
}
