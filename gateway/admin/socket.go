package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// listen makes the socket. The caller holds the lock of the data directory, so
// a socket that is there is a dead one's.
func (s *Server) listen(ctx context.Context) (net.Listener, error) {
	switch st, err := os.Lstat(s.cfg.Socket); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case st.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("%s is there and is no socket; name another path, or remove it", s.cfg.Socket)
	default:
		if err := os.Remove(s.cfg.Socket); err != nil {
			return nil, fmt.Errorf("removing the old socket: %w", err)
		}
	}
	if s.cfg.Group == "" {
		return listenPrivate(ctx, s.cfg.Socket)
	}
	return listenGroup(ctx, s.cfg.Socket, s.cfg.Group)
}

// listenPrivate makes the socket unreachable for others from its first moment:
// it is made inside a directory of mode 0700 and its own mode set before use.
func listenPrivate(ctx context.Context, path string) (net.Listener, error) {
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	if dir.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s is open to others; run: chmod 700 %s", filepath.Dir(path), filepath.Dir(path))
	}
	return bind(ctx, path, -1, 0o600)
}

// listenGroup makes a socket for the members of a group, in a directory that
// nobody else may enter and only the gateway may write to.
func listenGroup(ctx context.Context, path, group string) (net.Listener, error) {
	g, err := user.LookupGroup(group)
	if err != nil {
		return nil, fmt.Errorf("admin.group: %w", err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return nil, fmt.Errorf("admin.group: %w", err)
	}
	dir := filepath.Dir(path)
	switch err := os.Mkdir(dir, 0o700); {
	case err == nil:
		if err := errors.Join(os.Chown(dir, -1, gid), os.Chmod(dir, 0o750)); err != nil {
			return nil, fmt.Errorf("giving it to the group (the gateway's user must be root or a member): %w", errors.Join(err, os.Remove(dir)))
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, err
	}
	// A directory that was there is only looked at: it may be one of others.
	st, err := os.Lstat(dir)
	if err != nil {
		return nil, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.IsDir() || int(sys.Uid) != os.Geteuid() || int(sys.Gid) != gid || st.Mode().Perm() != 0o750 {
		return nil, fmt.Errorf("%s must be a directory of the gateway's user and of group %s with mode 0750, for the socket alone; remove it, or run: chgrp %s %s; chmod 750 %s",
			dir, group, group, dir, dir)
	}
	return bind(ctx, path, gid, 0o660)
}

func bind(ctx context.Context, path string, gid int, mode os.FileMode) (net.Listener, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if gid >= 0 {
		err = os.Chown(path, -1, gid)
	}
	if err := errors.Join(err, os.Chmod(path, mode)); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}
