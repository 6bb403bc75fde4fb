package media

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

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
	most      int // held by or resting for one device
	device    func(netip.Addr) netip.Addr

	mu     sync.Mutex // guards what follows
	held   map[portKey]hold
	last   map[mapping]uint16    // the port of a mapping that rests
	owners map[netip.Addr]*owner // by what device says of an inner address
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
	owner netip.Addr    // addresses may change hands while it is held
	until time.Duration // Config.Elapsed when it has rested; zero while a socket has it
}

// owner is what one device keeps from the others.
type owner struct {
	ports   int       // held or resting
	resting []portKey // the longest first
}

func (p *ports) init(rest time.Duration, most int, device func(netip.Addr) netip.Addr) {
	p.low, p.high = portRange()
	p.rest, p.most, p.device = rest, most, device
	p.held, p.last, p.owners = map[portKey]hold{}, map[mapping]uint16{}, map[netip.Addr]*owner{}
}

// errNoPort is returned when every port that was tried is taken, or the device
// has had its share.
var errNoPort = errors.New("no free port")

// bind opens a socket on a port of the same parity as the device's: the one
// beside the other half of a pair if that can be had, else the one this mapping
// had last, else any. Where there is none, one of the device's own ends its rest
// early, and parity is given up last.
func (p *ports) bind(by mapping, beside uint16, now time.Duration) (fd int, port uint16, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	parity := by.key.port & 1
	for try := range bindTries {
		switch try {
		case 0:
			port = beside
		case 1:
			port = p.last[by]
		default:
			port = p.random()&^1 | parity
			if _, paired := p.held[portKey{port ^ 1, by.key.ip6}]; paired && try < bindPairTries {
				continue
			}
		}
		if fd, err = p.take(port, by, now); !errors.Is(err, errNoPort) {
			return fd, port, err
		}
	}
	same := func(k portKey) bool { return k.ip6 == by.key.ip6 && k.port&1 == parity }
	if fd, port, err = p.reuse(by, same, now); !errors.Is(err, errNoPort) {
		return fd, port, err
	}
	for range bindTries {
		port = p.random()
		if fd, err = p.take(port, by, now); !errors.Is(err, errNoPort) {
			return fd, port, err
		}
	}
	return p.reuse(by, func(k portKey) bool { return k.ip6 == by.key.ip6 }, now)
}

func (p *ports) random() uint16 { return p.low + uint16(rand.IntN(int(p.high-p.low)+1)) }

// take opens a socket on a port that is free for a mapping. mu is held.
func (p *ports) take(port uint16, by mapping, now time.Duration) (fd int, err error) {
	k := portKey{port, by.key.ip6}
	h, known := p.held[k]
	device := p.device(by.addr)
	o := p.owners[device]
	switch {
	case port < p.low || port > p.high,
		known && (h.until == 0 || h.by != by && now < h.until),
		o != nil && o.ports >= p.most && h.owner != device:
		return -1, errNoPort
	}
	return p.open(k, by)
}

// reuse opens a socket on the port that has rested longest of those of the same
// device that suit: what its app still sends reaches no other device. mu is
// held.
func (p *ports) reuse(by mapping, suits func(portKey) bool, now time.Duration) (fd int, port uint16, err error) {
	o := p.owners[p.device(by.addr)]
	if o == nil {
		return -1, 0, errNoPort
	}
	tries := 0
	for _, k := range o.resting {
		if !suits(k) {
			continue
		}
		if fd, err = p.open(k, by); !errors.Is(err, errNoPort) {
			return fd, k.port, err
		}
		if tries++; tries == bindTries {
			break
		}
	}
	return -1, 0, errNoPort
}

// open opens a socket on a port that is to be by's. mu is held.
func (p *ports) open(k portKey, by mapping) (fd int, err error) {
	fd, err = openSocket(k.port, k.ip6)
	if err != nil {
		if addressInUse(err) { // by another process
			err = errNoPort
		}
		return -1, err
	}
	p.forget(k)
	device := p.device(by.addr)
	p.held[k] = hold{by: by, owner: device}
	o := p.owners[device]
	if o == nil {
		o = &owner{}
		p.owners[device] = o
	}
	o.ports++
	delete(p.last, by)
	return fd, nil
}

// forget makes a resting port nobody's. mu is held.
func (p *ports) forget(k portKey) {
	h, known := p.held[k]
	if !known {
		return
	}
	delete(p.held, k)
	if p.last[h.by] == k.port {
		delete(p.last, h.by)
	}
	o := p.owners[h.owner]
	if i := slices.Index(o.resting, k); i >= 0 {
		o.resting = slices.Delete(o.resting, i, i+1)
	}
	if o.ports--; o.ports == 0 {
		delete(p.owners, h.owner)
	}
}

// release lets a port rest.
func (p *ports) release(port uint16, by mapping, now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := portKey{port, by.key.ip6}
	h := p.held[k]
	h.until = now + p.rest
	p.held[k] = h
	o := p.owners[h.owner]
	o.resting = append(o.resting, k)
	p.last[by] = port
}

// sweep forgets ports that have rested.
func (p *ports) sweep(now time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.owners {
		for len(o.resting) > 0 && now >= p.held[o.resting[0]].until {
			p.forget(o.resting[0])
		}
	}
}
