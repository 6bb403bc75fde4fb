package media

import (
	"net/netip"
	"sync"
)

// batch is datagrams of open flows that came together and leave on one socket
// with one system call. It belongs to one call of Take.
type batch struct {
	n        int
	flows    [batchSize]*flow
	payloads [batchSize][]byte
	vector   vector

	addr netip.Addr // whose dev is
	dev  *device
}

// batchSize is how many datagrams leave, or come in, with one turn.
const batchSize = 64

var batches = sync.Pool{New: func() any { return new(batch) }}

// find looks for the flow of a datagram. What comes together is of one laptop.
func (b *batch) find(r *Relay, d *datagram) *flow {
	if a := d.src.Addr(); b.dev == nil || b.addr != a {
		r.mu.RLock()
		b.addr, b.dev = a, r.devices[a]
		r.mu.RUnlock()
		if b.dev == nil {
			return nil
		}
	}
	b.dev.mu.Lock()
	f := b.dev.flows[flowKey{d.src.Port(), d.dst}]
	b.dev.mu.Unlock()
	if f == nil {
		b.dev = nil // it may be forgotten by now; what begins is in another
	}
	return f
}

// forward has a datagram of an open flow leave with the batch.
func (r *Relay) forward(b *batch, f *flow, payload []byte) {
	if f.session.Check() != nil {
		r.drop(cut)
		return
	}
	if b.n == len(b.flows) || b.n > 0 && b.flows[0].socket != f.socket {
		r.flush(b)
	}
	b.add(f, payload)
}

func (b *batch) add(f *flow, payload []byte) {
	b.flows[b.n], b.payloads[b.n] = f, payload
	b.n++
}

// flush sends what the batch holds.
func (r *Relay) flush(b *batch) {
	if b.n == 0 {
		return
	}
	s := b.flows[0].socket
	s.mu.RLock()
	r.send(b, s)
	s.mu.RUnlock()
}

// send empties the batch into its socket, whose lock is held: whoever closes a
// flow takes it for writing. Once that is done nothing of the flow is sent any
// more, and the descriptor is nobody else's meanwhile.
func (r *Relay) send(b *batch, s *socket) {
	n := 0
	for i, f := range b.flows[:b.n] {
		if f.is(flowOpen) {
			b.flows[n], b.payloads[n] = f, b.payloads[i]
			n++
		} else {
			r.drop(cut)
		}
	}
	if failed := s.send(b.flows[:n], b.payloads[:n], &b.vector); failed > 0 {
		r.counts[sending].Add(uint64(failed))
	}
	clock := r.clock.Load()
	for i, f := range b.flows[:n] {
		if b.payloads[i] != nil { // the system took it
			f.used(clock)
			f.in.Add(int64(len(b.payloads[i])))
		}
	}
	clear(b.flows[:b.n])
	clear(b.payloads[:b.n]) // they are WireGuard's
	b.n = 0
}
