package overlay_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	wireguard "golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	gateway = []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:64::1")}
	device  = []netip.Addr{netip.MustParseAddr("100.64.0.20"), netip.MustParseAddr("fd00:64::20")}
	app     = []netip.Addr{netip.MustParseAddr("100.64.1.30"), netip.MustParseAddr("fd00:64::1:30")}
)

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// pair is an agent's stack and a gateway's, joined without WireGuard.
type pair struct {
	agent, gateway *overlay.Stack
	// down and up see each packet to the agent and to the gateway.
	down, up func([]byte)
}

func join(t *testing.T, o overlay.Options) *pair {
	t.Helper()
	o.Addresses, o.Gateway = gateway, true
	p := &pair{}
	var err error
	if p.gateway, err = overlay.New(o); err != nil {
		t.Fatal(err)
	}
	if p.agent, err = overlay.New(overlay.Options{Addresses: device}); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *pair) start(t *testing.T) *pair {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() { carry(p.agent, p.gateway, p.up) })
	wg.Go(func() { carry(p.gateway, p.agent, p.down) })
	t.Cleanup(func() {
		for _, s := range []*overlay.Stack{p.agent, p.gateway} {
			if err := s.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
		wg.Wait()
	})
	return p
}

func carry(from, to *overlay.Stack, see func([]byte)) {
	const offset = 16
	n := from.Device().BatchSize()
	bufs, sizes := make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, 2048)
	}
	for {
		n, err := from.Device().Read(bufs, sizes, offset)
		if err != nil {
			return
		}
		for i := range n {
			b := bufs[i][:offset+sizes[i]]
			if see != nil {
				see(b[offset:])
			}
			_, _ = to.Device().Write([][]byte{b}, offset)
		}
	}
}

func dial(t *testing.T, s *overlay.Stack, dst netip.AddrPort) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	return s.DialTCP(ctx, dst)
}

func mustDial(t *testing.T, s *overlay.Stack, dst netip.AddrPort) net.Conn {
	t.Helper()
	c, err := dial(t, s, dst)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// echo accepts and sends everything back, then closes.
func echo(r *overlay.TCPRequest) {
	c, err := r.Accept(context.Background())
	if err != nil {
		return
	}
	_, _ = io.Copy(c, c)
	_ = c.Close()
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

func TestTCPBothFamilies(t *testing.T) {
	type ends struct{ peer, local netip.AddrPort }
	seen := make(chan ends, 2)
	p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		seen <- ends{r.Peer(), r.Local()}
		echo(r)
	}}).start(t)
	data := random(1 << 20)
	for i := range app {
		c := mustDial(t, p.agent, at(app[i], 443))
		if got := <-seen; got.local != at(app[i], 443) || got.peer.Addr() != device[i] || got.peer.String() != c.LocalAddr().String() {
			t.Errorf("request is %v", got)
		}
		go func() {
			_, _ = c.Write(data)
			_ = c.(*overlay.Conn).CloseWrite()
		}()
		got, err := io.ReadAll(c)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(data) {
			t.Errorf("echo through %v: %d bytes, %v", app[i], len(got), err)
		}
	}
}

