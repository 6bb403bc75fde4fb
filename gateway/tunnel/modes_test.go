package tunnel_test

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/segment"
	"github.com/portvakt/portvakt/gateway/tunnel"
	"github.com/portvakt/portvakt/internal/halfopen"
)

// TestModes holds both stacks to one table: what a device sees must not depend
// on whose stack its packets end in.
func TestModes(t *testing.T) {
	for _, mode := range []tunnel.Mode{tunnel.Userspace, tunnel.TUN} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == tunnel.TUN {
				needTUN(t)
			}
			for _, c := range modeCases {
				t.Run(c.name, func(t *testing.T) {
					priv, _ := keyPair()
					// An MTU that leaves room for a smaller path.
					in := startConfig(t, tunnel.Config{PrivateKey: priv, Listen: "127.0.0.1:0", Mode: mode, MTU: 1420}, nil)
					c.run(t, in)
				})
			}
		})
	}
}

// needTUN skips where the kernel's stack cannot be had, which CI counts as a
// failure.
func needTUN(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("NOT TESTED: tunnel mode tun needs Linux")
	}
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: tunnel mode tun needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("NOT TESTED: tunnel mode tun needs /dev/net/tun: ", err)
	}
}

var modeCases = []struct {
	name string
	run  func(*testing.T, *ingress)
}{
	{"transfers", caseTransfers},
	{"datagrams", caseDatagrams},
	{"closed looks closed", caseClosed},
	{"decided before the SYN is answered", caseSlowAccept},
	{"withdrawn while it is decided", caseWithdrawn},
	{"a handshake nobody ends", caseUnfinished},
	{"half-close", caseHalfClose},
	{"resets", caseResets},
	{"keeps what was written before the end", caseLastWords},
	{"half-open connections are bounded", caseFlood},
	{"who gives up too often is refused", caseGivenUp},
	{"resets are bounded", caseResetsAreBounded},
	{"who is refused without end is heard less", caseUnheard},
	{"packets no stack must see", caseRefusedPackets},
	{"a flow's smaller path", caseSmallerPath},
	{"segments are not tiny", caseTinySegments},
	{"wrong checksums are nobody's", caseWrongSums},
	{"a beginning that is an end", caseBeginningAndEnd},
	{"stop resets what is open", caseStop},
	{"device to device", caseHairpin},
}

// joined is a device with a stack of its own, and connected.
func (in *ingress) joined(t *testing.T, i int) *client {
	t.Helper()
	c := newClient()
	in.admit(t, c, i)
	return c.connect(t, in, in.addr(), i)
}

// wired is a device that sends packets of the test's making, and has sent one.
func (in *ingress) wired(t *testing.T, i int) *client {
	t.Helper()
	c := newClient()
	in.admit(t, c, i)
	c.connectRaw(t, in, in.addr())
	if got := c.exchange(packet4(1, at(inner(i)[0], 0), at(gatewayAddrs[0], 0)), answerPatience); got == nil || got[20] != 0 {
		t.Fatalf("echo to the gateway: %x", got)
	}
	return c
}

// exchange sends a packet and returns the next that comes, nil for none.
func (c *client) exchange(p []byte, patience time.Duration) []byte {
	c.raw.out <- p
	return c.next(patience)
}

func (c *client) next(patience time.Duration) []byte {
	select {
	case got := <-c.raw.in:
		return got
	case <-time.After(patience):
		return nil
	}
}

// tcp4 is a TCP segment over IPv4.
func tcp4(src, dst netip.AddrPort, flags byte, seq, ack uint32) []byte {
	b := packet4(6, src, dst)
	binary.BigEndian.PutUint32(b[24:], seq)
	binary.BigEndian.PutUint32(b[28:], ack)
	b[33], b[34] = flags, 0x40
	b[36], b[37] = 0, 0
	pseudo := append(append([]byte{}, b[12:20]...), 0, 6, 0, 20)
	binary.BigEndian.PutUint16(b[36:], sum(append(pseudo, b[20:]...)))
	return b
}

func caseTransfers(t *testing.T, in *ingress) {
	c := in.joined(t, 0)
	data := make([]byte, transfer)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(data)
	for i, a := range app {
		data := data[:len(data)>>(2*i)]
		nc := c.mustDial(t, at(a, 443))
		go func() {
			_, _ = nc.Write(data)
			_ = nc.(interface{ CloseWrite() error }).CloseWrite()
		}()
		_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
		got, err := io.ReadAll(nc)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("echo through %v: %d bytes of %d, %v", a, len(got), len(data), err)
		}
		_ = nc.Close()
		ctl := c.mustDial(t, at(gatewayAddrs[i], 80))
		roundTrip(t, ctl)
		_ = ctl.Close()
	}
}

