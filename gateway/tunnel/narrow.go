package tunnel

import (
	"net/netip"

	"github.com/portvakt/portvakt/internal/pathsize"
)

// Devices measure the path and say how long packets may be, see
// [pathsize.Note]. What TCP sends to one whose path takes less than the inside
// does is cut.

// narrow notes what a packet that the segment lets through says about its
// device's path.
func (t *Tunnel) narrow(packet []byte) {
	if from, size, ok := pathsize.Noted(packet, t.cfg.Addresses[0]); ok {
		t.known.narrow(from, min(size, t.known.mtu))
	}
}

// narrow notes how long packets to a device may be, in bytes.
func (g *registry) narrow(inner netip.Addr, size int) {
	g.mu.RLock() // a registration that is dropped is so after this
	defer g.mu.RUnlock()
	if r := g.byAddress[inner]; r != nil {
		g.resize(r, size)
	}
}

// resize sets the size of a registration's path, and counts those that are
// smaller than the inside. mu is held, for reading at least.
func (g *registry) resize(r *registration, size int) {
	smaller := func(n int32) int64 {
		if n != 0 && int(n) < g.mtu {
			return 1
		}
		return 0
	}
	if old := r.size.Swap(int32(size)); int(old) != size {
		g.small.Add(smaller(int32(size)) - smaller(old))
	}
}

// pathOf is how long a packet may be on the path of the device it goes to, 0 if
// that is not known.
func (g *registry) pathOf(packet []byte) int {
	a, ok := netip.AddrFromSlice(destination(packet))
	if !ok {
		return 0
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	if r := g.byAddress[a]; r != nil {
		return int(r.size.Load())
	}
	return 0
}
