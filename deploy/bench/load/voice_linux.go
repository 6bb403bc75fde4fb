package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// voiceHead is run, flow, sequence number and sending time at the start of a
	// datagram.
	voiceHead = 4 + 4 + 4 + 8
	// straggle is how long answers are awaited after the last datagram.
	straggle = 500 * time.Millisecond
	// echoBatch is how many datagrams the echo takes with one system call, and
	// answerBatch how many answers on one socket a caller does.
	echoBatch   = 64
	answerBatch = 8
	// maxDatagram is the most bytes of a datagram.
	maxDatagram = 2048
	// socketBuffer keeps the echo's own socket from being what drops.
	socketBuffer = 8 << 20
)

// Voice says what calls to make.
type Voice struct {
	To    netip.AddrPort
	Flows int
	// Ports is how many ports from To's on are called from each local port, a
	// flow each; 0 means 1.
	Ports int
	// Rate is in datagrams per second and flow, Size in bytes of UDP payload.
	Rate, Size int
	For        time.Duration
	// FirstPort is the first local port; the others follow. Calls of the next
	// round come from the same ports, as a laptop's do.
	FirstPort uint16
}

// Calls is what [Voice.Run] saw. Delays are there and back.
type Calls struct {
	Sent     int    `json:"sent"`
	Received int    `json:"received"`
	Delays   Delays `json:"delays"`
}

// Loss is the share of datagrams that did not come back, in percent.
func (c Calls) Loss() float64 {
	if c.Sent == 0 {
		return 0
	}
	return 100 * float64(c.Sent-c.Received) / float64(c.Sent)
}

// caller is one run of calls: a thread that sends what is due and reads what
// has arrived, in turn, so that a thousand flows cost no goroutine each.
type caller struct {
	v       Voice
	run     uint32 // at random: answers to the run before may still be under way
	poll    int
	socks   []int  // of Ports flows each
	out     *batch // a datagram to each of the ports
	in      *batch
	start   time.Time
	sent    int
	last    []time.Duration // by flow: its latest delay, 0 before the first
	all     []time.Duration
	changes []time.Duration // between two consecutive delays of a flow
}

// Run makes the calls and returns when the last answers had time to arrive.
func (v Voice) Run(ctx context.Context) (Calls, error) {
	if v.Size < voiceHead || v.Size > maxDatagram || v.Flows < 1 || v.Rate < 1 {
		return Calls{}, fmt.Errorf("making calls: %d flows of %d x %d bytes cannot be", v.Flows, v.Rate, v.Size)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v.Ports = max(1, v.Ports)
	c := &caller{v: v, run: rand.Uint32(), last: make([]time.Duration, v.Flows), out: newBatch(v.Ports, v.Size), in: newBatch(answerBatch, maxDatagram)}
	var err error
	if c.poll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return Calls{}, fmt.Errorf("making calls: %w", err)
	}
	defer unix.Close(c.poll)
	defer func() {
		for _, s := range c.socks {
			unix.Close(s)
		}
	}()
	for i := range c.out.peers {
		c.out.peers[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: htons(v.To.Port() + uint16(i)), Addr: v.To.Addr().As4()}
	}
	for i := range (v.Flows + c.v.Ports - 1) / c.v.Ports {
		if err := c.open(i); err != nil {
			return Calls{}, fmt.Errorf("opening a socket for calls: %w", err)
		}
	}
	if err := c.talk(ctx); err != nil {
		return Calls{}, err
	}
	out := Calls{Sent: c.sent, Received: len(c.all), Delays: delays(c.all)}
	out.Delays.Jitter = jitter(c.changes)
	return out, nil
}

// jitter is the mean of all but the largest hundredth: on a machine that has
// other work, a few stalls of the machine's own would be most of the sum.
func jitter(changes []time.Duration) float64 {
	slices.Sort(changes)
	changes = changes[:len(changes)-len(changes)/100]
	if len(changes) == 0 {
		return 0
	}
	var sum time.Duration
	for _, c := range changes {
		sum += c
	}
	return micros(sum) / float64(len(changes))
}

func (c *caller) open(i int) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.socks = append(c.socks, s)
	if c.v.FirstPort != 0 {
		if err := unix.Bind(s, &unix.SockaddrInet4{Port: int(c.v.FirstPort) + i}); err != nil {
			return err
		}
	}
	// By edges: listen reads all there is.
	return unix.EpollCtl(c.poll, unix.EPOLL_CTL_ADD, s, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(i)})
}

