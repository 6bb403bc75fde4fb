package overlay

import (
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// queuePackets and queueBytes bound what the stack has waiting for
	// WireGuard's reader; a packet is up to 64 KiB long here. The bytes are a
	// few milliseconds of what the encryption does: more would only add delay.
	queuePackets = 512
	queueBytes   = 1 << 20

	// injectedPackets bounds what Inject and Options.Filter have waiting.
	injectedPackets = 1024

	// pushPatience bounds how long a sender waits for room. It is far above
	// what the encryption takes for a full queue; nothing waits on it when the
	// reader is gone, since that closes the queue.
	pushPatience = 50 * time.Millisecond
)

// ring is a first-in, first-out queue of a fixed number of places.
type ring[T any] struct {
	slots   []T
	head, n int
}

func (r *ring[T]) full() bool { return r.n == len(r.slots) }

func (r *ring[T]) push(v T) {
	r.slots[(r.head+r.n)%len(r.slots)] = v
	r.n++
}

func (r *ring[T]) pop() T {
	v := r.slots[r.head]
	var zero T
	r.slots[r.head] = zero
	r.head = (r.head + 1) % len(r.slots)
	r.n--
	return v
}

// queue is where packets wait for WireGuard's one reader: the only place in
// front of the tunnel where they do. Injected packets go first, as many as
// there are of them: they are voice, or too few to matter.
type queue struct {
	dropped atomic.Uint64
	wake    chan struct{} // holds a token when a reader that waits has something to look at
	space   chan struct{} // holds a token when senders that wait have room

	mu       sync.Mutex
	packets  ring[*stack.PacketBuffer]
	bytes    int // in packets
	injected ring[[]byte]
	senders  int  // that wait for room
	reading  bool // the reader waits
	closed   bool
}

func newQueue() *queue {
	return &queue{
		wake:     make(chan struct{}, 1),
		space:    make(chan struct{}, 1),
		packets:  ring[*stack.PacketBuffer]{slots: make([]*stack.PacketBuffer, queuePackets)},
		injected: ring[[]byte]{slots: make([][]byte, injectedPackets)},
	}
}

func (q *queue) full() bool { return q.packets.full() || q.bytes >= queueBytes }

// push queues p, taking a reference. When there is no room it waits a moment:
// the reader is only as slow as the encryption behind it, and a sender that is
// held back loses nothing, where one whose segments are dropped starts over
// with a small window. After that moment the packet is lost, as in any full
// queue on the road. A connection's reset, the one segment that is not sent
// again when lost, takes the place of the oldest packet instead.
func (q *queue) push(p *stack.PacketBuffer) bool {
	q.mu.Lock()
	if q.full() && !q.closed {
		switch {
		case resets(p):
			q.dropped.Add(1)
			q.popPacket().DecRef()
		case !q.waitForSpace():
			q.dropped.Add(1)
			q.mu.Unlock()
			return false
		}
	}
	if q.closed {
		q.mu.Unlock()
		signal(q.space) // for the next sender that waits
		return false
	}
	q.packets.push(p.IncRef())
	q.bytes += p.Size()
	more := q.senders > 0 && !q.full()
	wake := q.reading
	q.mu.Unlock()
	if wake {
		signal(q.wake)
	}
	if more {
		signal(q.space)
	}
	return true
}

// waitForSpace waits until there is room or the queue is closed, at most for
// pushPatience, and reports whether there is. It is called and returns with mu
// held.
func (q *queue) waitForSpace() bool {
	timer := time.NewTimer(pushPatience)
	defer timer.Stop()
	q.senders++
	defer func() { q.senders-- }()
	for q.full() && !q.closed {
		q.mu.Unlock()
		select {
		case <-q.space:
			q.mu.Lock()
		case <-timer.C:
			q.mu.Lock()
			return !q.full()
		}
	}
	return true
}

// inject queues a whole packet, which it owns from now on, in the place of the
// oldest one if there is no other.
func (q *queue) inject(packet []byte) bool {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return false
	}
	if q.injected.full() {
		q.injected.pop()
		q.dropped.Add(1)
	}
	q.injected.push(packet)
	wake := q.reading
	q.mu.Unlock()
	if wake {
		signal(q.wake)
	}
	return true
}

// pop takes the next packet, one of the two. With wait it blocks until there is
// one; without, both may be nil. The error is os.ErrClosed once the queue is.
func (q *queue) pop(wait bool) (injected []byte, p *stack.PacketBuffer, err error) {
	q.mu.Lock()
	for {
		switch {
		case q.injected.n > 0:
			injected = q.injected.pop()
		case q.packets.n > 0:
			p = q.popPacket()
		case q.closed:
			err = os.ErrClosed
		case wait:
			q.reading = true
			q.mu.Unlock()
			<-q.wake
			q.mu.Lock()
			q.reading = false
			continue
		}
		break
	}
	// Senders start again when there is room for many at once.
	room := q.senders > 0 && q.bytes <= queueBytes/2
	q.mu.Unlock()
	if room {
		signal(q.space)
	}
	return injected, p, err
}

// popPacket takes the oldest of packets, of which there is one. It is called
// with mu held; the caller owns the reference.
func (q *queue) popPacket() *stack.PacketBuffer {
	p := q.packets.pop()
	q.bytes -= p.Size()
	return p
}

func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.packets.n + q.injected.n
}

// shut ends pop; packets still queued are lost.
func (q *queue) shut() {
	q.mu.Lock()
	q.closed = true
	for q.packets.n > 0 {
		q.popPacket().DecRef()
	}
	for q.injected.n > 0 {
		q.injected.pop()
	}
	q.mu.Unlock()
	signal(q.wake)
	signal(q.space)
}

// signal leaves a token unless there is one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// resets reports whether p breaks off a connection there was. The answer to a
// segment of none has no such right, since whoever sends those without end
// would push out what is for others.
func resets(p *stack.PacketBuffer) bool {
	if p.TransportProtocolNumber != header.TCPProtocolNumber || p.GSOOptions.Type == stack.GSONone {
		return false
	}
	h := header.TCP(p.TransportHeader().Slice())
	return len(h) >= header.TCPMinimumSize && h.Flags().Contains(header.TCPFlagRst)
}
