package tunnel

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/internal/transport"
)

// refusedRate is how many packets of a device may be refused and it is heard
// like any other. One that had more is under strain for strainedFor, and
// strainedRate is how many of its datagrams are heard: what is not costs neither
// a decryption nor a turn of those that all devices' packets wait for.
var (
	refusedRate  = rate{1000, 2000}
	strainedRate = rate{2000, 500}
)

const strainedFor = time.Second

// strain is how much of what a live device sends is refused. Only packets that
// WireGuard opened count, so that nobody else can put a device under strain.
type strain struct {
	until atomic.Int64 // since the registry was made, in nanoseconds

	mu      sync.Mutex
	refused bucket // guarded by mu
	heard   bucket // guarded by mu
}

// refused counts a packet against the device that sent it. It returns its peer,
// nil where it has none any more.
func (g *registry) refused(packet []byte, now time.Time) *peer {
	src, ok := source(packet)
	if !ok {
		return nil
	}
	g.mu.RLock()
	var p *peer
	if r := g.byAddress[src]; r != nil {
		p = r.peer
	}
	g.mu.RUnlock()
	if p == nil {
		return nil
	}
	at := now.Sub(g.made)
	p.strain.mu.Lock()
	over := p.strain.refused.empty(refusedRate, at)
	p.strain.refused.spend(refusedRate, at)
	p.strain.mu.Unlock()
	if over {
		until := int64(at + strainedFor)
		p.strain.until.Store(until)
		g.strained.Store(until)
	}
	return p
}

// unheard tells of a transport message whether it is a device's under strain
// and one too many.
func (g *registry) unheard(index uint32, at time.Duration) bool {
	g.mu.RLock()
	var p *peer
	if r := g.byIndex[index]; r != nil {
		p = r.peer
	}
	g.mu.RUnlock()
	if p == nil || p.strain.until.Load() <= int64(at) {
		return false
	}
	p.strain.mu.Lock()
	defer p.strain.mu.Unlock()
	if p.strain.heard.empty(strainedRate, at) {
		return true
	}
	p.strain.heard.spend(strainedRate, at)
	return false
}

// relieve takes out what is not heard of devices under strain. Keepalives and
// handshakes are.
func (g *ingress) relieve(packets [][]byte, sizes []int) {
	at := time.Since(g.t.known.made)
	if g.t.known.strained.Load() <= int64(at) {
		return // nobody is
	}
	for i, size := range sizes {
		b := packets[i][:size]
		if size > 0 && transport.CarriesPacket(b) && g.t.known.unheard(binary.LittleEndian.Uint32(b[4:]), at) {
			sizes[i] = 0
			g.t.unheard.Add(1)
		}
	}
}

// Unheard counts datagrams of devices most of whose packets were refused.
func (t *Tunnel) Unheard() uint64 { return t.unheard.Load() }
