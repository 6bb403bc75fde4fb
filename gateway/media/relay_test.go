package media

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/internal/voice"
)

func portOf(t testing.TB, address string) uint16 {
	t.Helper()
	a, err := netip.ParseAddrPort(address)
	if err != nil {
		t.Fatalf("%q: %v", address, err)
	}
	return a.Port()
}

// One port of a device is one port of the gateway's, whatever it speaks to; the
// answer comes from where the device sent to; records say what passed.
func TestMapping(t *testing.T) {
	one, two := newApp(t, "udp4", "127.0.0.1:0", nil), newApp(t, "udp4", "127.0.0.2:0", nil)
	six := newApp(t, "udp6", "[::1]:0", nil)
	w := newWorld(t, []string{one.yaml("one"), two.yaml("two"), six.yaml("six")})
	l := w.laptop()
	for i := range 2 { // both of the laptop's families
		first := l.ask(4000, w.at("one", i, 5004), "a")
		if second := l.ask(4000, w.at("two", i, 5004), "b"); portOf(t, second) != portOf(t, first) {
			t.Errorf("one port is seen as %s and %s", first, second)
		}
		if other := l.ask(4002, w.at("one", i, 5004), "c"); portOf(t, other) == portOf(t, first) {
			t.Errorf("two ports are seen as %s", other)
		}
		l.ask(4000, w.at("six", i, 5004), "d")
		if again := l.ask(4000, w.at("one", i, 5004), "e"); again != first {
			t.Errorf("first %s, then %s", first, again)
		}
	}
	if s := w.relay.Stats(); s.Flows != 8 || s.Sockets != 6 {
		t.Errorf("%+v", s)
	}
	w.stop()
	if s := w.relay.Stats(); s.Flows != 0 || s.Sockets != 0 {
		t.Errorf("stopped with %+v", s)
	}
	if opened, closed := w.records(audit.KindFlowOpen, 8), w.records(audit.KindFlowClose, 8); len(opened) != 8 || len(closed) != 8 {
		t.Errorf("%d flows opened, %d closed", len(opened), len(closed))
	} else if r := closed[0]; r.Outcome != "done" || r.BytesIn < 1 || r.BytesOut < 10 || r.Subject == "" || r.Flow == "" {
		t.Errorf("%+v", r)
	}
	l.send(4000, w.at("one", 0, 5004), "late")
	w.silence("after the end")
	if w.dropped(stopped) != 1 {
		t.Errorf("%+v", w.relay.Dropped())
	}
}

// Even stays even and odd odd, and the two halves of an RTP/RTCP pair are
// neighbours, whichever comes first.
func TestPortPairs(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", nil)
	w := newWorld(t, []string{a.yaml("sbc")})
	l := w.laptop()
	neighbours := 0
	for i := range 20 {
		rtp, rtcp := uint16(4000+2*i), uint16(4001+2*i)
		if i%2 == 1 {
			rtp, rtcp = rtcp, rtp
		}
		p := portOf(t, l.ask(rtp, w.at("sbc", 0, 5004), "x"))
		q := portOf(t, l.ask(rtcp, w.at("sbc", 0, 5004), "x"))
		if p%2 != rtp%2 || q%2 != rtcp%2 {
			t.Errorf("%d is %d, %d is %d", rtp, p, rtcp, q)
		}
		if p^1 == q {
			neighbours++
		}
	}
	if neighbours < 18 { // another process may have the port
		t.Errorf("%d of 20 pairs are neighbours", neighbours)
	}
}

