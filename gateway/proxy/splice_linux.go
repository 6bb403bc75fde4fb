package proxy

import (
	"errors"
	"net"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// spliceChunk bounds what moves between two questions whether it may, in
	// bytes. It is what a pipe is asked to hold.
	spliceChunk = 256 << 10

	// spliceLeast is the chunk below which copying is cheaper again, in bytes.
	spliceLeast = 8 << 10

	// idlePipes is how many pipes wait for their next chunk.
	idlePipes = 64
)

// splice moves bytes between two sockets of the kernel, which never reach this
// process.
type splice struct {
	dst, src syscall.RawConn
}

// newSplice returns nil unless both ends are the kernel's.
func newSplice(dst, src net.Conn) *splice {
	d, ok1 := dst.(syscall.Conn)
	s, ok2 := src.(syscall.Conn)
	if !ok1 || !ok2 {
		return nil
	}
	to, err1 := d.SyscallConn()
	from, err2 := s.SyscallConn()
	if err1 != nil || err2 != nil {
		return nil
	}
	return &splice{dst: to, src: from}
}

// run moves chunks, each as large as what has arrived, until one is small: what
// follows is then cheaper to copy. check is asked before each is passed on.
// On an error reading says which side it was on; with end the source has ended.
func (s *splice) run(check func() error, taker *patience, count *atomic.Int64) (end, reading bool, err error) {
	for {
		n, p, err := s.take()
		if err != nil {
			return false, true, err
		}
		if n == 0 {
			return true, false, nil
		}
		if err := check(); err != nil {
			p.close() // the chunk dies with it
			return false, false, err
		}
		moved := 0
		if err = taker.begin(); err == nil {
			moved, err = s.give(p, n, check)
			err = taker.done(err)
		}
		count.Add(int64(moved))
		if err != nil {
			p.close()
			return false, false, err
		}
		p.release()
		if n < spliceLeast {
			return false, false, nil
		}
	}
}

// take waits for bytes and moves them into a pipe. While it waits there is no
// pipe; at the source's end n is 0.
func (s *splice) take() (n int, p pipe, err error) {
	var failed error
	err = s.src.Read(func(fd uintptr) bool {
		if p, failed = getPipe(); failed != nil {
			return true
		}
		n, failed = move(int(fd), p.w, spliceChunk)
		if n > 0 {
			return true
		}
		p.release()
		return !errors.Is(failed, unix.EAGAIN)
	})
	return n, p, errors.Join(err, failed)
}

// give moves n bytes out of the pipe. It may wait for long, so check is asked
// again whenever it has.
func (s *splice) give(p pipe, n int, check func() error) (moved int, err error) {
	var failed error
	waited := false
	err = s.dst.Write(func(fd uintptr) bool {
		if waited {
			if failed = check(); failed != nil {
				return true
			}
		}
		waited = true
		for moved < n {
			var m int
			if m, failed = move(p.r, int(fd), n-moved); failed != nil {
				return !errors.Is(failed, unix.EAGAIN)
			}
			moved += m
		}
		return true
	})
	if err == nil {
		err = failed
	}
	return moved, err
}

func move(from, to, n int) (int, error) {
	for {
		m, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if !errors.Is(err, unix.EINTR) {
			return int(max(m, 0)), err
		}
	}
}

// pipe is an empty pipe, or one with a chunk in it.
type pipe struct{ r, w int }

var pipes = make(chan pipe, idlePipes)

func getPipe() (pipe, error) {
	select {
	case p := <-pipes:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return pipe{}, err
	}
	// Refused to those who have many pipes; then a chunk is 64 KiB.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, spliceChunk)
	return pipe{r: fds[0], w: fds[1]}, nil
}

// release gives an empty pipe back.
func (p pipe) release() {
	select {
	case pipes <- p:
	default:
		p.close()
	}
}

func (p pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}
