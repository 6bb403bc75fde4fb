package tunnel

import (
	"sync"

	"golang.zx2c4.com/wireguard/tai64n"
)

// replay keeps the newest accepted initiation of a key. Its time stamp is read
// when it is first compared with: initiations that WireGuard took unopened cost
// nothing until then.
type replay struct {
	mu     sync.Mutex
	newest newest
	shared [32]byte // the static keys' exchange; never changes
}

// newest is what no initiation may be older than.
type newest struct {
	accepted *datagram        // nil if there is none, or if it is read and stored
	at       tai64n.Timestamp // of it
	read     bool             // at is
}

// took keeps an initiation that WireGuard accepted.
func (r *replay) took(d *datagram) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.newest = newest{accepted: d}
}

// state is what is kept.
func (r *replay) state() newest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newest
}

// settle reads the time stamp, so that the initiation itself need not be kept.
func (r *replay) settle(o *opener) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readAccepted(o)
}

// stored lets go of an initiation that is stored and read.
func (r *replay) stored(initiation []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.newest.accepted; a != nil && r.newest.read && len(initiation) > 0 && &a[0] == &initiation[0] {
		r.newest.accepted = nil
	}
}

// check accepts an initiation that is the device's, newer than the last and not
// too soon after it.
func (r *replay) check(o *opener, in *opened, tooSoon bool, c *counters) (*datagram, *counter) {
	r.mu.Lock()
	defer r.mu.Unlock()
	ts, ok := in.timestamp(&r.shared)
	if !ok {
		return nil, &c.badOpening
	}
	r.readAccepted(o)
	if r.newest.read && !ts.After(r.newest.at) {
		return nil, &c.replayed
	}
	if tooSoon {
		return nil, &c.limited
	}
	d := *in.datagram
	r.newest = newest{&d, ts, true}
	return &d, nil
}

// readAccepted reads the time stamp of an initiation that was never opened
// here. One of another gateway key (the store was restored, the key not) does
// not open; nothing can be replayed of it either.
func (r *replay) readAccepted(o *opener) {
	if r.newest.accepted == nil || r.newest.read {
		return
	}
	in, ok := o.open(r.newest.accepted)
	defer in.wipe()
	if ok {
		r.newest.at, ok = in.timestamp(&r.shared)
	}
	if r.newest.read = ok; !ok {
		r.newest.accepted = nil
	}
}
