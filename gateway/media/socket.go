package media

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// socketKey names the mapping a socket stands for, within its device.
type socketKey struct {
	port uint16 // of the device
	ip6  bool   // towards the app
}

// socket is one upstream socket.
type socket struct {
	dev    *device
	key    socketKey
	port   uint16 // of the gateway, in every address of the family
	poller *poller

	// mu is read-locked while the descriptor is used and while flows are looked
	// up, and locked while either changes.
	mu    sync.RWMutex
	fd    int                      // -1 once closed
	flows map[netip.AddrPort]*flow // by where they send: an answer finds its flow
}

// attach gives a flow its mapping's socket, a new one if there is none. Where
// two of a mapping's flows send to the same upstream address, as with two apps
// on one server, the second gets a socket of its own: an answer has to tell
// them apart.
func (r *Relay) attach(f *flow) (*socket, error) {
	dev, key := f.dev, socketKey{f.key.port, f.to.Addr().Is6()}
	dev.socketMu.Lock()
	defer dev.socketMu.Unlock()
	for _, s := range dev.sockets[key] {
		s.mu.Lock()
		_, taken := s.flows[f.to]
		if !taken {
			s.flows[f.to] = f
		}
		s.mu.Unlock()
		if !taken {
			return s, nil
		}
	}
	var beside uint16 // the upstream port of the other half of an RTP/RTCP pair
	if pair := dev.sockets[socketKey{key.port ^ 1, key.ip6}]; len(pair) > 0 {
		beside = pair[0].port ^ 1
	}
	fd, port, err := r.ports.bind(mapping{dev.addr, key}, beside, r.cfg.Elapsed())
	if err != nil {
		return nil, fmt.Errorf("opening a socket for an app: %w", err)
	}
	s := &socket{
		dev: dev, key: key, fd: fd, port: port, flows: map[netip.AddrPort]*flow{f.to: f},
		poller: r.pollers[int(r.next.Add(1))%len(r.pollers)],
	}
	if err := s.poller.add(s, fd); err != nil {
		closeSocket(fd)
		r.ports.release(port, mapping{dev.addr, key}, r.cfg.Elapsed())
		return nil, fmt.Errorf("opening a socket for an app: %w", err)
	}
	dev.sockets[key] = append(dev.sockets[key], s)
	r.sockets.Add(1)
	return s, nil
}

// retire closes a socket unless a flow uses it again.
func (r *Relay) retire(s *socket) {
	dev := s.dev
	dev.socketMu.Lock()
	defer dev.socketMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.flows) > 0 || s.fd < 0 {
		return
	}
	s.poller.remove(s.fd)
	closeSocket(s.fd)
	s.fd = -1
	r.sockets.Add(-1)
	r.ports.release(s.port, mapping{dev.addr, s.key}, r.cfg.Elapsed())
	rest := slices.DeleteFunc(dev.sockets[s.key], func(o *socket) bool { return o == s })
	if dev.sockets[s.key] = rest; len(rest) == 0 {
		delete(dev.sockets, s.key)
	}
}