func TestNothingIsAnsweredBeforeTheDecision(t *testing.T) {
	decide := make(chan struct{})
	p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		<-decide
		echo(r)
	}})
	var down, up atomic.Int64
	p.down = func([]byte) { down.Add(1) }
	p.up = func([]byte) { up.Add(1) }
	p.start(t)
	done := make(chan error, 1)
	go func() {
		c, err := dial(t, p.agent, at(app[0], 443))
		if err == nil {
			_ = c.Close()
		}
		done <- err
	}()
	for up.Load() < 2 { // the SYN and its first repetition, a second later
		time.Sleep(10 * time.Millisecond)
	}
	if n := down.Load(); n != 0 {
		t.Errorf("%d packets were sent before the decision", n)
	}
	close(decide)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestReset(t *testing.T) {
	answered := make(chan error, 4)
	for _, tc := range []struct {
		name string
		tcp  func(*overlay.TCPRequest)
	}{
		{"refused", func(r *overlay.TCPRequest) {
			r.Reset()
			r.Reset()
			_, err := r.Accept(context.Background())
			answered <- err
		}},
		{"no handler", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := join(t, overlay.Options{TCP: tc.tcp}).start(t)
			for i := range app {
				start := time.Now()
				_, err := dial(t, p.agent, at(app[i], 443))
				if !errors.Is(err, syscall.ECONNREFUSED) || time.Since(start) > time.Second {
					t.Errorf("after %v: %v, want ECONNREFUSED at once", time.Since(start), err)
				}
				if tc.tcp != nil {
					if err := <-answered; !errors.Is(err, overlay.ErrAnswered) {
						t.Errorf("Accept after Reset: %v", err)
					}
				}
			}
		})
	}
}

func TestHalfOpenLimit(t *testing.T) {
	waiting := make(chan *overlay.TCPRequest, 10)
	p := join(t, overlay.Options{MaxHalfOpen: 3, TCP: func(r *overlay.TCPRequest) { waiting <- r }}).start(t)
	errs := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := dial(t, p.agent, at(app[0], 443))
			errs <- err
		}()
	}
	var held []*overlay.TCPRequest
	for range 3 {
		held = append(held, <-waiting)
	}
	if _, err := dial(t, p.agent, at(app[0], 443)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("one past the limit: %v, want ECONNREFUSED", err)
	}
	if n := p.gateway.Stats().Crowded; n != 1 {
		t.Errorf("%d counted", n)
	}
	// The limit is each address's own.
	go func() {
		r := <-waiting
		echo(r)
	}()
	mustDial(t, p.agent, at(app[1], 443))
	for _, r := range held {
		r.Reset()
	}
	for range held {
		if err := <-errs; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a waiting one: %v", err)
		}
	}
	go func() { echo(<-waiting) }()
	mustDial(t, p.agent, at(app[0], 443)) // there is room again
}

func tcpOf(packet []byte) []byte {
	switch {
	case packet[0]>>4 == 4 && packet[9] == 6:
		return packet[20:]
	case packet[0]>>4 == 6 && packet[6] == 6:
		return packet[40:]
	}
	return nil
}

func TestConnResetDiscardsWhatIsQueued(t *testing.T) {
	conns := make(chan net.Conn, 1)
	p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		c, err := r.Accept(context.Background())
		if err == nil {
			conns <- c
		}
	}})
	var resets, after atomic.Int64
	p.down = func(b []byte) {
		h := tcpOf(b)
		if h[13]&4 != 0 {
			resets.Add(1)
		} else if resets.Load() > 0 {
			after.Add(1)
		}
	}
	p.start(t)
	c := mustDial(t, p.agent, at(app[0], 443))
	g := <-conns
	// The agent does not read: its window fills and the rest is queued here.
	_ = g.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := g.Write(random(32 << 20)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("writing into a full window: %v", err)
	}
	g.(interface{ Reset() }).Reset()
	if _, err := g.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing after Reset: %v", err)
	}
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the other end reads %v, want ECONNRESET", err)
	}
	if _, err := c.Write([]byte("x")); err == nil {
		t.Error("the other end can still write")
	}
	if resets.Load() == 0 || after.Load() != 0 {
		t.Errorf("%d resets, %d packets after the first", resets.Load(), after.Load())
	}
}

