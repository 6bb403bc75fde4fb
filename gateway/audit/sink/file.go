package sink

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// file appends records to a file. What a crash left behind the kept size is cut
// off before the next record is written, so that each is there exactly once.
type file struct {
	path string
	size int64 // of what is known to have been written
	f    *os.File
	// keep makes a size the kept one, whatever dies then. A new file gets its
	// first record only when its own size is kept: the one of the file before
	// would not cut off what a crash leaves in it.
	keep func(size int64) error
}

func (d *file) send(_ context.Context, batch []record) error {
	if err := d.open(); err != nil {
		return err
	}
	var text []byte
	for _, r := range batch {
		text = append(text, r.text...)
	}
	_, err := d.f.WriteAt(text, d.size)
	if err == nil {
		err = d.f.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", d.path, err), d.close())
	}
	d.size += int64(len(text))
	return nil
}

// open opens the file, also anew when somebody moved it away: rotation by
// renaming works, and begins a new file.
func (d *file) open() error {
	moved := false
	if d.f != nil {
		here, err := os.Stat(d.path)
		open, oerr := d.f.Stat()
		same := err == nil && oerr == nil && os.SameFile(here, open)
		if same && open.Size() == d.size {
			return nil
		}
		moved = oerr == nil && !same
		if err := d.close(); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(d.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("opening %s: %w", d.path, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	switch {
	case err != nil:
	case moved || size < d.size: // rotated: the rest is elsewhere
		if err = syncDir(filepath.Dir(d.path)); err == nil {
			err = d.keep(size)
		}
		if err == nil {
			d.size = size
		}
	default:
		err = f.Truncate(d.size)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("opening %s: %w", d.path, err), f.Close())
	}
	d.f = f
	return nil
}

// mark implements receiver.
func (d *file) mark(at *position) { at.Size = d.size }

func (d *file) close() error {
	if d.f == nil {
		return nil
	}
	f := d.f
	d.f = nil
	return f.Close()
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
