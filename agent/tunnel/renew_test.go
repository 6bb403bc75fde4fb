package tunnel_test

import (
	"context"
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/tunnel"
)

// A gateway that was killed and calls: what is open breaks off although nothing
// is sent in it. By itself TCP asks after a minute.
func TestRestartedGateway(t *testing.T) {
	t.Parallel()
	m := newMixed(t, false, 1)
	idle, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	roundTrip(t, idle)
	m.restart()
	if err := idle.SetReadDeadline(time.Now().Add(50 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the connection ended with %v", err)
	}
	again, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	roundTrip(t, again)
}

// A new session does no harm to what is open, and is made when it is asked for:
// by itself WireGuard makes one after two minutes.
func TestGreet(t *testing.T) {
	t.Parallel()
	m := newMixed(t, false, 1)
	c, err := m.DialTCP(ctx(t), at(gatewayAddrs[0], 80))
	if err != nil {
		t.Fatal(err)
	}
	talk := chatter(t, c)
	first := m.Status().LastHandshake
	for end := time.Now().Add(time.Minute); !m.Status().LastHandshake.After(first); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no handshake")
		}
		tunnel.Greet(m.Tunnel)
	}
	talk.goesOn(t, 10*time.Second)
}

// A dial that waits for a gateway that is gone begins anew when it is back, and
// no other does.
func TestRedial(t *testing.T) {
	var d tunnel.Dials
	waiting, fault := make(chan struct{}), errors.New("refused")
	dials := 0
	dial := func(ctx context.Context) (net.Conn, error) {
		switch dials++; dials {
		case 1:
			close(waiting)
			<-ctx.Done()
			return nil, ctx.Err()
		case 2:
			return &net.TCPConn{}, nil
		}
		return nil, fault
	}
	go func() { <-waiting; d.Again() }()
	if c, err := d.Dial(t.Context(), dial); c == nil || err != nil || dials != 2 {
		t.Errorf("%v, %v after %d dials", c, err, dials)
	}
	if _, err := d.Dial(t.Context(), dial); !errors.Is(err, fault) || dials != 3 {
		t.Errorf("%v after %d dials", err, dials)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	d.Again()
	if _, err := d.Dial(ctx, dial); !errors.Is(err, fault) || dials != 4 {
		t.Errorf("%v after %d dials", err, dials)
	}
}
