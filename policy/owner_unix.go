//go:build unix

package policy

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// openPlain opens for reading without waiting for a pipe's writer.
func openPlain(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// ownedProperly refuses what someone other than this process's user or root
// could have written: whoever writes policy decides who gets in.
func ownedProperly(path string, info fs.FileInfo) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Problems{{File: path, Text: "owner cannot be told on this file system"}}
	}
	uid := os.Geteuid()
	if int(st.Uid) != 0 && int(st.Uid) != uid {
		return Problems{{File: path, Text: fmt.Sprintf("wanted owner uid %d (this service's user) or 0 (root), found uid %d; run: chown %d %s", uid, st.Uid, uid, shellQuote(path))}}
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return Problems{{File: path, Text: fmt.Sprintf("wanted a mode that only the owner may write, found %#o; run: chmod go-w %s", mode, shellQuote(path))}}
	}
	return nil
}

// identity tells a file from another one of the same name.
func identity(info fs.FileInfo) string {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf("%d %d %d %d", st.Dev, st.Ino, st.Uid, st.Gid)
	}
	return ""
}