// A port that a mapping left goes to nobody else for a while, and back to the
// same mapping at once.
func TestPortsRest(t *testing.T) {
	var p ports
	p.init(time.Minute, 10, itself)
	isFree := func(port uint16) bool {
		fd, err := openSocket(port, false)
		if err == nil {
			closeSocket(fd)
		}
		return err == nil
	}
	for p.low &^= 1; !isFree(p.low) || !isFree(p.low+1); {
		if p.low += 2; p.low+1 >= p.high {
			t.Fatal("no two ports beside each other are free")
		}
	}
	p.high = p.low + 1 // one even port and one odd
	now := time.Hour
	mine := mapping{netip.MustParseAddr("100.64.0.9"), socketKey{4000, false}}
	other := mapping{netip.MustParseAddr("100.64.0.10"), socketKey{4000, false}}
	open := func(by mapping, beside uint16) uint16 {
		fd, port, err := p.bind(by, beside, now)
		if err != nil {
			return 0
		}
		closeSocket(fd)
		return port
	}
	if got := open(mapping{netip.MustParseAddr("100.64.0.11"), socketKey{4001, false}}, 0); got != p.high {
		t.Fatalf("the odd port is %d", got)
	}
	if got := open(mine, 0); got != p.low {
		t.Fatalf("the even port is %d, want %d", got, p.low)
	}
	if got := open(other, p.low); got != 0 {
		t.Errorf("a port in use went to another as %d", got)
	}
	p.release(p.low, mine, now)
	now += 59 * time.Second
	if got := open(other, p.low); got != 0 {
		t.Errorf("a resting port went to another as %d", got)
	}
	if got := open(mine, 0); got != p.low {
		t.Errorf("the mapping came back as %d, not %d", got, p.low)
	}
	p.release(p.low, mine, now)
	p.sweep(now + 59*time.Second)
	if len(p.held) != 2 {
		t.Error("a resting port was forgotten")
	}
	now += time.Minute
	if got := open(other, 0); got != p.low {
		t.Errorf("a port that has rested is not given, but %d", got)
	}
}

// Two apps on one server, asked from one port: the answers do not mix.
func TestSameUpstream(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("one"), a.yaml("two")})
	l := w.laptop()
	for range 3 {
		for _, name := range []string{"one", "two"} {
			if got := l.ask(4000, w.at(name, 0, 5004), name); got != name {
				t.Errorf("%s answers %q", name, got)
			}
		}
	}
}

// Nobody but the app a flow sends to can send to the device, and once the flow
// is over not even the app.
func TestUnsolicited(t *testing.T) {
	a, stranger := newApp(t, "udp4", "127.0.0.1:0", nil), newApp(t, "udp4", "127.0.0.1:0", nil)
	w := newWorld(t, []string{a.yaml("sbc")})
	l := w.laptop()
	mapped := netip.MustParseAddrPort(l.ask(4000, w.at("sbc", 0, 5004), "x"))
	for range 3 {
		if _, err := stranger.WriteToUDPAddrPort([]byte("hello"), mapped); err != nil {
			t.Fatal(err)
		}
	}
	w.eventually("three are dropped", func() bool { return w.dropped(unsolicited) == 3 })
	w.silence("a stranger sent")
	if _, err := a.WriteToUDPAddrPort([]byte("ring"), mapped); err != nil {
		t.Fatal(err)
	}
	if _, text := w.next(); text != "ring" {
		t.Errorf("%q", text)
	}
	w.pass(3 * time.Minute)
	w.eventually("the flow is over", func() bool { return w.relay.Stats().Flows == 0 })
	_, _ = a.WriteToUDPAddrPort([]byte("ring"), mapped)
	w.silence("the flow is over")
	// The port rests: another device's call does not get what is still sent
	// there, and the same device gets its own port back.
	if back := l.ask(4000, w.at("sbc", 0, 5004), "x"); portOf(t, back) != mapped.Port() {
		t.Errorf("the mapping was %v and is %v", mapped, back)
	}
}

