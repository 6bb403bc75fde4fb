package tunnel

import (
	"net/netip"
	"time"
)

// PeerInfo is the state of a key's tunnel.
type PeerInfo struct {
	Key           [32]byte
	Endpoint      netip.AddrPort // not valid before the first handshake
	LastHandshake time.Time
	Live          bool // WireGuard has a peer for it
}

// Peers is the state of all registered keys, in no order.
func (t *Tunnel) Peers() []PeerInfo { return t.known.infos() }

// infos is the state of all registrations.
func (g *registry) infos() []PeerInfo {
	g.mu.RLock()
	defer g.mu.RUnlock()
	out := make([]PeerInfo, 0, len(g.byKey))
	for _, r := range g.byKey {
		i := PeerInfo{Key: r.key, Endpoint: r.place.addr, Live: r.peer != nil}
		if r.handshake != 0 {
			i.LastHandshake = time.Unix(0, r.handshake)
		}
		out = append(out, i)
	}
	return out
}

// Exhaust leaves a live device nothing of what may be refused of it, and nothing
// of what is heard under strain.
func (t *Tunnel) Exhaust(inner netip.Addr) {
	t.known.mu.RLock()
	defer t.known.mu.RUnlock()
	p := t.known.byAddress[inner].peer
	p.strain.mu.Lock()
	defer p.strain.mu.Unlock()
	p.strain.refused, p.strain.heard = bucket{missing: 1e12}, bucket{missing: 1e12}
}

// SetCrossPatience is for before the first AddPeer.
func (t *Tunnel) SetCrossPatience(d time.Duration) { t.gate.crossPatience = d }
