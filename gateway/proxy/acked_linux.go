package proxy

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// acked is how many bytes the other end of a TCP connection has acknowledged.
// The kernel wakes a writer only once a third of its buffer is free, which takes
// a slow reader long.
func acked(c syscall.Conn) (n uint64) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) {
		if info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			n = info.Bytes_acked
		}
	})
	return n
}
