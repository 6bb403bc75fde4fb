package loopback_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/loopback"
	"github.com/portvakt/portvakt/internal/wire"
)

var (
	phone  = wire.App{Name: "phone", Protocol: "udp", Hosts: []string{"Phone.example.test"}, Ports: []uint16{4000, 4001}, Addresses: addrs("10.99.0.20", "fd99::14")}
	second = wire.App{Name: "second", Protocol: "udp", Hosts: []string{"second.example.test"}, Ports: []uint16{4000}, Addresses: addrs("10.99.0.21")}
)

// inside is the tunnel as UDP sees it: its sockets are real ones on loopback,
// and what they send to an app's virtual address goes to a real socket that
// answers with the app's address and the sender's port in front.
type inside struct {
	t     *testing.T
	mu    sync.Mutex
	real  map[netip.AddrPort]netip.AddrPort // virtual -> real
	back  map[netip.AddrPort]netip.AddrPort
	open  []*insideConn
	count atomic.Int32
}

func newInside(t *testing.T, apps ...string) *inside {
	t.Helper()
	in := &inside{t: t, real: map[netip.AddrPort]netip.AddrPort{}, back: map[netip.AddrPort]netip.AddrPort{}}
	for _, a := range apps {
		virtual := netip.MustParseAddrPort(a)
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		_ = c.SetReadBuffer(1 << 20)
		real := c.LocalAddr().(*net.UDPAddr).AddrPort()
		in.real[virtual], in.back[real] = real, virtual
		go func() {
			buf := make([]byte, 2048)
			for {
				n, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				answer := fmt.Appendf(nil, "%v %d %s", virtual, from.Port(), buf[:n])
				c.WriteToUDPAddrPort(answer, from)
				if string(buf[:n]) == "again later" {
					time.AfterFunc(300*time.Millisecond, func() { c.WriteToUDPAddrPort(answer, from) })
				}
			}
		}()
	}
	return in
}

func (in *inside) listen(_ context.Context, _ bool, port uint16) (net.PacketConn, error) {
	// The client has its port on 127.0.0.1, the tunnel's end is another machine.
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 2), Port: int(port)})
	if err != nil {
		return nil, err
	}
	_ = c.SetReadBuffer(1 << 20)
	in.count.Add(1)
	ic := &insideConn{c, in}
	in.mu.Lock()
	in.open = append(in.open, ic)
	in.mu.Unlock()
	return ic, nil
}

type insideConn struct {
	*net.UDPConn
	in *inside
}

func (c *insideConn) WriteTo(b []byte, to net.Addr) (int, error) {
	real, ok := c.in.real[to.(*net.UDPAddr).AddrPort()]
	if !ok {
		c.in.t.Errorf("a datagram to %v was sent into the tunnel", to)
		return len(b), nil
	}
	return c.WriteToUDPAddrPort(b, real)
}

func (c *insideConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(c.in.back[netip.AddrPortFrom(from.Addr().Unmap(), from.Port())]), nil
}

// socksUDP is a client of RFC 1928 section 7.
type socksUDP struct {
	t       *testing.T
	control net.Conn
	c       *net.UDPConn
	relay   netip.AddrPort
}

func associate(t *testing.T, proxy string) *socksUDP {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	u, code := associateFrom(t, proxy, c, 0)
	if code != 0 {
		t.Fatalf("reply %d", code)
	}
	return u
}

func associateFrom(t *testing.T, proxy string, c *net.UDPConn, port uint16) (*socksUDP, byte) {
	t.Helper()
	control := dial(t, "tcp", proxy)
	ask := binary.BigEndian.AppendUint16([]byte{5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0}, port)
	if _, err := control.Write(ask); err != nil {
		t.Fatal(err)
	}
	control.SetReadDeadline(time.Now().Add(3 * time.Second))
	answer := make([]byte, 12)
	if _, err := io.ReadFull(control, answer); err != nil {
		t.Fatal(err)
	}
	if answer[3] == 0 && answer[5] != 1 {
		t.Fatalf("the relay's address is of kind %d", answer[5])
	}
	relay := netip.AddrPortFrom(netip.AddrFrom4([4]byte(answer[6:10])), binary.BigEndian.Uint16(answer[10:]))
	return &socksUDP{t, control, c, relay}, answer[3]
}

