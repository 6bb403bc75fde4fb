package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
	"golang.zx2c4.com/wireguard/conn"
)

// MaxStreams is how many WebSockets a gateway keeps, one for each device.
const MaxStreams = 10_000

// Reasons for not taking a WebSocket.
var (
	ErrFull     = errors.New("as many WebSockets are open as the gateway takes")
	errGone     = errors.New("the device is not connected any more")
	errReplaced = errors.New("a newer WebSocket of the same device took its place")
)

// Gateway is the gateway's [conn.Bind]: the UDP port, and the WebSockets of
// devices whose network blocks it.
type Gateway struct {
	*UDP
	inbox *Inbox
	room  sync.Once // says that the sockets have too little

	mu       sync.Mutex
	open     bool                // guarded by mu
	devices  map[string]*Stream  // guarded by mu
	probes   map[[8]byte]*probed // guarded by mu
	asked    uint64              // guarded by mu: grows with every Accept
	carrying sync.WaitGroup      // Accept calls; added to with mu held while open

	probesAnswered, refused, faulty, dropped, oversized atomic.Uint64 // of ended Streams the latter three
}

// probed is what is known of a Stream's probes.
type probed struct {
	key  ProbeKey
	last uint64 // counter of the last one answered; guarded by the Gateway's mu
}

var _ conn.Bind = (*Gateway)(nil)

// NewGateway makes a closed Gateway.
func NewGateway(opts UDPOptions) *Gateway {
	return &Gateway{
		UDP: NewUDP(opts), inbox: NewInbox(),
		devices: make(map[string]*Stream), probes: make(map[[8]byte]*probed),
	}
}

// Open implements [conn.Bind].
func (g *Gateway) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := g.UDP.Open(port)
	if err != nil {
		return nil, 0, err
	}
	g.room.Do(g.UDP.sayRoom)
	for i, fn := range fns {
		fns[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(packets, sizes, eps)
			for j := range n {
				if b := packets[j][:sizes[j]]; isProbe(b) {
					g.answer(b, eps[j])
					sizes[j] = 0
				}
			}
			return n, err
		}
	}
	g.mu.Lock()
	g.open = true
	g.mu.Unlock()
	return append(fns, g.inbox.Open()), port, nil
}

// Close implements [conn.Bind]. The devices' WebSockets end.
func (g *Gateway) Close() error {
	g.mu.Lock()
	g.open = false
	for _, s := range g.devices {
		s.End(net.ErrClosed)
	}
	g.mu.Unlock()
	g.carrying.Wait()
	g.inbox.Close()
	return g.UDP.Close()
}

// answer answers a probe, if it is one.
func (g *Gateway) answer(b []byte, ep conn.Endpoint) {
	g.mu.Lock()
	p := g.probes[probeName(b)]
	if p == nil {
		g.mu.Unlock()
		return
	}
	counter, ok := p.key.open(question, b)
	ok = ok && counter > p.last // an old one proves nothing of whoever sent it
	if ok {
		p.last = counter
	}
	g.mu.Unlock()
	if ok && g.UDP.Send([][]byte{p.key.message(answer, counter)}, ep) == nil {
		g.probesAnswered.Add(1)
	}
}

// Send implements [conn.Bind].
func (g *Gateway) Send(datagrams [][]byte, ep conn.Endpoint) error {
	if e, ok := ep.(*StreamEndpoint); ok {
		e.stream.Send(datagrams)
		return nil
	}
	return g.UDP.Send(datagrams, ep)
}

// Stream is the open WebSocket of a device, if it comes from remote. An address
// and port alone name none: a UDP socket, of somebody else even, may have the
// same.
func (g *Gateway) Stream(device string, remote netip.AddrPort) (*StreamEndpoint, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.devices[device]; s != nil && s.endpoint.remote == remote {
		return s.endpoint, true
	}
	return nil, false
}

