package audit

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

const (
	followEvery = 100 * time.Millisecond
	// settle is how often Follow reads a line that is no record again: a
	// reader may see the middle of a write.
	settle = 10
)

// ErrLineTooLong says that something in a log is longer than any record.
var ErrLineTooLong = fmt.Errorf("a line is longer than %d bytes", MaxLine)

// parseLine reads one line without its newline. Members it does not know are
// passed over: later versions add some.
func parseLine(line []byte) (*Record, error) {
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return nil, err
	}
	switch {
	case r.Seq == 0:
		return nil, errors.New("it has no seq")
	case r.Kind == "":
		return nil, errors.New("it has no kind")
	case r.Time.IsZero():
		return nil, errors.New("it has no time")
	}
	return &r, nil
}

// Scan reads the records of a log in order and calls fn for each, until fn
// returns false. line is without its newline and, like what r points to, only
// valid during the call. An unfinished last line is passed over: a writer may
// be at work. A line in the middle that is no record is an error.
func Scan(path string, fn func(line []byte, r *Record) bool) error {
	all, err := openSegments(path, 0)
	if err != nil {
		return fmt.Errorf("reading the audit log: %w", err)
	}
	defer closeSegments(all)
	more := true
	for _, s := range all {
		_, err := scan(s.file, func(line []byte, r *Record) bool {
			more = fn(line, r)
			return more
		})
		if err != nil {
			return fmt.Errorf("reading the audit log %s: %w", s.path, err)
		}
		if !more {
			break
		}
	}
	return nil
}

// scan is Scan from a reader. It returns how many bytes the records took that
// fn was called for.
func scan(rd io.Reader, fn func([]byte, *Record) bool) (int64, error) {
	br := bufio.NewReaderSize(rd, 64<<10)
	var off int64
	var bad error // of the last line, if it was no record
	for n := 1; ; n++ {
		line, err := readLine(br)
		if errors.Is(err, io.EOF) {
			return off, nil
		}
		if err != nil {
			return off, fmt.Errorf("line %d: %w", n, err)
		}
		if bad != nil {
			return off, bad
		}
		r, err := parseLine(line)
		if err != nil {
			bad = fmt.Errorf("line %d (byte %d) is not a record: %w", n, off, err)
			continue
		}
		size := int64(len(line)) + 1
		if !fn(line, r) {
			return off + size, nil
		}
		off += size
	}
}

// readLine returns the next line that has its newline, without it. The end of
// the file, also in the middle of a line, is io.EOF.
func readLine(br *bufio.Reader) ([]byte, error) {
	line, err := br.ReadSlice('\n')
	if err == nil {
		return line[:len(line)-1], nil
	}
	var long []byte
	for errors.Is(err, bufio.ErrBufferFull) {
		if long = append(long, line...); len(long) > MaxLine {
			return nil, ErrLineTooLong
		}
		line, err = br.ReadSlice('\n')
	}
	if err != nil {
		return nil, err
	}
	return append(long, line[:len(line)-1]...), nil
}

