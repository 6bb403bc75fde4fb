package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/policy"
)

type connKey struct{}

// connOf returns the connection that a request's context knows.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}

// conn is an HTTP connection of a device.
type conn struct {
	net.Conn
	peer, local netip.AddrPort
	name        string // that the device asked for in its handshake (SNI), in lower case; "" for none
	gone        func() // takes it out of the Proxy's table; once
	patience    patience
	came        came

	gathering atomic.Bool
	mu        sync.Mutex // guards what follows
	gathered  []byte     // of chunks, nil when nothing is
	n         int
}

// Gather makes what is written wait for Send, so that the records of a large
// answer leave together. It implements [http1.Gatherer].
func (c *conn) Gather() { c.gathering.Store(true) }

// Send writes what was gathered.
func (c *conn) Send() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gathering.Store(false)
	err := c.flush()
	if c.gathered != nil {
		chunks.Put(c.gathered)
		c.gathered = nil
	}
	return err
}

func (c *conn) flush() error {
	n := c.n
	if c.n = 0; n == 0 {
		return nil
	}
	_, err := c.put(c.gathered[:n])
	return err
}

// put writes to the device, which has to take it.
func (c *conn) put(b []byte) (int, error) {
	if err := c.patience.begin(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(b)
	return n, c.patience.done(err)
}

// Read implements [net.Conn].
func (c *conn) Read(b []byte) (int, error) { return c.came.add(c.Conn.Read(b)) }

func (c *conn) Write(b []byte) (int, error) {
	if !c.gathering.Load() {
		return c.put(b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.gathering.Load() { // Send came first: nothing would send this
		return c.put(b)
	}
	if c.gathered == nil {
		c.gathered = chunks.Get()
	}
	if c.n+len(b) > len(c.gathered) {
		if err := c.flush(); err != nil {
			return 0, err
		}
	}
	if len(b) > len(c.gathered) {
		return c.put(b)
	}
	c.n += copy(c.gathered[c.n:], b)
	return len(b), nil
}

// Close closes the connection in an orderly way.
func (c *conn) Close() error {
	c.gone()
	c.patience.stop()
	return c.Conn.Close()
}

// reset aborts the connection with an RST: what is queued dies with it.
func (c *conn) reset() {
	c.gone()
	abort(c.Conn)
}

// abort ends a connection so that nothing queued is sent any more.
func abort(c net.Conn) {
	switch r := c.(type) {
	case interface{ Reset() }:
		r.Reset()
	case interface{ SetLinger(sec int) error }:
		_ = r.SetLinger(0)
		_ = c.Close()
	case interface{ NetConn() net.Conn }:
		abort(r.NetConn())
	default:
		_ = c.Close()
	}
}

// ownConn finds the device's connection under what net/http was given.
func ownConn(c net.Conn) *conn {
	for {
		switch v := c.(type) {
		case *conn:
			return v
		case interface{ NetConn() net.Conn }:
			c = v.NetConn()
		default:
			return nil
		}
	}
}

// conns are the open HTTP connections by device, so that one device cannot
// hold them all and a device that is gone holds none.
type conns struct {
	device    func(netip.Addr) netip.Addr
	perDevice int
	within    time.Duration // see [Timeouts.Write]

	mu   sync.Mutex                        // guards what follows
	of   map[netip.Addr]int                // how many, by device
	open map[netip.Addr]map[*conn]struct{} // by inner address
}

// add wraps a connection; nil when the device has too many. closed is called
// once when it ends.
func (t *conns) add(c net.Conn, peer, local netip.AddrPort, closed func()) *conn {
	addr := peer.Addr().Unmap()
	device := t.device(addr)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.of[device] >= t.perDevice {
		return nil
	}
	t.of[device]++
	own := t.open[addr]
	if own == nil {
		own = map[*conn]struct{}{}
		t.open[addr] = own
	}
	n := &conn{Conn: c, peer: peer, local: local}
	n.patience = patience{within: t.within, conn: c, over: n.reset}
	n.gone = sync.OnceFunc(func() {
		defer closed()
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(own, n)
		if len(own) == 0 {
			delete(t.open, addr)
		}
		if t.of[device]--; t.of[device] == 0 {
			delete(t.of, device)
		}
	})
	own[n] = struct{}{}
	return n
}

func (t *conns) full(peer netip.AddrPort) bool {
	device := t.device(peer.Addr().Unmap())
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.of[device] >= t.perDevice
}

func (t *conns) resetDevice(addr netip.Addr) {
	t.mu.Lock()
	var all []*conn
	for c := range t.open[addr] {
		all = append(all, c)
	}
	t.mu.Unlock()
	for _, c := range all {
		c.reset()
	}
}

func (t *conns) resetAll() {
	t.mu.Lock()
	var all []*conn
	for _, own := range t.open {
		for c := range own {
			all = append(all, c)
		}
	}
	t.mu.Unlock()
	for _, c := range all {
		c.reset()
	}
}

// listener hands connections to the http.Server that speaks HTTP/2.
type listener struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newListener() *listener {
	return &listener{ch: make(chan net.Conn), done: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *listener) deliver(c net.Conn) bool {
	select {
	case l.ch <- c:
		return true
	case <-l.done:
		return false
	}
}

// shake answers a device's handshake and waits until it is complete. Without an
// end of ours a device that has gone away would keep its place, and the proxy
// from ending, for as long as TCP sends its answer again: two minutes.
func (p *Proxy) shake(ctx context.Context, in TCPInbound) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeouts.Handshake)
	defer cancel()
	return in.Accept(ctx)
}

// acceptHTTP answers a connection to an http app and serves it. Nothing is
// decided yet: each request on it will be.
func (p *Proxy) acceptHTTP(ctx context.Context, in TCPInbound, _ *policy.App, t *turn) {
	port := in.Local().Port()
	if (port != 443 && port != 80) || p.conns.full(in.Peer()) {
		in.Reset()
		return
	}
	// From here on the limits per device count, not the one on what is pending:
	// slow handshakes of a few, of TCP or of TLS, must not lock out the others.
	t.decided()
	raw, err := p.shake(ctx, in)
	if err != nil {
		return
	}
	back := 1.0
	if port == 443 {
		back = handshaken
	}
	c := p.conns.add(raw, in.Peer(), in.Local(), func() { t.closed(back) })
	if c == nil {
		abort(raw)
		return
	}
	if port == 80 {
		p.plain.Serve(context.WithValue(ctx, connKey{}, c), c)
		return
	}
	tc := tls.Server(c, p.tls)
	hs, cancel := context.WithTimeout(ctx, p.cfg.Timeouts.Handshake)
	defer cancel()
	if err := tc.HandshakeContext(hs); err != nil {
		p.log.Debug("shaking hands with a device", "remote", c.peer, "err", err)
		_ = tc.Close()
		return
	}
	shaken := tc.ConnectionState()
	c.name = nameOf(shaken.ServerName)
	if shaken.NegotiatedProtocol != "h2" {
		p.secure.Serve(context.WithValue(ctx, connKey{}, c), tc)
		return
	}
	if !p.multiplexed.deliver(newFraming(p, tc, c)) {
		c.reset()
	}
}

// nameOf is the name that a handshake asked for. A literal address is none (RFC
// 6066, 3); some clients send it all the same.
func nameOf(serverName string) string {
	if _, err := netip.ParseAddr(serverName); err == nil {
		return ""
	}
	return strings.ToLower(serverName)
}
