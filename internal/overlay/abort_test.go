package overlay

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"
)

// A handshake that was given up is aborted, and what takes its ports after it is
// not, however late the aborting is.
func TestAbortIsOfItsOwnRequest(t *testing.T) {
	given, conns := make(chan *TCPRequest, 1), make(chan net.Conn, 1)
	s, err := New(Options{Addresses: []netip.Addr{netip.MustParseAddr("100.64.0.1")}, Gateway: true, TCP: func(r *TCPRequest) {
		wait := 10 * time.Millisecond
		if len(given) > 0 {
			wait = time.Minute
		}
		ctx, cancel := context.WithTimeout(context.Background(), wait)
		defer cancel()
		if c, err := r.Accept(ctx); err != nil {
			given <- r
		} else {
			conns <- c
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	write := func(g segment) {
		g.port, g.window, g.ttl = 5000, 60000, 64
		if _, err := s.Device().Write([][]byte{append(make([]byte, 16), g.marshal()...)}, 16); err != nil {
			t.Fatal(err)
		}
	}
	answer := func() segment { // the next SYN with ACK
		for {
			buf, sizes := [][]byte{make([]byte, 65535)}, []int{0}
			if _, err := s.Device().Read(buf, sizes, 16); err != nil {
				t.Fatal(err)
			}
			if g, err := unmarshal(buf[0][16:16+sizes[0]], true); err == nil && g.flags == 0x12 {
				return g
			}
		}
	}
	write(segment{seq: 100, flags: 2})
	answer()
	for len(given) == 0 {
		time.Sleep(time.Millisecond)
	}
	var g segment
	for g.ack != 9001 { // the first one's endpoint may still be going
		write(segment{seq: 9000, flags: 2})
		g = answer()
	}
	write(segment{seq: 9001, ack: g.seq + 1, flags: 0x10})
	c := <-conns
	defer c.Close()
	returned := make(chan struct{})
	close(returned)
	(<-given).abort(returned)
	_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); err == nil || !err.(net.Error).Timeout() {
		t.Errorf("the second connection: %v", err)
	}
}
