package transport

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// receiveMessages is how many messages one system call takes. Each may be
	// a run of datagrams.
	receiveMessages = 64
	// receiveBuffer is the largest message in bytes.
	receiveBuffer = 1 << 16
)

// receiver takes datagrams from one socket. WireGuard calls it on one
// goroutine. Messages are taken into buffers of its own, because one may hold
// more datagrams than WireGuard has room for; the rest waits for the next call.
type receiver struct {
	udp       *UDP
	socket    *socket
	endpoints *endpoints

	messages []message
	iovecs   []unix.Iovec
	names    []unix.RawSockaddrInet6
	control  [][controlSize]byte
	buffers  []byte

	n, next int    // messages taken, and of those given away
	run     run    // of the message before next
	dropped uint32 // the kernel's count of the last message that had one
	errno   syscall.Errno
	try     func(fd uintptr) bool
}

// run is a message of datagrams of one size, of which the last may be shorter.
type run struct {
	data     []byte
	size     int
	endpoint *UDPEndpoint
}

// pop takes a datagram off the front.
func (r *run) pop() []byte {
	n := min(r.size, len(r.data))
	d := r.data[:n]
	r.data = r.data[n:]
	return d
}

// split is the run a message is: of datagrams of segment bytes, or of one if
// segment is no size to cut by.
func split(data []byte, segment int) run {
	if segment <= 0 || segment > len(data) {
		segment = len(data)
	}
	return run{data: data, size: segment}
}

func newReceiver(u *UDP, s *socket) *receiver {
	r := &receiver{
		udp: u, socket: s, endpoints: newEndpoints(s.v6),
		messages: make([]message, receiveMessages),
		iovecs:   make([]unix.Iovec, receiveMessages),
		names:    make([]unix.RawSockaddrInet6, receiveMessages),
		control:  make([][controlSize]byte, receiveMessages),
		// What no datagram reached takes no memory.
		buffers: make([]byte, receiveMessages*receiveBuffer),
	}
	for i := range r.messages {
		r.iovecs[i].Base = &r.buffers[i*receiveBuffer]
		r.iovecs[i].SetLen(receiveBuffer)
		h := &r.messages[i].header
		h.Name = (*byte)(unsafe.Pointer(&r.names[i]))
		h.Iov = &r.iovecs[i]
		h.SetIovlen(1)
		h.Control = &r.control[i][0]
	}
	r.n, r.next = len(r.messages), len(r.messages) // the next call cleans them
	r.try = func(fd uintptr) bool {
		r.recvmmsg(fd)
		return r.errno != unix.EAGAIN
	}
	return r
}

// receive is a [conn.ReceiveFunc].
func (r *receiver) receive(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		if n := r.give(packets, sizes, eps); n > 0 {
			r.udp.received.Add(uint64(n))
			return n, nil
		}
		if err := r.take(); err != nil {
			return 0, err
		}
	}
}

// give hands out what is there.
func (r *receiver) give(packets [][]byte, sizes []int, eps []conn.Endpoint) (n int) {
	for n < len(packets) {
		if len(r.run.data) == 0 && !r.open() {
			break
		}
		d := r.run.pop()
		if len(d) > len(packets[n]) {
			r.udp.lost.Add(1)
			continue
		}
		sizes[n] = copy(packets[n], d)
		eps[n] = r.run.endpoint
		n++
	}
	return n
}

// open makes run of the next message that has one.
func (r *receiver) open() bool {
	for r.next < r.n {
		i := r.next
		r.next++
		m := &r.messages[i]
		// A cut-off control message may have been the one that says how many
		// datagrams these are.
		if m.length == 0 && m.header.Flags&unix.MSG_CTRUNC == 0 {
			r.udp.empty.Add(1)
			continue
		}
		if m.header.Flags&(unix.MSG_CTRUNC|unix.MSG_TRUNC) != 0 {
			r.udp.lost.Add(1)
			continue
		}
		c := parseControl(r.control[i][:min(int(m.header.Controllen), controlSize)])
		// It is there once the kernel has dropped one.
		if c.dropped != 0 {
			r.udp.overflowed.Add(uint64(c.dropped - r.dropped))
			r.dropped = c.dropped
		}
		r.run = split(r.buffers[i*receiveBuffer:][:m.length], c.segment)
		r.run.endpoint = r.endpoints.get(r.source(i, c))
		return true
	}
	return false
}

// source reads the address of message i.
func (r *receiver) source(i int, c received) source {
	s := source{local: c.local, sticky: c.sticky}
	name := &r.names[i]
	s.port = binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&name.Port))[:])
	if r.socket.v6 {
		s.remote = name.Addr
		s.scope = name.Scope_id
		return s
	}
	sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(name))
	copy(s.remote[:4], sa.Addr[:])
	return s
}

// take waits for messages.
func (r *receiver) take() error {
	for i := range r.messages[:r.n] {
		h := &r.messages[i].header
		h.Namelen = unix.SizeofSockaddrInet6
		h.SetControllen(controlSize)
		h.Flags = 0
	}
	r.n, r.next = 0, 0
	for {
		if err := r.socket.raw.Read(r.try); err != nil {
			return err // net.ErrClosed after Close, which ends the device's reader
		}
		if r.errno == 0 {
			return nil
		}
		if r.errno != unix.EINTR {
			return fmt.Errorf("receiving by UDP: %w", r.errno)
		}
	}
}

func (r *receiver) recvmmsg(fd uintptr) {
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.messages[0])), uintptr(len(r.messages)), unix.MSG_DONTWAIT, 0, 0)
	if r.errno = errno; errno == 0 {
		r.n = int(n)
	}
}