// Datagrams go past the stack, whoever's it is, and the gateway's own address
// is in it.
func caseDatagrams(t *testing.T, in *ingress) {
	c := in.joined(t, 0)
	for i := range app {
		u, err := c.stack.DialUDP(at(app[i], 5004))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			roundTrip(t, u)
		}
		_ = u.Close()
		nc := c.mustDial(t, at(gatewayAddrs[i], 80))
		roundTrip(t, nc)
		_ = nc.Close()
	}
}

func caseClosed(t *testing.T, in *ingress) {
	a := in.joined(t, 0)
	in.joined(t, 1)
	roundTrip(t, a.mustDial(t, at(app[0], 443)))
	for i := range app {
		for name, dst := range map[string]netip.AddrPort{
			"refused by its owner": at(app[i], 7),
			"closed port":          at(app[i], 444),
			"hidden app":           at(hidden[i], 443),
			"gateway's port":       at(gatewayAddrs[i], 22),
			"other device":         at(inner(1)[i], 443),
		} {
			if _, err := a.dial(t, dst); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s %v: %v, want ECONNREFUSED", name, dst, err)
			}
		}
	}
	// The first answer to a SYN that is refused is the reset, in its own order.
	w := in.wired(t, 2)
	for name, dst := range map[string]netip.AddrPort{"refused by its owner": at(app[0], 7), "hidden": at(hidden[0], 443)} {
		got := w.exchange(tcp4(at(inner(2)[0], 40000), dst, 2, 1000, 0), answerPatience)
		if got == nil || got[33] != 0x14 || binary.BigEndian.Uint32(got[28:]) != 1001 {
			t.Errorf("SYN to %s: %x, want RST and ACK of it", name, got)
		}
	}
	// So it is for a segment of no connection, as after a restart.
	got := w.exchange(tcp4(at(inner(2)[0], 40001), at(app[0], 443), 0x10, 77, 4711), answerPatience)
	if got == nil || got[33]&4 == 0 || binary.BigEndian.Uint32(got[24:]) != 4711 {
		t.Errorf("ACK of no connection: %x, want RST", got)
	}
}

func caseSlowAccept(t *testing.T, in *ingress) {
	c := in.wired(t, 0)
	me, dst := at(inner(0)[0], 40000), at(app[0], 9)
	for range 3 {
		if got := c.exchange(tcp4(me, dst, 2, 1000, 0), 50*time.Millisecond); got != nil {
			t.Fatalf("answered before the decision: %x", got)
		}
	}
	r := <-in.asked
	if r.Peer() != me || r.Local() != dst {
		t.Errorf("asked from %v to %v", r.Peer(), r.Local())
	}
	select {
	case <-in.asked:
		t.Error("one SYN sent three times is asked about twice")
	default:
	}
	type answer struct {
		c   net.Conn
		err error
	}
	accepted := make(chan answer, 1)
	go func() {
		nc, err := r.Accept(t.Context())
		accepted <- answer{nc, err}
	}()
	got := c.next(answerPatience)
	if got == nil || got[33] != 0x12 || binary.BigEndian.Uint32(got[28:]) != 1001 {
		t.Fatalf("after Accept: %x, want SYN and ACK", got)
	}
	select {
	case a := <-accepted:
		t.Fatalf("accepted before the handshake's end: %v", a.err)
	case <-time.After(50 * time.Millisecond):
	}
	seq := binary.BigEndian.Uint32(got[24:]) + 1
	c.raw.out <- tcp4(me, dst, 0x10, 1001, seq)
	select {
	case a := <-accepted:
		if a.err != nil {
			t.Fatal(a.err)
		}
		defer a.c.Close()
		if p := a.c.RemoteAddr().(*net.TCPAddr); p.Port != 40000 {
			t.Errorf("connection of %v", p)
		}
	case <-time.After(answerPatience):
		t.Fatal("the connection does not come")
	}
	if _, err := r.Accept(t.Context()); err == nil {
		t.Error("accepted twice")
	}
	r.Reset() // does nothing any more
	// FIN, answered: the connection is still there.
	if got := c.exchange(tcp4(me, dst, 0x11, 1001, seq), answerPatience); got == nil || got[33]&4 != 0 {
		t.Errorf("FIN: %x", got)
	}
}

