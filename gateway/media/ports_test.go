package media

import (
	"net/netip"
	"testing"
	"time"
)

// A device that opens flows and loses them, again and again, takes the gateway's
// ports from nobody: it gets its own back.
func TestPortsOfOneDevice(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("voice")}, func(c *Config) {
		c.Limits.DeviceFlows, c.Limits.DevicePorts = 100, 150
	})
	w.relay.ports.mu.Lock()
	w.relay.ports.high = w.relay.ports.low + 599 // half of them even
	w.relay.ports.mu.Unlock()
	evil, good := w.laptop(), w.laptop()
	v := w.at("voice", 0, 5004)
	for round := range 10 {
		for i := range 100 {
			if got := evil.ask(uint16(2000+2*(100*round+i)), v, "x"); got != "x" {
				t.Fatalf("round %d: got %q", round, got)
			}
		}
		evil.revoke()
		evil.login()
		w.eventually("its flows end", func() bool { return w.relay.Stats().Sockets == 0 })
	}
	w.relay.ports.mu.Lock()
	got := len(w.relay.ports.held)
	w.relay.ports.mu.Unlock()
	if got != 150 {
		t.Errorf("%d ports rest for it, want 150", got)
	}
	for i := range 20 {
		if got := good.ask(uint16(7000+2*i), v, "call"); got != "call" {
			t.Errorf("call %d of another device: %q", i, got)
		}
	}
	if n := w.dropped(noPort); n != 0 {
		t.Errorf("%d flows found no port", n)
	}
}

// When no port is left for a flow, metrics say so.
func TestNoPortIsCounted(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("voice")}, func(c *Config) { c.Limits.DevicePorts = 1 })
	l := w.laptop()
	v := w.at("voice", 0, 5004)
	l.ask(4000, v, "x")
	l.send(4002, v, "x")
	w.eventually("it is counted", func() bool { return w.dropped(noPort) == 1 })
	w.silence("a device with its share of ports")
}

// Beyond its share, and when all others' are taken, a device gets the port back
// that has rested longest for it, of its parity first.
func TestPortsReuse(t *testing.T) {
	var p ports
	p.init(time.Minute, 4, itself)
	now := time.Hour
	addr := netip.MustParseAddr("100.64.0.9")
	open := func(device uint16) uint16 {
		t.Helper()
		fd, port, err := p.bind(mapping{addr, socketKey{device, false}}, 0, now)
		if err != nil {
			return 0
		}
		closeSocket(fd)
		return port
	}
	var had []uint16
	for _, device := range []uint16{4001, 4000, 4002, 4004} {
		had = append(had, open(device))
	}
	for i, device := range []uint16{4001, 4000, 4002, 4004} {
		p.release(had[i], mapping{addr, socketKey{device, false}}, now)
		now += time.Second
	}
	if got := open(4002); got != had[2] {
		t.Errorf("the mapping's last port was %d, it gets %d", had[2], got)
	}
	for i, want := range []uint16{had[1], had[3], had[0], 0} {
		if got := open(uint16(5000 + 2*i)); got != want {
			t.Errorf("mapping %d gets port %d, want %d of %v", i, got, want, had)
		}
	}
	if o := p.owners[addr]; o.ports != 4 || len(o.resting) != 0 || len(p.last) != 0 {
		t.Errorf("4 ports are held: %+v, %v", o, p.last)
	}
	for i, port := range []uint16{had[1], had[3], had[0]} {
		p.release(port, mapping{addr, socketKey{uint16(5000 + 2*i), false}}, now)
	}
	p.release(had[2], mapping{addr, socketKey{4002, false}}, now)
	p.sweep(now + time.Minute)
	if len(p.held)+len(p.last)+len(p.owners) != 0 {
		t.Errorf("something stays: %v %v %v", p.held, p.last, p.owners)
	}
}

func itself(a netip.Addr) netip.Addr { return a }

// Both addresses of a device share its ports.
func TestPortsOfBothAddresses(t *testing.T) {
	four, six := netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("fd00::2")
	var p ports
	p.init(time.Minute, 4, func(netip.Addr) netip.Addr { return four })
	now := time.Hour
	by := func(a netip.Addr, i int) mapping { return mapping{a, socketKey{port: uint16(4000 + 2*i)}} }
	for i := range 4 {
		a := []netip.Addr{four, six}[i%2]
		fd, port, err := p.bind(by(a, i), 0, now)
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			closeSocket(fd)
			p.release(port, by(a, i), now)
			p.sweep(now + time.Hour)
			if i == 0 && len(p.held)+len(p.owners)+len(p.last) != 0 {
				t.Errorf("%d ports, %d owners and %d mappings are left", len(p.held), len(p.owners), len(p.last))
			}
		}()
	}
	for _, a := range []netip.Addr{four, six} {
		if fd, port, err := p.bind(by(a, 9), 0, now); err == nil {
			closeSocket(fd)
			t.Errorf("%v gets port %d beyond the device's share", a, port)
		}
	}
}
