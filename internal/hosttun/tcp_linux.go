package hosttun

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/internal/halfopen"
	"github.com/portvakt/portvakt/internal/ipsum"
	"github.com/portvakt/portvakt/internal/overlay"
)

const (
	// answerTimeout is when a request nobody answered is reset. A client's own
	// patience with its SYN is shorter than that.
	answerTimeout = 2 * time.Minute

	// acceptTimeout is when an accepted request has no connection and gets none:
	// the kernel has given up on it, see tcp_synack_retries.
	acceptTimeout = 32 * time.Second

	// headroom is what a device asks for in front of a packet it writes.
	headroom = 16
)

// Flags of a TCP header.
const (
	flagFIN = 1 << 0
	flagSYN = 1 << 1
	flagRST = 1 << 2
	flagACK = 1 << 4
)

// tuple is a connection: RFC 9293 section 3.3.1.
type tuple struct{ peer, local netip.AddrPort }

// TCPRequest is a connection a device asks for, with the SYN the kernel has not
// seen: the owner decides, dials the app and then calls exactly one of Accept
// and Reset. Until then, and until the handshake's end, the request counts
// against [Options.MaxHalfOpen]; one that is forgotten is reset after two minutes.
type TCPRequest struct {
	stack *Stack
	tuple tuple
	syn   []byte     // behind headroom
	from  netip.Addr // what it counts with
	timer *time.Timer

	// gone is closed when the device takes the request back. The table's mu
	// guards what is below.
	gone  chan struct{}
	conn  chan *net.TCPConn // of one, filled at most once
	phase phase
}

type phase uint8

const (
	held      phase = iota // the owner has not answered
	accepting              // the kernel is at it
	ended
)

// Peer is the device's end: its inner address and port.
func (r *TCPRequest) Peer() netip.AddrPort { return r.tuple.peer }

// Local is the address and port the device connects to.
func (r *TCPRequest) Local() netip.AddrPort { return r.tuple.local }

// Accept hands the SYN to the kernel and returns the connection, a [*Conn], when
// the handshake is complete. It blocks until then or until ctx ends, at most for
// half a minute. The error is overlay.ErrAnswered, net.ErrClosed, that of ctx or
// why the handshake failed.
func (r *TCPRequest) Accept(ctx context.Context) (net.Conn, error) {
	s := r.stack
	switch r.answer(accepting) {
	case held:
	case accepting:
		return nil, overlay.ErrAnswered
	default:
		select {
		case <-s.done:
			return nil, r.failed(net.ErrClosed)
		case <-r.gone:
			return nil, r.failed(syscall.ECONNRESET)
		default:
			return nil, overlay.ErrAnswered
		}
	}
	if err := s.listeners.open(s, r.tuple.local.Port()); err != nil {
		s.pending.remove(r, false)
		s.refuse(r.syn[headroom:])
		return nil, r.failed(err)
	}
	// Duplicates of the SYN reach the kernel from here on, so that a full queue
	// is only a matter of time.
	_, err := s.dev.native.Write([][]byte{r.syn}, headroom)
	if err == nil {
		wait := time.NewTimer(acceptTimeout)
		defer wait.Stop()
		select {
		case c := <-r.conn:
			return s.adopt(c)
		case <-r.gone:
			err = syscall.ECONNRESET
		case <-wait.C:
			err = syscall.ETIMEDOUT
		case <-ctx.Done():
			err = ctx.Err()
		case <-s.done:
			err = net.ErrClosed
		}
	}
	s.pending.remove(r, errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, context.DeadlineExceeded))
	select {
	case c := <-r.conn:
		return s.adopt(c)
	default:
	}
	if ctx.Err() != nil {
		// The kernel would go on for half a minute with what no place is left for.
		_, _ = s.dev.native.Write([][]byte{resetOf(r.syn)}, headroom)
		s.refuse(r.syn[headroom:])
	}
	return nil, r.failed(err)
}

// resetOf is the reset with which whoever sent a SYN would take it back (RFC 9293
// section 3.10.7.4), behind headroom like the SYN.
func resetOf(syn []byte) []byte {
	p := bytes.Clone(syn)
	ip := header4
	if p[headroom]>>4 == 6 {
		ip = header6
	}
	l4 := p[headroom+ip:]
	binary.BigEndian.PutUint32(l4[4:], binary.BigEndian.Uint32(l4[4:])+1)
	l4[13], l4[16], l4[17] = flagRST, 0, 0
	binary.BigEndian.PutUint16(l4[16:], ipsum.Of(ipsum.PseudoTCP(p[headroom:], ip, len(l4)), l4))
	return p
}

