//go:build unix

package state

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func checkOwned(st fs.FileInfo, path, what, mode string) error {
	if sys, ok := st.Sys().(*syscall.Stat_t); !ok || int(sys.Uid) != os.Geteuid() {
		owner := "someone else"
		if ok {
			owner = fmt.Sprintf("uid %d", sys.Uid)
		}
		return fmt.Errorf("the state %s %s belongs to %s and not to the user running this (uid %d); refusing to use it", what, path, owner, os.Geteuid())
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return fmt.Errorf("the state %s %s may be used by others (mode %04o); run: chmod %s %s", what, path, perm, mode, path)
	}
	return nil
}

func lockFile(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return ErrLocked
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
