package tunnel_test

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"time"
)

// soakTraffic is what of a device passed its relay since its present step began.
type soakTraffic struct {
	mu         sync.Mutex
	sent, came soakDatagrams
}

// soakDatagrams are some of one direction.
type soakDatagrams struct {
	initiations, answers, others int
	last                         time.Time
}

func (s *soakDatagrams) add(b []byte) {
	s.last = time.Now()
	switch b[0] {
	case 1:
		s.initiations++
	case 2:
		s.answers++
	default:
		s.others++
	}
}

func (s soakDatagrams) String() string {
	if s.last.IsZero() {
		return "nothing"
	}
	return fmt.Sprintf("%d initiations, %d answers and %d others, the last %v ago", s.initiations, s.answers, s.others, ago(s.last))
}

// watch has everything that passes r counted.
func (w *soakTraffic) watch(r *relay) {
	note := func(of *soakDatagrams) *func([]byte) {
		f := func(b []byte) {
			w.mu.Lock()
			defer w.mu.Unlock()
			of.add(b)
		}
		return &f
	}
	r.seen.Store(note(&w.sent))
	r.came.Store(note(&w.came))
}

func (w *soakTraffic) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sent, w.came = soakDatagrams{}, soakDatagrams{}
}

// where is what the relay goes on by.
func (r *relay) where() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.back.(*net.UDPConn); ok {
		return c.LocalAddr().String()
	}
	return "a WebSocket"
}

func ago(t time.Time) time.Duration { return time.Since(t).Round(time.Millisecond) }

// state is what there is to know of a device that stands still.
func (d *soakDevice) state() string {
	w := &d.traffic
	w.mu.Lock()
	sent, came := w.sent, w.came
	w.mu.Unlock()
	road := "UDP"
	if d.socket {
		road = "a WebSocket"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v after its %s", ago(d.since), d.step)
	if d.before != "" {
		fmt.Fprintf(&b, " (before that its %s)", d.before)
	}
	fmt.Fprintf(&b, ", by %s;\n  since then it sent %v (of all its relay ever sent %d failed), and got %v", road, sent, d.relay.unsent.Load(), came)
	fmt.Fprintf(&b, ";\n  its WireGuard's last handshake: %s; inside %+v", clientHandshake(d.c), d.c.stack.Stats())
	for _, p := range d.in.Peers() {
		if p.Key == d.c.pub {
			fmt.Fprintf(&b, ";\n  the gateway's: %s; it has a peer: %v, and knows it at %v; it is at %v", handshakeAge(p.LastHandshake), p.Live, p.Endpoint, d.relay.where())
		}
	}
	return b.String()
}

// state is what the gateway counted.
func (in *ingress) state() string {
	noSession, barren := in.Unopened()
	udp, streams := in.Outside()
	return fmt.Sprintf("refused: %v, handshakes: %+v, no session %d, barren %d, unheard %d, withheld %d, outside %+v, %+v, inside %+v",
		in.Refused(), in.Handshakes(), noSession, barren, in.Unheard(), in.Withheld(), udp, streams, in.Stats())
}

func handshakeAge(at time.Time) string {
	if at.IsZero() {
		return "none"
	}
	return ago(at).String() + " ago"
}

// clientHandshake is when a client's WireGuard had its last handshake.
func clientHandshake(c *client) string {
	conf, err := c.dev.IpcGet()
	if err != nil {
		return err.Error()
	}
	var s, ns int64
	for line := range strings.Lines(conf) {
		_, _ = fmt.Sscanf(line, "last_handshake_time_sec=%d", &s)
		_, _ = fmt.Sscanf(line, "last_handshake_time_nsec=%d", &ns)
	}
	if s == 0 {
		return "none"
	}
	return handshakeAge(time.Unix(s, ns))
}
