package gateway

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/portvakt/portvakt/gateway/tunnel"
)

// connsPerPeer bounds the open control connections of one inner address. An
// agent has one for events and a few for calls.
const connsPerPeer = 32

// handshakeWithin is how long a device may take to complete the TCP handshake of
// a control connection.
const handshakeWithin = 10 * time.Second

// conns is the listener of the control API: connections accepted out of the
// tunnel.
type conns struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once

	mu     sync.Mutex
	byPeer map[netip.Addr]int // guarded by mu
}

func newConns() *conns {
	return &conns{ch: make(chan net.Conn, 64), done: make(chan struct{}), byPeer: map[netip.Addr]int{}}
}

// accept answers a handshake and hands the connection on. It does not wait for
// the API: when that is behind, or the device has enough connections, the
// device is told to come again.
func (c *conns) accept(r tunnel.TCPRequest) {
	release, ok := c.admit(r.Peer().Addr())
	if !ok || len(c.ch) == cap(c.ch) {
		release()
		r.Reset()
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), handshakeWithin)
	defer cancel()
	conn, err := r.Accept(ctx)
	if err != nil {
		release()
		return // the device went away
	}
	conn = &admitted{conn, release}
	select {
	case c.ch <- conn:
	case <-c.done:
		_ = conn.Close()
	default:
		_ = conn.Close()
	}
}

// admit takes a place of the peer's, which release gives back; without a place
// release does nothing.
func (c *conns) admit(peer netip.Addr) (release func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byPeer[peer] >= connsPerPeer {
		return func() {}, false
	}
	c.byPeer[peer]++
	return sync.OnceFunc(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.byPeer[peer]--; c.byPeer[peer] == 0 {
			delete(c.byPeer, peer)
		}
	}), true
}

// admitted is a connection that holds a place.
type admitted struct {
	net.Conn
	release func()
}

// Close closes the connection and gives its place back.
func (a *admitted) Close() error {
	a.release()
	return a.Conn.Close()
}

// Accept waits for the next connection.
func (c *conns) Accept() (net.Conn, error) {
	select {
	case conn := <-c.ch:
		return conn, nil
	case <-c.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept.
func (c *conns) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// Addr is the tunnel's; it has no address of the host.
func (c *conns) Addr() net.Addr { return &net.TCPAddr{} }