func caseWithdrawn(t *testing.T, in *ingress) {
	c := in.wired(t, 0)
	me, dst := at(inner(0)[0], 40000), at(app[0], 9)
	c.raw.out <- tcp4(me, dst, 2, 1000, 0)
	r := <-in.asked
	r.Reset()
	if got := c.next(answerPatience); got == nil || got[33] != 0x14 {
		t.Errorf("refused: %x", got)
	}
	// The same ports again are a new question.
	c.raw.out <- tcp4(me, dst, 2, 5000, 0)
	select {
	case r = <-in.asked:
	case <-time.After(answerPatience):
		t.Fatal("a second attempt is not asked about")
	}
	// The device changes its mind while the handshake is under way.
	failed := make(chan error, 1)
	go func() {
		_, err := r.Accept(t.Context())
		failed <- err
	}()
	if got := c.next(answerPatience); got == nil || got[33] != 0x12 {
		t.Fatalf("accepted: %x", got)
	}
	c.raw.out <- tcp4(me, dst, 4, 5001, 0)
	select {
	case err := <-failed:
		if err == nil {
			t.Error("a connection that was reset is accepted")
		}
	case <-time.After(answerPatience):
		t.Error("Accept outlives the reset")
	}
}

// caseUnfinished: whoever accepts can stop waiting for a device that went away
// within the handshake, and nothing is left of it.
func caseUnfinished(t *testing.T, in *ingress) {
	c := in.wired(t, 0)
	me, dst := at(inner(0)[0], 40000), at(app[0], 9)
	c.raw.out <- tcp4(me, dst, 2, 1000, 0)
	r := <-in.asked
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() {
		_, err := r.Accept(ctx)
		failed <- err
	}()
	got := c.next(answerPatience)
	if got == nil || got[33] != 0x12 {
		t.Fatalf("accepted: %x", got)
	}
	cancel()
	select {
	case err := <-failed:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Accept: %v", err)
		}
	case <-time.After(answerPatience):
		t.Fatal("Accept outlives its context")
	}
	if got := c.next(answerPatience); got == nil || got[33]&4 == 0 {
		t.Errorf("the device is told %x, want a reset", got)
	}
	seq := binary.BigEndian.Uint32(got[24:]) + 1
	if got := c.exchange(tcp4(me, dst, 0x10, 1001, seq), answerPatience); got == nil || got[33]&4 == 0 {
		t.Errorf("its last ACK is answered with %x, want a reset", got)
	}
}

func caseHalfClose(t *testing.T, in *ingress) {
	c := in.joined(t, 0)
	for _, a := range app {
		nc := c.mustDial(t, at(a, 8))
		gw := <-in.conns
		_ = nc.SetDeadline(time.Now().Add(answerPatience))
		_ = gw.SetDeadline(time.Now().Add(answerPatience))
		if _, err := io.WriteString(nc, "question"); err != nil {
			t.Fatal(err)
		}
		_ = nc.(interface{ CloseWrite() error }).CloseWrite()
		if got, err := io.ReadAll(gw); string(got) != "question" || err != nil {
			t.Errorf("the gateway reads %q, %v", got, err)
		}
		if _, err := io.WriteString(gw, "answer"); err != nil {
			t.Error(err)
		}
		if err := gw.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Error(err)
		}
		if got, err := io.ReadAll(nc); string(got) != "answer" || err != nil {
			t.Errorf("the device reads %q, %v", got, err)
		}
		_, _ = nc.Close(), gw.Close()
	}
}

func caseResets(t *testing.T, in *ingress) {
	c := in.joined(t, 0)
	type resetter interface{ Reset() }
	for _, a := range app {
		for name, byDevice := range map[string]bool{"device": true, "gateway": false} {
			nc := c.mustDial(t, at(a, 8))
			gw := <-in.conns
			roundTripBetween(t, nc, gw)
			end, other := gw, nc
			if byDevice {
				end, other = nc, gw
			}
			end.(resetter).Reset()
			_ = other.SetDeadline(time.Now().Add(answerPatience))
			if _, err := other.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%v reset by the %s: the other end reads %v", a, name, err)
			}
			if _, err := end.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%v reset by the %s: its own end writes %v", a, name, err)
			}
			_, _ = nc.Close(), gw.Close()
		}
	}
}

