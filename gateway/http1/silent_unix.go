//go:build unix

package http1

import (
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// probe does with a connection's socket what net.Conn has no words for. It is
// made once for a connection, so that what it does costs system calls and no
// memory.
type probe struct {
	raw  syscall.RawConn
	turn func(fd uintptr) bool

	// Of the turn under way.
	look, stay bool
	request    []byte // what is left of it
	begun      time.Time
	done       bool
	err        error
}

// send looks whether an idle connection is silent, if it is to, writes what it
// takes of a request at once, and waits until the app says something, if it is
// to stay for that. All of it is one turn as the connection's reader: that
// begins by forgetting that something could be read, so that nothing said
// after it goes unheard, and a read before the wait, which would only find that
// the answer is not there yet, is not needed. The error is errNoSocket where the
// connection has none to do that with.
func (p *probe) send(nc net.Conn, b []byte, look, stay bool) (begun time.Time, left []byte, err error) {
	if p.raw == nil {
		s, ok := nc.(syscall.Conn)
		if !ok {
			return begun, b, errNoSocket
		}
		if p.raw, err = s.SyscallConn(); err != nil {
			return begun, b, err
		}
		p.turn = p.step
	}
	p.look, p.stay, p.request, p.begun, p.done, p.err = look, stay, b, time.Time{}, false, nil
	err = p.raw.Read(p.turn)
	left, p.request = p.request, nil
	if p.done { // else it was closed, or its time is over, before anything
		err = p.err // how the wait ended, the next read says as well
	}
	return p.begun, left, err
}

func (p *probe) step(fd uintptr) (over bool) {
	if p.done {
		return true
	}
	p.done = true
	if p.look && !silent(int(fd)) {
		p.err = ErrStale
		return true
	}
	p.begun = time.Now()
	n, err := syscall.Write(int(fd), p.request)
	switch {
	case err == nil:
		p.request = p.request[n:]
	case !errors.Is(err, syscall.EAGAIN) && !errors.Is(err, syscall.EINTR):
		p.err = &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", err)}
		return true
	}
	return !p.stay || len(p.request) > 0
}

// silent says that nothing came on an idle connection, not even its end. It
// looks and takes nothing away.
func silent(fd int) bool {
	var b [1]byte
	_, _, err := syscall.Recvfrom(fd, b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return errors.Is(err, syscall.EAGAIN)
}
