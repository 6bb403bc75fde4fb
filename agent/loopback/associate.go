package loopback

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// association is one SOCKS5 UDP ASSOCIATE (RFC 1928 section 7): a relay socket
// on the loopback for one client socket, and a socket inside the tunnel for
// all it sends, so that its port stays the same whatever the destination, as a
// call needs. It ends with the TCP connection that asked for it.
type association struct {
	s      *Server
	p      *peer
	relay  *net.UDPConn
	port   uint16 // the client's as it announced it; 0 means any
	ctx    context.Context
	cancel context.CancelFunc
	used   atomic.Int64 // unix nanoseconds of the last datagram either way
	// checked is when the client's owner was looked at last, in unix nanoseconds.
	checked atomic.Int64

	// What follows is owned by the goroutine of fromClient.
	client  netip.AddrPort // zero until its first datagram
	refused map[netip.AddrPort]time.Time
	inner   [2]*innerSocket // IPv4, IPv6
	tried   time.Time       // when a socket could not be opened last
}

// innerSocket is a socket inside the tunnel. dead is set when it can no longer
// be read: the tunnel was renewed.
type innerSocket struct {
	net.PacketConn
	dead atomic.Bool
}

// headSize is the longest head of a datagram that the relay writes.
const headSize = 4 + 16 + 2

