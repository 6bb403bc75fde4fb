// Package router is a home router for one laptop: what the laptop sends to it
// goes on to the gateway from the router's own address. Moving the router to
// another address is how a laptop travels in a demo or a test, without root
// and without a second machine.
package router

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Config says between whom a Router stands.
type Config struct {
	// Listen is the loopback address the laptop sends to; port 0 takes a free one.
	Listen netip.AddrPort
	// Gateway is where everything goes.
	Gateway netip.AddrPort
	// Address is the source address that the gateway sees at first.
	Address netip.Addr
}

// Router relays UDP datagrams. Each of the laptop's sockets gets a port of its
// own on the outside, as with network address translation.
type Router struct {
	cfg Config
	in  *net.UDPConn // owned by Run, which closes it

	mu      sync.Mutex
	address netip.Addr                      // guarded by mu
	outside map[netip.AddrPort]*net.UDPConn // by the laptop's socket; guarded by mu
	done    bool                            // guarded by mu; set when Run ends
	readers sync.WaitGroup
}

// Listen opens the laptop's side. Nothing is relayed before [Router.Run].
func Listen(cfg Config) (*Router, error) {
	in, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(cfg.Listen))
	if err != nil {
		return nil, fmt.Errorf("opening the home router: %w", err)
	}
	return &Router{cfg: cfg, in: in, address: cfg.Address, outside: make(map[netip.AddrPort]*net.UDPConn)}, nil
}

// Addr is where the laptop sends to.
func (r *Router) Addr() netip.AddrPort { return r.in.LocalAddr().(*net.UDPAddr).AddrPort() }

// Address is the source address that the gateway sees now.
func (r *Router) Address() netip.Addr {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.address
}

// Run relays until ctx ends. All sockets are closed when it returns.
func (r *Router) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { r.in.Close() })
	defer stop()
	err := r.relay()
	r.in.Close()
	r.mu.Lock()
	r.done = true
	for _, c := range r.outside {
		c.Close()
	}
	r.mu.Unlock()
	r.readers.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (r *Router) relay() error {
	buf := make([]byte, 64<<10)
	for {
		n, laptop, err := r.in.ReadFromUDPAddrPort(buf)
		if err != nil {
			return fmt.Errorf("reading from the laptop: %w", err)
		}
		out, err := r.mapping(laptop)
		if err != nil {
			continue // the network is down: datagrams are lost, as anywhere
		}
		_, _ = out.WriteToUDPAddrPort(buf[:n], r.cfg.Gateway)
	}
}

// mapping returns the outside socket of one of the laptop's sockets.
func (r *Router) mapping(laptop netip.AddrPort) (*net.UDPConn, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.outside[laptop]; c != nil {
		return c, nil
	}
	return r.open(laptop, r.address)
}

// open makes an outside socket at address and answers through it. mu is held.
func (r *Router) open(laptop netip.AddrPort, address netip.Addr) (*net.UDPConn, error) {
	if r.done {
		return nil, net.ErrClosed
	}
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	if err != nil {
		return nil, fmt.Errorf("taking address %s: %w", address, err)
	}
	r.outside[laptop] = c
	r.readers.Go(func() { r.answers(c, laptop) })
	return c, nil
}

// answers carries what the gateway sends back to the laptop.
func (r *Router) answers(c *net.UDPConn, laptop netip.AddrPort) {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // a port-unreachable notice; do not spin on a stream of them
			continue
		}
		if netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) == r.cfg.Gateway {
			_, _ = r.in.WriteToUDPAddrPort(buf[:n], laptop)
		}
	}
}

// Move gives the router another address. What the gateway still sends to the
// old one is lost, as it is for a laptop that changed networks.
func (r *Router) Move(address netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Try the address first: a router that cannot move stays where it is.
	probe, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, 0)))
	if err != nil {
		return fmt.Errorf("taking address %s: %w", address, err)
	}
	probe.Close()
	r.address = address
	for laptop, old := range r.outside {
		old.Close()
		delete(r.outside, laptop)
		if _, err := r.open(laptop, address); err != nil {
			return err
		}
	}
	return nil
}