// Hangup ends a device's WebSocket, if it has one.
func (g *Gateway) Hangup(device string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.devices[device]; s != nil {
		s.End(errGone)
	}
}

// Accept makes a WebSocket of a device's request and carries its datagrams until
// either end stops. The device's former one ends. An error means that the
// request was not answered yet.
func (g *Gateway) Accept(w http.ResponseWriter, r *http.Request, device string) error {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return err
	}
	g.mu.Lock()
	switch _, again := g.devices[device]; {
	case !g.open:
		err = net.ErrClosed
	case len(g.devices) >= MaxStreams && !again:
		err = ErrFull
		g.refused.Add(1)
	default:
		g.carrying.Add(1)
		g.asked++
	}
	asked := g.asked
	g.mu.Unlock()
	if err != nil {
		return err
	}
	defer g.carrying.Done()
	key := newProbeKey()
	w.Header().Set(ProbeHeader, key.String())
	var s *Stream
	c, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		CompressionMode: websocket.CompressionDisabled,
		OnPingReceived:  func(context.Context, []byte) bool { return s.pinged(time.Now()) },
		OnPongReceived:  func(context.Context, []byte) { s.ponged(time.Now()) },
	})
	if err != nil {
		return nil // answered by the library
	}
	keepShort(r.Context())
	// The request's context ends with the server, not with the connection.
	s = newStream(context.WithoutCancel(r.Context()), c, remote, key)
	s.endpoint.device = device
	s.asked = asked
	if !g.add(device, s) {
		_ = c.CloseNow()
		return nil
	}
	_ = g.inbox.Carry(s, s.endpoint, func([]byte) {})
	g.remove(device, s)
	return nil
}

func (g *Gateway) add(device string, s *Stream) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.open {
		return false
	}
	if old := g.devices[device]; old != nil {
		if old.asked > s.asked {
			return false // a later one was quicker
		}
		old.End(errReplaced)
	} else if len(g.devices) >= MaxStreams {
		g.refused.Add(1)
		return false
	}
	g.devices[device] = s
	g.probes[s.probe.name] = &probed{key: s.probe}
	return true
}

func (g *Gateway) remove(device string, s *Stream) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.devices[device] == s {
		delete(g.devices, device)
	}
	delete(g.probes, s.probe.name)
	if s.faulty.Load() {
		g.faulty.Add(1)
	}
	g.dropped.Add(s.dropped.Load())
	g.oversized.Add(s.oversized.Load())
}

// StreamStats of a Gateway.
type StreamStats struct {
	Open               int
	Refused            uint64 // WebSockets, since MaxStreams were open
	Faulty             uint64 // WebSockets that ended because the device broke the protocol, or sent too much that carries nothing
	Dropped, Oversized uint64 // datagrams, of open and ended WebSockets
	ProbesAnswered     uint64
}

// StreamStats counts.
func (g *Gateway) StreamStats() StreamStats {
	g.mu.Lock()
	defer g.mu.Unlock()
	st := StreamStats{Open: len(g.devices), Refused: g.refused.Load(), Faulty: g.faulty.Load(), Dropped: g.dropped.Load(), Oversized: g.oversized.Load(), ProbesAnswered: g.probesAnswered.Load()}
	for _, s := range g.devices {
		st.Dropped += s.dropped.Load()
		st.Oversized += s.oversized.Load()
	}
	return st
}

type connKey struct{}

// ConnContext is for [http.Server]: it lets Accept reach the connection.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// keepShort keeps what the kernel holds back of a connection small: what waits
// there cannot be dropped for something fresher.
func keepShort(ctx context.Context) {
	c, _ := ctx.Value(connKey{}).(net.Conn)
	KeepShort(c)
}

// KeepShort bounds what the kernel holds of a TCP connection, or of one with TLS
// over it, before it is sent.
func KeepShort(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if t, ok := c.(*net.TCPConn); ok {
		setUnsentLimit(t)
	}
}
