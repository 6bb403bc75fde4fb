package overlay

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
)

// fromTCPIP is the error package net gives for the same thing, so that callers
// ask errors.Is(err, syscall.ECONNREFUSED) whatever carried the connection.
func fromTCPIP(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrNetworkUnreachable, *tcpip.ErrBadLocalAddress:
		return syscall.ENETUNREACH
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrMessageTooLong:
		return syscall.EMSGSIZE
	case *tcpip.ErrNoBufferSpace:
		return syscall.ENOBUFS
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrInvalidEndpointState, *tcpip.ErrNotConnected:
		return net.ErrClosed
	}
	return errors.New(err.String())
}

// byText finds the error behind gonet's, which keeps only the words.
var byText = func() map[string]error {
	m := make(map[string]error)
	for _, e := range []tcpip.Error{
		&tcpip.ErrConnectionRefused{}, &tcpip.ErrConnectionReset{}, &tcpip.ErrConnectionAborted{}, &tcpip.ErrAborted{},
		&tcpip.ErrTimeout{}, &tcpip.ErrNetworkUnreachable{}, &tcpip.ErrHostUnreachable{}, &tcpip.ErrHostDown{},
		&tcpip.ErrMessageTooLong{}, &tcpip.ErrNoBufferSpace{}, &tcpip.ErrClosedForSend{}, &tcpip.ErrInvalidEndpointState{},
		&tcpip.ErrNotConnected{},
	} {
		m[e.String()] = fromTCPIP(e)
	}
	return m
}()

// fromGonet turns gonet's errors into those of package net. closed says that
// this end closed the connection.
func fromGonet(err error, closed bool) error {
	if err == nil {
		return nil
	}
	var op *net.OpError
	if !errors.As(err, &op) {
		if closed && err == io.EOF {
			return &net.OpError{Op: "read", Net: "tcp", Err: net.ErrClosed}
		}
		return err
	}
	mapped := *op
	var timeout net.Error
	switch {
	case closed:
		mapped.Err = net.ErrClosed
	case errors.As(op.Err, &timeout) && timeout.Timeout():
		mapped.Err = os.ErrDeadlineExceeded
	default:
		if e, ok := byText[op.Err.Error()]; ok {
			mapped.Err = e
		}
	}
	return &mapped
}
