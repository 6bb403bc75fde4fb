package media

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/internal/voice"
)

// target is an upstream address as the system wants it.
type target struct {
	b   [unix.SizeofSockaddrInet6]byte
	len uint32
}

func newTarget(to netip.AddrPort) (t target) {
	binary.BigEndian.PutUint16(t.b[2:], to.Port())
	if to.Addr().Is4() {
		binary.NativeEndian.PutUint16(t.b[:], unix.AF_INET)
		a := to.Addr().As4()
		copy(t.b[4:], a[:])
		t.len = unix.SizeofSockaddrInet4
		return t
	}
	binary.NativeEndian.PutUint16(t.b[:], unix.AF_INET6)
	a := to.Addr().As16()
	copy(t.b[8:], a[:])
	t.len = unix.SizeofSockaddrInet6
	return t
}

// source reads what the system says a datagram came from.
func (t *target) source() netip.AddrPort {
	port := binary.BigEndian.Uint16(t.b[2:])
	switch binary.NativeEndian.Uint16(t.b[:]) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(t.b[4:8])), port)
	case unix.AF_INET6:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(t.b[8:24])), port)
	}
	return netip.AddrPort{}
}

// vector is what sendmmsg(2) is told.
type vector struct {
	headers [batchSize]mmsghdr
	iovecs  [batchSize]unix.Iovec
}

// send sends datagrams of flows that have the socket, those of calls with the
// class of voice, and returns how many the system did not take: their payloads
// are nil then. The caller has made sure that the descriptor stays. The runtime
// is not told: the calls do not wait. A class goes with its datagram and is none
// of the socket's, on which what is no call goes to other apps.
func (s *socket) send(flows []*flow, payloads [][]byte, v *vector) (failed int) {
	class := &class4
	if s.key.ip6 {
		class = &class6
	}
	for i, f := range flows {
		v.iovecs[i].Base = unsafe.SliceData(payloads[i])
		v.iovecs[i].SetLen(len(payloads[i]))
		h := &v.headers[i].hdr
		*h = unix.Msghdr{Name: &f.target.b[0], Namelen: f.target.len, Iov: &v.iovecs[i]}
		h.SetIovlen(1)
		if f.mark.Load() && f.up.Look(payloads[i]) {
			h.Control = (*byte)(unsafe.Pointer(class))
			h.SetControllen(int(unsafe.Sizeof(*class)))
		}
	}
	for at := 0; at < len(flows); {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&v.headers[at])), uintptr(len(flows)-at),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno != 0 { // it is about the first of them
			payloads[at] = nil
			failed++
			n = 1
		}
		at += int(n)
	}
	for i := range flows { // the payloads are others'
		v.iovecs[i].Base, v.headers[i].hdr.Name = nil, nil
	}
	return failed
}

// classMessage is the control message that sets the TOS or traffic class byte of
// one datagram; its padding is a part of it.
type classMessage struct {
	head  unix.Cmsghdr
	value int32
	_     int32
}

var (
	class4 = newClassMessage(unix.IPPROTO_IP, unix.IP_TOS)
	class6 = newClassMessage(unix.IPPROTO_IPV6, unix.IPV6_TCLASS)
)

func newClassMessage(level, kind int32) (c classMessage) {
	c.head.Level, c.head.Type, c.value = level, kind, voice.DSCP<<2
	c.head.SetLen(unix.CmsgLen(4))
	return c
}

// openSocket opens a UDP socket on a port of every address. It stays
// unconnected: it speaks to several apps, and an ICMP error about one of them
// does not show on it.
func openSocket(port uint16, ip6 bool) (fd int, err error) {
	family, any := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(port)})
	if ip6 {
		family, any = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)}
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if ip6 {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, any))
	}
	if err != nil {
		closeSocket(fd)
		return -1, err
	}
	return fd, nil
}

func closeSocket(fd int) { _ = unix.Close(fd) } // nothing is left to be done about an error

func addressInUse(err error) bool { return errors.Is(err, unix.EADDRINUSE) }

// portRange is where the system takes ports from that nobody asked for by number.
func portRange() (low, high uint16) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err == nil {
		if _, err = fmt.Sscan(strings.TrimSpace(string(b)), &low, &high); err == nil && low >= 1024 && high > low {
			return low, high
		}
	}
	return 32768, 60999 // Linux's default
}

// openFiles is how many files the process may have open.
func openFiles() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur > 1<<20 {
		return 1 << 20
	}
	return int(l.Cur)
}

const (
	// perSocket is how many of them one socket may fill in a round, so that a
	// flood towards one device delays the others' calls by no more.
	perSocket = 16
	// maxEvents is how many sockets are looked at in a round.
	maxEvents = 64
)

