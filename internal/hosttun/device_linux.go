package hosttun

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/transport"
	"github.com/portvakt/portvakt/internal/tunread"
)

// injected is how many injected packets wait for WireGuard's reader. The ring
// keeps its buffers, each as long as the longest packet it held.
const injected = 1024

// encryptTime is what encrypting and sending the last packets may take at the
// end; see drain.
const encryptTime = 10 * time.Millisecond

// device stands between WireGuard and the kernel's interface. WireGuard reads
// it from one goroutine and writes it from one for each peer.
type device struct {
	stack  *Stack
	native wgtun.Device
	file   *os.File
	raw    syscall.RawConn
	reader *tunread.Reader
	mtu    int
	queue  queue
	close  sync.Once
	closer error

	// inbound is read-locked while packets enter the kernel; stopInbound takes
	// it whole, after which none is inside and none gets in.
	inbound sync.RWMutex
	stopped bool
}

var _ wgtun.Device = (*device)(nil)

func newDevice(s *Stack, native wgtun.Device) (*device, error) {
	d := &device{stack: s, native: native, file: native.File(), mtu: s.opts.MTU}
	d.queue.interrupt = func() { _ = d.file.SetReadDeadline(time.Unix(1, 0)) }
	d.queue.resume = func() { _ = d.file.SetReadDeadline(time.Time{}) }
	raw, err := d.file.SyscallConn()
	if err == nil {
		err = d.file.SetReadDeadline(time.Time{}) // an error means that reads cannot be interrupted
	}
	if err == nil {
		d.reader, err = tunread.New(d.file)
	}
	if err != nil {
		return nil, errors.Join(err, native.Close())
	}
	d.raw = raw
	return d, nil
}

// queue is the ring of injected packets and the way to have the reader, who
// sleeps in the kernel, see it.
type queue struct {
	interrupt, resume func() // make the interface's reads fail, and not
	dropped           atomic.Uint64

	mu          sync.Mutex
	ring        [injected][]byte
	head, n     int
	reading     bool // the reader is in the kernel, or about to be
	interrupted bool
	closed      bool
}

// push copies packets into the ring. When it is full the newest stay.
func (q *queue) push(packets [][]byte) (accepted int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return 0
	}
	for _, p := range packets {
		if len(p) == 0 {
			continue
		}
		if q.n == injected {
			q.head = (q.head + 1) % injected
			q.n--
			q.dropped.Add(1)
		}
		slot := &q.ring[(q.head+q.n)%injected]
		*slot = append((*slot)[:0], p...)
		q.n++
		accepted++
	}
	if q.reading && !q.interrupted && q.n > 0 {
		q.interrupted = true
		q.interrupt()
	}
	return accepted
}

// pop moves packets into bufs. With none it returns 0, and the next push will
// interrupt the reading the caller is about to begin.
func (q *queue) pop(bufs [][]byte, sizes []int, offset int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for ; n < len(bufs) && q.n > 0; n++ {
		sizes[n] = copy(bufs[n][offset:], q.ring[q.head])
		q.head = (q.head + 1) % injected
		q.n--
	}
	q.reading = n == 0
	return n
}

// awake ends what pop has begun.
func (q *queue) awake() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.reading = false
	if q.interrupted {
		q.interrupted = false
		q.resume()
	}
}

func (q *queue) shut() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

func (q *queue) empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n == 0
}

// Read implements [wgtun.Device]: injected packets first, since they cannot wait
// in the kernel, and then what the kernel has, which gets half of the room
// whatever is injected.
func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	half := bufs[:max(len(bufs)/2, 1)]
	n := d.queue.pop(half, sizes, offset)
	if 0 < n && n < len(bufs) {
		n += d.reader.More(bufs[n:], sizes[n:], offset)
	}
	for n == 0 {
		got, err := d.reader.Read(bufs, sizes, offset)
		d.queue.awake()
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			n = d.queue.pop(half, sizes, offset)
			continue
		case err != nil:
			return 0, err
		}
		n = got
	}
	for i, b := range bufs[:n] {
		transport.Mark(b, transport.ClassOf(b[offset:offset+sizes[i]]))
	}
	return n, nil
}

// Write implements [wgtun.Device]. What passes goes to the kernel in one go, so
// that segments of a connection become one packet again on the way. A packet
// that is refused is no error.
func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	d.inbound.RLock()
	defer d.inbound.RUnlock()
	if d.stopped {
		return 0, os.ErrClosed
	}
	pass := bufs[:0] // WireGuard gives its buffers back by another list
	taken := takenPool.Get().(*[][]byte)
	for _, b := range bufs {
		if d.admit(b[offset:], taken) {
			pass = append(pass, b)
		}
	}
	if len(*taken) > 0 {
		if take := d.stack.opts.Taken; take != nil {
			take(*taken)
		}
		clear(*taken)
		*taken = (*taken)[:0]
	}
	takenPool.Put(taken)
	if len(pass) > 0 {
		if _, err := d.native.Write(pass, offset); err != nil {
			return 0, err
		}
	}
	return len(bufs), nil
}

