package load

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// message is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type message struct {
	unix.Msghdr
	size uint32
}

// batch is room for datagrams that are read or sent with one system call each.
// It is used by one goroutine and stays where it is.
type batch struct {
	messages []message
	parts    []unix.Iovec
	peers    []unix.RawSockaddrInet4
	room     [][]byte
}

// newBatch has room for n datagrams of so many bytes.
func newBatch(n, size int) *batch {
	b := &batch{messages: make([]message, n), parts: make([]unix.Iovec, n), peers: make([]unix.RawSockaddrInet4, n), room: make([][]byte, n)}
	for i := range b.messages {
		b.room[i] = make([]byte, size)
		b.parts[i].Base = &b.room[i][0]
		m := &b.messages[i]
		m.Name = (*byte)(unsafe.Pointer(&b.peers[i]))
		m.Iov = &b.parts[i]
		m.SetIovlen(1)
		b.reset(i, size)
	}
	return b
}

// reset prepares datagram i to be sent with so many bytes, or to be read with at
// most as many.
func (b *batch) reset(i, size int) {
	b.parts[i].SetLen(size)
	b.messages[i].Namelen = unix.SizeofSockaddrInet4
}

// recv reads what waits, never longer: EAGAIN is the error when nothing does.
func (b *batch) recv(fd uintptr) (int, syscall.Errno) {
	return b.call(unix.SYS_RECVMMSG, fd, 0, len(b.messages))
}

// send sends the datagrams from first to before end. One that the system does
// not take is lost, as on any network.
func (b *batch) send(fd uintptr, first, end int) {
	for first < end {
		n, errno := b.call(unix.SYS_SENDMMSG, fd, first, end)
		if errno != 0 {
			n = 1
		}
		first += max(1, n)
	}
}

// call does not tell the runtime: no call waits, and there are many.
func (b *batch) call(trap, fd uintptr, first, end int) (int, syscall.Errno) {
	n, _, errno := unix.RawSyscall6(trap, fd, uintptr(unsafe.Pointer(&b.messages[first])), uintptr(end-first), unix.MSG_DONTWAIT, 0, 0)
	runtime.KeepAlive(b)
	return int(n), errno
}