func head(host string, port uint16) []byte {
	b := []byte{0, 0, 0}
	if a, err := netip.ParseAddr(host); err == nil {
		kind := byte(1)
		if a.Is6() {
			kind = 4
		}
		b = append(append(b, kind), a.AsSlice()...)
	} else {
		b = append(append(b, 3, byte(len(host))), host...)
	}
	return binary.BigEndian.AppendUint16(b, port)
}

func (u *socksUDP) send(host string, port uint16, text string) {
	u.t.Helper()
	u.raw(append(head(host, port), text...))
}

func (u *socksUDP) raw(b []byte) {
	u.t.Helper()
	if _, err := u.c.WriteToUDPAddrPort(b, u.relay); err != nil {
		u.t.Error(err)
	}
}

// receive returns who answered and what; "" after a silence.
func (u *socksUDP) receive(wait time.Duration) (netip.AddrPort, string) {
	u.t.Helper()
	u.c.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 2048)
	n, from, err := u.c.ReadFromUDPAddrPort(buf)
	if err != nil {
		return netip.AddrPort{}, ""
	}
	host, port, payload, ok := loopback.ReadDatagram(buf[:n])
	if from != u.relay || !ok {
		u.t.Errorf("%q from %v is no datagram of the relay", buf[:n], from)
		return netip.AddrPort{}, ""
	}
	return netip.AddrPortFrom(netip.MustParseAddr(host), port), string(payload)
}

func (u *socksUDP) wantEcho(host string, port uint16, app string) string {
	u.t.Helper()
	u.send(host, port, "hello")
	from, got := u.receive(3 * time.Second)
	f := strings.Fields(got)
	if from.String() != app || len(f) != 3 || f[0] != app || f[2] != "hello" {
		u.t.Errorf("%s:%d answered %q from %v, want %s", host, port, got, from, app)
		return ""
	}
	return f[1]
}

func (u *socksUDP) wantSilence(what string) {
	u.t.Helper()
	if _, got := u.receive(100 * time.Millisecond); got != "" {
		u.t.Errorf("%s was answered with %q", what, got)
	}
}

