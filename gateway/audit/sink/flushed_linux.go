package sink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errUnacknowledged = errors.New("the other machine did not acknowledge what was sent")

// flushed waits until the other machine has acknowledged every byte: the
// kernel's send queue is empty (tcp(7), SIOCOUTQ). A write that succeeded says
// only that the bytes are in that queue.
func flushed(ctx context.Context, c net.Conn, limit time.Duration) error {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no send queue to look at", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	for end := time.Now().Add(limit); ; {
		var left, soerr int
		var qerr error
		err := raw.Control(func(fd uintptr) {
			if left, qerr = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ); qerr == nil {
				soerr, qerr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			}
		})
		switch {
		case err != nil || qerr != nil:
			return errors.Join(err, qerr)
		case soerr != 0:
			return unix.Errno(soerr)
		case left == 0:
			return nil
		case time.Now().After(end):
			return errUnacknowledged
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}
