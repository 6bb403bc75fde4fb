package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A log is a chain of files: closed ones, named by the number of their first
// record, and the one that is written to. The first of them are removed when
// their records are old enough.
const (
	segmentBegin = "audit-"
	segmentEnd   = ".jsonl"
)

// segment is one file of a log. Of a closed one the name says the first number.
type segment struct {
	path  string
	first uint64 // 0: the active one, if it is empty
	file  *os.File
}

// segmentName is the name of a closed segment whose first record has that
// number; names sort as numbers do.
func segmentName(first uint64) string {
	return fmt.Sprintf("%s%020d%s", segmentBegin, first, segmentEnd)
}

// closedSegments lists the closed segments beside the active file, in order.
func closedSegments(path string) ([]segment, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var out []segment
	for _, e := range entries { // sorted by name
		number, ok := strings.CutPrefix(e.Name(), segmentBegin)
		if number, ok2 := strings.CutSuffix(number, segmentEnd); ok && ok2 && len(number) == 20 {
			if first, err := strconv.ParseUint(number, 10, 64); err == nil && first > 0 {
				out = append(out, segment{path: filepath.Join(filepath.Dir(path), e.Name()), first: first})
			}
		}
	}
	return out, nil
}

// openSegments opens the files of a log. A rotation meanwhile neither hides a
// record nor shows one twice: the active file is opened first, and what it has
// become since is not taken again. For a moment of a rotation, or after a crash
// in it, there is none. Closed files that begin before the record from are left out:
// a reader that follows the log comes often, and there may be a thousand.
func openSegments(path string, from uint64) (_ []segment, err error) {
	active, missing := os.Open(path)
	if missing != nil && !errors.Is(missing, os.ErrNotExist) {
		return nil, missing
	}
	var all []segment
	defer func() {
		if err != nil {
			closeSegments(all)
		}
	}()
	var st os.FileInfo
	if missing == nil {
		all = []segment{{path: path, file: active}}
		if all[0].first, err = firstRecord(active); err != nil {
			return nil, err
		}
		if st, err = active.Stat(); err != nil {
			return nil, err
		}
	}
	closed, err := closedSegments(path)
	if err != nil {
		return nil, err
	}
	if missing != nil && len(closed) == 0 {
		return nil, missing
	}
	for _, s := range slices.Backward(closed) {
		if s.first < from {
			break
		}
		f, err := os.Open(s.path)
		if errors.Is(err, os.ErrNotExist) {
			continue // just removed: it was the oldest
		}
		if err != nil {
			return nil, err
		}
		s.file = f
		other, err := f.Stat()
		if err != nil || st != nil && os.SameFile(st, other) {
			if err := errors.Join(err, f.Close()); err != nil {
				return nil, err
			}
			continue
		}
		all = slices.Insert(all, 0, s)
	}
	return all, nil
}

func closeSegments(all []segment) {
	for _, s := range all {
		_ = s.file.Close() // only read
	}
}

// unreadable stands for the number of a first record that is none: whoever
// reads on says what is wrong with it.
const unreadable = 1 << 63

// firstRecord reads the number of the first record of a file, 0 when it has
// none yet.
func firstRecord(f *os.File) (uint64, error) {
	line, err := readLine(bufio.NewReaderSize(io.NewSectionReader(f, 0, 1<<62), 4096))
	switch {
	case errors.Is(err, io.EOF):
		return 0, nil
	case errors.Is(err, ErrLineTooLong):
		return unreadable, nil
	case err != nil:
		return 0, err
	}
	if seq, ok := Sequence(line); ok {
		return seq, nil
	}
	return unreadable, nil
}

// First returns the number of the first record that is there; 1 when there is
// none yet.
func First(path string) (uint64, error) {
	all, err := openSegments(path, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the decision log: %w", err)
	}
	defer closeSegments(all)
	if first := all[0].first; first != unreadable {
		return max(1, first), nil
	}
	return 1, nil
}

// Sequence reads a line's number. It is the line's first member, always.
func Sequence(line []byte) (uint64, bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok {
		return 0, false
	}
	digits, _, ok := bytes.Cut(rest, []byte(","))
	if !ok || len(digits) > 19 {
		return 0, false
	}
	seq, err := strconv.ParseUint(string(digits), 10, 63)
	return seq, err == nil && seq > 0
}

// Place is how far a reader has come: in which file, named by the number of its
// first record, and the first byte it has not read. The zero Place is looked
// for.
type Place struct {
	Segment uint64 `json:"segment"`
	Offset  int64  `json:"offset"`
}

var (
	// ErrShorter says that a log ends before what was read of it.
	ErrShorter = errors.New("the decision log is shorter than it was")
	// ErrRemoved says that the records asked for were removed, as retention does.
	ErrRemoved = errors.New("the decision log begins later")
)

