package tunnel

import (
	"context"
	"errors"
	"net"
	"strings"
	"time"
)

// AllowedIPs is what WireGuard itself says it carries.
func AllowedIPs(t *Tunnel) []string {
	conf, err := t.dev.IpcGet()
	if err != nil {
		panic(err)
	}
	var all []string
	for line := range strings.Lines(conf) {
		if p, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "allowed_ip="); ok {
			all = append(all, p)
		}
	}
	return all
}

// Hasten makes a tunnel that does not run yet change its transport n times as
// fast as it does. What it waits for an answer stays: a busy machine is no
// blocked network.
func Hasten(t *Tunnel, n time.Duration) {
	p := &t.ladder.pace
	for _, d := range []*time.Duration{&p.handshake, &p.again, &p.slow, &p.probe, &p.linger, &p.steady} {
		*d /= n
	}
	t.ladder.heartbeat /= n
}

// EndWebSocket breaks the WebSocket in use.
func EndWebSocket(t *Tunnel) { t.ladder.road.stream.Load().End(errors.New("the test broke it")) }

// Dials are dials.
type Dials struct{ dials }

// Again is again.
func (d *Dials) Again() { d.again() }

// Dial is dial.
func (d *Dials) Dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	return d.dial(ctx, dial)
}

// Greet is greet.
func Greet(t *Tunnel) { t.greet() }
