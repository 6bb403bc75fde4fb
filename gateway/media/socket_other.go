//go:build !linux

package media

import (
	"errors"
	"net/netip"
)

// Gateways run on Linux; this only lets the package build elsewhere, where
// every flow ends for want of a socket.

type target struct{}

func newTarget(netip.AddrPort) target { return target{} }

type vector struct{}

func (s *socket) send(flows []*flow, payloads [][]byte, _ *vector) (failed int) {
	clear(payloads)
	return len(flows)
}

func openSocket(uint16, bool) (fd int, err error) { return -1, errors.ErrUnsupported }

func closeSocket(int) {}

func addressInUse(error) bool { return false }

func portRange() (low, high uint16) { return 49152, 65535 } // RFC 6335 section 6

func openFiles() int { return 1024 }

type poller struct{ done chan struct{} }

func newPoller(*Relay) (*poller, error) { return &poller{make(chan struct{})}, nil }

func (p *poller) add(*socket, int) error { return errors.ErrUnsupported }

func (p *poller) remove(int) {}

func (p *poller) queue(*flow, []byte) {}

func (p *poller) close() { close(p.done) }

func (p *poller) run() error {
	<-p.done
	return nil
}
