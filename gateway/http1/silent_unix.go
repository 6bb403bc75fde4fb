//go:build unix

package http1

import (
	"errors"
	"net"
	"syscall"
)

// probe looks at a connection's socket. It is made once for a connection, so
// that a look costs the system call and no memory.
type probe struct {
	raw   syscall.RawConn
	look  func(fd uintptr) bool
	quiet bool
}

// silent says that nothing came on an idle connection, not even its end. It
// looks and takes nothing away.
func (p *probe) silent(nc net.Conn) bool {
	if p.raw == nil {
		s, ok := nc.(syscall.Conn)
		if !ok {
			return false
		}
		raw, err := s.SyscallConn()
		if err != nil {
			return false
		}
		p.raw, p.look = raw, p.peek
	}
	p.quiet = false
	return p.raw.Read(p.look) == nil && p.quiet
}

func (p *probe) peek(fd uintptr) bool {
	var b [1]byte
	_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	p.quiet = errors.Is(err, syscall.EAGAIN)
	return true
}
