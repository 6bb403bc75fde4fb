package agent

import (
	"context"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/portvakt/portvakt/agent/tunnel"
)

// Slept is slept.
var Slept = slept

// Backoff is backoff.
var Backoff = backoff

// Twin replaces the tunnel with dial, hurries the waiting times, and tells
// allowed what the tunnel may carry and told whose calls are marked. The func it returns makes every agent
// made with cfg believe that the laptop slept.
func Twin(cfg *Config, dial func() (net.Conn, error), allowed func([]netip.Addr), told func([]netip.AddrPort)) (sleep func()) {
	agents := make(chan *agent, 100)
	cfg.silence, cfg.refused, cfg.changeEvery = 400*time.Millisecond, 200*time.Millisecond, 20*time.Millisecond
	cfg.openTunnel = func(o openArgs) (*pipe, error) {
		agents <- o.agent
		var gone <-chan struct{}
		if n := o.agent.network; n != nil {
			tun, g, err := n.prepare(o.ctx, o.connect)
			if err != nil {
				return nil, err
			}
			gone = g
			if err := os.NewFile(uintptr(tun.FD), "tun").Close(); err != nil {
				return nil, err
			}
		}
		return &pipe{
			gone:       gone,
			dialTCP:    func(context.Context, netip.AddrPort) (net.Conn, error) { return dial() },
			dialUDP:    func(netip.AddrPort) (net.Conn, error) { return dial() },
			setAllowed: func(a []netip.Addr) error { allowed(a); return nil },
			setCalls:   told,
			status:     func() tunnel.Status { return tunnel.Status{LastHandshake: time.Now(), Endpoint: o.endpoint} },
			run:        func(ctx context.Context) error { <-ctx.Done(); return nil },
			close:      func() error { return nil },
			redial:     func() {},
		}, nil
	}
	return func() { poke((<-agents).resumed) }
}

// Patient undoes Twin's short patience with a silent event stream.
func Patient(cfg *Config) { cfg.silence = 0 }

// NamesOf is namesOf.
var NamesOf = namesOf

// RealTunnel undoes Twin's replacement of the tunnel.
func RealTunnel(cfg *Config) { cfg.openTunnel = nil }
