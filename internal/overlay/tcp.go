package overlay

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxRequests bounds the half-open connections of all sources together.
	maxRequests = 8192

	// answerTimeout is when a request nobody answered is reset. A client's own
	// patience with its SYN is shorter than that.
	answerTimeout = 2 * time.Minute
)

// ErrAnswered is returned by Accept on a request that was accepted or reset
// before.
var ErrAnswered = errors.New("connection request was answered before")

// TCPRequest is a connection a device asks for. Its SYN has not been answered:
// the owner decides, dials the app and then calls exactly one of Accept and
// Reset. Until then the request counts against [Options.MaxHalfOpen]; one that
// is forgotten is reset after two minutes.
type TCPRequest struct {
	stack       *Stack
	req         *tcp.ForwarderRequest
	id          stack.TransportEndpointID
	peer, local netip.AddrPort
	once        sync.Once
	timer       *time.Timer
}

// Peer is the device's end: its inner address and port.
func (r *TCPRequest) Peer() netip.AddrPort { return r.peer }

// Local is the address and port the device connects to.
func (r *TCPRequest) Local() netip.AddrPort { return r.local }

// Accept completes the handshake and returns the connection, a [*Conn]. It
// blocks until the device's last ACK, at most about two minutes. The error is
// ErrAnswered, ErrClosed or why the handshake failed.
func (r *TCPRequest) Accept() (net.Conn, error) {
	first := false
	r.once.Do(func() { first = true })
	if !first {
		return nil, ErrAnswered
	}
	r.timer.Stop()
	defer r.stack.open.remove(r)
	if !r.stack.enter() {
		r.req.Complete(true)
		return nil, ErrClosed
	}
	defer r.stack.ops.Done()
	wq := new(waiter.Queue)
	ep, terr := r.req.CreateEndpoint(wq)
	if terr != nil {
		r.req.Complete(true)
		return nil, &net.OpError{
			Op: "accept", Net: "tcp", Source: net.TCPAddrFromAddrPort(r.local),
			Addr: net.TCPAddrFromAddrPort(r.peer), Err: fromTCPIP(terr),
		}
	}
	r.req.Complete(false)
	tune(ep)
	return r.stack.newConn(wq, ep), nil
}

// Reset refuses the connection as a closed port would. It does nothing on a
// request that was answered.
func (r *TCPRequest) Reset() {
	r.once.Do(func() {
		r.timer.Stop()
		r.req.Complete(true)
		r.stack.open.remove(r)
	})
}

// requests counts half-open connections by source and knows the ones the owner
// has not answered.
type requests struct {
	max    int
	source func(netip.Addr) netip.Addr // Options.Source

	mu       sync.Mutex
	ids      map[stack.TransportEndpointID]place
	bySource map[netip.Addr]int
	closed   bool
}

// place is what a half-open connection takes.
type place struct {
	source netip.Addr  // what it was counted with
	req    *TCPRequest // nil until forwardTCP has made it
}

type admission uint8

const (
	admitted admission = iota
	duplicate
	refused
)

// admit reserves a place for a new SYN.
func (q *requests) admit(id stack.TransportEndpointID) admission {
	source := addrPort(id.RemoteAddress, 0).Addr()
	if q.source != nil {
		source = q.source(source)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.ids[id]; ok {
		return duplicate
	}
	if q.closed || len(q.ids) >= maxRequests || q.bySource[source] >= q.max {
		return refused
	}
	if q.ids == nil {
		q.ids = make(map[stack.TransportEndpointID]place)
		q.bySource = make(map[netip.Addr]int)
	}
	q.ids[id] = place{source: source}
	q.bySource[source]++
	return admitted
}

// set notes the request of a reserved place. It returns false once resetAll
// has run.
func (q *requests) set(r *TCPRequest) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.ids[r.id]
	p.req = r
	q.ids[r.id] = p
	return !q.closed
}

func (q *requests) remove(r *TCPRequest) { q.release(r.id) }

func (q *requests) release(id stack.TransportEndpointID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	p, ok := q.ids[id]
	if !ok {
		return
	}
	delete(q.ids, id)
	if q.bySource[p.source]--; q.bySource[p.source] <= 0 {
		delete(q.bySource, p.source)
	}
}

// resetAll refuses all that wait and all to come.
func (q *requests) resetAll() {
	q.mu.Lock()
	q.closed = true
	var all []*TCPRequest
	for _, p := range q.ids {
		if p.req != nil {
			all = append(all, p.req)
		}
	}
	q.mu.Unlock()
	for _, r := range all {
		r.Reset()
	}
}

// handleTCP sees every TCP packet no endpoint took. Returning false makes the
// stack answer with a reset, as it must for anything that is no admitted SYN.
func (s *Stack) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if s.opts.TCP == nil || len(h) < header.TCPMinimumSize {
		return false
	}
	if h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) != header.TCPFlagSyn {
		return false
	}
	switch s.open.admit(id) {
	case duplicate:
		return true // the client is impatient; its answer is being worked on
	case refused:
		s.crowded.Add(1)
		return false
	}
	if !s.tcp.HandlePacket(id, pkt) {
		s.open.release(id)
		return false
	}
	return true
}

// forwardTCP runs in a goroutine of its own.
func (s *Stack) forwardTCP(req *tcp.ForwarderRequest) {
	id := req.ID()
	r := &TCPRequest{stack: s, req: req, id: id, peer: addrPort(id.RemoteAddress, id.RemotePort), local: addrPort(id.LocalAddress, id.LocalPort)}
	r.timer = time.AfterFunc(answerTimeout, r.Reset)
	if !s.open.set(r) {
		r.Reset()
		return
	}
	s.opts.TCP(r)
}