func TestIdle(t *testing.T) {
	a, d := newApp(t, "udp4", "127.0.0.1:0", echo), newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("call"), yaml("dns", d.LocalAddr().String(), "53")})
	l := w.laptop()
	l.ask(4000, w.at("call", 0, 5004), "x")
	l.ask(4001, w.at("dns", 0, 53), "x")
	w.pass(29 * time.Second)
	if s := w.relay.Stats(); s.Flows != 2 || s.Sockets != 2 {
		t.Errorf("after 29 s: %+v", s)
	}
	w.pass(2 * time.Second)
	w.eventually("DNS is over", func() bool { s := w.relay.Stats(); return s.Flows == 1 && s.Sockets == 1 })
	for range 3 { // either direction keeps it
		w.pass(80 * time.Second)
		l.ask(4000, w.at("call", 0, 5004), "x")
	}
	w.pass(119 * time.Second)
	if s := w.relay.Stats(); s.Flows != 1 {
		t.Errorf("after 119 s: %+v", s)
	}
	w.pass(2 * time.Second)
	w.eventually("all is over", func() bool { s := w.relay.Stats(); return s.Flows == 0 && s.Sockets == 0 })
	w.eventually("the device is forgotten", func() bool {
		w.relay.mu.RLock()
		defer w.relay.mu.RUnlock()
		return len(w.relay.devices) == 0
	})
	if r := w.records(audit.KindFlowClose, 2)[1]; r.BytesIn != 4 || r.BytesOut != 4 {
		t.Errorf("%+v", r)
	}
	w.pass(2 * time.Minute)
	w.eventually("no port rests", func() bool {
		w.relay.ports.mu.Lock()
		defer w.relay.ports.mu.Unlock()
		return len(w.relay.ports.held) == 0 && len(w.relay.ports.last) == 0
	})
}

// A step of the wall clock, either way, ends no call that is not idle and keeps
// none that is: what counts is what has elapsed.
func TestClockStep(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("call")}, func(c *Config) { c.Elapsed = nil })
	l := w.laptop()
	l.ask(4000, w.at("call", 0, 5004), "x")
	w.stepped.Add(int64(3 * time.Minute))
	w.swept()
	if s := w.relay.Stats(); s.Flows != 1 {
		t.Errorf("set forward by 3 minutes: %+v", s)
	}
	w.stepped.Add(-int64(time.Hour))
	w.swept()
	if s := w.relay.Stats(); s.Flows != 1 {
		t.Errorf("set back by an hour: %+v", s)
	}
	w.elapsed.Add(int64(3 * time.Minute))
	w.eventually("what is idle ends", func() bool { s := w.relay.Stats(); return s.Flows == 0 && s.Sockets == 0 })
}

// No datagram passes either way once a session's end is in force, while both
// ends keep sending; a new login opens anew.
func TestCut(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", func([]byte, netip.AddrPort) []byte { return nil })
	w := newWorld(t, []string{a.yaml("call")})
	l, other := w.laptop(), w.laptop()
	to := w.at("call", 0, 5004)
	l.send(4000, to, "x")
	other.send(4000, to, "x")
	w.eventually("both are open", func() bool { return a.seen.Load() == 2 })
	var sockets []netip.AddrPort
	w.relay.mu.RLock()
	for _, dev := range w.relay.devices {
		dev.socketMu.Lock()
		for _, s := range dev.sockets[socketKey{4000, false}] {
			sockets = append(sockets, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), s.port))
		}
		dev.socketMu.Unlock()
	}
	w.relay.mu.RUnlock()
	if len(sockets) != 2 {
		t.Fatal(sockets)
	}
	quit := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			select {
			case <-quit:
				return
			default:
			}
			l.send(4000, to, "x")
			for _, s := range sockets {
				_, _ = a.WriteToUDPAddrPort([]byte("y"), s)
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	var mine, others int
	read := func(d time.Duration) {
		mine, others = 0, 0
		for end := time.After(d); ; {
			select {
			case got := <-w.back:
				if got.dst.Addr() == l.device.Addresses[0] {
					mine++
				} else {
					others++
				}
			case <-end:
				return
			}
		}
	}
	for until := time.Now().Add(10 * time.Second); mine == 0 || others == 0; {
		if read(50 * time.Millisecond); time.Now().After(until) {
			t.Fatalf("%d and %d datagrams before the cut", mine, others)
		}
	}
	l.revoke()
	before := a.seen.Load()
	w.eventually("what the system had already has arrived", func() bool {
		last := before
		time.Sleep(20 * time.Millisecond)
		before = a.seen.Load()
		return before == last
	})
	for len(w.back) > 0 {
		<-w.back
	}
	read(50 * time.Millisecond)
	close(quit)
	sending.Wait()
	if mine != 0 || others == 0 || a.seen.Load() != before {
		t.Errorf("after the cut the device got %d datagrams, another %d, the app %d", mine, others, a.seen.Load()-before)
	}
	if cut := w.records(audit.KindFlowCut, 1); len(cut) != 1 || cut[0].Device != l.device.ID {
		t.Errorf("%+v", cut)
	}
	l.login()
	w.pass(2 * time.Second) // the refusal is forgotten
	seen := a.seen.Load()
	l.send(4000, to, "x")
	w.eventually("it opens anew", func() bool { return a.seen.Load() > seen })
}