func (s *Server) serveAssociate(p *peer, port uint16) {
	if s.cfg.ListenUDP == nil {
		writeSOCKS(p, socksCommand)
		return
	}
	select {
	case s.relays <- struct{}{}:
		defer func() { <-s.relays }()
	default:
		s.log.Warn("too many UDP associations", "remote", p.RemoteAddr().String())
		writeSOCKS(p, socksFailure)
		return
	}
	local := p.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	relay, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
	if err != nil {
		s.log.Warn("no socket for a UDP association", "err", err)
		writeSOCKS(p, socksFailure)
		return
	}
	a := &association{s: s, p: p, relay: relay, port: port, refused: map[netip.AddrPort]time.Time{}}
	a.ctx, a.cancel = context.WithCancel(p.ctx)
	defer a.cancel()
	a.used.Store(time.Now().UnixNano())
	// Answers wait here while a program does something else; a burst of video
	// is larger than the system's default.
	_ = relay.SetReadBuffer(1 << 20)
	_ = relay.SetWriteBuffer(1 << 20)
	if err := a.accept(); err != nil {
		relay.Close()
		return
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer context.AfterFunc(a.ctx, func() { relay.Close() })()
	work.Go(func() {
		defer a.cancel()
		// Nothing more is said on it; its end is the association's.
		_, _ = io.Copy(io.Discard, p)
	})
	defer context.AfterFunc(a.ctx, func() {
		if p.ctx.Err() == nil { // else it is being reset
			p.Close()
		}
	})()
	work.Go(a.watchIdle)
	a.fromClient(&work)
	a.cancel()
}

// accept tells the client where the relay is.
func (a *association) accept() error {
	at := a.relay.LocalAddr().(*net.UDPAddr).AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	reply := appendAddress([]byte{5, socksOK, 0}, at)
	if _, err := a.p.Write(reply); err != nil {
		return err
	}
	return a.p.SetDeadline(time.Time{})
}

func (a *association) watchIdle() {
	tick := time.NewTicker(max(relayIdle/8, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-a.ctx.Done():
			return
		case now := <-tick.C:
			if now.UnixNano()-a.used.Load() >= int64(relayIdle) {
				a.cancel()
				return
			}
		}
	}
}

// fromClient carries the client's datagrams to the apps until the association
// ends.
func (a *association) fromClient(work *sync.WaitGroup) {
	defer func() {
		for _, in := range a.inner {
			if in != nil {
				in.Close()
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, from, err := a.relay.ReadFromUDPAddrPort(buf)
		if a.ctx.Err() != nil {
			return
		}
		if err != nil {
			continue // an ICMP answer to an earlier datagram
		}
		if !a.admit(netip.AddrPortFrom(from.Addr().Unmap(), from.Port())) {
			if a.ctx.Err() != nil {
				return
			}
			continue
		}
		a.used.Store(time.Now().UnixNano())
		host, port, payload, ok := readDatagram(buf[:n])
		if !ok {
			continue
		}
		to, ok := a.s.routes.Load().findUDP(host, port)
		if !ok {
			continue
		}
		if in := a.socket(to.Addr().Is6(), work); in != nil {
			// What does not fit the tunnel is lost, as on any network.
			_, _ = in.WriteTo(payload, net.UDPAddrFromAddrPort(to))
		}
	}
}

// admit says whether a datagram is the client's: the first sender that the
// logged-in user owns, from then on only that one, and only for as long as it
// is theirs.
func (a *association) admit(from netip.AddrPort) bool {
	now := time.Now()
	if !a.client.IsValid() {
		if a.port != 0 && from.Port() != a.port || now.Sub(a.refused[from]) < udpRecheck {
			return false
		}
		if !a.s.udpOwnerAllowed(from) {
			if len(a.refused) >= maxUDPFlows {
				clear(a.refused)
			}
			a.refused[from] = now
			a.s.logRefusal(from.String(), errUser)
			return false
		}
		a.client, a.refused = from, nil
		a.checked.Store(now.UnixNano())
		return true
	}
	return from == a.client && a.current(from)
}

// current says whether the client's port is still its user's; it looks at most
// once every udpRecheck, and ends the association when it is another account's.
func (a *association) current(client netip.AddrPort) bool {
	now, last := time.Now().UnixNano(), a.checked.Load()
	if now-last < int64(udpRecheck) || !a.checked.CompareAndSwap(last, now) {
		return a.ctx.Err() == nil
	}
	if !a.s.udpOwnerAllowed(client) {
		a.cancel()
		return false
	}
	return true
}

// socket returns the socket inside the tunnel. It has the client's own port if
// that is free, else one of the same parity if one is found: RTP wants even
// ports and RTCP the odd ones after them (RFC 3550 section 11).
func (a *association) socket(v6 bool, work *sync.WaitGroup) *innerSocket {
	i := 0
	if v6 {
		i = 1
	}
	if in := a.inner[i]; in != nil && !in.dead.Load() {
		return in
	}
	now := time.Now()
	if now.Sub(a.tried) < udpRecheck {
		return nil
	}
	c, err := a.listen(v6)
	if err != nil {
		a.tried = now
		a.s.log.Info("no UDP socket inside the tunnel", "err", err)
		return nil
	}
	in := &innerSocket{PacketConn: c}
	a.inner[i] = in
	client := a.client
	work.Go(func() { a.toClient(in, client) })
	return in
}

func (a *association) listen(v6 bool) (c net.PacketConn, err error) {
	ctx, cancel := context.WithTimeout(a.ctx, dialTimeout)
	defer cancel()
	port := a.client.Port()
	for _, p := range []uint16{port, port ^ 0x4000, port ^ 0x2000, port ^ 0x1000, 0} {
		if p < 1024 && p != 0 {
			continue
		}
		if c, err = a.s.cfg.ListenUDP(ctx, v6, p); err == nil || ctx.Err() != nil {
			return c, err
		}
	}
	return nil, err
}

// toClient carries the apps' datagrams to the client, for as long as in lives.
func (a *association) toClient(in *innerSocket, client netip.AddrPort) {
	defer in.dead.Store(true)
	defer context.AfterFunc(a.ctx, func() { in.Close() })()
	defer in.Close()
	buf := make([]byte, headSize+64<<10)
	for {
		n, addr, err := in.ReadFrom(buf[headSize:])
		if err != nil {
			return
		}
		ua, ok := addr.(*net.UDPAddr)
		if !ok {
			return
		}
		from := ua.AddrPort()
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		if _, ok := a.s.routes.Load().udpFrom[from]; !ok {
			continue // of an app that went away
		}
		if !a.current(client) {
			return
		}
		head := appendHead(make([]byte, 0, headSize), from)
		start := headSize - len(head)
		copy(buf[start:], head)
		a.used.Store(time.Now().UnixNano())
		_, _ = a.relay.WriteToUDPAddrPort(buf[start:headSize+n], client)
	}
}

// readDatagram reads what a client sends to its relay. Fragments (FRAG is not
// 0) are refused, as section 7 allows.
func readDatagram(b []byte) (host string, port uint16, payload []byte, ok bool) {
	if len(b) < 5 || b[0] != 0 || b[1] != 0 || b[2] != 0 {
		return "", 0, nil, false
	}
	kind, rest := b[3], b[4:]
	size := 0
	switch kind {
	case 1:
		size = 4
	case 4:
		size = 16
	case 3:
		size, rest = int(rest[0]), rest[1:]
	default:
		return "", 0, nil, false
	}
	if len(rest) < size+2 {
		return "", 0, nil, false
	}
	return socksHost(kind, rest[:size]), binary.BigEndian.Uint16(rest[size:]), rest[size+2:], true
}

// appendHead writes the head of a datagram to a client.
func appendHead(b []byte, from netip.AddrPort) []byte {
	return appendAddress(append(b, 0, 0, 0), from)
}

func appendAddress(b []byte, a netip.AddrPort) []byte {
	kind := byte(4)
	if a.Addr().Is4() {
		kind = 1
	}
	b = append(append(b, kind), a.Addr().AsSlice()...)
	return binary.BigEndian.AppendUint16(b, a.Port())
}
