package tunnel_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/tunnel"
)

// dozer is a device with an open connection and no peer: the gateway calls it for
// the next packet.
type dozer struct {
	*client
	in          *ingress
	relay       *relay
	out, inside net.Conn // the connection's ends, the gateway's inside
}

func newDozer(t *testing.T, patience time.Duration) *dozer {
	t.Helper()
	var held atomic.Bool
	held.Store(true)
	in := startWith(t, func(c *tunnel.Config) {
		c.IdleAfter = 300 * time.Millisecond
		c.Held = func([32]byte) bool { return held.Load() }
	})
	in.SetCrossPatience(patience)
	d := &dozer{client: newClient(), in: in, relay: newRelay(t, in)}
	in.admit(t, d.client, 0)
	d.connect(t, in, d.relay.addr, 0)
	d.out = d.mustDial(t, at(app[0], 8))
	d.inside = <-in.conns
	located(t, in, d.pub)
	held.Store(false)
	in.eventually(t, "the idle peer goes", func() bool { return !in.live(d.pub) })
	held.Store(true)
	return d
}

// begin has the device begin anew, as it does after two minutes, with a packet.
func (d *dozer) begin(t *testing.T) {
	t.Helper()
	if err := d.dev.IpcSet(fmt.Sprintf("public_key=%x\nremove=true\n", d.in.PublicKey()) + d.gateway(d.in, d.relay.addr)); err != nil {
		t.Fatal(err)
	}
	d.write(t, d.out, "yes")
}

func (d *dozer) write(t *testing.T, c net.Conn, s string) {
	t.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		t.Fatal(err)
	}
}

func (d *dozer) expect(t *testing.T, c net.Conn, s string) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(answerPatience))
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != s {
		t.Fatalf("%q, %v; %+v, %v", b, err, d.in.Handshakes(), d.in.Refused())
	}
}

// A call of the gateway's and the device's own initiation that meet on the way
// make one session. Each end of a stock WireGuard would drop its own for the
// other's, and then the answer to its own.
func TestInitiationsThatCross(t *testing.T) {
	d := newDozer(t, time.Hour)
	called, arrive := make(chan struct{}), make(chan struct{})
	release := sync.OnceFunc(func() { close(arrive) })
	defer release()
	var once sync.Once
	var answers atomic.Int64
	pass := func(b []byte) bool {
		switch b[0] {
		case 1:
			once.Do(func() { close(called) })
			<-arrive
		case 2:
			answers.Add(1)
		}
		return true
	}
	d.relay.pass.Store(&pass)
	d.write(t, d.inside, "are you there")
	<-called
	d.begin(t)
	d.in.eventually(t, "the device's initiation waits", func() bool { return d.in.Handshakes().Crossed > 0 })
	release()
	d.expect(t, d.out, "are you there")
	d.expect(t, d.inside, "yes")
	if n := answers.Load(); n != 0 {
		t.Errorf("the gateway answered %d initiations while its own was under way", n)
	}
}

// A call that is lost keeps nobody out for long, and costs no initiation.
func TestInitiationAfterALostCall(t *testing.T) {
	d := newDozer(t, 200*time.Millisecond)
	called := make(chan struct{})
	var once sync.Once
	pass := func(b []byte) bool {
		if b[0] == 1 {
			once.Do(func() { close(called) })
		}
		return b[0] != 1
	}
	d.relay.pass.Store(&pass)
	d.write(t, d.inside, "are you there")
	<-called
	d.begin(t)
	d.expect(t, d.out, "are you there")
	d.expect(t, d.inside, "yes")
	if n := d.in.Refused()["limited"]; n != 0 {
		t.Errorf("%d initiations refused that came soon after a call", n)
	}
}