// poller waits for what apps send on its share of the sockets.
type poller struct {
	relay *Relay
	epoll int
	file  *os.File // epoll, for the runtime to wait on

	mu      sync.RWMutex // guards sockets
	sockets map[int32]*socket

	// The rest is the goroutine's own.
	events  [maxEvents]unix.EpollEvent
	buffers [batchSize][]byte // headMax bytes, then the payload
	sources [batchSize]target
	vectors [batchSize]unix.Iovec
	headers [batchSize]mmsghdr
	used    int      // buffers that are read
	packets [][]byte // to inject
	owners  []*flow  // of packets
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

func newPoller(r *Relay) (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("preparing for UDP apps: %w", os.NewSyscallError("epoll_create1", err))
	}
	// The runtime waits for the epoll descriptor like for any other, so that no
	// thread is blocked and closing it ends the wait.
	if err := unix.SetNonblock(fd, true); err != nil {
		closeSocket(fd)
		return nil, fmt.Errorf("preparing for UDP apps: %w", os.NewSyscallError("fcntl", err))
	}
	p := &poller{
		relay: r, epoll: fd, file: os.NewFile(uintptr(fd), "media"), sockets: map[int32]*socket{},
		packets: make([][]byte, 0, batchSize), owners: make([]*flow, 0, batchSize),
	}
	for i := range p.buffers {
		// One byte more than fits shows what is too big.
		p.buffers[i] = make([]byte, headMax+r.cfg.MTU+1)
		p.vectors[i].Base = &p.buffers[i][headMax]
		p.vectors[i].SetLen(r.cfg.MTU + 1)
		p.headers[i].hdr.Name = &p.sources[i].b[0]
		p.headers[i].hdr.Iov = &p.vectors[i]
		p.headers[i].hdr.SetIovlen(1)
	}
	return p, nil
}

func (p *poller) add(s *socket, fd int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sockets[int32(fd)] = s
	if err := unix.EpollCtl(p.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
		delete(p.sockets, int32(fd))
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// remove forgets a socket; closing it takes it out of epoll.
func (p *poller) remove(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.sockets, int32(fd))
}

// close ends run.
func (p *poller) close() { _ = p.file.Close() }

// run reads until close.
func (p *poller) run() error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("waiting for UDP apps: %w", err)
	}
	var n int
	var fault error
	wait := func(fd uintptr) bool {
		n, fault = unix.EpollWait(int(fd), p.events[:], 0)
		if fault == unix.EINTR {
			n, fault = 0, nil
		}
		return n > 0 || fault != nil
	}
	for {
		if err := raw.Read(wait); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return nil
			}
			return fmt.Errorf("waiting for UDP apps: %w", err)
		}
		if fault != nil {
			return fmt.Errorf("waiting for UDP apps: %w", os.NewSyscallError("epoll_wait", fault))
		}
		for _, e := range p.events[:n] {
			p.mu.RLock()
			s := p.sockets[e.Fd]
			p.mu.RUnlock()
			if s != nil {
				p.read(s)
			}
		}
		p.flush()
	}
}

// read takes what waits on a socket, at most perSocket datagrams.
func (p *poller) read(s *socket) {
	if batchSize-p.used < perSocket {
		p.flush()
	}
	first := p.used
	for i := first; i < first+perSocket; i++ {
		p.headers[i].hdr.Namelen = uint32(len(p.sources[i].b))
		p.headers[i].hdr.Flags = 0
	}
	s.mu.RLock()
	if s.fd < 0 {
		s.mu.RUnlock()
		return
	}
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&p.headers[first])), perSocket, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 { // nothing there after all, or an ICMP error about an app
		s.mu.RUnlock()
		return
	}
	var flows [perSocket]*flow
	for i := range int(got) {
		flows[i] = s.flows[p.sources[first+i].source()]
	}
	s.mu.RUnlock()
	p.used += int(got)
	for i, f := range flows[:got] {
		m := &p.headers[first+i]
		p.relay.reply(p, f, p.buffers[first+i], int(m.len), m.hdr.Flags&unix.MSG_TRUNC != 0)
	}
	runtime.KeepAlive(p)
}

// flush injects what was read.
func (p *poller) flush() {
	keep := p.packets[:0]
	for i, f := range p.owners {
		if !f.is(flowClosed) { // since it was read
			keep = append(keep, p.packets[i])
		}
	}
	if dropped := len(p.packets) - len(keep); dropped > 0 {
		p.relay.counts[cut].Add(uint64(dropped))
	}
	if len(keep) > 0 {
		if n := p.relay.cfg.Inject(keep); n < len(keep) {
			p.relay.counts[tunnelQueue].Add(uint64(len(keep) - n))
		}
	}
	p.packets, p.owners, p.used = p.packets[:0], p.owners[:0], 0
}

// queue has a packet injected with the next flush.
func (p *poller) queue(f *flow, packet []byte) {
	p.packets = append(p.packets, packet)
	p.owners = append(p.owners, f)
}
