//go:build unix

package proxy

import (
	"errors"
	"syscall"
)

// refusedUDP recognises an ICMP answer to an earlier datagram, which the
// system reports once on a connected socket.
func refusedUDP(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.EMSGSIZE)
}
