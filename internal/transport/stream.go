package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// MaxDatagram is the largest datagram a WebSocket carries, in bytes.
	MaxDatagram = 2048
	// streamQueue is how many datagrams wait for a WebSocket's other end. When
	// they do not leave, a fresh one is worth more than an old one.
	streamQueue = 64
	// writePatience is how long the other end may take for one datagram.
	writePatience = 5 * time.Second
	// wholeWithin is how long a message may take from its head to its end.
	wholeWithin = 15 * time.Second
	// pingEvery is how often the end that dialled asks for a sign of life, and
	// idleLimit how long the other one waits for anything.
	pingEvery = 20 * time.Second
	idleLimit = 75 * time.Second
	// mutedLimit ends a WebSocket over which nothing was sent for so long: a
	// living tunnel's handshakes come every 2 minutes, and WireGuard does not
	// answer a key it does not know (any more).
	mutedLimit = 4 * time.Minute
)

var datagramPool = sync.Pool{New: func() any { return new([MaxDatagram]byte) }}

// datagram is one with its buffer, which belongs to the pool.
type datagram struct {
	buf *[MaxDatagram]byte
	n   int
}

func newDatagram(b []byte) datagram {
	d := datagram{datagramPool.Get().(*[MaxDatagram]byte), len(b)}
	copy(d.buf[:], b)
	return d
}

func (d datagram) bytes() []byte { return d.buf[:d.n] }
func (d datagram) free()         { datagramPool.Put(d.buf) }

// Stream carries datagrams over a WebSocket, each in a binary message of its
// own.
type Stream struct {
	conn     *websocket.Conn
	endpoint *StreamEndpoint
	probe    ProbeKey
	ctx      context.Context // of Run
	end      context.CancelCauseFunc
	dialled  bool
	asked    uint64        // of a Gateway's: which Accept it is of
	patience time.Duration // for one datagram to leave
	whole    time.Duration // within which a message has to be

	dropped, oversized atomic.Uint64
	faulty             atomic.Bool  // it ended because the other end broke the protocol
	chatter, pings     tempo        // of frames that carry nothing, of pings; Run's reader's own
	heard, sent        atomic.Int64 // Unix time in nanoseconds of the last datagram or ping, of the last datagram

	mu      sync.Mutex
	ring    [streamQueue]datagram // guarded by mu
	head, n int                   // guarded by mu
	closed  bool                  // guarded by mu
	wake    chan struct{}         // holds a token when there is something to send
}

// StreamEndpoint is the other end of a Stream, as a [conn.Endpoint]. Its address
// is that of the TCP connection.
type StreamEndpoint struct {
	stream *Stream
	remote netip.AddrPort
	device string // at a gateway: whose it is
}

var _ conn.Endpoint = (*StreamEndpoint)(nil)

// AddrPort is the other end's address.
func (e *StreamEndpoint) AddrPort() netip.AddrPort { return e.remote }

// Device is whose WebSocket it is, at a gateway.
func (e *StreamEndpoint) Device() string { return e.device }

// ClearSrc implements [conn.Endpoint].
func (*StreamEndpoint) ClearSrc() {}

// SrcToString implements [conn.Endpoint].
func (*StreamEndpoint) SrcToString() string { return "" }

// DstToString implements [conn.Endpoint].
func (e *StreamEndpoint) DstToString() string { return e.remote.String() }

// DstToBytes implements [conn.Endpoint].
func (e *StreamEndpoint) DstToBytes() []byte {
	b, _ := e.remote.MarshalBinary() // never fails
	return b
}

// DstIP implements [conn.Endpoint].
func (e *StreamEndpoint) DstIP() netip.Addr { return e.remote.Addr() }

// SrcIP implements [conn.Endpoint].
func (*StreamEndpoint) SrcIP() netip.Addr { return netip.Addr{} }

// NewStream makes a Stream of a WebSocket that this end dialled, which it takes
// over. ctx bounds its life; Run must be called. probe is the key of its UDP
// probes, as the gateway gave it.
func NewStream(ctx context.Context, c *websocket.Conn, remote netip.AddrPort, probe ProbeKey) *Stream {
	s := newStream(ctx, c, remote, probe)
	s.dialled = true
	return s
}

func newStream(ctx context.Context, c *websocket.Conn, remote netip.AddrPort, probe ProbeKey) *Stream {
	s := &Stream{conn: c, probe: probe, patience: writePatience, whole: wholeWithin, wake: make(chan struct{}, 1)}
	s.ctx, s.end = context.WithCancelCause(ctx)
	s.endpoint = &StreamEndpoint{stream: s, remote: netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port())}
	now := time.Now().UnixNano()
	s.heard.Store(now)
	s.sent.Store(now)
	c.SetReadLimit(1 << 16)
	return s
}

// Endpoint is the other end.
func (s *Stream) Endpoint() *StreamEndpoint { return s.endpoint }

