package tunnel

import (
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/transport"
)

// ingress is the device's bind: the sockets, and in front of them everything a
// peer on demand needs. Of what arrives, transport messages go straight on,
// their sources compared with where their peers are; handshake messages go
// through the gate. Of what is sent, it sees whom WireGuard answers and calls.
type ingress struct {
	conn.Bind
	t    *Tunnel
	port atomic.Uint32 // listened on

	// injected are initiations the gate lets through; the device reads them like
	// a socket's.
	injected chan *claim

	mu   sync.Mutex
	done chan struct{} // closed with the sockets

	// probeMu is held while the device is asked where a peer is; answer is what
	// it said.
	probeMu sync.Mutex
	answer  conn.Endpoint
}

// claim is the endpoint of a handshake message: a place somebody claims to be
// at. WireGuard keeps it as the peer's until a packet proves one.
type claim struct {
	conn.Endpoint
	src      place
	reg      *registration
	datagram *datagram // nil where the gateway calls
	passed   bool      // unopened
	at       time.Time
}

var _ conn.Bind = (*ingress)(nil)

func newIngress(t *Tunnel, sockets conn.Bind) *ingress {
	return &ingress{Bind: sockets, t: t, injected: make(chan *claim, 2*inFlight)}
}

// Open implements [conn.Bind].
func (g *ingress) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := g.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	g.port.Store(uint32(port))
	done := make(chan struct{})
	g.mu.Lock()
	g.done = done
	g.mu.Unlock()
	for i, fn := range fns {
		fns[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(packets, sizes, eps)
			g.relieve(packets[:n], sizes[:n])
			g.inspect(packets[:n], sizes[:n], eps[:n])
			return n, err
		}
	}
	inject := func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case c := <-g.injected:
			for n := 0; ; n++ {
				sizes[n], eps[n] = copy(packets[n], c.datagram[:]), c
				if n+1 == len(packets) || len(g.injected) == 0 {
					return n + 1, nil
				}
				c = <-g.injected // nobody else reads it
			}
		case <-done:
			return 0, net.ErrClosed
		}
	}
	return append(fns, inject), port, nil
}

// Close implements [conn.Bind].
func (g *ingress) Close() error {
	g.mu.Lock()
	if g.done != nil {
		close(g.done)
		g.done = nil
	}
	g.mu.Unlock()
	return g.Bind.Close()
}

// inspect looks at what arrived. What WireGuard is not to see gets size 0.
func (g *ingress) inspect(packets [][]byte, sizes []int, eps []conn.Endpoint) {
	// Neighbours often are of one peer, and have one endpoint then.
	var lastIndex uint32
	var last conn.Endpoint
	for i, size := range sizes {
		if size == 0 {
			continue
		}
		b := packets[i][:size]
		switch transport.Kind(b) {
		case device.MessageTransportType:
			index := binary.LittleEndian.Uint32(b[4:])
			if index == lastIndex && eps[i] == last {
				continue
			}
			lastIndex, last = index, eps[i]
			if r := g.t.known.heard(index, placeOf(last)); r != nil {
				g.t.watch.suspect(r)
			}
		case device.MessageInitiationType:
			if size != device.MessageInitiationSize {
				g.t.counters.badSize.Add(1)
				sizes[i] = 0
				continue
			}
			if c := g.t.gate.admit((*datagram)(b), eps[i]); c != nil {
				eps[i] = c
			} else {
				sizes[i] = 0
			}
		case device.MessageResponseType:
			g.answered(&sizes[i], device.MessageResponseSize, b, 8)
		case device.MessageCookieReplyType:
			g.answered(&sizes[i], device.MessageCookieReplySize, b, 4)
		default:
			g.t.counters.badSize.Add(1)
			sizes[i] = 0
		}
	}
}

// answered lets an answer through if there was a question: whoever sends others
// could fill the queue of WireGuard's own handshakes with them.
func (g *ingress) answered(size *int, want int, b []byte, receiverAt int) {
	if *size != want {
		g.t.counters.badSize.Add(1)
		*size = 0
		return
	}
	r, ok := g.t.known.asked(binary.LittleEndian.Uint32(b[receiverAt:]))
	if !ok {
		g.t.counters.unasked.Add(1)
		*size = 0
		return
	}
	if r != nil {
		g.t.watch.suspect(r)
	}
}

// Send implements [conn.Bind].
func (g *ingress) Send(bufs [][]byte, ep conn.Endpoint) error {
	c, _ := ep.(*claim)
	if len(bufs) == 1 {
		b := bufs[0]
		if len(b) == 0 {
			g.answer = ep // where asks; WireGuard itself sends nothing empty
			return nil
		}
		switch transport.Kind(b) {
		case device.MessageResponseType:
			g.t.gate.responded(b, c)
		case device.MessageInitiationType:
			g.calling(b, ep, c)
		}
	}
	if awake := g.t.cfg.Awake; awake != nil && !awake() {
		// The tunnel itself goes on; what it carries does not.
		bufs = slices.DeleteFunc(slices.Clone(bufs), func(b []byte) bool {
			return transport.CarriesPacket(b)
		})
		if len(bufs) == 0 {
			return nil
		}
	}
	if c != nil {
		ep = c.Endpoint
	}
	return g.Bind.Send(bufs, ep)
}

func (g *ingress) calling(b []byte, ep conn.Endpoint, c *claim) {
	var r *registration
	to := placeOf(ep)
	if c != nil {
		r, to = c.reg, c.src
	} else {
		r, _ = g.t.known.at(to)
	}
	g.t.known.called(r, to, binary.LittleEndian.Uint32(b[4:]), time.Now())
}

// where asks WireGuard where a peer is: it tells nobody, but it sends to there.
// proven is false while the place is one that a handshake message only claimed. p
// may be nil.
func (g *ingress) where(p *device.Peer) (at place, proven bool) {
	if p == nil {
		return at, false
	}
	g.probeMu.Lock()
	defer g.probeMu.Unlock()
	g.answer = nil
	if p.SendBuffers([][]byte{nil}) != nil || g.answer == nil {
		return at, false // it has never been anywhere
	}
	if c, ok := g.answer.(*claim); ok {
		return c.src, false
	}
	return placeOf(g.answer), true
}
