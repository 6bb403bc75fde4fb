package transport

import (
	"net"

	"golang.org/x/sys/unix"
)

// unsentLimit is how many bytes wait in the kernel to be sent for the first
// time. It does not bound what is under way.
const unsentLimit = 16 << 10

func setUnsentLimit(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	// The connection works without.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentLimit)
	})
}