func TestConnErrors(t *testing.T) {
	conns := make(chan net.Conn, 8)
	p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		if r.Local().Port() == 1 {
			return // never answered
		}
		if c, err := r.Accept(context.Background()); err == nil {
			conns <- c
		}
	}}).start(t)

	c := mustDial(t, p.agent, at(app[0], 443))
	g := <-conns
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("past the deadline: %v", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	time.AfterFunc(20*time.Millisecond, func() { _ = c.Close() })
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed while reading: %v", err)
	}
	if _, err := g.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end closed: %v, want EOF", err)
	}
	_ = g.Close()
	if err := g.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := p.agent.DialTCP(ctx, at(app[0], 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial past its deadline: %v", err)
	}
	four, err := overlay.New(overlay.Options{Addresses: device[:1]})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := four.DialTCP(t.Context(), at(app[1], 443)); !errors.Is(err, syscall.ENETUNREACH) && !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("IPv6 without an address of ours: %v", err)
	}
	if _, err := four.DialTCP(t.Context(), netip.AddrPort{}); err == nil {
		t.Error("dialled nowhere")
	}
	_ = four.Close()
	if _, err := four.DialTCP(t.Context(), at(app[0], 443)); !errors.Is(err, overlay.ErrClosed) {
		t.Errorf("dial on a closed stack: %v", err)
	}
	if _, err := four.DialUDP(at(app[0], 443)); !errors.Is(err, overlay.ErrClosed) {
		t.Errorf("UDP on a closed stack: %v", err)
	}
}

// An agent's datagrams cross the tunnel in whole packets, and the gateway's
// stack takes no part in them.
// TestConnDeadlines moves the deadline of calls that wait.
func TestConnDeadlines(t *testing.T) {
	conns := make(chan net.Conn, 1)
	p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		if c, err := r.Accept(context.Background()); err == nil {
			conns <- c
		}
	}}).start(t)
	c := mustDial(t, p.agent, at(app[0], 443))
	g := <-conns
	full := random(32 << 20)
	for _, tc := range []struct {
		name string
		call func() error
		set  func(time.Time) error
	}{
		{"read", func() error { _, err := c.Read(make([]byte, 1)); return err }, c.SetReadDeadline},
		{"write", func() error { _, err := g.Write(full); return err }, g.SetWriteDeadline},
		{"both", func() error { _, err := c.Read(make([]byte, 1)); return err }, c.SetDeadline},
	} {
		if tc.name == "both" {
			_ = g.SetDeadline(time.Now().Add(-time.Second))
			// Whatever the write above left, which may be nothing, is read away first,
			// some of it in small pieces.
			for n, room := 0, full[:64]; ; {
				_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				k, err := c.Read(room)
				if err != nil {
					break
				}
				if n += k; n > 1<<20 {
					room = full
				}
			}
			_ = c.SetReadDeadline(time.Time{})
		}
		done := make(chan error, 1)
		go func() { done <- tc.call() }()
		time.Sleep(20 * time.Millisecond)
		_ = tc.set(time.Now().Add(time.Hour)) // one is set while it waits
		_ = tc.set(time.Time{})               // taken back
		_ = tc.set(time.Now())                // and passes
		select {
		case err := <-done:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: %v", tc.name, err)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: still waits", tc.name)
		}
		if err := tc.call(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s after its deadline: %v", tc.name, err)
		}
		_ = tc.set(time.Time{})
	}
	if _, err := c.Read(nil); err != nil {
		t.Errorf("reading nothing: %v", err)
	}
}

