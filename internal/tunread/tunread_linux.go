package tunread

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	headSize = 10 // of struct virtio_net_hdr
	// inPlace is how much of a packet is read where the caller wants it. All of
	// a buffer would do, but superpackets would then touch all 16 pages of each.
	inPlace = 2048
	longest = 1<<16 - 1 // bytes of a packet
)

// Reader reads one interface. It is used by one goroutine.
type Reader struct {
	raw  syscall.RawConn
	head [headSize]byte
	// whole has room for the longest packet. What goes beyond inPlace is read to
	// where it belongs in it.
	whole []byte
	iov   [3]unix.Iovec
	cut   cutter

	// Of the Read under way. step and look are kept so that reading allocates nothing.
	step   func(fd uintptr) bool
	look   func(fd uintptr) // step for Control
	bufs   [][]byte
	sizes  []int
	offset int
	n      int
	err    error
}

// New returns a Reader of an interface that was made with IFF_VNET_HDR and
// whose descriptor does not block.
func New(file *os.File) (*Reader, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reading the interface: %w", err)
	}
	ifr, err := unix.NewIfreq("")
	if err != nil {
		return nil, err
	}
	var asked error
	if err := raw.Control(func(fd uintptr) { asked = unix.IoctlIfreq(int(fd), unix.TUNGETIFF, ifr) }); err != nil {
		return nil, fmt.Errorf("reading the interface: %w", err)
	}
	if asked != nil {
		return nil, fmt.Errorf("asking for the interface's mode: %w", os.NewSyscallError("ioctl", asked))
	}
	if ifr.Uint16()&unix.IFF_VNET_HDR == 0 {
		return nil, errors.New("the interface was made without IFF_VNET_HDR; make it with it")
	}
	r := &Reader{raw: raw, whole: make([]byte, longest)}
	r.iov[0].Base = &r.head[0]
	r.iov[0].SetLen(headSize)
	r.step = r.take
	r.look = func(fd uintptr) { r.take(fd) }
	return r, nil
}

// Read waits for a packet and takes those that wait behind it, until bufs are
// full; it never waits for more. Packets are put behind offset bytes. What the
// kernel left to be cut up comes as segments, the rest of them with the next
// Read when bufs do not suffice. The error is os.ErrClosed after the file was
// closed or the interface removed, and os.ErrDeadlineExceeded after the file's
// read deadline.
func (r *Reader) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	if r.cut.left() {
		if n := r.More(bufs, sizes, offset); n > 0 {
			return n, nil
		}
	}
	r.bufs, r.sizes, r.offset, r.n, r.err = bufs, sizes, offset, 0, nil
	err := r.raw.Read(r.step)
	r.bufs, r.sizes = nil, nil
	switch {
	case r.n > 0:
		return r.n, nil // the next Read sees an error too
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, os.ErrDeadlineExceeded
	case err != nil:
		return 0, os.ErrClosed // nothing else ends the wait
	}
	return 0, r.err
}

// More is Read without waiting: it returns how many packets there were.
func (r *Reader) More(bufs [][]byte, sizes []int, offset int) int {
	r.bufs, r.sizes, r.offset, r.n, r.err = bufs, sizes, offset, 0, nil
	r.segments()
	if r.n < len(bufs) {
		_ = r.raw.Control(r.look)
	}
	r.bufs, r.sizes = nil, nil
	return r.n
}

// take reads until bufs are full or the interface is empty, and reports whether
// that was worth waking up for.
func (r *Reader) take(fd uintptr) bool {
	for r.n < len(r.bufs) {
		size, errno := r.readv(fd)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return r.n > 0
		case errno == unix.EBADFD: // the interface is gone
			r.err = os.ErrClosed
			return true
		case errno != 0:
			r.err = os.NewSyscallError("readv", errno)
			return true
		case size > headSize:
			r.packet(size - headSize)
		}
	}
	return true
}

func (r *Reader) readv(fd uintptr) (int, syscall.Errno) {
	to := r.bufs[r.n][r.offset:]
	in := min(len(to), inPlace)
	r.iov[1].Base = &to[0]
	r.iov[1].SetLen(in)
	r.iov[2].Base = &r.whole[in]
	r.iov[2].SetLen(len(r.whole) - in)
	n, _, errno := unix.Syscall(unix.SYS_READV, fd, uintptr(unsafe.Pointer(&r.iov[0])), uintptr(len(r.iov)))
	runtime.KeepAlive(r)
	return int(n), errno
}

// packet makes of what readv brought one packet or several. What makes no sense
// is dropped.
func (r *Reader) packet(size int) {
	to := r.bufs[r.n][r.offset:]
	in := min(size, len(to), inPlace)
	flags, gso := r.head[0], r.head[1]
	start, at := int(binary.NativeEndian.Uint16(r.head[6:])), int(binary.NativeEndian.Uint16(r.head[8:]))
	if gso != unix.VIRTIO_NET_HDR_GSO_NONE {
		copy(r.whole, to[:in])
		if r.cut.start(r.whole[:size], gso, int(binary.NativeEndian.Uint16(r.head[4:])), start, at) {
			r.segments()
		}
		return
	}
	if size > len(to) {
		return
	}
	copy(to[in:], r.whole[in:size])
	if flags&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 && !complete(to[:size], start, at) {
		return
	}
	r.sizes[r.n] = size
	r.n++
}

// segments moves what is left of the superpacket.
func (r *Reader) segments() {
	for r.n < len(r.bufs) && r.cut.left() {
		if size := r.cut.next(r.bufs[r.n][r.offset:]); size > 0 {
			r.sizes[r.n] = size
			r.n++
		}
	}
}
