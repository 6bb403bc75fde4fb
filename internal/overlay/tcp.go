package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/portvakt/portvakt/internal/halfopen"
)

// answerTimeout is when a request nobody answered is reset. A client's own
// patience with its SYN is shorter than that.
const answerTimeout = 2 * time.Minute

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
// blocks until the device's last ACK, until ctx ends, which resets what there is
// of the connection, and at most about two minutes. The error is ErrAnswered,
// ErrClosed, that of ctx or why the handshake failed.
func (r *TCPRequest) Accept(ctx context.Context) (net.Conn, error) {
	first := false
	r.once.Do(func() { first = true })
	if !first {
		return nil, ErrAnswered
	}
	r.timer.Stop()
	givenUp := false
	defer func() { r.stack.open.release(r.id, givenUp) }()
	if !r.stack.enter() {
		r.req.Complete(true)
		return nil, ErrClosed
	}
	defer r.stack.ops.Done()
	returned, aborted := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(aborted)
		r.abort(returned)
	})
	// Nothing may be aborted any more once the place is free for another.
	defer func() {
		close(returned)
		if !stop() {
			<-aborted
		}
	}()
	wq := new(waiter.Queue)
	ep, terr := r.req.CreateEndpoint(wq)
	if terr != nil {
		err := fromTCPIP(terr)
		reset := errors.Is(err, syscall.ECONNREFUSED) // by the device, which gets no answer to that
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		givenUp = reset || errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, context.DeadlineExceeded)
		r.req.Complete(!reset)
		return nil, &net.OpError{
			Op: "accept", Net: "tcp", Source: net.TCPAddrFromAddrPort(r.local),
			Addr: net.TCPAddrFromAddrPort(r.peer), Err: err,
		}
	}
	r.req.Complete(false)
	tune(ep)
	return r.stack.newConn(wq, ep), nil
}