// A writer that waits sees a reader who takes little at a time.
func TestConnTaken(t *testing.T) {
	conns := make(chan net.Conn, 1)
	p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		if c, err := r.Accept(context.Background()); err == nil {
			conns <- c
		}
	}}).start(t)
	c := mustDial(t, p.agent, at(app[0], 443))
	g := (<-conns).(*overlay.Conn)
	go func() { _, _ = g.Write(make([]byte, 64<<20)) }()
	settled := func() uint64 {
		for last := uint64(0); ; {
			time.Sleep(200 * time.Millisecond)
			now := g.Taken()
			if now == last && now > 0 {
				return now
			}
			last = now
		}
	}
	for full, took := settled(), 0; g.Taken() == full; {
		if took > 32<<20 {
			t.Fatal("what was read does not show")
		}
		n, err := c.Read(make([]byte, 16<<10))
		if took += n; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestSegmentsLeaveWithoutARest looks at a long stream on its way.
func TestSegmentsLeaveWithoutARest(t *testing.T) {
	for i := range app {
		conns := make(chan *overlay.Conn, 1)
		p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) {
			if c, err := r.Accept(context.Background()); err == nil {
				conns <- c.(*overlay.Conn)
			}
		}})
		var mu sync.Mutex
		var longest, payload int
		p.down = func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			if len(b) > longest {
				longest, payload = len(b), len(tcpOf(b))-int(tcpOf(b)[12]>>4)*4
			}
		}
		p.start(t)
		c := mustDial(t, p.agent, at(app[i], 443))
		g := <-conns
		sent := random(20 * g.WriteSize())
		go func() {
			_, _ = g.Write(sent)
			_ = g.Close()
		}()
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, sent) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
		mu.Lock()
		if longest > overlay.DefaultMTU || payload == 0 || g.WriteSize()%payload != 0 || g.WriteSize() < 40*payload {
			t.Errorf("the longest packet has %d bytes, %d of them payload; %d are written at once", longest, payload, g.WriteSize())
		}
		mu.Unlock()
	}
}

// TestManySYNsHarmNobodyElse lets a device ask for connections without end.
func TestManySYNsHarmNobodyElse(t *testing.T) {
	p := join(t, overlay.Options{TCP: func(r *overlay.TCPRequest) {
		if r.Local().Port() == 443 {
			echo(r)
		} // the others are never answered
	}})
	var asked atomic.Int64
	p.up = func(b []byte) {
		if tcpOf(b)[13] == 2 {
			asked.Add(1)
		}
	}
	p.start(t)
	flood := make([][]byte, 1000)
	for i := range flood {
		flood[i] = synFrom(netip.MustParseAddr("100.64.0.66"), app[0], 1024+uint16(i), 80)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = p.gateway.Device().Write(flood, 0)
			}
		}
	}()
	const dials = 20
	for range dials {
		_ = mustDial(t, p.agent, at(app[0], 443)).Close()
	}
	close(stop)
	<-stopped
	// A SYN that gets no answer is sent again after a second.
	if n := asked.Load(); n > dials+2 {
		t.Errorf("%d SYNs for %d connections beside the flood", n, dials)
	}
}

func synFrom(src, dst netip.Addr, from, to uint16) []byte {
	b := make([]byte, 40)
	b[0], b[3], b[8], b[9] = 0x45, 40, 64, 6
	copy(b[12:], src.AsSlice())
	copy(b[16:], dst.AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	binary.BigEndian.PutUint16(b[20:], from)
	binary.BigEndian.PutUint16(b[22:], to)
	b[32], b[33] = 5<<4, 2
	binary.BigEndian.PutUint16(b[36:], checksum(append(append([]byte{}, b[12:20]...), append([]byte{0, 6, 0, 20}, b[20:]...)...)))
	return b
}

func TestUDP(t *testing.T) {
	p := join(t, overlay.Options{Filter: func(b []byte) (overlay.Action, []byte) {
		if b[0]>>4 == 4 && b[9] != 17 || b[0]>>4 == 6 && b[6] != 17 || binary.BigEndian.Uint16(b[len(b)-int(udpLength(b))+2:]) == 9 {
			return overlay.Pass, nil
		}
		return overlay.Taken, turned(b)
	}})
	var down atomic.Int64
	p.down = func([]byte) { down.Add(1) }
	p.start(t)
	for i := range app {
		c, err := p.agent.DialUDP(at(app[i], 5004))
		if err != nil {
			t.Fatal(err)
		}
		for _, msg := range []string{"one", "two", string(random(1100))} {
			if _, err := io.WriteString(c, msg); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 2048)
			_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
			if n, err := c.Read(b); err != nil || string(b[:n]) != msg {
				t.Fatalf("echo of %d bytes: %d, %v", len(msg), n, err)
			}
		}
		_ = c.Close()
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading a closed socket: %v", err)
		}
	}
	down.Store(0)
	for i := range app { // what the filter lets pass finds nobody
		c, err := p.agent.DialUDP(at(app[i], 9))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("anyone?")); err != nil {
			t.Fatal(err)
		}
	}
	for end := time.Now().Add(3 * time.Second); p.gateway.Stats().Refused < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v, want 2 refused", p.gateway.Stats())
		}
	}
	if n := down.Load(); n != 0 {
		t.Errorf("the gateway's stack answers with %d packets", n)
	}
}

