package tunnel

import (
	"encoding/binary"
	"math"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/device"
)

// strained is a registry of two live devices, by index 1 and 2.
func strained() (g *registry, packet func(i uint32) []byte) {
	g = newRegistry()
	for i := range uint32(3) {
		if i == 0 {
			continue
		}
		a := netip.AddrFrom4([4]byte{100, 64, 0, byte(i)})
		r := &registration{addresses: [2]netip.Addr{a}, peer: &peer{}}
		g.byAddress[a], g.byIndex[i] = r, r
	}
	return g, func(i uint32) []byte {
		p := make([]byte, 20)
		p[0] = 0x45
		copy(p[12:], []byte{100, 64, 0, byte(i)})
		return p
	}
}

// A device whose packets are refused without end is heard less while that lasts
// and for a second; another is heard as before.
func TestStrain(t *testing.T) {
	g, packet := strained()
	now := g.made
	heard := func(index uint32, of int) (n int) {
		for range of {
			if !g.unheard(index, now.Sub(g.made)) {
				n++
			}
		}
		return n
	}
	refuse := func(n int) {
		for range n {
			if g.refused(packet(1), now) == nil {
				t.Fatal("it has no peer")
			}
		}
	}
	refuse(int(refusedRate.burst))
	if n := heard(1, 10_000); n != 10_000 {
		t.Errorf("%d of 10,000 are heard of one that is within its bound", n)
	}
	refuse(1)
	if n := heard(1, 10_000); n != int(strainedRate.burst) {
		t.Errorf("%d of 10,000 are heard under strain", n)
	}
	if n := heard(2, 10_000); n != 10_000 {
		t.Errorf("%d of 10,000 are heard of another", n)
	}
	if n := heard(3, 10_000); n != 10_000 {
		t.Errorf("%d of 10,000 are taken out that are nobody's", n)
	}
	now = now.Add(strainedFor / 2)
	if n := heard(1, 10_000); n < 100 || n > int(strainedRate.burst) {
		t.Errorf("%d of 10,000 are heard half a second later", n)
	}
	now = now.Add(strainedFor / 2)
	if n := heard(1, 10_000); n != 10_000 {
		t.Errorf("%d of 10,000 are heard when it is over", n)
	}
}

// Datagrams are taken out one by one, whatever else came with them; keepalives
// and handshakes are not.
func TestRelieve(t *testing.T) {
	g, _ := strained()
	in := &ingress{t: &Tunnel{known: g}}
	message := func(kind byte, index uint32, size int) []byte {
		b := make([]byte, size)
		b[0] = kind
		binary.LittleEndian.PutUint32(b[4:], index)
		return b
	}
	batch := [][]byte{
		message(device.MessageTransportType, 1, 64),
		message(device.MessageTransportType, 1, device.MessageKeepaliveSize),
		message(device.MessageInitiationType, 1, device.MessageInitiationSize),
		message(device.MessageTransportType, 2, 64),
		nil,
	}
	sizes := make([]int, len(batch))
	relieve := func() {
		for i, b := range batch {
			sizes[i] = len(b)
		}
		in.relieve(batch, sizes)
	}
	relieve()
	if sizes[0] == 0 {
		t.Error("taken out of a device that nothing is wrong with")
	}
	// Under strain for good, and nothing left that is heard.
	p := g.byIndex[1].peer
	g.strained.Store(math.MaxInt64)
	p.strain.until.Store(math.MaxInt64)
	p.strain.heard = bucket{missing: 1e12}
	relieve()
	if sizes[0] != 0 || in.t.Unheard() != 1 {
		t.Errorf("sizes %v, %d counted", sizes, in.t.Unheard())
	}
	for i, b := range batch[1:] {
		if sizes[i+1] != len(b) {
			t.Errorf("%d: size %d, want %d", i+1, sizes[i+1], len(b))
		}
	}
}