func roundTripBetween(t *testing.T, a, b net.Conn) {
	t.Helper()
	_, _ = a.SetDeadline(time.Now().Add(answerPatience)), b.SetDeadline(time.Now().Add(answerPatience))
	buf := make([]byte, 4)
	if _, err := io.WriteString(a, "ping"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(b, buf); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(buf); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(a, buf); err != nil || string(buf) != "ping" {
		t.Fatal(string(buf), err)
	}
}

func caseLastWords(t *testing.T, in *ingress) {
	c := in.joined(t, 0)
	nc := c.mustDial(t, at(app[0], 8))
	gw := <-in.conns
	data := make([]byte, 300<<10)
	go func() {
		_, _ = gw.Write(data)
		_ = gw.Close()
	}()
	_ = nc.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.Copy(io.Discard, nc); n != int64(len(data)) || err != nil {
		t.Errorf("%d of %d bytes, %v", n, len(data), err)
	}
	_ = nc.Close()
}

func caseFlood(t *testing.T, in *ingress) {
	bad, good := in.wired(t, 0), in.joined(t, 1)
	const sent, bound = 200, halfopen.PerSource
	go func() {
		for i := range sent {
			bad.raw.out <- tcp4(at(inner(0)[0], uint16(20000+i)), at(app[0], 9), 2, 1, 0)
		}
	}()
	resets := 0
	for resets < sent-bound && bad.next(answerPatience) != nil {
		resets++
	}
	in.eventually(t, "as many as may wait do", func() bool { return len(in.asked) >= bound })
	for bad.next(50*time.Millisecond) != nil {
		resets++
	}
	if held := len(in.asked); held != bound || resets != sent-bound {
		t.Errorf("of %d SYNs %d are held and %d reset, want %d held and the rest reset", sent, held, resets, bound)
	}
	roundTrip(t, good.mustDial(t, at(app[0], 443)))
	for range bound {
		(<-in.asked).Reset()
	}
	for range bound {
		if got := bad.next(answerPatience); got == nil || got[33]&4 == 0 {
			t.Fatalf("refused: %x", got)
		}
	}
	bad.raw.out <- tcp4(at(inner(0)[0], 30000), at(app[0], 9), 2, 1, 0)
	select {
	case r := <-in.asked:
		r.Reset()
	case <-time.After(answerPatience):
		t.Error("the places are not given back")
	}
}

// caseBeginningAndEnd: a SYN that is a FIN too is nobody's question.
func caseBeginningAndEnd(t *testing.T, in *ingress) {
	c := in.wired(t, 0)
	before := in.Stats().NotForStack
	for i, flags := range []byte{0x03, 0x0b, 0x23, 0x2b} {
		if got := c.exchange(tcp4(at(inner(0)[0], 41000+uint16(i)), at(app[0], 9), flags, 1000, 0), 100*time.Millisecond); got != nil {
			t.Errorf("flags %02x are answered: %x", flags, got)
		}
	}
	in.eventually(t, "they are counted", func() bool { return in.Stats().NotForStack == before+4 })
	select {
	case r := <-in.asked:
		t.Errorf("%v is asked about", r.Peer())
	default:
	}
}

func caseRefusedPackets(t *testing.T, in *ingress) {
	a, b := in.wired(t, 0), in.wired(t, 1)
	me, other := at(inner(0)[0], 40000), at(inner(1)[0], 40000)
	change := func(p []byte, f func([]byte)) []byte {
		f(p)
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], sum(p[:20]))
		return p
	}
	icmp := func(typ, code byte, dst netip.AddrPort) []byte {
		p := packet4(1, me, dst)
		p[20], p[21], p[22], p[23] = typ, code, 0, 0
		binary.BigEndian.PutUint16(p[22:], sum(p[20:]))
		return p
	}
	for _, c := range []struct {
		name, cause string
		packet      []byte
	}{
		{"another device's source", "", packet4(6, other, at(app[0], 443))}, // WireGuard's own refusal
		{"nobody's source", "", packet4(6, at(hidden[0], 40000), at(app[0], 443))},
		{"the gateway's source", "", packet4(6, at(gatewayAddrs[0], 40000), at(app[0], 443))},
		{"a fragment", "fragment", change(packet4(6, me, at(app[0], 443)), func(p []byte) { p[6] = 0x20 })},
		{"a last fragment", "fragment", change(packet4(6, me, at(app[0], 443)), func(p []byte) { p[7] = 1 })},
		{"options", "options", change(packet4(6, me, at(app[0], 443)), func(p []byte) { p[0] = 0x46 })},
		{"GRE", "protocol", change(packet4(6, me, at(app[0], 443)), func(p []byte) { p[9] = 47 })},
		{"IGMP to all routers", "multicast", change(packet4(6, me, at(netip.MustParseAddr("224.0.0.2"), 0)), func(p []byte) { p[9] = 2 })},
		{"broadcast", "multicast", packet4(6, me, at(netip.MustParseAddr("255.255.255.255"), 443))},
		{"loopback", "multicast", packet4(6, me, at(netip.MustParseAddr("127.0.0.1"), 443))},
		{"port 0", "malformed", packet4(6, me, at(app[0], 0))},
		{"echo to an app", "icmp", packet4(1, me, at(app[0], 0))},
		{"echo to a device", "icmp", packet4(1, me, other)},
		{"redirect", "icmp", icmp(5, 1, at(gatewayAddrs[0], 0))},
		{"router advertisement", "icmp", icmp(9, 0, at(gatewayAddrs[0], 0))},
		{"time stamp", "icmp", icmp(13, 0, at(gatewayAddrs[0], 0))},
		{"a smaller path for nothing of ours", "icmp", icmp(3, 4, at(app[0], 0))},
		{"UDP to an app's TCP port", "closed", udp4(me, at(app[0], 443))},
		{"UDP to the gateway", "closed", udp4(me, at(gatewayAddrs[0], 161))},
	} {
		before := in.table.Counts()[c.cause]
		if got := a.exchange(c.packet, 50*time.Millisecond); got != nil {
			t.Errorf("%s is answered: %x", c.name, got)
		}
		if c.cause == "" {
			continue
		}
		in.eventually(t, c.name+" is counted", func() bool { return in.table.Counts()[c.cause] != before })
		if after := in.table.Counts()[c.cause]; after != before+1 {
			t.Errorf("%s: %d counted as %s", c.name, after-before, c.cause)
		}
	}
	if got := b.next(0); got != nil {
		t.Errorf("the other device got a packet: %x", got)
	}
	// A wrong checksum is nobody's connection, and SYN with FIN is none.
	wrong := tcp4(me, at(app[0], 443), 2, 1, 0)
	wrong[36] ^= 0xff
	for name, p := range map[string][]byte{"wrong checksum": wrong, "SYN and FIN": tcp4(me, at(app[0], 9), 3, 1, 0)} {
		if got := a.exchange(p, 100*time.Millisecond); got != nil && got[33]&4 == 0 {
			t.Errorf("%s is answered: %x", name, got)
		}
	}
}

