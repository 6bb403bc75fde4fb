package http1

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Options configure a Pool. Dial is required; a zero field means its default.
type Options struct {
	Dial        func(ctx context.Context) (net.Conn, error)
	HeadBytes   int           // of an answer, interim ones together; 256 KiB
	MaxIdle     int           // connections that wait to be used again; 1,024
	PerDevice   int           // those of one inner address; 64
	IdleTimeout time.Duration // how long one waits; 90 s
	Budget      *Budget       // of several pools together; nil for none
}

// Holder is whom a connection to an app belongs to: a login, or a device
// nobody is logged in on. What was made for one is never given to another,
// because an app may know its visitors by the connection (NTLM, Negotiate).
type Holder struct {
	Inner   netip.Addr // the device's inner address, by which Drop finds it
	Device  string
	Session string // "" without a login
}

// Budget bounds the connections that wait in all the pools that share it.
type Budget struct{ left atomic.Int64 }

// NewBudget returns one of so many connections.
func NewBudget(connections int) *Budget {
	b := &Budget{}
	b.left.Store(int64(connections))
	return b
}

func (b *Budget) take() bool {
	if b == nil || b.left.Add(-1) >= 0 {
		return true
	}
	b.left.Add(1)
	return false
}

func (b *Budget) give() {
	if b != nil {
		b.left.Add(1)
	}
}

// Pool keeps the connections to one app that can be used again, each for its
// own Holder. Its methods are safe for concurrent use.
type Pool struct {
	opt Options

	mu             sync.Mutex           // guards what follows
	devices        map[netip.Addr]stack // what waits, by inner address
	oldest, newest *Conn                // the same, by how long
	waiting        int
	timer          *time.Timer
	closed         bool
}

// stack is what waits for one device; the one used last is on top.
type stack struct {
	top *Conn
	n   int
}

// NewPool returns an empty Pool.
func NewPool(opt Options) *Pool {
	if opt.HeadBytes <= 0 {
		opt.HeadBytes = 256 << 10
	}
	if opt.MaxIdle <= 0 {
		opt.MaxIdle = 1024
	}
	if opt.PerDevice <= 0 {
		opt.PerDevice = 64
	}
	if opt.IdleTimeout <= 0 {
		opt.IdleTimeout = 90 * time.Second
	}
	return &Pool{opt: opt, devices: map[netip.Addr]stack{}}
}

// Idle returns a connection of the holder's that waits, nil if there is none.
// The one that served the device's connection via last comes first: a handshake
// that takes several requests (NTLM) stays on one. Whether the app said
// something meanwhile, [Conn.Send] sees.
func (p *Pool) Idle(h Holder, via netip.AddrPort) *Conn {
	p.mu.Lock()
	c := p.find(h, via)
	if c == nil {
		p.mu.Unlock()
		return nil
	}
	p.unlink(c)
	p.mu.Unlock()
	c.begin()
	c.reused, c.via = true, via
	return c
}

func (p *Pool) find(h Holder, via netip.AddrPort) (best *Conn) {
	for c := p.devices[h.Inner].top; c != nil; c = c.below {
		if c.via == via && c.holder == h {
			return c
		}
		if best == nil && !c.asks && c.holder == h { // else another's handshake may go on there
			best = c
		}
	}
	return best
}

// Dial makes a new connection for a holder.
func (p *Pool) Dial(ctx context.Context, h Holder, via netip.AddrPort) (*Conn, error) {
	nc, err := p.opt.Dial(ctx)
	if err != nil {
		return nil, err
	}
	c := &Conn{reader: reader{nc: nc, limit: p.opt.HeadBytes}, pool: p, holder: h, via: via}
	c.bounds.of(nc)
	c.begin()
	return c, nil
}

// put takes a connection back whose last exchange is over and clean. When the
// pool is full, the one that waited longest makes room.
func (p *Pool) put(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		c.close()
		return
	}
	if s := p.devices[c.holder.Inner]; s.n >= p.opt.PerDevice {
		bottom := s.top
		for bottom.below != nil {
			bottom = bottom.below
		}
		p.end(bottom)
	}
	if p.waiting >= p.opt.MaxIdle {
		p.end(p.oldest)
	}
	for !p.opt.Budget.take() {
		if p.oldest == nil { // other pools have it all
			c.close()
			return
		}
		p.end(p.oldest)
	}
	c.since = time.Now()
	p.link(c)
	if p.timer == nil {
		p.timer = time.AfterFunc(p.opt.IdleTimeout, p.expire)
	}
}

func (p *Pool) link(c *Conn) {
	s := p.devices[c.holder.Inner]
	if c.below = s.top; s.top != nil {
		s.top.above = c
	}
	p.devices[c.holder.Inner] = stack{top: c, n: s.n + 1}
	if c.older = p.newest; c.older != nil {
		c.older.newer = c
	} else {
		p.oldest = c
	}
	p.newest = c
	p.waiting++
}

func (p *Pool) unlink(c *Conn) {
	s := p.devices[c.holder.Inner]
	if c.above != nil {
		c.above.below = c.below
	} else {
		s.top = c.below
	}
	if c.below != nil {
		c.below.above = c.above
	}
	if s.n--; s.n > 0 {
		p.devices[c.holder.Inner] = s
	} else {
		delete(p.devices, c.holder.Inner)
	}
	if c.older != nil {
		c.older.newer = c.newer
	} else {
		p.oldest = c.newer
	}
	if c.newer != nil {
		c.newer.older = c.older
	} else {
		p.newest = c.older
	}
	c.above, c.below, c.newer, c.older = nil, nil, nil, nil
	p.waiting--
	p.opt.Budget.give()
}

// end closes a connection that waits.
func (p *Pool) end(c *Conn) {
	p.unlink(c)
	c.close()
}

// expire closes what waited too long.
func (p *Pool) expire() {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.oldest != nil && now.Sub(p.oldest.since) >= p.opt.IdleTimeout {
		p.end(p.oldest)
	}
	p.timer = nil
	if p.oldest != nil && !p.closed {
		p.timer = time.AfterFunc(p.opt.IdleTimeout-now.Sub(p.oldest.since), p.expire)
	}
}

// Drop closes what waits for one Session of a device, "" for all there is.
func (p *Pool) Drop(inner netip.Addr, session string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := p.devices[inner].top; c != nil; {
		below := c.below
		if session == "" || c.holder.Session == session {
			p.end(c)
		}
		c = below
	}
}

// Close closes what waits, and what is still in use once that is over.
func (p *Pool) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for p.oldest != nil {
		p.end(p.oldest)
	}
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
}