func (r *TCPRequest) failed(err error) error {
	return &net.OpError{
		Op: "accept", Net: "tcp", Source: net.TCPAddrFromAddrPort(r.tuple.local),
		Addr: net.TCPAddrFromAddrPort(r.tuple.peer), Err: err,
	}
}

// Reset refuses the connection as a closed port would. It does nothing on a
// request that was answered.
func (r *TCPRequest) Reset() {
	if r.answer(ended) == held {
		r.stack.refuse(r.syn[headroom:])
	}
}

// answer moves the request on and returns where it was. Only a held request
// moves.
func (r *TCPRequest) answer(to phase) (was phase) {
	q := &r.stack.pending
	q.mu.Lock()
	defer q.mu.Unlock()
	was = r.phase
	if was != held {
		return was
	}
	r.timer.Stop()
	if to == ended {
		q.removeLocked(r, false)
	}
	r.phase = to
	return was
}

// refuse answers a packet with a reset.
func (s *Stack) refuse(packet []byte) {
	if reply := s.opts.Refuse(packet); reply != nil {
		s.dev.queue.push([][]byte{reply})
	}
}

// adopt makes a Conn of what the kernel accepted.
func (s *Stack) adopt(tc *net.TCPConn) (net.Conn, error) {
	c := &Conn{TCPConn: tc, stack: s}
	if !s.conns.add(c) {
		c.Reset()
		return nil, net.ErrClosed
	}
	return c, nil
}

// requests are the half-open connections.
type requests struct {
	table *halfopen.Table

	mu      sync.Mutex
	byTuple map[tuple]*TCPRequest // guarded by mu
}

// admitTCP reports whether the kernel gets a TCP packet the filter let through.
// A SYN becomes a request; a reset ends one. Both act before the kernel has seen
// the packet, so that their checksums are verified here; of the rest it does.
func (s *Stack) admitTCP(packet, l4 []byte) bool {
	switch flags := l4[13]; {
	case flags&(flagSYN|flagACK|flagRST) == flagSYN:
		if !s.sound(packet, l4) {
			return false
		}
		if flags&flagFIN != 0 {
			s.refused.Add(1)
			s.notForStack.Add(1)
			return false
		}
		return s.admitSYN(packet, tupleOf(packet, l4))
	case flags&flagRST != 0:
		if !s.sound(packet, l4) {
			return false
		}
		s.pending.withdraw(tupleOf(packet, l4))
	}
	return true
}

// sound reports whether a packet's checksums are right, and counts it where not.
func (s *Stack) sound(packet, l4 []byte) bool {
	if ipsum.TCP(packet, len(packet)-len(l4)) {
		return true
	}
	s.malformed.Add(1)
	return false
}

// admitSYN holds a SYN. A further one of the same request is dropped while the
// owner decides, and passes while the kernel shakes hands.
func (s *Stack) admitSYN(packet []byte, t tuple) bool {
	q := &s.pending
	q.mu.Lock()
	if r, ok := q.byTuple[t]; ok {
		defer q.mu.Unlock()
		return r.phase == accepting
	}
	from, v := q.table.Admit(t.peer.Addr())
	if v != halfopen.Admitted {
		q.mu.Unlock()
		if v == halfopen.Restless {
			s.restless.Add(1)
		} else {
			s.crowded.Add(1)
		}
		s.refuse(packet)
		return false
	}
	r := &TCPRequest{
		stack: s, tuple: t, from: from, syn: append(make([]byte, headroom, headroom+len(packet)), packet...),
		gone: make(chan struct{}), conn: make(chan *net.TCPConn, 1),
	}
	r.timer = time.AfterFunc(answerTimeout, r.Reset)
	if q.byTuple == nil {
		q.byTuple = make(map[tuple]*TCPRequest)
	}
	q.byTuple[t] = r
	q.mu.Unlock()
	go s.opts.TCP(r)
	return false
}

