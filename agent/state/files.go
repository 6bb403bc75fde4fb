package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const tempPrefix = ".tmp-"

type file struct {
	name string
	data []byte
}

// replace writes all files beside their places, flushes them, and only then
// moves them into place in the order given. A crash leaves old or new files
// and temporary ones that [Dir.Lock] sweeps; running out of space leaves the
// old ones.
func (d *Dir) replace(files ...file) (err error) {
	var temps []string
	defer func() {
		for _, t := range temps {
			os.Remove(t)
		}
		if errors.Is(err, syscall.ENOSPC) {
			err = fmt.Errorf("%w: the disk is full; make room and try again, nothing was lost", err)
		}
	}()
	for _, f := range files {
		t, err := os.CreateTemp(d.path, tempPrefix+f.name+"-*") // 0600
		if err != nil {
			return err
		}
		temps = append(temps, t.Name())
		_, err = t.Write(f.data)
		if err == nil {
			err = t.Sync()
		}
		if cerr := t.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	for i, f := range files {
		if err := os.Rename(temps[i], d.File(f.name)); err != nil {
			return err
		}
	}
	temps = nil
	return syncDir(d.path)
}

// Lock takes the directory for one running agent, or returns [ErrLocked]. The
// kernel lets go of it when the process dies. Temporary files of a crash are
// removed while it is held.
func (d *Dir) Lock() (release func(), err error) {
	f, err := os.OpenFile(d.File(FileLock), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	if err := lockFile(f); err != nil {
		f.Close()
		if errors.Is(err, ErrLocked) {
			return nil, fmt.Errorf("%w (%s)", err, d.path)
		}
		return nil, fmt.Errorf("locking the state directory: %w", err)
	}
	if entries, err := os.ReadDir(d.path); err == nil {
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), tempPrefix) {
				os.Remove(filepath.Join(d.path, e.Name()))
			}
		}
	}
	return func() { f.Close() }, nil
}