// abort ends a handshake from outside, which CreateEndpoint has no way for. It
// goes on until Accept has returned: the endpoint may be only about to be there.
func (r *TCPRequest) abort(returned <-chan struct{}) {
	for {
		select {
		case <-returned:
			return
		default:
		}
		if ep := r.stack.ip.FindTransportEndpoint(protocolOf(r.peer.Addr()), tcp.ProtocolNumber, r.id, nicID); ep != nil {
			ep.Abort()
		}
		select {
		case <-returned:
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// Reset refuses the connection as a closed port would. It does nothing on a
// request that was answered.
func (r *TCPRequest) Reset() {
	r.once.Do(func() {
		r.timer.Stop()
		r.req.Complete(true)
		r.stack.open.release(r.id, false)
	})
}

// requests are the half-open connections, and of those the ones that the owner
// has not answered.
type requests struct {
	table *halfopen.Table

	mu     sync.Mutex
	ids    map[stack.TransportEndpointID]place // guarded by mu
	closed bool                                // guarded by mu
}

// place is what a half-open connection takes.
type place struct {
	source netip.Addr  // what it counts with
	req    *TCPRequest // nil until forwardTCP has made it
}

// has tells whether a SYN is a further one of the same connection.
func (q *requests) has(id stack.TransportEndpointID) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, ok := q.ids[id]
	return ok
}

// admit takes a place for a new SYN. A duplicate is of a request that has one.
func (q *requests) admit(id stack.TransportEndpointID) (v halfopen.Verdict, duplicate bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.ids[id]; ok {
		return v, true
	}
	of, v := q.table.Admit(addrPort(id.RemoteAddress, 0).Addr())
	if v != halfopen.Admitted {
		return v, false
	}
	if q.ids == nil {
		q.ids = make(map[stack.TransportEndpointID]place)
	}
	q.ids[id] = place{source: of}
	return v, false
}

// set notes the request of a place. It returns false once resetAll has run.
func (q *requests) set(r *TCPRequest) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.ids[r.id]
	p.req = r
	q.ids[r.id] = p
	return !q.closed
}

// release gives a place back; givenUp says that the device gave it up.
func (q *requests) release(id stack.TransportEndpointID, givenUp bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p, ok := q.ids[id]; ok {
		delete(q.ids, id)
		q.table.Leave(p.source, givenUp)
	}
}

// resetAll refuses all that wait and all to come.
func (q *requests) resetAll() {
	q.table.Close()
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

// turnAway refuses a SYN of a source that may ask for no more, before the stack
// spends anything on it. Options.Refuse says how.
func (s *Stack) turnAway(packet []byte) (reply []byte, refused bool) {
	id, ok := asks(packet)
	if !ok || s.opts.Refuse == nil || s.open.has(id) {
		return nil, false
	}
	v := s.open.table.Would(addrPort(id.RemoteAddress, 0).Addr())
	if v == halfopen.Admitted {
		return nil, false
	}
	s.count(v)
	return s.opts.Refuse(packet), true
}

// asks tells whether an IP packet without options is a SYN, and of which
// connection.
func asks(packet []byte) (id stack.TransportEndpointID, ok bool) {
	var h []byte
	switch {
	case len(packet) >= header.IPv4MinimumSize+header.TCPMinimumSize && packet[0] == 0x45 && packet[9] == uint8(header.TCPProtocolNumber):
		h = packet[header.IPv4MinimumSize:]
		id.RemoteAddress, id.LocalAddress = tcpip.AddrFrom4([4]byte(packet[12:])), tcpip.AddrFrom4([4]byte(packet[16:]))
	case len(packet) >= header.IPv6MinimumSize+header.TCPMinimumSize && packet[0]>>4 == 6 && packet[6] == uint8(header.TCPProtocolNumber):
		h = packet[header.IPv6MinimumSize:]
		id.RemoteAddress, id.LocalAddress = tcpip.AddrFrom16([16]byte(packet[8:])), tcpip.AddrFrom16([16]byte(packet[24:]))
	default:
		return id, false
	}
	id.RemotePort, id.LocalPort = header.TCP(h).SourcePort(), header.TCP(h).DestinationPort()
	return id, begins(header.TCP(h))
}

// begins tells whether a TCP header asks for a connection.
func begins(h header.TCP) bool {
	return h.Flags()&(header.TCPFlagSyn|header.TCPFlagAck|header.TCPFlagRst) == header.TCPFlagSyn
}

// leastMSS is the least segment that who asks for a connection is sent, in bytes
// and with its options. It may name less (RFC 9293 section 3.7.1), and would have
// a packet made, encrypted and sent for every few bytes. Paths that carry a tunnel
// take more, and tcp_min_snd_mss does the same where the kernel's stack is used.
const leastMSS = 536

// raiseMSS leaves no segment size less than leastMSS among the TCP options of a
// SYN. The stack takes 0 for none, which means 536. The checksum, which was
// verified, does not follow.
func raiseMSS(options []byte) {
	for len(options) > 0 && options[0] != header.TCPOptionEOL {
		if options[0] == header.TCPOptionNOP {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return
		}
		n := options[1]
		if options[0] == header.TCPOptionMSS && n == header.TCPOptionMSSLength {
			if mss := binary.BigEndian.Uint16(options[2:]); 0 < mss && mss < leastMSS {
				binary.BigEndian.PutUint16(options[2:], leastMSS)
			}
		}
		options = options[n:]
	}
}

func (s *Stack) count(v halfopen.Verdict) {
	if v == halfopen.Restless {
		s.restless.Add(1)
	} else {
		s.crowded.Add(1)
	}
}

// handleTCP sees every TCP packet no endpoint took. Returning false makes the
// stack answer with a reset, as it must for anything that is no admitted SYN.
func (s *Stack) handleTCP(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	h := header.TCP(pkt.TransportHeader().Slice())
	if s.opts.TCP == nil || len(h) < header.TCPMinimumSize || !begins(h) {
		return false
	}
	switch v, duplicate := s.open.admit(id); {
	case duplicate:
		return true // the client is impatient; its answer is being worked on
	case v != halfopen.Admitted:
		s.count(v)
		return false
	}
	if !s.tcp.HandlePacket(id, pkt) {
		s.open.release(id, false)
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
