package audit

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/portvakt/portvakt/gateway/audit/people"
)

// FileName is the name of the log inside its directory.
const FileName = "audit.jsonl"

// maxTorn bounds what Open is willing to move aside, in bytes.
const maxTorn = 2 * MaxLine

// Options say where a Log is kept.
type Options struct {
	// Dir holds audit.jsonl. It is made (0700) if it is missing, and refused
	// if others may write to it.
	Dir string
	// Now is the clock of the records; nil means time.Now.
	Now func() time.Time
	// People seal the personal data in records; nil leaves it in the open.
	People *people.Keys
	// Log is told of trouble with the log itself; nil means nobody.
	Log *slog.Logger
}

// Open opens or creates the log and goes on with the number after the last
// record. An unfinished last line, which only a crash in the middle of a write
// leaves behind, is moved to audit.torn-TIME.jsonl and recorded. A log that
// another process has open is refused.
func Open(opt Options) (*Log, error) {
	l := &Log{
		path: filepath.Join(opt.Dir, FileName), now: opt.Now, log: opt.Log, people: opt.People,
		wake: make(chan struct{}, 1), folders: map[*Refusals]struct{}{},
	}
	l.done, l.appends.New = sync.NewCond(&l.smu), newAppending
	l.clock.path, l.clock.trusted = filepath.Join(opt.Dir, clockFile), make(chan struct{}, 1)
	if l.now == nil {
		l.now = time.Now
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if err := prepareDir(opt.Dir); err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	f, err := openFile(l.path)
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	l.use(f)
	l.syncNames = (*os.File).Sync
	if err := l.resume(opt.Dir); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the audit log: %w", err), f.Close())
	}
	return l, nil
}

func prepareDir(dir string) error {
	if dir == "" {
		return errors.New("no directory is named")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("others may write to %s (mode %04o): run chmod 700 %s", dir, st.Mode().Perm(), dir)
	}
	return nil
}

// openFile opens the log for appending and takes its lock.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("%s is in use by another process; only one gateway may write to it", path)
	}
	var st fs.FileInfo
	if err == nil {
		st, err = f.Stat()
	}
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", path)
	case st.Mode().Perm()&0o022 != 0:
		err = fmt.Errorf("others may write to %s (mode %04o): run chmod 600 %s", path, st.Mode().Perm(), path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// resume finds the last record and moves what stands behind it aside.
func (l *Log) resume(dir string) error {
	last, end, tail, err := lastRecord(l.f)
	if err != nil {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	l.seq, l.size, l.synced = last, end, last
	if err := l.findBegin(); err != nil {
		return fmt.Errorf("%s: %w", l.path, err)
	}
	if len(tail) == 0 {
		return syncDir(dir)
	}
	name := filepath.Join(dir, "audit.torn-"+l.now().UTC().Format("20060102T150405.000000000Z")+".jsonl")
	// The copy is on the disk before the original goes: a crash in between
	// leaves two, never none.
	if err := writeNew(name, tail); err != nil {
		return fmt.Errorf("moving an unfinished record aside: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	if err := l.truncate(end); err != nil {
		return fmt.Errorf("cutting an unfinished record off: %w", err)
	}
	l.log.Warn("the audit log ended in an unfinished record, which was moved aside", "bytes", len(tail), "file", name, "seq", last)
	return l.Append(&Record{Kind: KindTorn, Detail: map[string]string{
		"file":   filepath.Base(name),
		"bytes":  strconv.Itoa(len(tail)),
		"sha256": fmt.Sprintf("%x", sha256.Sum256(tail)),
	}})
}

// findBegin finds out with which record the active segment begins; when it is
// empty, the log goes on behind the one before.
func (l *Log) findBegin() error {
	if l.size > 0 {
		last, err := recordBefore(l.f, l.size)
		if err != nil {
			return err
		}
		l.newest = last.Time
		r, err := recordBefore(l.f, 0)
		if err != nil {
			l.log.Warn("the audit log begins with what is no record; it goes on in this file for ever", "err", err)
			return nil
		}
		l.first, l.began = r.Seq, r.Time
		return nil
	}
	closed, err := closedSegments(l.path)
	if err != nil || len(closed) == 0 {
		return err
	}
	r, err := lastOf(closed[len(closed)-1].path)
	if err != nil {
		return err
	}
	l.seq, l.synced, l.newest = r.Seq, r.Seq, r.Time
	return nil
}

// recordBefore reads the record whose line ends at an offset; at 0 the first
// record of the file.
func recordBefore(f *os.File, end int64) (*Record, error) {
	from := max(0, end-MaxLine)
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	b := make([]byte, min(MaxLine, st.Size()))
	if end > 0 {
		b = b[:end-from]
	}
	n, err := f.ReadAt(b, from)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	b = b[:n]
	if end == 0 {
		b, _, _ = bytes.Cut(b, []byte{'\n'})
	} else {
		b = bytes.TrimSuffix(b, []byte{'\n'})
		b = b[bytes.LastIndexByte(b, '\n')+1:]
	}
	r, err := parseLine(b)
	if err != nil {
		return nil, fmt.Errorf("its line at %d is no record: %w", end, err)
	}
	return r, nil
}

// lastRecord returns the number of the last whole record, the offset behind
// its newline, and the bytes behind that. An empty log has number 0.
func lastRecord(f *os.File) (seq uint64, end int64, tail []byte, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, nil, err
	}
	size := st.Size()
	// One more byte in front shows whether the first line read is whole.
	window := min(size, maxTorn+MaxLine)
	b := make([]byte, window)
	if _, err := f.ReadAt(b, size-window); err != nil && !errors.Is(err, io.EOF) {
		return 0, 0, nil, err
	}
	rest := b
	for {
		nl := bytes.LastIndexByte(rest, '\n')
		if nl < 0 {
			break
		}
		start := bytes.LastIndexByte(rest[:nl], '\n') + 1
		if start == 0 && window < size {
			break
		}
		if r, err := parseLine(rest[start:nl]); err == nil {
			end = size - window + int64(nl) + 1
			return r.Seq, end, b[nl+1:], nil
		}
		rest = rest[:start]
	}
	// No record at all. One unfinished line is a crash in the very first
	// write; anything else is no log of ours, or a damaged one, and to start
	// from 1 again over it would hide that.
	if window == size && !bytes.Contains(b, []byte{'\n'}) {
		return 0, 0, b, nil
	}
	return 0, 0, nil, fmt.Errorf("no record in its last %d bytes can be read: move the file away to start a new log, or restore it", window)
}

func writeNew(name string, data []byte) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// syncDir makes the names in dir survive a crash of the machine.
func syncDir(dir string) (err error) {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Sync()
}