// Follow is Scan that goes on: it waits for further records until ctx is
// cancelled or fn returns false, and returns nil then. With fromEnd it begins
// behind the last record that is there now. A log that is shortened, moved or
// replaced under it is an error.
func Follow(ctx context.Context, path string, fromEnd bool, fn func(line []byte, r *Record) bool) error {
	fl := follower{path: path, fn: fn}
	if err := fl.begin(fromEnd); err != nil {
		return fmt.Errorf("following the audit log %s: %w", path, err)
	}
	defer func() { _ = fl.f.Close() }() // only read
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		done, next, err := fl.poll()
		if err != nil {
			return fmt.Errorf("following the audit log %s: %w", path, err)
		}
		if done {
			return nil
		}
		if next {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// follower is the state of one Follow: off is behind the last record that fn
// has seen, and only moves over whole ones.
type follower struct {
	f    *os.File
	path string
	fn   func([]byte, *Record) bool
	off  int64
	bad  int // polls in a row that ended at a line that is no record
}

// begin opens the first file of the log, or the last one at its end.
func (fl *follower) begin(fromEnd bool) (err error) {
	if fromEnd {
		if fl.f, err = os.Open(fl.path); err != nil {
			return err
		}
		if _, fl.off, _, err = lastRecord(fl.f); err != nil {
			return errors.Join(err, fl.f.Close())
		}
		return nil
	}
	all, err := openSegments(fl.path, 0)
	if err != nil {
		return err
	}
	fl.f = all[0].file
	closeSegments(all[1:])
	return nil
}

// poll reads what is new; next says that it has come to the next file.
func (fl *follower) poll() (done, next bool, err error) {
	// Looked at before reading: what was written before a move is still read.
	after, placeErr := fl.place()
	if after != "" {
		defer func() {
			if err == nil && !done && fl.bad == 0 {
				next, err = true, fl.goOn(after)
			}
		}()
	}
	st, err := fl.f.Stat()
	if err != nil {
		return false, false, err
	}
	if st.Size() < fl.off {
		return false, false, fmt.Errorf("it was shortened from %d to %d bytes", fl.off, st.Size())
	}
	n, err := scan(io.NewSectionReader(fl.f, fl.off, st.Size()-fl.off), func(line []byte, r *Record) bool {
		done = !fl.fn(line, r)
		return !done
	})
	fl.off += n
	if n > 0 {
		fl.bad = 0
	}
	if done {
		return true, false, nil
	}
	if err != nil {
		if fl.bad++; fl.bad > settle {
			return false, false, err
		}
	}
	return false, false, placeErr
}

// goOn takes the next file.
func (fl *follower) goOn(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	old := fl.f
	fl.f, fl.off, fl.bad = f, 0, 0
	return old.Close()
}

// place says which file comes after the one that is open, when that is closed.
func (fl *follower) place() (after string, err error) {
	open, err := fl.f.Stat()
	if err != nil {
		return "", err
	}
	named, namedErr := os.Stat(fl.path)
	if namedErr == nil && os.SameFile(open, named) {
		return "", nil
	}
	closed, err := closedSegments(fl.path)
	if err != nil {
		return "", err
	}
	for i, s := range closed {
		st, err := os.Stat(s.path)
		switch {
		case err != nil || !os.SameFile(open, st):
		case i+1 < len(closed):
			return closed[i+1].path, nil
		case namedErr == nil:
			return fl.path, nil
		default:
			return "", nil // it is about to come
		}
	}
	if namedErr != nil {
		return "", fmt.Errorf("it was moved or removed: %w", namedErr)
	}
	return "", errors.New("it was replaced by another file: follow it anew")
}

// Find returns the record with that sequence number or decision ID, and its
// line, both revealed. Several records may name one decision; the one that
// carries its Input is preferred, then the earliest. Of decisions that were
// folded the first and the last are found.
func (l *Log) Find(idOrSeq string) ([]byte, *Record, error) {
	seq, err := strconv.ParseUint(idOrSeq, 10, 64)
	isSeq := err == nil && seq > 0
	var found []byte
	var record *Record
	var revealing error
	err = Scan(l.path, func(line []byte, r *Record) bool {
		isIt := isSeq && r.Seq == seq
		if !isIt && !r.Names(idOrSeq) {
			return true
		}
		var shown []byte
		if shown, revealing = l.Reveal(line, r); revealing != nil {
			return false
		}
		if found == nil || isIt || r.Input != nil {
			found, record = bytes.Clone(shown), r
		}
		return !isIt && r.Input == nil
	})
	if err := errors.Join(err, revealing); err != nil {
		return nil, nil, err
	}
	if found == nil {
		return nil, nil, fmt.Errorf("finding %q in %s: %s", idOrSeq, l.path, NotFound)
	}
	return found, record, nil
}
