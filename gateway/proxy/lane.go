package proxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/portvakt/portvakt/gateway/http1"
)

const (
	maxIdle     = 4096 // connections to http:// apps that wait, in all
	laneIdle    = 4    // connections of a lane that wait
	lanesPerApp = 1024
	lanesInAll  = 4096
)

// lane is an app's connections by way of http.Transport (https, HTTP/2,
// WebSockets) for one holder. http.Transport shares what it has among all who
// ask it, so each holder has one of its own.
type lane struct {
	up        *upstream
	holder    http1.Holder
	transport *http.Transport
	users     int    // exchanges under way
	used      uint64 // when it was entered last, by lanes.clock
	gone      bool   // nobody enters it any more
	cuts      atomic.Uint32
}

// backend is what an exchange has of its lane.
type backend struct {
	conn    net.Conn
	cancel  context.CancelFunc
	aborted bool
	sent    int    // how often the request's head has left
	spent   bool   // it was about to leave too often
	cuts    uint32 // of the lane, when it was entered
}

// got is told of the connection by which the request is about to leave.
// http.Transport sends some again that an app may have got, for reasons that a
// device can bring about (Idempotency-Key) or the app (HTTP/2's PROTOCOL_ERROR);
// a record is of one request. And an app's handshake, or the first of two tries,
// may have lasted longer than the lease.
func (x *exchange) got(c net.Conn) {
	lapsed := x.flow.Check() != nil // without mu, which a cut takes
	x.mu.Lock()
	defer x.mu.Unlock()
	b := &x.backend
	b.conn = c
	switch {
	case b.aborted || lapsed:
		abort(c)
		b.cancel()
	case b.sent > 0 && (b.sent > 1 || !repeatable(x.req.method)):
		b.spent = true
		b.cancel()
		if t, ok := c.(*tls.Conn); !ok || t.ConnectionState().NegotiatedProtocol != "h2" {
			abort(c) // HTTP/2 sends nothing of what was cancelled; HTTP/1.1 may
		}
	}
}

// wrote is told that the request's head has left, or is about to.
func (x *exchange) wrote() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.backend.sent++
}

// repeatable says that to ask an app once more changes nothing (RFC 9110, 9.2.2).
func repeatable(method string) bool {
	return method == http.MethodGet || method == http.MethodHead || method == http.MethodOptions
}

// abort ends the exchange with what is queued towards the app, also when that
// speaks HTTP/2: to reset the stream alone would take nothing back. Whoever
// shares the connection has the same login.
func (x *exchange) abort() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.backend.aborted = true
	x.lane.cuts.Add(1)
	if x.backend.conn != nil {
		abort(x.backend.conn)
	}
	x.backend.cancel()
}

// severed says that another Flow of the lane was cut meanwhile: what breaks may have
// shared its connection, and is no fault of the app's.
func (x *exchange) severed() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.lane != nil && x.backend.cuts != x.lane.cuts.Load()
}

// release leaves the connection to the lane's next exchange.
func (x *exchange) release() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.backend.conn = nil
}

// lanes are all there are. upstreams.mu guards them.
type lanes struct {
	of     map[netip.Addr][]*lane // by the device's inner address
	perApp map[*upstream]int
	n      int
	clock  uint64

	closing []*http.Transport // by unlock
}

// unlock gives mu back and closes what was taken away. To close TLS is to write
// to an app, which may not read: that must hold up nobody else.
func (u *upstreams) unlock() {
	closing := u.lanes.closing
	u.lanes.closing = nil
	u.mu.Unlock()
	for _, t := range closing {
		t.CloseIdleConnections()
	}
}

// holder is whose connections an exchange may use: those of the login that the
// Decision was made on, and that the app is told of.
func (x *exchange) holder() http1.Holder {
	f := x.flow.Facts()
	h := http1.Holder{Inner: x.conn.peer.Addr().Unmap(), Device: f.Device.ID}
	if f.Session != nil {
		h.Session = f.Session.ID
	}
	return h
}

// enter returns the holder's lane to an app. Beyond the bounds, the lane that
// nobody has used for longest makes room. leave follows.
func (u *upstreams) enter(up *upstream, h http1.Holder) *lane {
	u.mu.Lock()
	defer u.unlock()
	ls := &u.lanes
	ls.clock++
	for _, l := range ls.of[h.Inner] {
		if l.up == up && l.holder == h {
			l.users++
			l.used = ls.clock
			return l
		}
	}
	l := &lane{up: up, holder: h, transport: up.transport(), users: 1, used: ls.clock}
	if u.all[up.from.Name] != up {
		l.gone = true // the app was changed meanwhile
		return l
	}
	if ls.perApp[up] >= lanesPerApp {
		ls.evict(up)
	}
	if ls.n >= lanesInAll {
		ls.evict(nil)
	}
	ls.of[h.Inner] = append(ls.of[h.Inner], l)
	ls.perApp[up]++
	ls.n++
	return l
}

func (u *upstreams) leave(l *lane) {
	u.mu.Lock()
	defer u.unlock()
	if l.users--; l.gone && l.users == 0 {
		u.lanes.closing = append(u.lanes.closing, l.transport)
	}
}

// evict removes the lane, of one app or of any, that was used least recently
// and is not in use. What is in use the device's Flows bound.
func (ls *lanes) evict(up *upstream) {
	var oldest *lane
	for _, of := range ls.of {
		for _, l := range of {
			if l.users == 0 && (up == nil || l.up == up) && (oldest == nil || l.used < oldest.used) {
				oldest = l
			}
		}
	}
	if oldest != nil {
		ls.removeOf(oldest.holder.Inner, func(l *lane) bool { return l == oldest })
	}
}

func (ls *lanes) remove(which func(*lane) bool) {
	for inner := range ls.of {
		ls.removeOf(inner, which)
	}
}

// removeOf takes lanes of one device away and closes what idles on them; what
// is in use is closed when it is left.
func (ls *lanes) removeOf(inner netip.Addr, which func(*lane) bool) {
	left := slices.DeleteFunc(ls.of[inner], func(l *lane) bool {
		if !which(l) {
			return false
		}
		l.gone = true
		ls.closing = append(ls.closing, l.transport)
		ls.n--
		if ls.perApp[l.up]--; ls.perApp[l.up] == 0 {
			delete(ls.perApp, l.up)
		}
		return true
	})
	if len(left) == 0 {
		delete(ls.of, inner)
		return
	}
	ls.of[inner] = left
}

// drop closes what idles for one Session of a device, "" for all there is.
func (u *upstreams) drop(inner netip.Addr, session string) {
	u.mu.Lock()
	defer u.unlock()
	u.lanes.removeOf(inner, func(l *lane) bool { return session == "" || l.holder.Session == session })
	for _, up := range u.all {
		if up.pool != nil {
			up.pool.Drop(inner, session)
		}
	}
}