// Probe is the key of this Stream's UDP probes.
func (s *Stream) Probe() ProbeKey { return s.probe }

// Dropped is how many datagrams found the queue full, or were one that was
// dropped for a fresher one.
func (s *Stream) Dropped() uint64 { return s.dropped.Load() }

// Send queues datagrams; it never waits, and after the end it drops them.
func (s *Stream) Send(datagrams [][]byte) {
	s.mu.Lock()
	for _, b := range datagrams {
		switch {
		case len(b) > MaxDatagram:
			s.oversized.Add(1)
			continue
		case s.closed:
			s.dropped.Add(1)
			continue
		case s.n == streamQueue:
			s.dropped.Add(1)
			s.popLocked().free()
		}
		s.ring[(s.head+s.n)%streamQueue] = newDatagram(b)
		s.n++
	}
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// popLocked takes the oldest datagram off the queue, which has one.
func (s *Stream) popLocked() datagram {
	d := s.ring[s.head]
	s.ring[s.head] = datagram{}
	s.head = (s.head + 1) % streamQueue
	s.n--
	return d
}

func (s *Stream) pop() (datagram, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n == 0 {
		return datagram{}, false
	}
	return s.popLocked(), true
}

// End ends Run with a cause.
func (s *Stream) End(cause error) { s.end(cause) }

// Done is closed when the Stream has ended or is about to.
func (s *Stream) Done() <-chan struct{} { return s.ctx.Done() }

// Run carries datagrams until one end stops, and says why. Each one received is
// given to deliver, which owns it and should not wait for longer than ctx.
func (s *Stream) Run(deliver func(ctx context.Context, d datagram)) error {
	var wg sync.WaitGroup
	wg.Go(func() { s.end(s.write()) })
	if s.dialled {
		wg.Go(func() { s.end(s.ping()) })
	}
	s.end(s.read(deliver))
	_ = s.conn.CloseNow()
	wg.Wait()
	s.mu.Lock()
	s.closed = true
	for s.n > 0 {
		s.popLocked().free()
	}
	s.mu.Unlock()
	return context.Cause(s.ctx)
}

// read takes datagrams in. What is too long is passed over; what is no binary
// message, and too much of what carries nothing, ends the Stream.
func (s *Stream) read(deliver func(context.Context, datagram)) error {
	err := s.readMessages(deliver)
	s.faulty.Store(misused(s.ctx, err))
	return fmt.Errorf("reading from the WebSocket: %w", err)
}

func (s *Stream) readMessages(deliver func(context.Context, datagram)) error {
	slow := time.AfterFunc(s.whole, func() { s.end(errSlow) })
	defer slow.Stop()
	var one [1]byte
	for {
		slow.Stop()
		kind, r, err := s.conn.Reader(s.ctx)
		if err != nil {
			return err
		}
		if kind != websocket.MessageBinary {
			return errors.New("a message that is not binary")
		}
		slow.Reset(s.whole)
		d := datagram{buf: datagramPool.Get().(*[MaxDatagram]byte)}
		d.n, err = io.ReadFull(r, d.buf[:])
		if err == nil {
			var more int
			if more, err = io.ReadFull(r, one[:]); more > 0 {
				s.oversized.Add(1)
				_, err = io.Copy(io.Discard, r)
				d.n = 0
			}
		}
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			d.free()
			return err
		}
		s.hear()
		if Kind(d.bytes()) == 0 && !s.idly(time.Now()) {
			d.free()
			return errChatter
		}
		if d.n == 0 {
			d.free()
			continue
		}
		deliver(s.ctx, d)
	}
}

// write sends what is queued, and looks whether anybody is still there.
func (s *Stream) write() error {
	look := time.NewTicker(idleLimit / 3)
	defer look.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case now := <-look.C:
			if now.Sub(time.Unix(0, s.heard.Load())) > idleLimit || now.Sub(time.Unix(0, s.sent.Load())) > mutedLimit {
				return errIdle
			}
			continue
		case <-s.wake:
		}
		for d, ok := s.pop(); ok; d, ok = s.pop() {
			ctx, cancel := context.WithTimeout(s.ctx, s.patience)
			err := s.conn.Write(ctx, websocket.MessageBinary, d.bytes())
			cancel()
			d.free()
			if err != nil {
				return fmt.Errorf("writing to the WebSocket: %w", err)
			}
			s.sent.Store(time.Now().UnixNano())
		}
	}
}

var errIdle = errors.New("nothing came or went over the WebSocket for too long")

// ping asks the other end for a sign of life.
func (s *Stream) ping() error {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(s.ctx, pingEvery/2)
		err := s.conn.Ping(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("pinging over the WebSocket: %w", err)
		}
		s.hear()
	}
}

// hear notes a sign of life.
func (s *Stream) hear() { s.heard.Store(time.Now().UnixNano()) }