func TestRefused(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	support := strings.Replace(a.yaml("support"), "[sales]", "[support]", 1)
	loop := strings.Replace(a.yaml("loop"), "allow: [127.0.0.0/8, \"::1/128\"]\n", "", 1)
	pool := yaml("pool", "100.64.0.77:5004")
	named := strings.Replace(yaml("named", fmt.Sprintf("localhost:%d", a.port())), "allow: [127.0.0.0/8, \"::1/128\"]\n", "", 1)
	w := newWorld(t, []string{support, loop, pool, named})
	l := w.laptop()
	for _, name := range []string{"support", "loop", "pool", "named"} {
		for range 3 {
			l.send(4000, w.at(name, 0, 5004), "x")
		}
	}
	w.silence("refused")
	if n := a.seen.Load(); n != 0 {
		t.Errorf("the app saw %d datagrams", n)
	}
	outcomes := map[string]string{}
	for _, r := range w.records(audit.KindUpstreamError, 3) {
		outcomes[r.App] = r.Outcome
	}
	if fmt.Sprint(outcomes) != "map[loop:upstream_forbidden named:upstream_forbidden pool:upstream_forbidden]" {
		t.Errorf("%v", outcomes)
	}
	// One datagram a second is decided, not each.
	w.eventually("the rest is not decided", func() bool {
		return w.dropped(refused)+w.dropped(queued) <= 8 && w.relay.Stats().Flows == 4 || w.relay.Stats().Flows == 0
	})
	if n := len(w.records(audit.KindFlowOpen, 4)); n != 4 {
		t.Errorf("%d decisions, want one of each", n)
	}
	w.pass(2 * time.Second)
	w.eventually("refusals are forgotten", func() bool { return w.relay.Stats().Flows == 0 })
}

// An app's host that is there while the app is not, says so by ICMP: that ends
// nothing.
func TestPortUnreachable(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	address := a.LocalAddr().String()
	w := newWorld(t, []string{a.yaml("call")})
	l := w.laptop()
	l.ask(4000, w.at("call", 0, 5004), "x")
	_ = a.Close()
	for range 5 {
		l.send(4000, w.at("call", 0, 5004), "anyone?")
	}
	w.silence("nobody is there")
	newApp(t, "udp4", address, echo)
	if got := l.ask(4000, w.at("call", 0, 5004), "back"); got != "back" {
		t.Errorf("%q", got)
	}
	if s := w.relay.Stats(); s.Flows != 1 || w.relay.Dropped()["send"] != 0 {
		t.Errorf("%+v", s)
	}
}

// A device that opens mappings without end has its share, and no other device
// notices.
func TestLimits(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("call")}, func(c *Config) { c.Limits = Limits{DeviceFlows: 20, DeviceOpening: 8, Sockets: 23} })
	l, other, third := w.laptop(), w.laptop(), w.laptop()
	to := w.at("call", 0, 5004)
	other.ask(4000, to, "before")
	drain := func() {
		time.Sleep(20 * time.Millisecond)
		for len(w.back) > 0 {
			<-w.back
		}
	}
	for i := range 50000 {
		l.send(uint16(i+1), to, "x")
	}
	if s := w.relay.Stats(); s.Sockets > 21 || s.Flows > 21 {
		t.Errorf("%+v", s)
	}
	port := 0
	w.eventually("the device has its share", func() bool { // now that there was time to decide
		port++
		l.send(uint16(port), to, "x")
		return w.relay.Stats().Sockets == 21
	})
	drain()
	if got := other.ask(4000, to, "still there"); got != "still there" {
		t.Errorf("%q", got)
	}
	if got := other.ask(4001, to, "a new one"); got != "a new one" {
		t.Errorf("%q", got)
	}
	if s := w.relay.Stats(); s.Sockets != 22 || s.Flows != 22 || w.dropped(deviceFlows)+w.dropped(opening) < 49000 {
		t.Errorf("%+v %v", s, w.relay.Dropped())
	}
	// What is open goes on when nothing more can be.
	third.ask(4000, to, "the last")
	third.send(4001, to, "too many")
	w.silence("no more sockets")
	if w.dropped(full) != 1 {
		t.Errorf("%v", w.relay.Dropped())
	}
	if got := third.ask(4000, to, "goes on"); got != "goes on" {
		t.Errorf("%q", got)
	}
}

