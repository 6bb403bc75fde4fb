package overlay

import (
	"io"
	"net"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// datagramConn is a connected UDP socket of the stack with the errors of
// package net.
type datagramConn struct {
	*gonet.UDPConn
	closed atomic.Bool
}

// Read implements [net.Conn]. There is no end of file on datagrams: a closed
// socket reads net.ErrClosed.
func (c *datagramConn) Read(b []byte) (int, error) {
	n, err := c.UDPConn.Read(b)
	if err == io.EOF {
		return 0, &net.OpError{Op: "read", Net: "udp", Err: net.ErrClosed}
	}
	return n, fromGonet(err, c.closed.Load())
}

// Write implements [net.Conn].
func (c *datagramConn) Write(b []byte) (int, error) {
	n, err := c.UDPConn.Write(b)
	return n, fromGonet(err, c.closed.Load())
}

// Close implements [net.Conn].
func (c *datagramConn) Close() error {
	if c.closed.Swap(true) {
		return nil
	}
	return c.UDPConn.Close()
}