// talk sends datagram n of the whole at its own time, n/(flows*rate) after the
// start: flows do not speak in unison. What is late is sent at once, and what is
// late on one socket with one system call.
func (c *caller) talk(ctx context.Context) error {
	each := float64(time.Second) / float64(c.v.Flows*c.v.Rate)
	total := int(float64(c.v.For) / each)
	events := make([]unix.EpollEvent, 256)
	c.start = time.Now()
	for ctx.Err() == nil {
		now := time.Since(c.start)
		due := min(total, c.sent+256, int(float64(now)/each)+1)
		for c.sent < due {
			c.speak(due - c.sent)
		}
		wait := straggle - (now - c.v.For)
		if c.sent < total {
			wait = time.Duration(float64(c.sent)*each) - time.Since(c.start)
		} else if wait <= 0 {
			return nil
		}
		if err := c.listen(events, max(0, wait)); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// speak sends the next datagrams of one socket's flows, at most so many.
func (c *caller) speak(most int) {
	flow := c.sent % c.v.Flows
	first := flow % c.v.Ports
	n := min(most, c.v.Ports-first, c.v.Flows-flow)
	now := uint64(time.Since(c.start))
	for i := range n {
		b := c.out.room[first+i]
		binary.BigEndian.PutUint32(b, c.run)
		binary.BigEndian.PutUint32(b[4:], uint32(flow+i))
		binary.BigEndian.PutUint32(b[8:], uint32(c.sent+i))
		binary.BigEndian.PutUint64(b[12:], now)
	}
	c.out.send(uintptr(c.socks[flow/c.v.Ports]), first, first+n)
	c.sent += n
}

// listen waits for answers, at most that long, and reads all there are.
func (c *caller) listen(events []unix.EpollEvent, wait time.Duration) error {
	// epoll_wait counts in milliseconds, and datagrams are due closer.
	timeout := unix.NsecToTimespec(int64(wait))
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(c.poll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)),
		uintptr(unsafe.Pointer(&timeout)), 0, 0)
	if errno == unix.EINTR {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("waiting for answers: %w", os.NewSyscallError("epoll_pwait2", errno))
	}
	for _, e := range events[:n] {
		for more := true; more; {
			k, errno := c.in.recv(uintptr(c.socks[e.Fd]))
			if errno != 0 {
				break // nothing more
			}
			more = k == answerBatch
			now := time.Since(c.start)
			for i := range k {
				if err := c.answer(int(e.Fd), c.in.room[i][:c.in.messages[i].size], now); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// answer takes what a socket was answered.
func (c *caller) answer(sock int, b []byte, now time.Duration) error {
	if len(b) < voiceHead || binary.BigEndian.Uint32(b) != c.run {
		return nil // a loss, or of a run whose ports these were
	}
	flow := int(binary.BigEndian.Uint32(b[4:]))
	if flow >= c.v.Flows || flow/c.v.Ports != sock {
		return fmt.Errorf("a call from port %d was answered with what call %d sent", int(c.v.FirstPort)+sock, flow)
	}
	c.heard(flow, now-time.Duration(binary.BigEndian.Uint64(b[12:])))
	return nil
}

func (c *caller) heard(flow int, delay time.Duration) {
	c.all = append(c.all, delay)
	if before := c.last[flow]; before != 0 {
		c.changes = append(c.changes, (delay - before).Abs())
	}
	c.last[flow] = delay
}

// EchoUDP sends every datagram back from the address it was sent to, until ctx
// ends. c is bound to one address.
func EchoUDP(ctx context.Context, c *net.UDPConn) error {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := enlarge(c); err != nil {
		return fmt.Errorf("enlarging the echo's buffers: %w", err)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	b := newBatch(echoBatch, maxDatagram)
	var errno syscall.Errno
	turn := func(fd uintptr) bool {
		var n int
		for n, errno = b.recv(fd); errno == 0; n, errno = b.recv(fd) {
			for i := range n {
				b.reset(i, int(b.messages[i].size)) // back to where it came from
			}
			b.send(fd, 0, n)
			for i := range n {
				b.reset(i, maxDatagram)
			}
		}
		return errno != unix.EAGAIN
	}
	for {
		err := raw.Read(turn)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("waiting for datagrams: %w", err)
		case errno != unix.ECONNREFUSED && errno != unix.EINTR: // a caller has hung up
			return fmt.Errorf("reading datagrams: %w", os.NewSyscallError("recvmmsg", errno))
		}
	}
}

func enlarge(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		for _, o := range []struct{ forced, plain int }{
			{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF},
		} {
			if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.forced, socketBuffer) != nil { // only root may
				set = errors.Join(set, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o.plain, socketBuffer))
			}
		}
	})
	return errors.Join(err, set)
}