// A name server that does not answer costs the apps it names, not the others.
func TestSlowNames(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("call"), yaml("named", "nowhere.invalid:5004")}, func(c *Config) {
		c.Limits.Resolving, c.Limits.Workers, c.Timeouts.Dial = 2, 1, 200*time.Millisecond
	})
	l := w.laptop()
	w.relay.resolveMu.Lock()
	w.relay.resolving["named"] = 2 // two look-ups hang
	w.relay.resolveMu.Unlock()
	l.send(4000, w.at("named", 0, 5004), "x")
	if got := l.ask(4001, w.at("call", 0, 5004), "fine"); got != "fine" {
		t.Errorf("%q", got)
	}
	if w.dropped(opening) != 1 {
		t.Errorf("%+v", w.relay.Dropped())
	}
	w.relay.resolveMu.Lock()
	delete(w.relay.resolving, "named")
	w.relay.resolveMu.Unlock()
	l.send(4003, w.at("named", 0, 5004), "x")
	w.eventually("the name is given up", func() bool { return len(w.records(audit.KindUpstreamError, 2)) == 2 })
}

// The first datagrams of a flow are sent in order once it is decided, also by a name.
func TestFirstDatagrams(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{yaml("call", "localhost:"+strconv.Itoa(int(a.port())))})
	l := w.laptop()
	for i := range 4 {
		l.send(4000, w.at("call", 0, 5004), strconv.Itoa(i))
	}
	for i := range 4 {
		if _, text := w.next(); text != strconv.Itoa(i) {
			t.Errorf("datagram %d is %q", i, text)
		}
	}
	for i := range 100 { // back to back, in order
		l.send(4000, w.at("call", 0, 5004), strconv.Itoa(i))
	}
	for i := range 100 {
		if _, text := w.next(); text != strconv.Itoa(i) {
			t.Fatalf("datagram %d is %q", i, text)
		}
	}
}

// Every size that fits the tunnel passes whole; what does not is dropped.
func TestSizes(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", func(b []byte, _ netip.AddrPort) []byte {
		n, _ := strconv.Atoi(string(b))
		return make([]byte, n)
	})
	w := newWorld(t, []string{a.yaml("call")})
	l := w.laptop()
	for i, head := range []int{28, 48} {
		for _, n := range []int{0, 1, 600, 1280 - head} {
			if got := len(l.ask(4000, w.at("call", i, 5004), strconv.Itoa(n))); got != n {
				t.Errorf("%d bytes arrive as %d", n, got)
			}
		}
		before := w.dropped(tooBig)
		for _, n := range []int{1280 - head + 1, 1280, 1281, 9000} {
			l.send(4000, w.at("call", i, 5004), strconv.Itoa(n))
		}
		w.eventually("four are dropped", func() bool { return w.dropped(tooBig) == before+4 })
		w.silence("too big")
	}
}

func TestClass(t *testing.T) {
	rtp := func(b []byte, _ netip.AddrPort) []byte {
		if string(b) == "text" {
			return b
		}
		return append([]byte{0x80, 0, 0, 1, 0, 0, 0, 0, 9, 9, 9, 9}, make([]byte, 160)...)
	}
	a := newApp(t, "udp4", "127.0.0.1:0", rtp)
	w := newWorld(t, []string{a.yaml("call"), a.yaml("quiet") + "dscp: off\n"})
	l := w.laptop()
	for i := range 2 {
		for name, want := range map[string]byte{"call": voice.DSCP, "quiet": 0} {
			for range 2 {
				l.ask(4000, w.at(name, i, 5004), "talk")
			}
			l.send(4000, w.at(name, i, 5004), "talk")
			d, _ := w.next()
			got := d.payload[1] >> 2
			if i == 1 {
				got = d.payload[0]<<4>>2 | d.payload[1]>>6
			}
			if got != want {
				t.Errorf("%s, family %d: class %d, want %d", name, i, got, want)
			}
		}
	}
}

