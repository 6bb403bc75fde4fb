package http1

import (
	"net"
	"net/netip"
	"testing"
)

// kept makes a connection for h at via and lets it wait after text.
func kept(t *testing.T, p *Pool, conns chan net.Conn, h Holder, via netip.AddrPort, text string) *Conn {
	t.Helper()
	c, err := p.Dial(t.Context(), h, via)
	if err != nil {
		t.Fatal(err)
	}
	app := <-conns
	t.Cleanup(func() { _ = app.Close() })
	once(t, c, app, text)
	return c
}

func TestNoConnectionForAnother(t *testing.T) {
	p, conns := tcp(t, Options{})
	kept(t, p, conns, asa, at, fine)
	nobody, other, newer := asa, asa, asa
	nobody.Session, other.Device, newer.Session = "", "dev-2", "s-2"
	for _, h := range []Holder{nobody, other, newer, {Inner: netip.MustParseAddr("100.64.0.10"), Device: asa.Device, Session: asa.Session}} {
		if p.Idle(h, at) != nil {
			t.Errorf("%+v was given another's", h)
		}
	}
	if c := p.Idle(asa, at); c == nil {
		t.Error("nothing for its own")
	} else {
		c.Release(false)
	}
}

func TestHandshakeStaysOnItsConnection(t *testing.T) {
	const challenge = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: NTLM TlRMTVNTUAAC\r\nContent-Length: 0\r\n\r\n"
	p, conns := tcp(t, Options{})
	port := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(asa.Inner, n) }
	first := kept(t, p, conns, asa, port(1), challenge)
	second := kept(t, p, conns, asa, port(2), challenge)
	if p.Idle(asa, port(3)) != nil {
		t.Error("a third took over a handshake")
	}
	for n, want := range []*Conn{first, second} {
		c := p.Idle(asa, port(uint16(n+1)))
		if c != want {
			t.Fatalf("connection %d does not come back to its own", n+1)
		}
		c.Release(false)
	}
	kept(t, p, conns, asa, port(1), fine)
	last := kept(t, p, conns, asa, port(2), fine)
	if c := p.Idle(asa, port(3)); c != last {
		t.Error("not the one used last")
	} else {
		c.Release(false)
	}
}

func TestPoolMakesRoom(t *testing.T) {
	gone := func(c *Conn) bool {
		_, err := c.nc.Write([]byte("x"))
		return err != nil
	}
	holder := func(n byte) Holder {
		return Holder{Inner: netip.AddrFrom4([4]byte{100, 64, 0, n}), Device: string('a' + rune(n)), Session: "s"}
	}
	budget := NewBudget(4)
	p, conns := tcp(t, Options{MaxIdle: 3, PerDevice: 2, Budget: budget})
	var all []*Conn
	for _, n := range []byte{1, 2, 2, 2, 3, 4} { // the first of 2, then 1's, then the next of 2
		all = append(all, kept(t, p, conns, holder(n), at, fine))
	}
	for i, want := range []bool{true, true, true, false, false, false} {
		if gone(all[i]) != want {
			t.Errorf("connection %d: closed %v", i, !want)
		}
	}
	q, more := tcp(t, Options{Budget: budget})
	one := kept(t, q, more, asa, at, fine)
	two := kept(t, q, more, asa, at, fine) // the budget is spent: the oldest of its own pool goes
	if !gone(one) || gone(two) || p.waiting+q.waiting != 4 {
		t.Errorf("%d and %d wait", p.waiting, q.waiting)
	}
	p.Drop(holder(3).Inner, "another")
	if gone(all[4]) {
		t.Error("closed for another's end")
	}
	p.Drop(holder(3).Inner, "s")
	p.Drop(holder(4).Inner, "")
	if !gone(all[4]) || !gone(all[5]) || gone(all[3]) {
		t.Error("not what was to be dropped")
	}
	p.Close()
	q.Close()
	if left := budget.left.Load(); left != 4 {
		t.Errorf("%d of 4 are given back", left)
	}
}