func TestAssociate(t *testing.T) {
	in := newInside(t, "10.99.0.20:4000", "10.99.0.20:4001", "10.99.0.21:4000", "[fd99::14]:4000")
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial, ListenUDP: in.listen}, crm, desk, phone, second)
	u := associate(t, proxyOf(s))

	// One port inside the tunnel whatever the destination, and the client's own.
	port := u.wantEcho("phone.example.test", 4000, "10.99.0.20:4000")
	if own := fmt.Sprint(u.c.LocalAddr().(*net.UDPAddr).Port); port != own {
		t.Errorf("the app saw port %s, the client has %s", port, own)
	}
	for _, c := range []struct {
		host string
		port uint16
		app  string
	}{{"PHONE.example.test.", 4001, "10.99.0.20:4001"}, {"10.99.0.20", 4000, "10.99.0.20:4000"}, {"second.example.test", 4000, "10.99.0.21:4000"}} {
		if got := u.wantEcho(c.host, c.port, c.app); got != port {
			t.Errorf("%s:%d saw port %s, before it was %s", c.host, c.port, got, port)
		}
	}
	if in.count.Load() != 1 {
		t.Errorf("%d sockets for one association", in.count.Load())
	}
	u.wantEcho("fd99::14", 4000, "[fd99::14]:4000")

	for what, b := range map[string][]byte{
		"a fragment":             append([]byte{0, 0, 1}, append(head("10.99.0.20", 4000)[3:], "x"...)...),
		"the last fragment":      append([]byte{0, 0, 0x81}, append(head("10.99.0.20", 4000)[3:], "x"...)...),
		"a reserved byte":        append([]byte{0, 1, 0}, append(head("10.99.0.20", 4000)[3:], "x"...)...),
		"an unknown host":        append(head("other.example.test", 4000), 'x'),
		"an address of nobody":   append(head("10.99.0.99", 4000), 'x'),
		"loopback":               append(head("127.0.0.1", 4000), 'x'),
		"another port":           append(head("10.99.0.20", 4002), 'x'),
		"a web app":              append(head("crm.example.test", 443), 'x'),
		"a TCP app":              append(head("10.99.0.17", 7000), 'x'),
		"a v4-mapped stranger":   append(head("::ffff:127.0.0.1", 4000), 'x'),
		"nothing":                {},
		"a cut head":             head("10.99.0.20", 4000)[:9],
		"an unknown kind":        {0, 0, 0, 9, 1, 2, 3, 4, 5, 6},
		"a name longer than all": {0, 0, 0, 3, 200, 'a', 'b'},
	} {
		u.raw(b)
		u.wantSilence(what)
	}
	if port := u.wantEcho("phone.example.test", 4000, "10.99.0.20:4000"); port == "" {
		t.Error("bad datagrams ended the association")
	}

	t.Run("another socket of the same user", func(t *testing.T) {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		(&socksUDP{t, nil, c, u.relay}).send("10.99.0.20", 4000, "x")
		(&socksUDP{t, nil, c, u.relay}).wantSilence("a second client")
		u.wantSilence("what a second client sent")
	})
	t.Run("the announced port", func(t *testing.T) {
		announced, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer announced.Close()
		a, code := associateFrom(t, proxyOf(s), announced, uint16(announced.LocalAddr().(*net.UDPAddr).Port))
		if code != 0 {
			t.Fatal(code)
		}
		other := &socksUDP{t, nil, u.c, a.relay}
		other.send("10.99.0.20", 4000, "x")
		other.wantSilence("a port that was not announced")
		a.wantEcho("10.99.0.20", 4000, "10.99.0.20:4000")
	})
	t.Run("the app goes away", func(t *testing.T) {
		s.SetApps([]wire.App{crm, second})
		u.send("10.99.0.20", 4000, "x")
		u.wantSilence("an app that went away")
		u.wantEcho("second.example.test", 4000, "10.99.0.21:4000")
		s.SetApps([]wire.App{crm, desk, phone, second})
	})
	t.Run("the tunnel is renewed", func(t *testing.T) {
		before := u.wantEcho("10.99.0.20", 4000, "10.99.0.20:4000")
		in.mu.Lock()
		for _, c := range in.open {
			c.Close()
		}
		in.mu.Unlock()
		for deadline := time.Now().Add(5 * time.Second); ; {
			u.send("10.99.0.20", 4000, "hello")
			if _, got := u.receive(100 * time.Millisecond); got != "" {
				if f := strings.Fields(got); f[1] != before {
					t.Errorf("the port was %s, is %s", before, f[1])
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("nothing comes through the new tunnel")
			}
		}
	})
	t.Run("the control connection ends", func(t *testing.T) {
		u.control.Close()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
			c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(u.relay))
			if err == nil { // its port is free again
				c.Close()
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the relay outlives its control connection")
			}
		}
	})
}

func TestAssociateIdle(t *testing.T) {
	loopback.SetRelayIdle(t, 80*time.Millisecond)
	in := newInside(t, "10.99.0.20:4000")
	s := serve(t, loopback.Config{Dial: newGateway(t).dial, ListenUDP: in.listen}, phone)
	u := associate(t, proxyOf(s))
	u.wantEcho("10.99.0.20", 4000, "10.99.0.20:4000")
	for range 8 { // used, it lives past the bound
		time.Sleep(20 * time.Millisecond)
		u.wantEcho("10.99.0.20", 4000, "10.99.0.20:4000")
	}
	u.control.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := u.control.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("an idle association goes on: %v", err)
	}
}