// udpLength is the length of the datagram in a packet, header included.
func udpLength(b []byte) uint16 {
	if b[0]>>4 == 4 {
		return binary.BigEndian.Uint16(b[24:])
	}
	return binary.BigEndian.Uint16(b[44:])
}

// turned is the packet that sends a datagram back. Its checksums stay right:
// they do not see the order.
func turned(p []byte) []byte {
	b := bytes.Clone(p)
	at, n, ports := 12, 4, 20
	if b[0]>>4 == 6 {
		at, n, ports = 8, 16, 40
	}
	copy(b[at:], p[at+n:at+2*n])
	copy(b[at+n:], p[at:at+n])
	copy(b[ports:], p[ports+2:ports+4])
	copy(b[ports+2:], p[ports:ports+2])
	return b
}

func icmpEcho(src, dst netip.Addr) []byte {
	if src.Is4() {
		b := make([]byte, 28)
		b[0], b[3], b[8], b[9] = 0x45, 28, 64, 1
		copy(b[12:], src.AsSlice())
		copy(b[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
		b[20] = 8
		binary.BigEndian.PutUint16(b[22:], checksum(b[20:]))
		return b
	}
	b := make([]byte, 48)
	b[0], b[5], b[6], b[7] = 0x60, 8, 58, 64
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	b[40] = 128
	binary.BigEndian.PutUint16(b[42:], checksum(append(append([]byte{}, b[8:40]...), append([]byte{0, 0, 0, 8, 0, 0, 0, 58}, b[40:]...)...)))
	return b
}

func checksum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

// answers writes packet into a gateway stack and returns what comes back
// within a moment, and what the stack counted.
func answers(t *testing.T, o overlay.Options, packet []byte) ([][]byte, overlay.Stats) {
	t.Helper()
	o.Addresses, o.Gateway = gateway, true
	s, err := overlay.New(o)
	if err != nil {
		t.Fatal(err)
	}
	var got [][]byte
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf, sizes := [][]byte{make([]byte, 2048)}, []int{0}
		for {
			if _, err := s.Device().Read(buf, sizes, 0); err != nil {
				return
			}
			got = append(got, bytes.Clone(buf[0][:sizes[0]]))
		}
	}()
	if _, err := s.Device().Write([][]byte{packet}, 0); err != nil {
		t.Fatal(err)
	}
	time.Sleep(30 * time.Millisecond)
	_ = s.Close()
	<-done
	return got, s.Stats()
}

func TestICMPEcho(t *testing.T) {
	for i := range gateway {
		got, _ := answers(t, overlay.Options{}, icmpEcho(device[i], gateway[i]))
		if len(got) != 1 {
			t.Fatalf("echo to %v: %d answers, want 1", gateway[i], len(got))
		}
		l4 := got[0][len(got[0])-8:]
		if want := []byte{0, 129}[i]; l4[0] != want {
			t.Errorf("echo to %v is answered with type %d", gateway[i], l4[0])
		}
		if got, _ := answers(t, overlay.Options{}, icmpEcho(device[i], app[i])); len(got) != 0 {
			t.Errorf("echo to an app is answered: %x", got)
		}
	}
}

func TestFilter(t *testing.T) {
	reply := icmpEcho(gateway[0], device[0])
	packet := icmpEcho(device[0], gateway[0])
	for _, tc := range []struct {
		name    string
		action  overlay.Action
		reply   []byte
		want    int // answers
		refused uint64
	}{
		{"dropped", overlay.Drop, nil, 0, 1},
		{"dropped with a reply", overlay.Drop, reply, 1, 1},
		{"taken", overlay.Taken, nil, 0, 0},
		{"taken with a reply", overlay.Taken, reply, 1, 0},
		{"passed", overlay.Pass, nil, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var taken [][]byte
			got, stats := answers(t, overlay.Options{Filter: func(b []byte) (overlay.Action, []byte) {
				if !bytes.Equal(b, packet) {
					t.Errorf("the filter saw %x", b)
				}
				return tc.action, tc.reply
			}, Taken: func(packets [][]byte) {
				for _, p := range packets {
					taken = append(taken, bytes.Clone(p))
				}
			}}, packet)
			if took := len(taken) == 1 && bytes.Equal(taken[0], packet); took != (tc.action == overlay.Taken) || len(taken) > 1 {
				t.Errorf("taken: %x", taken)
			}
			if len(got) != tc.want || stats.Refused != tc.refused {
				t.Fatalf("%d answers, %d refused; want %d, %d", len(got), stats.Refused, tc.want, tc.refused)
			}
			if tc.reply != nil && !bytes.Equal(got[0], reply) {
				t.Errorf("got %x, want the filter's reply", got[0])
			}
		})
	}
}