// Lines calls fn for each line behind the record numbered after that has its
// newline, without it, until fn returns false or an error. at is where the reader
// is: behind the last line for which fn returned true. fn judges the lines; in a
// log that is whole their numbers are after+1 and so on.
func Lines(path string, after uint64, at *Place, fn func(line []byte) (bool, error)) error {
	all, err := openSegments(path, at.Segment)
	if err != nil {
		return fmt.Errorf("reading the decision log: %w", err)
	}
	defer func() { closeSegments(all) }()
	i := slices.IndexFunc(all, func(s segment) bool { return at.Segment != 0 && s.first == at.Segment })
	last, looking := after, i < 0
	if looking && at.Segment != 0 { // where the reader was is gone
		closeSegments(all)
		if all, err = openSegments(path, 0); err != nil {
			return fmt.Errorf("reading the decision log: %w", err)
		}
	}
	if looking {
		if i, err = segmentOf(all, after); err != nil {
			return err
		}
		last, *at = 0, Place{Segment: all[i].first}
	}
	stopped := false
	for _, s := range all[i:] {
		if s.first != at.Segment {
			if s.first == 0 {
				break // nothing is in it yet
			}
			*at = Place{Segment: s.first}
		}
		st, err := s.file.Stat()
		switch {
		case err != nil || st.Size() < at.Offset:
			return errors.Join(err, ErrShorter)
		case st.Size() == at.Offset:
			continue // nothing came
		}
		err = lines(io.NewSectionReader(s.file, at.Offset, 1<<62), func(line []byte) (bool, error) {
			if looking {
				seq, ok := Sequence(line)
				last = seq
				if looking = ok && seq < after; ok && seq <= after {
					at.Offset += int64(len(line)) + 1
					return true, nil
				}
			}
			if more, err := fn(line); err != nil || !more {
				stopped = true
				return false, err
			}
			at.Offset += int64(len(line)) + 1
			return true, nil
		})
		if err != nil || stopped {
			return err
		}
	}
	if last < after {
		return fmt.Errorf("%w: it ends with record %d, and record %d was there", ErrShorter, last, after)
	}
	return nil
}

// segmentOf finds the file with the record behind the one numbered after.
func segmentOf(all []segment, after uint64) (int, error) {
	for i, s := range slices.Backward(all) {
		if s.first != 0 && s.first <= after+1 {
			return i, nil
		}
	}
	if first := all[0].first; first != 0 && first != unreadable {
		return 0, fmt.Errorf("%w: with record %d", ErrRemoved, first)
	}
	return 0, nil // it can be no other
}

// Unended names the first closed file of a log that does not end with a line's
// newline, if there is one. The gateway closes none like that, and whoever added
// something there need not have touched a line.
func Unended(path string) (file string, err error) {
	closed, err := closedSegments(path)
	if err != nil {
		return "", fmt.Errorf("reading the decision log: %w", err)
	}
	for _, s := range closed {
		ended, err := endsInNewline(s.path)
		switch {
		case errors.Is(err, os.ErrNotExist): // just removed: it was the oldest
		case err != nil:
			return "", fmt.Errorf("reading the decision log: %w", err)
		case !ended:
			return s.path, nil
		}
	}
	return "", nil
}

func endsInNewline(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return false, err
	}
	b := make([]byte, 1)
	_, err = f.ReadAt(b, st.Size()-1)
	return b[0] == '\n', err
}

// FileOf returns the number of the first record in the file that holds a record,
// if the log is whole.
func FileOf(path string, seq uint64) (first uint64, err error) {
	all, err := openSegments(path, 0)
	if err != nil {
		return 0, fmt.Errorf("reading the decision log: %w", err)
	}
	defer closeSegments(all)
	i, err := segmentOf(all, seq-1)
	if err != nil {
		return 0, err
	}
	if first = all[i].first; first == 0 || first == unreadable {
		first = 1
	}
	return first, nil
}

// lines calls fn for each line that has its newline, without it, until fn
// returns false or an error.
func lines(r io.Reader, fn func(line []byte) (bool, error)) error {
	buf := make([]byte, 0, 1<<20)
	for {
		if len(buf) == cap(buf) {
			if cap(buf) >= 2*MaxLine {
				return fmt.Errorf("reading the decision log: %w", ErrLineTooLong)
			}
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		done := 0
		for {
			end := bytes.IndexByte(buf[done:], '\n')
			if end < 0 {
				break
			}
			more, err := fn(buf[done : done+end])
			if err != nil || !more {
				return err
			}
			done += end + 1
		}
		buf = buf[:copy(buf, buf[done:])]
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the decision log: %w", err)
		}
	}
}
