package media

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
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
	fd, port, err := r.ports.bind(mapping{dev.addr, key}, beside, r.cfg.Now())
	if err != nil {
		return nil, fmt.Errorf("opening a socket for an app: %w", err)
	}
	s := &socket{
		dev: dev, key: key, fd: fd, port: port, flows: map[netip.AddrPort]*flow{f.to: f},
		poller: r.pollers[int(r.next.Add(1))%len(r.pollers)],
	}
	if err := s.poller.add(s, fd); err != nil {
		closeSocket(fd)
		r.ports.release(port, mapping{dev.addr, key}, r.cfg.Now())
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
	r.ports.release(s.port, mapping{dev.addr, s.key}, r.cfg.Now())
	rest := slices.DeleteFunc(dev.sockets[s.key], func(o *socket) bool { return o == s })
	if dev.sockets[s.key] = rest; len(rest) == 0 {
		delete(dev.sockets, s.key)
	}
}

// bindTries bounds how many ports are tried for one socket; bindPairTries of
// them leave the other half of a pair free for what may come.
const (
	bindTries     = 64
	bindPairTries = 48
)

// ports chooses the gateway's own ports. They lie where the system takes its
// own from, so that no service expects one of them.
type ports struct {
	low, high uint16
	rest      time.Duration

	mu   sync.Mutex // guards what follows
	held map[portKey]hold
	last map[mapping]uint16 // the port of a mapping that rests
}

// mapping names a device's port and what family of apps it speaks to.
type mapping struct {
	addr netip.Addr
	key  socketKey
}

type portKey struct {
	port uint16
	ip6  bool
}

// hold says whose a port is, or was until a moment ago.
type hold struct {
	by    mapping
	until time.Time // zero while a socket has it
}

func (p *ports) init(rest time.Duration) {
	p.low, p.high = portRange()
	p.rest = rest
	p.held, p.last = map[portKey]hold{}, map[mapping]uint16{}
}

// errNoPort is returned when every port that was tried is taken.
var errNoPort = errors.New("no free port")

// bind opens a socket on a port of the same parity as the device's: the one
// beside the other half of a pair if that can be had, else the one this mapping
// had last, else any.
func (p *ports) bind(by mapping, beside uint16, now time.Time) (fd int, port uint16, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for try := range bindTries {
		switch try {
		case 0:
			port = beside
		case 1:
			port = p.last[by]
		default:
			port = p.low + uint16(rand.IntN(int(p.high-p.low)+1))
			port = port&^1 | by.key.port&1
			if _, paired := p.held[portKey{port ^ 1, by.key.ip6}]; paired && try < bindPairTries {
				continue
			}
		}
		k := portKey{port, by.key.ip6}
		if port < p.low || port > p.high || !p.free(k, by, now) {
			continue
		}
		fd, err = openSocket(port, by.key.ip6)
		if err == nil {
			p.held[k] = hold{by: by}
			delete(p.last, by)
			return fd, port, nil
		}
		if !addressInUse(err) {
			return -1, 0, err
		}
	}
	return -1, 0, errNoPort
}

// free says whether a port may go to a mapping. mu is held.
func (p *ports) free(k portKey, by mapping, now time.Time) bool {
	h, ok := p.held[k]
	return !ok || !h.until.IsZero() && (h.by == by || !now.Before(h.until))
}

// release lets a port rest.
func (p *ports) release(port uint16, by mapping, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held[portKey{port, by.key.ip6}] = hold{by: by, until: now.Add(p.rest)}
	p.last[by] = port
}

// sweep forgets ports that have rested.
func (p *ports) sweep(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, h := range p.held {
		if h.until.IsZero() || now.Before(h.until) {
			continue
		}
		delete(p.held, k)
		if p.last[h.by] == k.port {
			delete(p.last, h.by)
		}
	}
}
