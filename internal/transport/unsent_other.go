//go:build !linux

package transport

import "net"

// setUnsentLimit makes the whole send buffer small, where nothing finer is known.
func setUnsentLimit(c *net.TCPConn) { _ = c.SetWriteBuffer(64 << 10) }