// withdraw ends the request of a device that has reset it.
func (q *requests) withdraw(t tuple) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if r, ok := q.byTuple[t]; ok {
		r.timer.Stop()
		q.removeLocked(r, true)
		close(r.gone)
	}
}

// deliver gives a connection to the request it belongs to.
func (q *requests) deliver(t tuple, c *net.TCPConn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	r, ok := q.byTuple[t]
	if !ok || r.phase != accepting {
		return false
	}
	q.removeLocked(r, false)
	r.conn <- c
	return true
}

func (q *requests) remove(r *TCPRequest, givenUp bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.removeLocked(r, givenUp)
}

// removeLocked ends a request; givenUp says that the device gave it up. Callers
// hold mu.
func (q *requests) removeLocked(r *TCPRequest, givenUp bool) {
	r.phase = ended
	if q.byTuple[r.tuple] == r {
		delete(q.byTuple, r.tuple)
		q.table.Leave(r.from, givenUp)
	}
}

// resetAll refuses all that wait and all to come.
func (q *requests) resetAll() {
	q.table.Close()
	q.mu.Lock()
	var all []*TCPRequest
	for _, r := range q.byTuple {
		all = append(all, r)
	}
	q.mu.Unlock()
	for _, r := range all {
		r.Reset()
	}
}

func tupleOf(packet, l4 []byte) tuple {
	var src, dst netip.Addr
	if packet[0]>>4 == 4 {
		src, dst = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
	} else {
		src, dst = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
	}
	return tuple{
		netip.AddrPortFrom(src, uint16(l4[0])<<8|uint16(l4[1])),
		netip.AddrPortFrom(dst, uint16(l4[2])<<8|uint16(l4[3])),
	}
}

// listeners are the namespace's: one for each port anything was ever accepted
// on, for all addresses of both families. There are as many as ports in
// policies.
type listeners struct {
	mu     sync.Mutex
	byPort map[uint16]*net.TCPListener
	closed bool
}

// open makes sure that a port is listened on.
func (ls *listeners) open(s *Stack, port uint16) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.byPort[port] != nil {
		return nil
	}
	if ls.closed {
		return net.ErrClosed
	}
	var l *net.TCPListener
	err := s.ns.do(func() (err error) {
		l, err = listen(port)
		return err
	})
	if err != nil {
		return fmt.Errorf("listening in the tunnel's namespace: %w", err)
	}
	if ls.byPort == nil {
		ls.byPort = make(map[uint16]*net.TCPListener)
	}
	ls.byPort[port] = l
	s.accepts.Go(func() { s.accept(l) })
	return nil
}

func (ls *listeners) close() error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	ls.closed = true
	var errs []error
	for _, l := range ls.byPort {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// listen runs on the namespace's thread.
func listen(port uint16) (*net.TCPListener, error) {
	lc := net.ListenConfig{
		// Connections inherit it, with the times of the namespace, and the
		// runtime need not set it for each.
		KeepAlive: -1,
		Control: func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
				// One that paces wakes the tunnel for less at a time, at 10 to 20 %
				// more CPU a byte. A kernel without this one keeps its own.
				_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
			})
			return errors.Join(cerr, err)
		},
	}
	lc.SetMultipathTCP(false) // it cannot be spliced
	l, err := lc.Listen(context.Background(), "tcp", ":"+strconv.Itoa(int(port)))
	if err != nil {
		return nil, err
	}
	tl := l.(*net.TCPListener)
	// The runtime's backlog is the host's somaxconn.
	rc, err := tl.SyscallConn()
	if err == nil {
		cerr := rc.Control(func(fd uintptr) { err = unix.Listen(int(fd), backlog) })
		err = errors.Join(cerr, err)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return tl, nil
}

// accept gives connections to those who wait for them. One that nobody asked
// for, or no longer, is reset.
func (s *Stack) accept(l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			select {
			case <-s.done:
				return
			case <-time.After(10 * time.Millisecond): // out of files, most likely
				continue
			}
		}
		peer, local := c.RemoteAddr().(*net.TCPAddr).AddrPort(), c.LocalAddr().(*net.TCPAddr).AddrPort()
		t := tuple{netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()), netip.AddrPortFrom(local.Addr().Unmap(), local.Port())}
		if !s.pending.deliver(t, c) {
			_ = c.SetLinger(0)
			_ = c.Close()
		}
	}
}
