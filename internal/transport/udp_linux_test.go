package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

var loopbacks = map[string]netip.Addr{"IPv4": netip.MustParseAddr("127.0.0.1"), "IPv6": netip.IPv6Loopback()}

// packet is a datagram with the source it came from.
type packet struct {
	data []byte
	ep   *UDPEndpoint
}

// opened is an open UDP whose datagrams come out of a channel.
type opened struct {
	*UDP
	port uint16
	in   chan packet
}

func openUDP(t *testing.T, u *UDP) *opened {
	t.Helper()
	fns, port, err := u.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	o := &opened{UDP: u, port: port, in: make(chan packet, 10000)}
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() {
			const n = 16
			bufs, sizes, eps := make([][]byte, n), make([]int, n), make([]conn.Endpoint, n)
			for i := range bufs {
				bufs[i] = make([]byte, device.MaxMessageSize)
			}
			for {
				k, err := fn(bufs, sizes, eps)
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("receiving: %v", err)
					}
					return
				}
				for i := range k {
					o.in <- packet{bytes.Clone(bufs[i][:sizes[i]]), eps[i].(*UDPEndpoint)}
				}
			}
		})
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		wg.Wait()
	})
	return o
}

func (o *opened) next(t *testing.T) packet {
	t.Helper()
	select {
	case p := <-o.in:
		return p
	case <-time.After(3 * time.Second):
		t.Fatal("no datagram within 3 s")
		panic("unreachable")
	}
}

func (o *opened) at(a netip.Addr) conn.Endpoint {
	ep, err := o.ParseEndpoint(netip.AddrPortFrom(a, o.port).String())
	if err != nil {
		panic(err)
	}
	return ep
}

func TestSendsEverythingInOrder(t *testing.T) {
	for family, a := range loopbacks {
		for name, opts := range map[string]UDPOptions{
			"all addresses": {Sticky: true}, "one address": {Listen: netip.AddrPortFrom(a, 0)}, "no GSO": {Sticky: true, GSOOff: true},
		} {
			t.Run(family+" "+name, func(t *testing.T) {
				from, to := openUDP(t, NewUDP(UDPOptions{Sticky: true})), openUDP(t, NewUDP(opts))
				for i, sizes := range [][]int{
					{1},
					{1400},
					{32, 32, 32},
					repeat(1400, 128), repeat(1400, 5, 7), repeat(1400, 5, 7, 9), repeat(1, 300), repeat(1400, 200, 1399),
					{100, 200, 300, 300, 200, 300},
					{60000, 1, 60000},
					{65507, 65507},
					{40000, 40000},
					repeat(16000, 9, 3),
				} {
					want := datagrams(uint64(i), sizes...)
					if err := from.Send(want, to.at(a)); err != nil {
						t.Fatalf("%v: %v", sizes, err)
					}
					for j, w := range want {
						p := to.next(t)
						if !bytes.Equal(p.data, w) {
							t.Fatalf("datagram %d of %v: got %d bytes, want %d", j, sizes, len(p.data), len(w))
						}
						if p.ep.AddrPort() != netip.AddrPortFrom(a, from.port) {
							t.Fatalf("came from %v", p.ep.AddrPort())
						}
					}
				}
				if s := from.Stats(); s.GSO != true || s.Sent == 0 {
					t.Errorf("stats of the sender: %+v", s)
				}
				if s := to.Stats(); s.GSO == opts.GSOOff || s.Received != from.Stats().Sent || s.Lost != 0 {
					t.Errorf("stats of the receiver: %+v", s)
				}
			})
		}
	}
}

func TestEmptyDatagramsAreDropped(t *testing.T) {
	from, to := openUDP(t, NewUDP(UDPOptions{})), openUDP(t, NewUDP(UDPOptions{}))
	want := datagrams(1, 5, 0, 0, 5, 5, 0, 4)
	if err := from.Send(want, to.at(loopbacks["IPv4"])); err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		if len(w) > 0 && !bytes.Equal(to.next(t).data, w) {
			t.Fatal("another datagram")
		}
	}
	if s := to.Stats(); s.Empty != 3 || s.Received != 4 {
		t.Errorf("stats %+v", s)
	}
}

func TestOversizedDatagramIsRefused(t *testing.T) {
	from, to := openUDP(t, NewUDP(UDPOptions{})), openUDP(t, NewUDP(UDPOptions{}))
	err := from.Send(datagrams(1, 100, 65508, 100), to.at(loopbacks["IPv4"]))
	if !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("65,508 bytes: %v, want EMSGSIZE", err)
	}
	if got := to.next(t); len(got.data) != 100 {
		t.Errorf("the one before it: %d bytes", len(got.data))
	}
}

