package tunnel

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/transport"
)

// The names of transports in Status.
const (
	TransportUDP       = "udp"
	TransportWebSocket = "websocket"
)

// road is the device's [conn.Bind]: UDP, or a WebSocket while UDP is blocked.
// There is one peer, so that an endpoint says nothing: where to send is the
// ladder's decision.
type road struct {
	udp   *transport.UDP
	inbox *transport.Inbox
	to    conn.Endpoint // the gateway by UDP
	// known says whether the gateway's UDP address is known at all.
	known bool
	ep    *roadEndpoint

	// stream is what datagrams leave by, nil for UDP.
	stream atomic.Pointer[transport.Stream]

	// asked and sent are when the first handshake message and the first question
	// left by UDP that nothing came back for; Unix time in nanoseconds, 0 if
	// something did.
	asked, sent atomic.Int64
	// data is when the last data came by UDP, 0 if none did since it is in use;
	// used is when the last question left.
	data, used atomic.Int64
	poke       chan struct{} // holds a token when one of them was set
	answers    chan uint64   // counters of probes that were answered
	shakes     chan struct{} // holds a token when a handshake message came
	probe      atomic.Pointer[transport.ProbeKey]

	// doubt is how long UDP may owe an answer before what is sent is kept.
	doubt time.Duration

	mu         sync.Mutex
	initiation []byte   // guarded by mu: the last handshake initiation sent by UDP; nil if the gateway began one since
	kept       [][]byte // guarded by mu: the last data sent in doubt
	keptSince  int64    // guarded by mu: the value of sent it belongs to
}

// maxKept is how many datagrams sent in doubt are kept to be sent again: what a
// WebSocket's queue holds.
const maxKept = 64

var _ conn.Bind = (*road)(nil)

// roadEndpoint is the gateway, whatever leads there.
type roadEndpoint struct{ conn.Endpoint }

func newRoad(gateway netip.AddrPort, opts transport.UDPOptions) (*road, error) {
	r := &road{
		udp: transport.NewUDP(opts), inbox: transport.NewInbox(), known: !gateway.Addr().IsUnspecified(),
		doubt: normalPace.doubt,
		poke:  make(chan struct{}, 1), answers: make(chan uint64, 1), shakes: make(chan struct{}, 1),
	}
	to, err := r.udp.ParseEndpoint(gateway.String())
	if err != nil {
		return nil, err
	}
	r.to, r.ep = to, &roadEndpoint{to}
	return r, nil
}

// Open implements [conn.Bind].
func (r *road) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := r.udp.Open(port)
	if err != nil {
		return nil, 0, err
	}
	for i, fn := range fns {
		fns[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(packets, sizes, eps)
			for j := range n {
				if sizes[j] > 0 && !r.heard(packets[j][:sizes[j]], eps[j]) {
					sizes[j] = 0
				}
				eps[j] = r.ep
			}
			return n, err
		}
	}
	return append(fns, r.inbox.Open()), port, nil
}

// heard looks at a datagram that came by UDP and says whether it is
// WireGuard's. Only what comes from the gateway's address proves that UDP works.
func (r *road) heard(b []byte, from conn.Endpoint) bool {
	if key := r.probe.Load(); key != nil {
		if counter, ok := key.Answered(b); ok {
			select {
			case r.answers <- counter:
			default:
			}
			return false
		}
	}
	r.shook(b)
	if transport.CarriesPacket(b) {
		r.data.Store(time.Now().UnixNano())
	}
	if transport.Kind(b) != device.MessageInitiationType && (r.asked.Load() != 0 || r.sent.Load() != 0) && transport.Remote(from) == transport.Remote(r.to) {
		r.asked.Store(0)
		r.sent.Store(0)
	}
	return true
}

// Send implements [conn.Bind].
func (r *road) Send(datagrams [][]byte, _ conn.Endpoint) error {
	if s := r.stream.Load(); s != nil {
		s.Send(datagrams)
		return nil
	}
	for _, d := range datagrams {
		if transport.Kind(d) == device.MessageInitiationType {
			r.mu.Lock()
			r.initiation = append(r.initiation[:0], d...)
			r.mu.Unlock()
			r.wait(&r.asked)
		}
	}
	if since := r.sent.Load(); since != 0 && time.Now().UnixNano()-since > int64(r.doubt) {
		r.keep(since, datagrams)
	}
	if !r.known {
		return nil
	}
	return r.udp.Send(datagrams, r.to)
}

// keep keeps data that is probably lost, since the time UDP owes an answer of.
func (r *road) keep(since int64, datagrams [][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keptSince != since {
		r.kept, r.keptSince = r.kept[:0], since
	}
	for _, d := range datagrams {
		if transport.Kind(d) == device.MessageTransportType {
			r.kept = append(r.kept, append([]byte(nil), d...))
		}
	}
	if n := len(r.kept) - maxKept; n > 0 {
		r.kept = slices.Delete(r.kept, 0, n)
	}
}

// question notes that something is about to be sent that is to be answered, and
// whether it is of somebody who uses the tunnel.
func (r *road) question(used bool) {
	if r.stream.Load() != nil {
		return
	}
	if used {
		r.used.Store(time.Now().UnixNano())
	}
	r.wait(&r.sent)
}

// wait notes that something was sent that is to be answered.
func (r *road) wait(since *atomic.Int64) {
	if since.Load() == 0 && since.CompareAndSwap(0, time.Now().UnixNano()) {
		select {
		case r.poke <- struct{}{}:
		default:
		}
	}
}

// takeTo makes datagrams leave by s, nil for UDP. What UDP still owes an answer
// of is sent again by s: WireGuard itself would only make another initiation
// after 5 s, and TCP inside has by now learnt to wait for long. A datagram is
// taken once, so that this does no harm when only the answers were lost.
func (r *road) takeTo(s *transport.Stream) {
	asked, since := r.asked.Load(), r.sent.Load()
	r.stream.Store(s)
	r.asked.Store(0)
	r.sent.Store(0)
	r.data.Store(0)
	r.mu.Lock()
	defer r.mu.Unlock()
	if s != nil && asked != 0 && r.initiation != nil {
		s.Send([][]byte{r.initiation})
	}
	if s != nil && since == r.keptSince {
		s.Send(r.kept)
	}
	r.kept, r.keptSince = nil, 0
}

// Close implements [conn.Bind].
func (r *road) Close() error {
	if s := r.stream.Swap(nil); s != nil {
		s.End(errClosed)
	}
	r.inbox.Close()
	return r.udp.Close()
}

// SetMark implements [conn.Bind].
func (r *road) SetMark(mark uint32) error { return r.udp.SetMark(mark) }

// ParseEndpoint implements [conn.Bind].
func (r *road) ParseEndpoint(string) (conn.Endpoint, error) { return r.ep, nil }

// BatchSize implements [conn.Bind].
func (r *road) BatchSize() int { return r.udp.BatchSize() }