// Answers do not go to whoever owns the port by now, also when nothing is sent.
func TestAssociateAnswersItsUserOnly(t *testing.T) {
	loopback.SetBounds(t, 10*time.Second, time.Minute, time.Minute, 50*time.Millisecond)
	in := newInside(t, "10.99.0.20:4000")
	var gone atomic.Bool
	s := serve(t, loopback.Config{Dial: newGateway(t).dial, ListenUDP: in.listen, UserAllowed: func(uint32) bool { return !gone.Load() }}, phone)
	u := associate(t, proxyOf(s))
	u.send("10.99.0.20", 4000, "again later")
	for _, when := range []string{"at once", "later"} {
		if _, got := u.receive(3 * time.Second); !strings.HasSuffix(got, " again later") {
			t.Fatalf("%s came %q", when, got)
		}
	}
	u.send("10.99.0.20", 4000, "again later")
	if _, got := u.receive(3 * time.Second); got == "" {
		t.Fatal("no answer")
	}
	gone.Store(true)
	if _, got := u.receive(time.Second); got != "" {
		t.Errorf("the port's next owner was told %q", got)
	}
	u.control.SetReadDeadline(time.Now().Add(3 * time.Second))
	if _, err := u.control.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the association goes on: %v", err)
	}
}

func TestAssociateBound(t *testing.T) {
	s := serve(t, loopback.Config{Dial: newGateway(t).dial, ListenUDP: newInside(t).listen}, phone)
	var open int
	for code := byte(0); code == 0 && open < 1000; open++ {
		_, code = associateFrom(t, proxyOf(s), nil, 0)
	}
	if open != 65 {
		t.Errorf("association %d was refused, want the 65th", open)
	}
}

// A call centre's worth of calls through one proxy: not a datagram is lost or
// mixed up.
func TestAssociateCarriesCalls(t *testing.T) {
	const calls, packets = 20, 50
	in := newInside(t, "10.99.0.20:4000")
	s := serve(t, loopback.Config{Dial: newGateway(t).dial, ListenUDP: in.listen}, phone)
	var work sync.WaitGroup
	for call := range calls {
		u := associate(t, proxyOf(s))
		work.Go(func() {
			voice := strings.Repeat("v", 160)
			u.send("10.99.0.20", 4000, fmt.Sprintf("%d/first", call))
			if _, got := u.receive(3 * time.Second); !strings.HasSuffix(got, fmt.Sprintf(" %d/first", call)) {
				t.Errorf("call %d begins with %q", call, got)
			}
			tick := time.NewTicker(20 * time.Millisecond) // 50 packets a second
			defer tick.Stop()
			go func() {
				for n := range packets {
					<-tick.C
					u.raw(fmt.Appendf(head("10.99.0.20", 4000), "%d/%d/%s", call, n, voice))
				}
			}()
			for n := range packets {
				if _, got := u.receive(3 * time.Second); !strings.HasSuffix(got, fmt.Sprintf(" %d/%d/%s", call, n, voice)) {
					t.Errorf("call %d: packet %d came as %.40q", call, n, got)
					return
				}
			}
		})
	}
	work.Wait()
}

// FuzzDatagram: what is accepted is a whole head, and the relay's own heads
// are read as they were meant.
func FuzzDatagram(f *testing.F) {
	f.Add(append(head("10.99.0.20", 4000), "hi"...))
	f.Add(append(head("fd99::14", 4000), "hi"...))
	f.Add(append(head("phone.example.test", 4000), "hi"...))
	f.Add([]byte{0, 0, 1, 1, 10, 99, 0, 20, 15, 160})
	f.Fuzz(func(t *testing.T, b []byte) {
		host, port, payload, ok := loopback.ReadDatagram(b)
		if !ok {
			return
		}
		if !bytes.HasSuffix(b, payload) || len(host) > 255 || b[2] != 0 {
			t.Fatalf("%x gave %q %d %x", b, host, port, payload)
		}
		a, err := netip.ParseAddr(host)
		if err != nil || b[3] == 3 || a.Zone() != "" {
			return
		}
		again := append(loopback.AppendDatagram(nil, netip.AddrPortFrom(a, port)), payload...)
		if h, p, rest, ok := loopback.ReadDatagram(again); !ok || h != host || p != port || !bytes.Equal(rest, payload) {
			t.Fatalf("%x was written as %x", b, again)
		}
	})
}
