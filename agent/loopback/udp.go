package loopback

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/agent/peeruser"
)

// udpPort is the loopback port of one port of a UDP app. Each local client
// address has a flow of its own through the tunnel.
type udpPort struct {
	s    *Server
	t    *target
	conn *net.UDPConn

	mu      sync.Mutex
	flows   map[netip.AddrPort]*udpFlow  // guarded by mu
	refused map[netip.AddrPort]time.Time // guarded by mu; spares a lookup for each datagram of a stranger
}

// udpFlow is one client's. Its two goroutines end with ctx.
type udpFlow struct {
	client netip.AddrPort
	ctx    context.Context
	cancel context.CancelFunc
	out    chan []byte // datagrams for the app; full means dropped, as a network would

	used    atomic.Int64 // unix nanoseconds of the last datagram either way
	checked atomic.Int64 // unix nanoseconds of the last look at the owner
}

func newUDPPort(s *Server, t *target, c *net.UDPConn) *udpPort {
	return &udpPort{s: s, t: t, conn: c, flows: map[netip.AddrPort]*udpFlow{}, refused: map[netip.AddrPort]time.Time{}}
}

// run reads the clients' datagrams until the port is closed.
func (u *udpPort) run() {
	defer u.conn.Close()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := u.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if u.t.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			continue // an ICMP answer to an earlier datagram
		}
		f := u.flow(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		if f == nil {
			continue
		}
		select {
		case f.out <- slices.Clone(buf[:n]):
		default:
		}
	}
}

// flow returns the client's flow, a new one if there is none, or nil if the
// client may not have one.
func (u *udpPort) flow(client netip.AddrPort) *udpFlow {
	now := time.Now()
	u.mu.Lock()
	f, n := u.flows[client], len(u.flows)
	lately := now.Sub(u.refused[client]) < udpRecheck
	u.mu.Unlock()
	if f != nil && f.ctx.Err() == nil {
		if u.current(f, now) {
			return f
		}
		return nil
	}
	if lately {
		return nil
	}
	if !u.ownerAllowed(client) {
		u.s.logRefusal(client.String(), errUser)
		u.mu.Lock()
		if len(u.refused) >= maxUDPFlows {
			clear(u.refused)
		}
		u.refused[client] = now
		u.mu.Unlock()
		return nil
	}
	if n >= maxUDPFlows {
		return nil
	}
	f = &udpFlow{client: client, out: make(chan []byte, 64)}
	f.ctx, f.cancel = context.WithCancel(u.t.ctx)
	f.used.Store(now.UnixNano())
	f.checked.Store(now.UnixNano())
	u.mu.Lock()
	u.flows[client] = f
	u.mu.Unlock()
	// The calling goroutine is counted itself, so Wait is not over yet.
	u.s.work.Go(func() { u.carry(f) })
	return f
}

// current says whether the flow's client still has its port; it looks at most
// once every udpRecheck. A port freed by one program may be another account's
// the next moment.
func (u *udpPort) current(f *udpFlow, now time.Time) bool {
	f.used.Store(now.UnixNano())
	last := f.checked.Load()
	if now.UnixNano()-last < int64(udpRecheck) || !f.checked.CompareAndSwap(last, now.UnixNano()) {
		return f.ctx.Err() == nil
	}
	if !u.ownerAllowed(f.client) {
		f.cancel()
		return false
	}
	return true
}

func (u *udpPort) ownerAllowed(client netip.AddrPort) bool { return u.s.udpOwnerAllowed(client) }

// udpOwnerAllowed says whether everybody who may have sent a datagram from
// client may use the apps.
func (s *Server) udpOwnerAllowed(client netip.AddrPort) bool {
	if !client.Addr().IsLoopback() {
		return false
	}
	if !peeruser.Supported {
		return true // Run has refused to start unless AllowAnyLocalUser is set
	}
	uids, err := peeruser.UDP(client)
	if err != nil || len(uids) == 0 {
		return false
	}
	for _, uid := range uids {
		if !s.cfg.UserAllowed(uid) {
			return false
		}
	}
	return true
}

// dropDisallowed ends the flows of users who may no longer use the apps.
func (u *udpPort) dropDisallowed() {
	u.mu.Lock()
	flows := make([]*udpFlow, 0, len(u.flows))
	for _, f := range u.flows {
		flows = append(flows, f)
	}
	clear(u.refused)
	u.mu.Unlock()
	for _, f := range flows {
		if !u.ownerAllowed(f.client) {
			f.cancel()
		}
	}
}

// carry owns one flow from its dial to its end.
func (u *udpPort) carry(f *udpFlow) {
	defer func() {
		f.cancel()
		u.mu.Lock()
		if u.flows[f.client] == f {
			delete(u.flows, f.client)
		}
		u.mu.Unlock()
	}()
	dctx, cancel := context.WithTimeout(f.ctx, dialTimeout)
	remote, err := u.s.cfg.Dial(dctx, "udp", u.t.dst())
	cancel()
	if err != nil {
		u.s.log.Info("app not reached", "app", u.t.key.app, "err", err)
		return
	}
	defer context.AfterFunc(f.ctx, func() { remote.Close() })()
	defer remote.Close()
	u.s.work.Go(func() {
		defer f.cancel()
		u.replies(f, remote)
	})
	idle := time.NewTicker(max(udpIdle/8, time.Millisecond))
	defer idle.Stop()
	for {
		select {
		case <-f.ctx.Done():
			return
		case d := <-f.out:
			// A datagram that does not fit the tunnel is lost, as on any network.
			remote.Write(d)
		case now := <-idle.C:
			if now.UnixNano()-f.used.Load() >= int64(udpIdle) {
				return
			}
		}
	}
}

// replies sends the app's datagrams to the client, from the port it sent to.
func (u *udpPort) replies(f *udpFlow, remote net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := remote.Read(buf)
		if err != nil || !u.current(f, time.Now()) {
			return
		}
		u.conn.WriteToUDPAddrPort(buf[:n], f.client)
	}
}
