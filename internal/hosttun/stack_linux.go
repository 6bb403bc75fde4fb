package hosttun

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	wgtun "golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/halfopen"
	"github.com/portvakt/portvakt/internal/overlay"
)

// drainTimeout bounds how long Close waits for the resets of open connections
// to leave through the device.
const drainTimeout = 100 * time.Millisecond

// Options configure a Stack.
type Options struct {
	// Addresses are the stack's own: they answer ICMP echo requests. At least
	// one of each family has to be there for the kernel to speak that family.
	Addresses []netip.Addr
	// MTU of the inside, in bytes; 0 means overlay.DefaultMTU.
	MTU int
	// TCP is called in a goroutine of its own for every connection asked for.
	TCP func(*TCPRequest)
	// Filter judges every packet that comes out of the tunnel, as
	// [overlay.Options] say.
	Filter func(packet []byte) (overlay.Action, []byte)
	// Taken is given what the Filter says is its, as [overlay.Options] say.
	Taken func(packets [][]byte)
	// Refuse returns the reset that answers a TCP packet, nil for silence. It
	// must not keep the packet.
	Refuse func(packet []byte) []byte
	// MaxHalfOpen is how many connections of one source may wait for a decision
	// or for their handshake's end; more are refused. 0 means
	// halfopen.PerSource.
	MaxHalfOpen int
	// Source returns the address that a source address counts with, the same
	// for all of one device. Without it each counts by itself.
	Source func(netip.Addr) netip.Addr
}

// Stack is the kernel's TCP/IP stack in a namespace of its own. Make one with
// New, give Device to WireGuard and Close it in the end. Its methods may be
// called from any goroutine.
type Stack struct {
	opts Options
	ns   *namespace
	dev  *device

	pending   requests
	listeners listeners
	conns     conns

	done    chan struct{}  // closed when Close begins
	accepts sync.WaitGroup // the listeners' goroutines
	closing sync.Once
	closeEr error

	refused, malformed atomic.Uint64
	crowded, restless  atomic.Uint64

	notForStack atomic.Uint64 // of refused

	drops drops // the kernel's own
}

// New makes the namespace, its interface and its rules. The error says what is
// missing where one of them cannot be had.
func New(o Options) (*Stack, error) {
	if o.MTU == 0 {
		o.MTU = overlay.DefaultMTU
	}
	if o.TCP == nil || o.Filter == nil || o.Refuse == nil {
		return nil, errors.New("making the tunnel's namespace: TCP, Filter and Refuse are required")
	}
	if o.MTU < 1280 || o.MTU > 65535-80 {
		return nil, fmt.Errorf("making the tunnel's namespace: MTU is %d, expected %d to %d", o.MTU, 1280, 65535-80)
	}
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	s := &Stack{opts: o, ns: ns, done: make(chan struct{})}
	s.pending.table = halfopen.New(o.MaxHalfOpen, o.Source)
	var native wgtun.Device
	err = ns.do(func() (err error) {
		if s.drops, err = openDrops(); err != nil {
			return needs("opening the counters of the tunnel's namespace", err)
		}
		native, err = openTUN(o.Addresses, o.MTU)
		return err
	})
	if err == nil {
		s.dev, err = newDevice(s, native)
	}
	if err != nil {
		_ = s.drops.close() // there may be none yet
		ns.close()
		return nil, err
	}
	return s, nil
}

// Device is the stack's end of the tunnel. Closing it closes the interface, not
// the stack.
func (s *Stack) Device() wgtun.Device { return s.dev }

// Inject sends whole IP packets into the tunnel past the kernel, as
// [overlay.Stack.Inject] does.
func (s *Stack) Inject(packets [][]byte) (accepted int) { return s.dev.queue.push(packets) }

// Stats returns the stack's counters, the kernel's among them until Close.
func (s *Stack) Stats() overlay.Stats {
	return overlay.Stats{
		Dropped: s.dev.queue.dropped.Load() + s.drops.queue(), Refused: s.refused.Load(), NotForStack: s.notForStack.Load(),
		Malformed: s.malformed.Load() + s.drops.malformed(),
		Crowded:   s.crowded.Load(), Restless: s.restless.Load(),
	}
}

// Close resets every connection, refuses what waits and ends the namespace. It
// is safe while packets flow, and more than once. Connections still held return
// errors.
func (s *Stack) Close() error {
	s.closing.Do(func() { s.closeEr = s.close() })
	return s.closeEr
}

func (s *Stack) close() error {
	close(s.done)
	// From here no packet enters, so that no connection is asked for.
	s.dev.stopInbound()
	s.pending.resetAll()
	err := s.listeners.close()
	s.accepts.Wait()
	s.conns.resetAll()
	s.dev.drain(drainTimeout)
	err = errors.Join(err, s.dev.Close(), s.drops.close())
	s.ns.close()
	return err
}

// conns are the open connections, for Close to reset.
type conns struct {
	mu     sync.Mutex
	open   map[*Conn]struct{}
	closed bool
}

// add returns false once resetAll has run.
func (t *conns) add(c *Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if t.open == nil {
		t.open = make(map[*Conn]struct{})
	}
	t.open[c] = struct{}{}
	return true
}

func (t *conns) remove(c *Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c)
}

func (t *conns) resetAll() {
	t.mu.Lock()
	t.closed = true
	all := t.open
	t.open = nil
	t.mu.Unlock()
	for c := range all {
		c.Reset()
	}
}

// Conn is an accepted connection. It has the methods of a [net.TCPConn], and
// is one as far as the system is concerned.
type Conn struct {
	*net.TCPConn
	stack *Stack
}

// Close ends the connection; what was written is still delivered.
func (c *Conn) Close() error {
	c.stack.conns.remove(c)
	return c.TCPConn.Close()
}

// Reset breaks the connection off: the other end gets a reset, and bytes that
// were written but not sent are discarded.
func (c *Conn) Reset() {
	_ = c.SetLinger(0) // fails on a closed connection, which has nothing to reset
	_ = c.Close()
}