var takenPool = sync.Pool{New: func() any { return new([][]byte) }}

// admit reports whether the kernel gets a packet, or puts it with what is taken.
func (d *device) admit(packet []byte, taken *[][]byte) bool {
	if len(packet) == 0 {
		d.stack.malformed.Add(1)
		return false
	}
	action, reply := d.stack.opts.Filter(packet)
	if reply != nil {
		d.queue.push([][]byte{reply})
	}
	switch action {
	case overlay.Pass:
	case overlay.Taken:
		*taken = append(*taken, packet)
		return false
	default:
		d.stack.refused.Add(1)
		return false
	}
	switch d.kindOf(packet) {
	case plain:
		return true
	case tcp4:
		return d.stack.admitTCP(packet, packet[header4:])
	case tcp6:
		return d.stack.admitTCP(packet, packet[header6:])
	}
	d.stack.refused.Add(1)
	d.stack.notForStack.Add(1)
	return false
}

const (
	header4, header6 = 20, 40 // bytes of an IP header without options
	tcpHeader        = 20
	icmpHeader       = 8
)

type kind uint8

const (
	alien kind = iota // not for the kernel
	plain             // for the kernel as it is
	tcp4
	tcp6
)

// kindOf keeps from the kernel what it must not act on in a namespace where
// every address is its own. It holds with any filter: UDP is somebody else's,
// and of ICMP there are echo requests to the stack's own addresses and news of a
// smaller path.
func (d *device) kindOf(p []byte) kind {
	switch {
	case len(p) >= header4 && p[0] == 0x45 && p[6]&0x3f == 0 && p[7] == 0:
		l4 := p[header4:]
		switch {
		case p[9] == unix.IPPROTO_TCP && len(l4) >= tcpHeader:
			return tcp4
		case p[9] == unix.IPPROTO_ICMP && len(l4) >= icmpHeader && l4[0] == 3 && l4[1] == 4,
			p[9] == unix.IPPROTO_ICMP && len(l4) >= icmpHeader && l4[0] == 8 && d.own(netip.AddrFrom4([4]byte(p[16:20]))):
			return plain
		}
	case len(p) >= header6 && p[0]>>4 == 6:
		l4 := p[header6:]
		switch {
		case p[6] == unix.IPPROTO_TCP && len(l4) >= tcpHeader:
			return tcp6
		case p[6] == unix.IPPROTO_ICMPV6 && len(l4) >= icmpHeader && l4[0] == 2,
			p[6] == unix.IPPROTO_ICMPV6 && len(l4) >= icmpHeader && l4[0] == 128 && d.own(netip.AddrFrom16([16]byte(p[24:40]))):
			return plain
		}
	}
	return alien
}

func (d *device) own(a netip.Addr) bool { return slices.Contains(d.stack.opts.Addresses, a) }

// File implements [wgtun.Device].
func (d *device) File() *os.File { return d.file }

// MTU implements [wgtun.Device]. The interface's own answer would be looked for
// in the host's namespace.
func (d *device) MTU() (int, error) { return d.mtu, nil }

// Name implements [wgtun.Device].
func (*device) Name() (string, error) { return "portvakt", nil }

// Events implements [wgtun.Device]. There are none: whoever makes the WireGuard
// device brings it up when its keys are set.
func (d *device) Events() <-chan wgtun.Event { return d.native.Events() }

// BatchSize implements [wgtun.Device].
func (d *device) BatchSize() int { return d.native.BatchSize() }

// Close implements [wgtun.Device].
func (d *device) Close() error {
	d.close.Do(func() {
		d.stopInbound()
		d.queue.shut()
		d.closer = d.native.Close()
	})
	return d.closer
}

func (d *device) stopInbound() {
	d.inbound.Lock()
	defer d.inbound.Unlock()
	d.stopped = true
}

// drain waits until the reader has taken what there is, at most for limit, and a
// moment for what it took last: WireGuard encrypts on other goroutines and drops
// what they still have when its device is closed.
func (d *device) drain(limit time.Duration) {
	waiting := func() (yes bool) {
		_ = d.raw.Control(func(fd uintptr) {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			yes = n == 1
		})
		return yes || !d.queue.empty()
	}
	for end := time.Now().Add(limit); waiting() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(encryptTime)
}
