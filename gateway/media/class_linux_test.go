package media

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/internal/voice"
)

// told is an app that hears with which class its datagrams came.
type told struct {
	*app
	socket *net.UDPConn
}

func newTold(t *testing.T, network, address string) told {
	t.Helper()
	a, err := net.ResolveUDPAddr(network, address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.ListenUDP(network, a)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if network == "udp4" {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return told{&app{UDPConn: c}, c}
}

// speech is an RTP datagram with 20 ms of G.711.
var speech = "\x80\x00\x00\x01\x00\x00\x00\x00\x09\x09\x09\x09" + strings.Repeat("x", 160)

// next is the next datagram's payload and TOS or traffic class.
func (a told) next(t *testing.T) (payload string, class byte) {
	t.Helper()
	buf, oob := make([]byte, 2000), make([]byte, 200)
	_ = a.socket.SetReadDeadline(time.Now().Add(patience))
	n, on, _, _, err := a.socket.ReadMsgUDPAddrPort(buf, oob)
	if err != nil {
		t.Fatal(err)
	}
	ms, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil || len(ms) != 1 || len(ms[0].Data) == 0 {
		t.Fatalf("control messages %+v, %v", ms, err)
	}
	return string(buf[:n]), ms[0].Data[0]
}

// What an app receives of a call is marked as voice, from the second datagram
// on; what is none, what is another flow of the same socket's, and what of an
// app with dscp: off looks like a call, is not.
func TestClassTowardsTheApp(t *testing.T) {
	const ef = voice.DSCP << 2
	for network, address := range map[string]string{"udp4": "127.0.0.1:0", "udp6": "[::1]:0"} {
		t.Run(network, func(t *testing.T) {
			call, quiet, text := newTold(t, network, address), newTold(t, network, address), newTold(t, network, address)
			w := newWorld(t, []string{call.yaml("call"), quiet.yaml("quiet") + "dscp: off\n", text.yaml("text")})
			l := w.laptop()
			hears := func(port uint16, a told, name, payload string, want byte) {
				t.Helper()
				l.send(port, w.at(name, int(port)%2, 5004), payload)
				if got, class := a.next(t); got != payload || class != want {
					t.Errorf("%s hears %d bytes with %#x, want %d with %#x", name, len(got), class, len(payload), want)
				}
			}
			for i := range 6 {
				marked := byte(0)
				if i > 0 {
					marked = ef
				}
				hears(4000, call, "call", speech, marked)
				hears(4000, quiet, "quiet", speech, 0)
				hears(4000, text, "text", "hello, who is it?", 0)
				hears(4001, text, "text", "hello, who is it?", 0) // over the other family
			}
			hears(4000, call, "call", "", ef) // keeps the way open
			hears(4000, call, "call", speech+strings.Repeat("x", voice.Longest), 0)
			hears(4000, call, "call", speech, 0) // video, for good
			if n := w.relay.Stats().Sockets; n != 2 {
				t.Errorf("%d sockets", n)
			}
		})
	}
}

// A switch that is turned holds for calls that are open, both ways.
func TestClassOfOpenCalls(t *testing.T) {
	call := newTold(t, "udp4", "127.0.0.1:0")
	w := newWorld(t, []string{call.yaml("call")})
	l := w.laptop()
	for _, c := range []struct {
		dscp  string
		first byte // the class of the first datagram: a call is told anew by its second
		then  byte
	}{{"auto", 0, voice.DSCP << 2}, {"off", 0, 0}, {"auto", voice.DSCP << 2, voice.DSCP << 2}, {"off", 0, 0}} {
		w.publish(call.yaml("call") + "dscp: " + c.dscp + "\n")
		w.swept()
		for i := range 4 {
			want := c.then
			if i == 0 {
				want = c.first
			}
			l.send(4000, w.at("call", 0, 5004), speech)
			if got, class := call.next(t); got != speech || class != want {
				t.Errorf("%s, datagram %d: %d bytes with %#x, want %#x", c.dscp, i, len(got), class, want)
			}
		}
		from := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), w.upstream(call.LocalAddr().(*net.UDPAddr).AddrPort()))
		for i := range 3 {
			if _, err := call.WriteToUDPAddrPort([]byte(speech), from); err != nil {
				t.Fatal(err)
			}
			d, _ := w.next()
			if marked := d.payload[1] == voice.DSCP<<2; marked != (c.dscp == "auto") && i > 0 {
				t.Errorf("%s, answer %d: marked is %t", c.dscp, i, marked)
			}
		}
	}
}

// upstream is the gateway's port of the flow to an upstream address.
func (w *world) upstream(to netip.AddrPort) uint16 {
	w.relay.mu.RLock()
	defer w.relay.mu.RUnlock()
	for _, dev := range w.relay.devices {
		dev.mu.Lock()
		defer dev.mu.Unlock()
		for _, f := range dev.flows {
			if f.is(flowOpen) && f.to == to {
				return f.socket.port
			}
		}
	}
	w.t.Fatal("no open flow")
	return 0
}

// What waited for a flow's decision is looked at in its turn.
func TestClassOfWhatWaited(t *testing.T) {
	call := newTold(t, "udp4", "127.0.0.1:0")
	w := newWorld(t, []string{call.yaml("call")})
	l := w.laptop()
	for range 3 {
		l.send(4000, w.at("call", 0, 5004), speech)
	}
	for i, want := range []byte{0, voice.DSCP << 2, voice.DSCP << 2} {
		if got, class := call.next(t); got != speech || class != want {
			t.Errorf("datagram %d: %d bytes with %#x, want %#x", i, len(got), class, want)
		}
	}
}