func TestDNS(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	var from netip.Addr
	w := newWorld(t, []string{a.yaml("call")}, func(c *Config) {
		c.DNS = func(device netip.Addr, query []byte, limit int) []byte {
			from = device
			if string(query) == "silence" {
				return nil
			}
			return fmt.Appendf(nil, "%s %d", query, limit)
		}
	})
	l := w.laptop()
	for i, own := range w.store.GatewayAddresses() {
		want := fmt.Sprintf("where? %d", 1280-[]int{28, 48}[i])
		if got := l.ask(4000, netip.AddrPortFrom(own, 53), "where?"); got != want || from != l.device.Addresses[i] {
			t.Errorf("%v: %q for %v, want %q", own, got, from, want)
		}
		l.send(4000, netip.AddrPortFrom(own, 53), "silence")
		l.send(4000, netip.AddrPortFrom(own, 80), "where?")
	}
	w.silence("no answer is due")
	if s := w.relay.Stats(); s.Flows != 0 || w.relay.Dropped()["dns"] != 4 {
		t.Errorf("%+v", s)
	}
}

// Both addresses of a device ask as one, and its questions are counted together.
func TestDNSIsForADevice(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	one := netip.MustParseAddr("100.96.200.1")
	w := newWorld(t, []string{a.yaml("call")}, func(c *Config) {
		c.Device = func(netip.Addr) netip.Addr { return one }
		c.DNS = func(device netip.Addr, _ []byte, _ int) []byte { return []byte(device.String()) }
	})
	l := w.laptop()
	for _, own := range w.store.GatewayAddresses() {
		if got := l.ask(4000, netip.AddrPortFrom(own, 53), "where?"); got != one.String() {
			t.Errorf("a question to %v is of %s, want %v", own, got, one)
		}
	}
}

// What is in no way a datagram of an app is counted, and opens nothing.
func TestNonsense(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("call")})
	l := w.laptop()
	good := packet(netip.AddrPortFrom(l.device.Addresses[0], 4000), w.at("call", 0, 5004), []byte("x"))
	w.relay.Take([][]byte{good[:len(good)-1]})
	bad := append([]byte(nil), good...)
	bad[len(bad)-1] ^= 1
	w.relay.Take([][]byte{bad, {0x45}, nil})
	l.send(4000, netip.MustParseAddrPort("100.64.200.1:5004"), "no app there")
	l.send(4000, w.at("call", 0, 5005), "not its port")
	w.silence("nonsense")
	if w.dropped(malformed) != 3 || w.dropped(checksum) != 1 || a.seen.Load() != 0 || w.relay.Stats().Sockets != 0 {
		t.Errorf("%+v", w.relay.Dropped())
	}
}

// The end comes while datagrams flow: nothing is left open and nothing hangs.
func TestStopWhileFlowing(t *testing.T) {
	a := newApp(t, "udp4", "127.0.0.1:0", echo)
	w := newWorld(t, []string{a.yaml("call")})
	var sending sync.WaitGroup
	quit := make(chan struct{})
	sending.Go(func() {
		for {
			select {
			case <-w.back:
			case <-quit:
				return
			}
		}
	})
	for range 3 {
		l := w.laptop()
		sending.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-quit:
					return
				default:
					l.send(uint16(4000+i%30), w.at("call", i/30%2, 5004), "x")
				}
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	w.stop()
	close(quit)
	sending.Wait()
	if s := w.relay.Stats(); s.Sockets != 0 {
		t.Errorf("%+v", s)
	}
	n := len(w.records(audit.KindFlowOpen, 1))
	if m := len(w.records(audit.KindFlowClose, n)); n != m {
		t.Errorf("%d flows opened, %d closed", n, m)
	}
}
