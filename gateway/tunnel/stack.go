package tunnel

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/overlay"
)

// Mode says whose TCP/IP stack a tunnel ends in.
type Mode string

const (
	Userspace Mode = "userspace" // this process's own: internal/overlay
	TUN       Mode = "tun"       // the kernel's, in a namespace of its own: internal/hosttun; Linux and root
)

// TCPRequest is a connection a device asks for, whose SYN has not been answered:
// [overlay.TCPRequest] says what its owner does with it.
type TCPRequest interface {
	Peer() netip.AddrPort  // the device's end
	Local() netip.AddrPort // what the device connects to
	Accept(ctx context.Context) (net.Conn, error)
	Reset()
}

// stack is what the tunnel ends in.
type stack interface {
	Device() tun.Device
	// Inject sends whole IP packets into the tunnel; see [overlay.Stack.Inject].
	Inject(packets [][]byte) (accepted int)
	Stats() overlay.Stats
	Close() error
}

func (t *Tunnel) newStack() (stack, error) {
	switch t.cfg.Mode {
	case "", Userspace:
		return overlay.New(overlay.Options{
			Addresses: t.cfg.Addresses[:],
			MTU:       t.cfg.MTU,
			Gateway:   true,
			TCP:       func(r *overlay.TCPRequest) { t.cfg.TCP(r) },
			Filter:    t.filter,
			Taken:     t.cfg.UDP,
			Source:    t.known.first,
			Refuse:    t.refuse,
		})
	case TUN:
		return t.newTUN()
	}
	return nil, fmt.Errorf("tunnel mode %q: expected %s or %s", t.cfg.Mode, Userspace, TUN)
}

// FirstAddress is the first inner address of the device that has inner, which is
// inner itself where no device has it: what is bounded by device counts with it.
func (t *Tunnel) FirstAddress(inner netip.Addr) netip.Addr { return t.known.first(inner) }

// first is the first inner address of the device that has inner, which is
// inner itself where no device has it.
func (g *registry) first(inner netip.Addr) netip.Addr {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if r := g.byAddress[inner]; r != nil {
		return r.addresses[0]
	}
	return inner
}