func udp4(src, dst netip.AddrPort) []byte {
	p := packet4(6, src, dst)
	p[9] = 17
	p[10], p[11] = 0, 0
	binary.BigEndian.PutUint16(p[10:], sum(p[:20]))
	binary.BigEndian.PutUint16(p[24:], 20)
	p[26], p[27] = 0, 0
	return p
}

func caseStop(t *testing.T, in *ingress) {
	c := in.joined(t, 0)
	nc := c.mustDial(t, at(app[0], 8))
	gw := <-in.conns
	defer gw.Close()
	roundTripBetween(t, nc, gw)
	waits := make(chan error, 1)
	go func() {
		_, err := c.dial(t, at(app[0], 9))
		waits <- err
	}()
	r := <-in.asked
	begun := time.Now()
	in.stop()
	if took := time.Since(begun); took > answerPatience/3 {
		t.Errorf("stopping took %v", took)
	}
	_ = nc.SetDeadline(time.Now().Add(answerPatience))
	if _, err := nc.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("an open connection reads %v", err)
	}
	if err := <-waits; !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a connection asked for: %v", err)
	}
	if _, err := gw.Write([]byte("x")); err == nil {
		t.Error("the gateway's end still writes")
	}
	if _, err := r.Accept(t.Context()); err == nil {
		t.Error("accepted after the end")
	}
}

func caseHairpin(t *testing.T, in *ingress) {
	a, b := in.wired(t, 0), in.wired(t, 1)
	// Even a segment that names the other device does not reach it.
	in.table.Set(inner(0), []segment.Entry{{Addr: inner(1)[0], Proto: segment.ProtoTCP, Port: 443}})
	if got := a.exchange(tcp4(at(inner(0)[0], 1024), at(inner(1)[0], 443), 2, 1, 0), answerPatience); got == nil || got[33]&4 == 0 {
		t.Errorf("SYN to another device: %x, want RST", got)
	}
	if got := b.next(50 * time.Millisecond); got != nil {
		t.Errorf("the other device got %x", got)
	}
}