func TestInject(t *testing.T) {
	s, err := overlay.New(overlay.Options{Addresses: gateway, Gateway: true})
	if err != nil {
		t.Fatal(err)
	}
	// Nobody reads yet: the newest packets stay.
	const sent = 3000
	for i := range sent {
		p := []byte{0x45, byte(i >> 8), byte(i)}
		if n := s.Inject([][]byte{p, {}}); n != 1 {
			t.Fatalf("Inject took %d, want 1", n)
		}
		clear(p) // it has been copied
	}
	kept := sent - int(s.Stats().Dropped)
	if kept < 64 || kept == sent {
		t.Fatalf("%d of %d are kept", kept, sent)
	}
	buf, sizes := [][]byte{make([]byte, 2048)}, []int{0}
	for i := sent - kept; i < sent; i++ {
		if n, err := s.Device().Read(buf, sizes, 0); n != 1 || err != nil || !bytes.Equal(buf[0][:sizes[0]], []byte{0x45, byte(i >> 8), byte(i)}) {
			t.Fatalf("packet %d is %x, %v", i, buf[0][:sizes[0]], err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if n := s.Inject([][]byte{{0x45}}); n != 0 {
		t.Errorf("a closed stack took %d packets", n)
	}
}

// TestVoiceIsMarked reads into buffers as WireGuard hands them over.
func TestVoiceIsMarked(t *testing.T) {
	s, err := overlay.New(overlay.Options{Addresses: gateway, Gateway: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const offset = wireguard.MessageTransportHeaderSize
	bufs, sizes := [][]byte{make([]byte, wireguard.MaxMessageSize)}, []int{0}
	for i, tc := range []struct {
		packet []byte
		want   byte
	}{
		{append([]byte{0x45, 0}, make([]byte, 98)...), transport.ClassNone},
		{append([]byte{0x45, 46<<2 | 1}, make([]byte, 98)...), transport.ClassVoice},
		{append([]byte{0x45, 10 << 2}, make([]byte, 98)...), transport.ClassNone},
		{append([]byte{0x6b, 0x80}, make([]byte, 98)...), transport.ClassVoice},
		{append([]byte{0x60, 0x0f}, make([]byte, 98)...), transport.ClassNone},
	} {
		s.Inject([][]byte{tc.packet})
		if _, err := s.Device().Read(bufs, sizes, offset); err != nil {
			t.Fatal(err)
		}
		if got := bufs[0][len(bufs[0])-1]; got != tc.want {
			t.Errorf("packet %d is of class %d, want %d", i, got, tc.want)
		}
	}
}

func TestMalformedPacketsAreSurvived(t *testing.T) {
	base := icmpEcho(device[1], gateway[1])
	for _, b := range [][]byte{{}, {0x45}, {0x60}, {0x00}, {0xff}, base[:4], base[:39], bytes.Repeat([]byte{0x45}, 20), bytes.Repeat([]byte{0x60}, 64)} {
		if got, _ := answers(t, overlay.Options{TCP: echo}, b); len(got) != 0 {
			t.Errorf("%x is answered with %x", b, got)
		}
	}
}

// TestCloseWhilePacketsFlow closes the gateway's stack, and then the agent's,
// under dials, transfers, datagrams and requests nobody answers.
func TestCloseWhilePacketsFlow(t *testing.T) {
	for range 5 {
		p := join(t, overlay.Options{
			TCP: func(r *overlay.TCPRequest) {
				if r.Local().Port() != 1 {
					echo(r)
				}
			},
			Filter: func(b []byte) (overlay.Action, []byte) {
				if b[0]>>4 == 4 && b[9] == 17 || b[0]>>4 == 6 && b[6] == 17 {
					return overlay.Taken, turned(b)
				}
				return overlay.Pass, nil
			},
		}).start(t)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for port := range uint16(6) {
			wg.Go(func() {
				for ctx.Err() == nil {
					c, err := p.agent.DialTCP(ctx, at(app[port%2], port))
					if err != nil {
						time.Sleep(time.Millisecond)
						continue
					}
					_ = c.SetDeadline(time.Now().Add(time.Second))
					go func() { _, _ = c.Write(random(200 << 10)) }()
					_, _ = io.CopyN(io.Discard, c, 100<<10)
					_ = c.Close()
				}
			})
			wg.Go(func() {
				for ctx.Err() == nil {
					c, err := p.agent.DialUDP(at(app[port%2], port+1))
					if err != nil {
						return
					}
					_, _ = c.Write([]byte("voice"))
					_ = c.Close()
				}
			})
		}
		time.Sleep(60 * time.Millisecond)
		if err := p.gateway.Close(); err != nil {
			t.Error(err)
		}
		if err := p.agent.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		wg.Wait()
	}
}

func TestCloseResetsWhatIsOpen(t *testing.T) {
	p := join(t, overlay.Options{TCP: echo}).start(t)
	c := mustDial(t, p.agent, at(app[0], 443))
	_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
	// Once it has echoed, the gateway's end is past its handshake.
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := p.gateway.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reading after the other stack closed: %v, want ECONNRESET", err)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]overlay.Options{
		"invalid address": {Addresses: []netip.Addr{{}}},
		"mapped address":  {Addresses: []netip.Addr{netip.AddrFrom16(device[0].As16())}},
		"MTU too small":   {Addresses: device, MTU: 1279},
		"MTU too large":   {Addresses: device, MTU: 65536},
	} {
		if s, err := overlay.New(o); err == nil {
			_ = s.Close()
			t.Errorf("%s was taken", name)
		}
	}
}

// Both addresses of a device count together where the owner says so.
func TestHalfOpenLimitOfADevice(t *testing.T) {
	waiting := make(chan *overlay.TCPRequest, 10)
	p := join(t, overlay.Options{
		MaxHalfOpen: 2,
		TCP:         func(r *overlay.TCPRequest) { waiting <- r },
		Source:      func(netip.Addr) netip.Addr { return device[0] },
	}).start(t)
	errs := make(chan error, 2)
	for _, a := range app {
		go func() {
			_, err := dial(t, p.agent, at(a, 443))
			errs <- err
		}()
	}
	held := []*overlay.TCPRequest{<-waiting, <-waiting}
	for _, a := range app {
		if _, err := dial(t, p.agent, at(a, 443)); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("one past the limit, to %v: %v, want ECONNREFUSED", a, err)
		}
	}
	for _, r := range held {
		r.Reset()
		<-errs
	}
	go func() { echo(<-waiting) }()
	mustDial(t, p.agent, at(app[1], 443)) // there is room again
}
