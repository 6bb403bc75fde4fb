package transport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// batchSize is how many datagrams WireGuard is given at once. It keeps as many
// buffers of 64 KiB for every receiving goroutine.
const batchSize = 64

// UDP is a [conn.Bind] of UDP sockets: whole batches for each system call, runs
// of equal datagrams handed to the kernel as one (UDP_SEGMENT) and taken from
// it as one (UDP_GRO), nothing allocated for a datagram.
type UDP struct {
	opts    UDPOptions
	log     *slog.Logger
	vectors sync.Pool // of *vector

	open atomic.Pointer[sockets] // nil while closed

	mu   sync.Mutex // serialises Open, Close and SetMark
	mark uint32

	sent, received, lost, empty, overflowed atomic.Uint64

	// buffer, sendmmsg and selfTest are replaced in tests.
	buffer   int // what the sockets ask for each way, in bytes
	sendmmsg func(fd uintptr, messages []message) (int, syscall.Errno)
	selfTest func() error
}

var _ conn.Bind = (*UDP)(nil)

// NewUDP makes a closed UDP.
func NewUDP(opts UDPOptions) *UDP {
	u := &UDP{opts: opts, log: opts.Log, buffer: socketBuffer, sendmmsg: sendmmsg, selfTest: testGSO}
	if u.log == nil {
		u.log = slog.New(slog.DiscardHandler)
	}
	u.vectors.New = func() any { return newVector(u) }
	return u
}

// sockets are what is open, nil for a family that is not.
type sockets struct{ v4, v6 *socket }

func (s *sockets) all() []*socket {
	if s == nil {
		return nil
	}
	return slices.DeleteFunc([]*socket{s.v4, s.v6}, func(s *socket) bool { return s == nil })
}

// socket is one open socket.
type socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	v6   bool
	port uint16
	// gso is whether runs of datagrams are sent as one; it goes off for good
	// when the device below cannot (see udp(7), EIO).
	gso atomic.Bool
}

// Open implements [conn.Bind]. The device asks for port 0 first and for the one
// it got when it opens again.
func (u *UDP) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open.Load() != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	if port == 0 {
		port = u.opts.Listen.Port()
	}
	open, err := u.listen(port)
	if err != nil {
		return nil, 0, err
	}
	gso := !u.opts.GSOOff
	if gso {
		if err := u.selfTest(); err != nil {
			gso = false
			u.log.Warn("UDP segmentation by the kernel is left off", "err", err)
		}
	}
	var fns []conn.ReceiveFunc
	for _, s := range open.all() {
		if u.mark != 0 {
			if err := s.set(unix.SOL_SOCKET, unix.SO_MARK, int(u.mark)); err != nil {
				return nil, 0, errors.Join(fmt.Errorf("marking a UDP socket: %w", err), closeAll(open.all()...))
			}
		}
		s.gso.Store(gso)
		fns = append(fns, newReceiver(u, s).receive)
		port = s.port
	}
	u.open.Store(open)
	return fns, port, nil
}

// listen opens the configured sockets, all of them on one port.
func (u *UDP) listen(port uint16) (*sockets, error) {
	if a := u.opts.Listen.Addr().Unmap(); a.IsValid() && !a.IsUnspecified() {
		s, err := u.socket(a, port)
		if err != nil {
			return nil, err
		}
		if a.Is4() {
			return &sockets{v4: s}, nil
		}
		return &sockets{v6: s}, nil
	}
	for try := 0; ; try++ {
		v4, err := u.socket(netip.IPv4Unspecified(), port)
		if err != nil && !noFamily(err) {
			return nil, err
		}
		same := port
		if v4 != nil {
			same = v4.port
		}
		v6, err := u.socket(netip.IPv6Unspecified(), same)
		if err == nil || (noFamily(err) && v4 != nil) {
			return &sockets{v4, v6}, nil
		}
		if v4 != nil {
			err = errors.Join(err, closeAll(v4))
		}
		// Somebody has the other family's port; another one may be free.
		if port != 0 || !errors.Is(err, unix.EADDRINUSE) || try == 100 {
			return nil, err
		}
	}
}

// noFamily says whether the machine lacks an address family.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

