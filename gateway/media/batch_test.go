package media

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// What comes together leaves with one system call for each socket, in its order.
// What the system does not take is counted, and nothing beside it is lost.
func TestTogether(t *testing.T) {
	var mu sync.Mutex
	var got []string
	note := func(b []byte, _ netip.AddrPort) []byte {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, string(b))
		return nil
	}
	heard := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(got)
	}
	one, two := newApp(t, "udp4", "127.0.0.1:0", note), newApp(t, "udp4", "127.0.0.1:0", note)
	// Nobody may send to all of a network without saying so.
	w := newWorld(t, []string{one.yaml("one"), two.yaml("two"), yaml("all", "127.255.255.255:9")})
	l := w.laptop()
	from := func(port uint16, app string, text string) []byte {
		return packet(netip.AddrPortFrom(l.device.Addresses[0], port), w.at(app, 0, 5004), []byte(text))
	}
	w.relay.Take([][]byte{from(4000, "one", "a"), from(4000, "two", "b"), from(4002, "one", "c"), from(4000, "all", "d")})
	w.eventually("all flows are open", func() bool { return len(heard()) == 3 && w.dropped(sending) == 1 })
	if n := w.relay.Stats().Sockets; n != 2 {
		t.Fatalf("%d sockets", n)
	}
	want := map[byte][]string{}
	for round := range 10 { // no more at once than an app's socket has room for
		var packets [][]byte
		for i := range 20 {
			for flow, p := range map[string][2]any{"a": {4000, "one"}, "b": {4000, "two"}, "c": {4002, "one"}} {
				text := fmt.Sprint(flow, 20*round+i)
				packets = append(packets, from(uint16(p[0].(int)), p[1].(string), text))
				want[flow[0]] = append(want[flow[0]], text)
			}
			if i == 10 {
				packets = append(packets, from(4000, "all", "e"))
			}
		}
		w.relay.Take(packets)
		w.eventually("all arrive", func() bool { return len(heard()) == 3+60*(round+1) })
	}
	if n := w.dropped(sending); n != 1+10 {
		t.Errorf("%d were not taken by the system", n)
	}
	arrived := map[byte][]string{}
	for _, text := range heard()[3:] {
		arrived[text[0]] = append(arrived[text[0]], text)
	}
	if !reflect.DeepEqual(arrived, want) {
		t.Errorf("what arrives is out of order or not all: %v", arrived)
	}
}

// A device may be forgotten while what came together from it is taken, as by a
// slow answer of DNS. What it begins after that is in the table of flows, or
// nothing would ever end it.
func TestForgottenWhileTaken(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	closed := strings.Replace(a.yaml("closed"), "[sales]", "[support]", 1)
	for _, app := range []string{"closed", "open"} {
		t.Run(app, func(t *testing.T) {
			var w *world
			forget := func() {
				w.pass(2 * time.Second)
				w.eventually("the device is forgotten", func() bool {
					w.relay.mu.RLock()
					defer w.relay.mu.RUnlock()
					return len(w.relay.devices) == 0
				})
			}
			w = newWorld(t, []string{closed, a.yaml("open")}, func(c *Config) {
				c.DNS = func(netip.Addr, []byte, int) []byte { forget(); return nil }
			})
			l := w.laptop()
			l.send(4000, w.at("closed", 0, 5004), "x")
			w.eventually("it is refused", func() bool { return w.relay.Stats().Flows == 1 })
			from := netip.AddrPortFrom(l.device.Addresses[0], 4000)
			more := packet(from, w.at(app, 0, 5004), []byte("y"))
			question := packet(from, netip.AddrPortFrom(w.store.GatewayAddresses()[0], 53), []byte("q"))
			w.relay.Take([][]byte{packet(from, w.at("closed", 0, 5004), []byte("x")), question, more, more, more})
			if n := w.relay.open.Load(); n != 1 {
				t.Errorf("%d flows of one were begun", n)
			}
			w.eventually("it ends", func() bool { w.pass(10 * time.Minute); return w.relay.open.Load() == 0 })
		})
	}
}