// An endpoint is the same object for the life of a source, and another one for
// another source or another own address.
func TestEndpointsAreKept(t *testing.T) {
	to := openUDP(t, NewUDP(UDPOptions{Sticky: true}))
	kept := make(map[netip.AddrPort]*UDPEndpoint)
	var clients []net.Conn
	for i := range 200 {
		dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, byte(1 + i%3)}), to.port)
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(dst))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	for round := range 3 {
		for i, c := range clients {
			if _, err := c.Write([]byte{byte(round), byte(i)}); err != nil {
				t.Fatal(err)
			}
		}
		for range clients {
			p := to.next(t)
			if e := kept[p.ep.AddrPort()]; e != nil && e != p.ep {
				t.Fatal("a source has two endpoints")
			}
			kept[p.ep.AddrPort()] = p.ep
			if want := netip.AddrFrom4([4]byte{127, 0, 0, 1 + p.data[1]%3}); p.ep.SrcIP() != want {
				t.Fatalf("called at %v, endpoint says %v", want, p.ep.SrcIP())
			}
		}
	}
	if len(kept) != len(clients) {
		t.Errorf("%d endpoints of %d sources", len(kept), len(clients))
	}
}

func TestCacheIsBounded(t *testing.T) {
	c := newEndpoints(false)
	at := func(i int) source {
		s := source{port: 1}
		binary.BigEndian.PutUint32(s.remote[:], uint32(i))
		return s
	}
	first := c.get(at(0))
	for i := range 3 * generation {
		if once, again := c.get(at(i)), c.get(at(i)); once != again {
			t.Fatal("two endpoints of one source")
		}
		if i%1000 == 0 && c.get(at(0)) != first {
			t.Fatal("a source in use was forgotten")
		}
	}
	if n := len(c.young) + len(c.old); n > 2*generation {
		t.Errorf("%d entries, at most %d", n, 2*generation)
	}
}

// An answer leaves from the address that was called, whatever the routes say,
// and from any once that address is gone.
func TestAnswersFromTheAddressThatWasCalled(t *testing.T) {
	to := openUDP(t, NewUDP(UDPOptions{Sticky: true}))
	called := netip.MustParseAddr("127.0.0.77")
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteToUDPAddrPort([]byte("question"), netip.AddrPortFrom(called, to.port)); err != nil {
		t.Fatal(err)
	}
	ep := to.next(t).ep
	answer := func(e conn.Endpoint) netip.Addr {
		t.Helper()
		if err := to.Send([][]byte{[]byte("answer")}, e); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
		_, src, err := c.ReadFromUDPAddrPort(make([]byte, 100))
		if err != nil {
			t.Fatal(err)
		}
		return src.Addr().Unmap()
	}
	if got := answer(ep); got != called {
		t.Errorf("answer from %v, want %v", got, called)
	}
	gone := newUDPEndpoint(ep.AddrPort(), netip.MustParseAddr("192.0.2.7"))
	if got := answer(gone); got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("answer from %v", got)
	}
	if gone.SrcIP().IsValid() {
		t.Error("an address that cannot be used is kept")
	}
	ep.ClearSrc()
	if got := answer(ep); got != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("answer from %v after ClearSrc", got)
	}
}

func TestPortIsFreeAgainAndNeverShared(t *testing.T) {
	a := NewUDP(UDPOptions{})
	_, port, err := a.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
		t.Errorf("opening twice: %v", err)
	}
	for _, addr := range []netip.Addr{{}, loopbacks["IPv4"], loopbacks["IPv6"]} {
		b := NewUDP(UDPOptions{Listen: netip.AddrPortFrom(addr, port)})
		if _, _, err := b.Open(0); !errors.Is(err, unix.EADDRINUSE) {
			t.Errorf("opening a taken port at %v: %v", addr, err)
			_ = b.Close()
		}
	}
	for range 3 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if _, again, err := a.Open(port); err != nil || again != port {
			t.Fatalf("opening port %d again: %d, %v", port, again, err)
		}
	}
	if err := errors.Join(a.Close(), a.Close()); err != nil {
		t.Errorf("closing twice: %v", err)
	}
	ep, _ := a.ParseEndpoint("127.0.0.1:9")
	if err := a.Send([][]byte{{1}}, ep); !errors.Is(err, net.ErrClosed) {
		t.Errorf("sending closed: %v", err)
	}
}

func TestCloseEndsReadersAndSenders(t *testing.T) {
	for range 20 {
		u := NewUDP(UDPOptions{})
		fns, port, err := u.Open(0)
		if err != nil {
			t.Fatal(err)
		}
		ep, _ := u.ParseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
		var wg sync.WaitGroup
		for _, fn := range fns {
			wg.Go(func() {
				bufs, sizes, eps := [][]byte{make([]byte, 2000)}, make([]int, 1), make([]conn.Endpoint, 1)
				for {
					if _, err := fn(bufs, sizes, eps); err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Errorf("receiving: %v", err)
						}
						return
					}
				}
			})
		}
		for range 2 {
			wg.Go(func() {
				for d := datagrams(1, repeat(1000, 50)...); ; {
					if err := u.Send(d, ep); err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Errorf("sending: %v", err)
						}
						return
					}
				}
			})
		}
		time.Sleep(time.Millisecond)
		if err := u.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	}
}

