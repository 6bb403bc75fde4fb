// Package helpersock makes the Unix sockets at which the agent's privileged
// helpers answer: for one user, at a name that nobody else can take.
package helpersock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Listen makes a socket that only uid and root can open. network is unix or
// unixpacket; path lies in a directory that passes [CheckDir]. What a helper that
// was killed left there is replaced; one that answers is an error. Without root's
// privilege the socket is the caller's own, whatever uid is.
func Listen(network, path string, uid int) (*net.UnixListener, error) {
	if err := CheckDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&os.ModeSocket != 0 {
		if c, err := net.DialTimeout(network, path, time.Second); err == nil {
			c.Close()
			return nil, fmt.Errorf("another helper answers on %s", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix(network, &net.UnixAddr{Net: network, Name: path})
	if err != nil {
		return nil, err
	}
	// Nobody else may write to the directory, so the name is still ours.
	err = os.Chmod(path, 0o600)
	if err == nil && os.Geteuid() == 0 {
		err = os.Lchown(path, uid, -1)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// CheckDir says whether the names in a directory are this process's user's alone
// to give.
func CheckDir(dir string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s does not exist; run: install -d -m 755 %s", dir, dir)
	}
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s must belong to the helper's user (%d) and not be writable by others", dir, os.Geteuid())
	}
	return nil
}
