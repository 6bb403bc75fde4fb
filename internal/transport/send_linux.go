package transport

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxSegments is how many datagrams the kernel cuts one message into.
	maxSegments = 64
	// maxPayload is the largest message in bytes. More fits into an IP packet,
	// but a device takes 64 KiB with its own headers, and what is longer the
	// kernel cuts itself before it comes there: each datagram then takes the
	// rest of the road alone.
	maxPayload = 1<<16 - 1 - 40 - 8 - 128
	// maxMessages and maxDatagrams bound one system call.
	maxMessages  = 64
	maxDatagrams = 128
)

// message is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type message struct {
	header unix.Msghdr
	length uint32
}

func sendmmsg(fd uintptr, messages []message) (int, syscall.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&messages[0])), uintptr(len(messages)), unix.MSG_DONTWAIT, 0, 0)
	return int(n), errno
}

// vector is the messages of one system call. Only what was used is cleaned.
type vector struct {
	udp      *UDP
	messages [maxMessages]message
	first    [maxMessages + 1]int // of the datagrams in a message
	iovecs   [maxDatagrams]unix.Iovec
	control  [maxMessages][controlSize]byte
	n        int // messages
	done     int // of them sent
	errno    syscall.Errno

	// try and retry are the methods of those names, made functions once.
	try   func(fd uintptr)
	retry func(fd uintptr) bool
}

func newVector(u *UDP) *vector {
	v := &vector{udp: u}
	v.try = v.sendOnce
	v.retry = func(fd uintptr) bool {
		v.sendOnce(fd)
		return v.errno != unix.EAGAIN
	}
	return v
}

// send sends datagrams to one endpoint, in order. It says how many the kernel
// took, also with an error; what comes after one that fails is lost, as on any
// road.
func (v *vector) send(s *socket, datagrams [][]byte, e *UDPEndpoint) (sent int, err error) {
	gso, src := s.gso.Load(), e.source()
	for sent < len(datagrams) {
		joined := v.fill(datagrams[sent:], e, src, gso)
		n, err := v.flush(s)
		sent += n
		joined = joined && v.done < v.n && v.first[v.done+1]-v.first[v.done] > 1
		v.clean()
		switch {
		case err == nil:
		case joined && errors.Is(err, unix.EIO):
			// The device below cannot checksum what the kernel cuts.
			if s.gso.Swap(false) {
				v.udp.log.Warn("the network device does not take UDP segmentation; it is off now", "port", s.port)
			}
			gso = false
		case joined && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EMSGSIZE)):
			// The datagrams are longer than the path takes in one piece, and
			// what is to be cut up must not be.
			gso = false
		case src.IsValid() && unusableSource(err):
			e.ClearSrc()
			src = netip.Addr{}
		default:
			return sent, err
		}
	}
	return sent, nil
}

// unusableSource says whether an error may come from a source address that the
// machine no longer has.
func unusableSource(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// fill makes messages of as many datagrams as it has room for. With gso,
// neighbours of one length and class become one message; the last of them may
// be shorter. It reports whether any did.
func (v *vector) fill(datagrams [][]byte, e *UDPEndpoint, src netip.Addr, gso bool) (joined bool) {
	datagrams = datagrams[:min(len(datagrams), maxDatagrams)]
	v.n, v.done = 0, 0
	for i := 0; i < len(datagrams) && v.n < maxMessages; {
		size, class := len(datagrams[i]), marked(datagrams[i])
		total, end := size, i+1
		for gso && end < len(datagrams) && end-i < maxSegments {
			next := datagrams[end]
			if len(next) == 0 || len(next) > size || total+len(next) > maxPayload || marked(next) != class {
				break
			}
			total += len(next)
			end++
			if len(next) < size {
				break
			}
		}
		for j, d := range datagrams[i:end] {
			v.iovecs[i+j].Base = unsafe.SliceData(d)
			v.iovecs[i+j].SetLen(len(d))
		}
		m := &v.messages[v.n]
		m.header.Name = (*byte)(unsafe.Pointer(&e.name))
		m.header.Namelen = e.nameLen
		m.header.Iov = &v.iovecs[i]
		m.header.SetIovlen(end - i)
		c := v.control[v.n][:0]
		if src.IsValid() {
			c = putSource(c, src)
		}
		if class == ClassVoice {
			c = putClass(c, !e.remote.Addr().Is4(), dscpEF)
		}
		if end-i > 1 {
			c = putSegment(c, size)
			joined = true
		}
		m.header.Control = nil
		if len(c) > 0 {
			m.header.Control = &c[0]
		}
		m.header.SetControllen(len(c))
		v.first[v.n] = i
		v.n++
		v.first[v.n] = end
		i = end
	}
	return joined
}

// clean forgets the datagrams, which belong to others.
func (v *vector) clean() {
	clear(v.iovecs[:v.first[v.n]])
	for i := range v.messages[:v.n] {
		v.messages[i].header.Name = nil
	}
}

// flush sends the messages and says how many datagrams that was.
func (v *vector) flush(s *socket) (int, error) {
	for v.done < v.n {
		// Senders do not wait for each other, unless the socket is full.
		if err := s.raw.Control(v.try); err != nil {
			return v.first[v.done], err
		}
		if v.errno == unix.EAGAIN {
			if err := s.raw.Write(v.retry); err != nil {
				return v.first[v.done], err
			}
		}
		if v.errno != 0 && v.errno != unix.EINTR {
			return v.first[v.done], fmt.Errorf("sending by UDP: %w", v.errno)
		}
	}
	return v.first[v.n], nil
}

func (v *vector) sendOnce(fd uintptr) {
	var n int
	if n, v.errno = v.udp.sendmmsg(fd, v.messages[v.done:v.n]); v.errno == 0 {
		v.done += n
	}
}
