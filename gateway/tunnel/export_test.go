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