func (u *UDP) socket(a netip.Addr, port uint16) (*socket, error) {
	s := &socket{v6: !a.Is4()}
	network := "udp4"
	if s.v6 {
		network = "udp6"
	}
	pc, err := new(net.ListenConfig).ListenPacket(context.Background(), network, netip.AddrPortFrom(a, port).String())
	if err != nil {
		return nil, err
	}
	s.conn = pc.(*net.UDPConn)
	s.port = s.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening UDP socket: %w", err), closeAll(s))
	}
	// The kernel gives what it allows: more only to root, joined datagrams
	// since 5.0. Everything works without; see room.
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		_ = s.set(unix.SOL_SOCKET, o, u.buffer)
	}
	_ = s.set(unix.SOL_UDP, unix.UDP_GRO, 1)
	_ = s.set(unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1)
	if !s.v6 {
		// A router with a short link may cut the datagram up: better than one that
		// loses it and says nothing. The kernel's own WireGuard does the same.
		_ = s.set(unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
	}
	if u.opts.Sticky && a.IsUnspecified() {
		if s.v6 {
			err = s.set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		} else {
			err = s.set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("asking for the addresses that are called: %w", err), closeAll(s))
		}
	}
	return s, nil
}

// room is the least any open socket may hold each way, in bytes.
func (u *UDP) room() (receive, send int) {
	receive, send = u.buffer, u.buffer
	for _, s := range u.open.Load().all() {
		_ = s.raw.Control(func(fd uintptr) {
			for option, least := range map[int]*int{unix.SO_RCVBUF: &receive, unix.SO_SNDBUF: &send} {
				// The kernel keeps twice what was asked for, see socket(7).
				if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, option); err == nil {
					*least = min(*least, n/2)
				}
			}
		})
	}
	return receive, send
}

// sayRoom warns of sockets that hold less than they asked for: they lose a burst
// of many devices' datagrams.
func (u *UDP) sayRoom() {
	if receive, send := u.room(); receive < u.buffer || send < u.buffer {
		u.log.Warn("the tunnel's UDP sockets have less room than they asked for and lose datagrams of bursts; raise net.core.rmem_max and net.core.wmem_max to what is wanted, as docs/operations.md says, and restart",
			"receive", receive, "send", send, "wanted", u.buffer)
	}
}

// set sets a socket option.
func (s *socket) set(level, name, value int) error {
	var err error
	if cerr := s.raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, name, value) }); cerr != nil {
		return cerr
	}
	return err
}

func closeAll(sockets ...*socket) error {
	var errs []error
	for _, s := range sockets {
		errs = append(errs, s.conn.Close())
	}
	return errors.Join(errs...)
}

// Close implements [conn.Bind]. Receivers and senders return net.ErrClosed.
func (u *UDP) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return closeAll(u.open.Swap(nil).all()...)
}

// SetMark implements [conn.Bind].
func (u *UDP) SetMark(mark uint32) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mark = mark
	for _, s := range u.open.Load().all() {
		if err := s.set(unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return fmt.Errorf("marking a UDP socket: %w", err)
		}
	}
	return nil
}

// ParseEndpoint implements [conn.Bind].
func (*UDP) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return newUDPEndpoint(ap, netip.Addr{}), nil
}

// BatchSize implements [conn.Bind].
func (*UDP) BatchSize() int { return batchSize }

// Stats counts.
func (u *UDP) Stats() Stats {
	s := Stats{Sent: u.sent.Load(), Received: u.received.Load(), Lost: u.lost.Load(), Empty: u.empty.Load(), Overflowed: u.overflowed.Load()}
	for _, k := range u.open.Load().all() {
		s.GSO = s.GSO || k.gso.Load()
	}
	return s
}

// Send implements [conn.Bind].
func (u *UDP) Send(datagrams [][]byte, ep conn.Endpoint) error {
	e, ok := ep.(*UDPEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	open := u.open.Load()
	if open == nil {
		return net.ErrClosed
	}
	s := open.v4
	if !e.remote.Addr().Is4() {
		s = open.v6
	}
	if s == nil {
		return unix.EAFNOSUPPORT
	}
	v := u.vectors.Get().(*vector)
	n, err := v.send(s, datagrams, e)
	u.vectors.Put(v)
	u.sent.Add(uint64(n))
	return err
}