// A network device that cannot checksum makes the kernel refuse what is to be
// cut up. All of it arrives nevertheless, once.
func TestWithoutSegmentationWhenTheDeviceCannot(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EIO, unix.EMSGSIZE, unix.EINVAL} {
		t.Run(errno.Error(), func(t *testing.T) {
			to := openUDP(t, NewUDP(UDPOptions{}))
			u := NewUDP(UDPOptions{Listen: netip.AddrPortFrom(loopbacks["IPv4"], 0)})
			calls := 0
			u.sendmmsg = func(fd uintptr, m []message) (int, syscall.Errno) {
				if calls++; calls == 1 {
					return sendmmsg(fd, m[:1]) // one goes out, the next is refused
				}
				for i := range m {
					if m[i].header.Iovlen > 1 && i == 0 {
						return 0, errno
					} else if m[i].header.Iovlen > 1 {
						return sendmmsg(fd, m[:i])
					}
				}
				return sendmmsg(fd, m)
			}
			from := openUDP(t, u)
			for i := range 3 {
				want := datagrams(uint64(i), repeat(1000, 70, 500, 1000, 1000)...)
				if err := from.Send(want, to.at(loopbacks["IPv4"])); err != nil {
					t.Fatal(err)
				}
				for j, w := range want {
					if got := to.next(t).data; !bytes.Equal(got, w) {
						t.Fatalf("datagram %d: another one", j)
					}
				}
			}
			if got, want := u.Stats().GSO, errno != unix.EIO; got != want {
				t.Errorf("segmentation is on: %t, want %t", got, want)
			}
			if len(to.in) > 0 {
				t.Error("a datagram came twice")
			}
		})
	}
}

func TestSelfTest(t *testing.T) {
	if err := testGSO(); err != nil {
		t.Errorf("on this machine: %v", err)
	}
	u := NewUDP(UDPOptions{})
	u.selfTest = func() error { return errors.New("the kernel changed a datagram") }
	if o := openUDP(t, u); o.Stats().GSO {
		t.Error("segmentation is on after a failed test")
	}
}

func TestNothingIsAllocatedForADatagram(t *testing.T) {
	u, to := NewUDP(UDPOptions{}), NewUDP(UDPOptions{Sticky: true, Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	_, _, err := u.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	fns, port, err := to.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	ep, _ := u.ParseEndpoint(fmt.Sprintf("127.0.0.1:%d", port))
	d := datagrams(1, repeat(500, 20)...)
	bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	if n := testing.AllocsPerRun(200, func() {
		if err := u.Send(d, ep); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < len(d); {
			n, err := fns[0](bufs, sizes, eps)
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}); n >= 1 && !raceEnabled {
		t.Errorf("%v allocations for 20 datagrams there and back", n)
	}
}

// TestTruncatedControl: without the message that says how many datagrams these
// are, none of them is passed on.
func TestTruncatedControl(t *testing.T) {
	u := NewUDP(UDPOptions{})
	r := newReceiver(u, &socket{})
	r.n, r.next = 2, 0
	copy(r.buffers, "ab")
	copy(r.buffers[receiveBuffer:], "cd")
	r.messages[0].length, r.messages[1].length = 2, 2
	r.messages[0].header.Flags = unix.MSG_CTRUNC
	r.messages[1].header.SetControllen(0)
	bufs, sizes, eps := [][]byte{make([]byte, 10), make([]byte, 10)}, make([]int, 2), make([]conn.Endpoint, 2)
	if n := r.give(bufs, sizes, eps); n != 1 || string(bufs[0][:sizes[0]]) != "cd" || u.Stats().Lost != 1 {
		t.Errorf("%d datagrams, lost %d", n, u.Stats().Lost)
	}
}

// TestDropsAreCounted: what the kernel drops for want of room and what is empty.
func TestDropsAreCounted(t *testing.T) {
	u := NewUDP(UDPOptions{Listen: netip.MustParseAddrPort("127.0.0.1:0")})
	fns, port, err := u.Open(0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.Close() }()
	s := u.open.Load().v4
	if err := s.set(unix.SOL_SOCKET, unix.SO_RCVBUF, 1); err != nil { // the kernel's least
		t.Fatal(err)
	}
	c, err := net.Dial("udp4", netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const sent = 50
	for range sent {
		_, _ = c.Write(make([]byte, 500))
	}
	bufs, sizes, eps := make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)
	for i := range bufs {
		bufs[i] = make([]byte, 2000)
	}
	got := 0
	take := func() {
		n, err := fns[0](bufs, sizes, eps)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	take()
	_, _ = c.Write(nil)
	_, _ = c.Write([]byte("the drops were before this one"))
	take()
	if s := u.Stats(); s.Overflowed != uint64(sent+1-got) || s.Overflowed == 0 || s.Empty != 1 {
		t.Errorf("%d of %d came: %+v", got, sent+1, s)
	}
}
