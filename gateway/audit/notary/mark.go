package notary

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// FileMark is beside the signing key: a copy of the latest checkpoint, or nothing
// while nothing was signed. Who can write to the log's directory, and not to the
// key's, can neither take away that something was signed nor put an older
// checkpoint in its place.
const FileMark = "checkpoint.mark"

func markOf(keyFile string) string { return filepath.Join(filepath.Dir(keyFile), FileMark) }

// founded makes the mark of a key that is about to be made, before it. So a key
// without a mark is one of a version that kept none.
func founded(keyFile string) error {
	mark := markOf(keyFile)
	for _, path := range []string{keyFile, mark} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return err // nil: there is one
		}
	}
	err := writeWhole(mark, nil, 0o600)
	if err == nil {
		err = syncDir(filepath.Dir(mark))
	}
	if err != nil {
		return fmt.Errorf("marking that nothing is signed yet: %w", err)
	}
	return nil
}

// mark reads what was signed last; known says that there is a mark.
func (n *Notary) mark() (last Checkpoint, known bool, err error) {
	path := markOf(n.cfg.KeyFile)
	msg, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Checkpoint{}, false, nil
	case err != nil:
		return Checkpoint{}, false, fmt.Errorf("reading what was signed last: %w", err)
	case len(msg) == 0:
		return Checkpoint{}, true, nil
	}
	last, err = n.open(msg)
	if err != nil {
		return Checkpoint{}, false, fmt.Errorf("%s: %w: %s is not the key that signed the log; restore it from a backup, or, if there is none, %s", path, err, n.cfg.KeyFile, n.anew())
	}
	return last, true, nil
}

// keepMark keeps a checkpoint that is in its place as the last one.
func (n *Notary) keepMark(msg []byte) error {
	err := syncDir(n.cfg.Dir) // or a power failure could leave the mark alone
	if err == nil {
		err = writeWhole(markOf(n.cfg.KeyFile), msg, 0o600)
	}
	if err != nil {
		return fmt.Errorf("marking what was signed last: %w", err)
	}
	return nil
}

// anew says how to give up what was signed: by somebody who may write to the
// key's directory.
func (n *Notary) anew() string {
	return fmt.Sprintf("stop the gateway and move %s, %s and %s away: then a new log begins, with a new key", filepath.Dir(n.cfg.LogFile), n.cfg.KeyFile, markOf(n.cfg.KeyFile))
}

// open checks and reads a checkpoint of this notary's.
func (n *Notary) open(msg []byte) (Checkpoint, error) {
	v, err := ParseVerifier(n.public)
	if err != nil {
		return Checkpoint{}, err
	}
	return OpenCheckpoint(msg, v)
}

// syncDir makes the names in dir survive a crash of the machine.
func syncDir(dir string) error { return onOpen(dir, (*os.File).Sync) }

// onOpen does something with an open file or directory.
func onOpen(path string, do func(*os.File) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}
