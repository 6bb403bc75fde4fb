package tunnel

import (
	"sync"

	"golang.zx2c4.com/wireguard/tai64n"
)

// replay keeps the newest accepted initiation of a key. Its time stamp is read
// when it is first compared with: initiations that WireGuard took unopened cost
// nothing until then.
type replay struct {
	mu       sync.Mutex
	accepted *datagram
	newest   tai64n.Timestamp // of accepted, once read
	read     bool
	shared   [32]byte // the static keys' exchange; never changes
}

// took keeps an initiation that WireGuard accepted.
func (r *replay) took(d *datagram) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.accepted, r.read = d, false
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
	if r.accepted != nil && !r.read {
		r.readAccepted(o)
	}
	if r.accepted != nil && !ts.After(r.newest) {
		return nil, &c.replayed
	}
	if tooSoon {
		return nil, &c.limited
	}
	d := *in.datagram
	r.accepted, r.newest, r.read = &d, ts, true
	return &d, nil
}

// readAccepted reads the time stamp of an initiation that was never opened
// here. One of another gateway key (the store was restored, the key not) does
// not open; nothing can be replayed of it either.
func (r *replay) readAccepted(o *opener) {
	in, ok := o.open(r.accepted)
	defer in.wipe()
	if ok {
		r.newest, ok = in.timestamp(&r.shared)
	}
	if !ok {
		r.accepted = nil
	}
	r.read = true
}
