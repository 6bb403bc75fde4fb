package hosttun

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	wgdevice "golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/halfopen"
	"github.com/portvakt/portvakt/internal/overlay"
	"github.com/portvakt/portvakt/internal/transport"
)

var (
	own    = []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:64::1")}
	app    = netip.MustParseAddr("100.64.1.30")
	laptop = netip.MustParseAddr("100.64.0.20")
)

// The roles this test binary plays as a child of itself.
const (
	roleEnv          = "PORTVAKT_HOSTTUN_ROLE"
	roleVictim       = "victim"       // runs a stack until it is killed
	roleUnprivileged = "unprivileged" // tries to make one
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case roleVictim:
		s, err := New(passing(nil))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		_ = s.ns.do(func() error {
			fmt.Println(unix.Gettid())
			return nil
		})
		time.Sleep(time.Minute)
		os.Exit(1)
	case roleUnprivileged:
		_, err := New(passing(nil))
		fmt.Println(err)
		return
	}
	goleak.VerifyTestMain(m)
}

// need skips where there is no stack to test, which CI counts as a failure.
func need(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: needs root")
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("NOT TESTED: needs /dev/net/tun: ", err)
	}
}

// passing is a stack that trusts everybody: what holds does so by itself.
func passing(ask func(*TCPRequest)) Options {
	if ask == nil {
		ask = func(r *TCPRequest) { r.Reset() }
	}
	return Options{
		Addresses: own, TCP: ask,
		Filter: func([]byte) (overlay.Action, []byte) { return overlay.Pass, nil },
		Refuse: func(p []byte) []byte { return append([]byte("refused "), p...) },
	}
}

// wire is the WireGuard side of a stack's device.
type wire struct {
	s    *Stack
	got  chan []byte
	done chan error
}

func start(t *testing.T, o Options) *wire {
	t.Helper()
	need(t)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{s: s, got: make(chan []byte, 5000), done: make(chan error, 1)}
	go func() {
		bufs, sizes := make([][]byte, s.Device().BatchSize()), make([]int, s.Device().BatchSize())
		for i := range bufs {
			bufs[i] = make([]byte, 65535)
		}
		for {
			n, err := s.Device().Read(bufs, sizes, headroom)
			if err != nil {
				w.done <- err
				return
			}
			for i := range n {
				select {
				case w.got <- bytes.Clone(bufs[i][headroom : headroom+sizes[i]]):
				default:
				}
			}
		}
	}()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-w.done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("the reader ended with %v", err)
		}
	})
	return w
}

func (w *wire) send(t *testing.T, p []byte) {
	t.Helper()
	buf := append(make([]byte, headroom, 2048), p...)
	if _, err := w.s.Device().Write([][]byte{buf}, headroom); err != nil {
		t.Fatal(err)
	}
}

func (w *wire) next(patience time.Duration) []byte {
	select {
	case p := <-w.got:
		return p
	case <-time.After(patience):
		return nil
	}
}

func checksum(s uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

func segment(src, dst netip.AddrPort, flags byte, seq, ack uint32) []byte {
	b := make([]byte, 40)
	b[0], b[3], b[8], b[9] = 0x45, 40, 64, 6
	copy(b[12:], src.Addr().AsSlice())
	copy(b[16:], dst.Addr().AsSlice())
	binary.BigEndian.PutUint16(b[10:], checksum(0, b[:20]))
	binary.BigEndian.PutUint16(b[20:], src.Port())
	binary.BigEndian.PutUint16(b[22:], dst.Port())
	binary.BigEndian.PutUint32(b[24:], seq)
	binary.BigEndian.PutUint32(b[28:], ack)
	b[32], b[33], b[34] = 5<<4, flags, 0x40
	pseudo := append(append([]byte{}, b[12:20]...), 0, 6, 0, 20)
	binary.BigEndian.PutUint16(b[36:], checksum(0, append(pseudo, b[20:]...)))
	return b
}

// connect makes a connection from the device's side, packet by packet.
func (w *wire) connect(t *testing.T, from, to netip.AddrPort) {
	t.Helper()
	w.send(t, segment(from, to, flagSYN, 100, 0))
	got := w.next(3 * time.Second)
	if got == nil || got[33] != flagSYN|flagACK {
		t.Fatalf("SYN to %v: %x", to, got)
	}
	w.send(t, segment(from, to, flagACK, 101, binary.BigEndian.Uint32(got[24:])+1))
}

func at(a netip.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestInject(t *testing.T) {
	w := start(t, passing(nil))
	// One by one, each into a reader that sleeps in the kernel.
	for i := range 1000 {
		p := segment(at(app, 5004), at(laptop, uint16(1+i)), flagRST, uint32(i), 0)
		if n := w.s.Inject([][]byte{p}); n != 1 {
			t.Fatalf("%d of 1 accepted", n)
		}
		if got := w.next(3 * time.Second); !bytes.Equal(got, p) {
			t.Fatalf("packet %d: %x, want %x", i, got, p)
		}
	}
	// Many at once, among what the kernel sends: none is lost or changed.
	var wg sync.WaitGroup
	const senders, each = 4, 200
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				w.s.Inject([][]byte{segment(at(app, 6000), at(laptop, uint16(1+s*each+i)), flagRST, 7, 0)})
				if i%50 == 0 {
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	for i := range each {
		echo := segment(at(laptop, 0), at(own[0], 0), 0, 0, 0)
		echo[9], echo[20] = 1, 8
		echo[10], echo[11], echo[22], echo[23] = 0, 0, 0, 0
		binary.BigEndian.PutUint16(echo[26:], uint16(i))
		binary.BigEndian.PutUint16(echo[10:], checksum(0, echo[:20]))
		binary.BigEndian.PutUint16(echo[22:], checksum(0, echo[20:]))
		w.send(t, echo)
	}
	wg.Wait()
	seen, echoes := map[uint16]bool{}, 0
	for got := w.next(time.Second); got != nil; got = w.next(time.Second) {
		if got[9] == 1 {
			echoes++
			continue
		}
		seen[binary.BigEndian.Uint16(got[22:])] = true
		if len(seen) == senders*each && echoes == each {
			break
		}
	}
	if len(seen) != senders*each || echoes != each {
		t.Errorf("%d of %d injected packets and %d of %d answers arrived", len(seen), senders*each, echoes, each)
	}
	if n := w.s.Stats().Dropped; n != 0 {
		t.Errorf("%d dropped", n)
	}
	if n := w.s.Inject([][]byte{nil, {}}); n != 0 {
		t.Errorf("%d empty packets accepted", n)
	}
}

func TestInjectKeepsTheNewest(t *testing.T) {
	var q queue
	const n = injected + 100
	for i := range n {
		q.push([][]byte{{byte(i >> 8), byte(i)}})
	}
	bufs, sizes := make([][]byte, n), make([]int, n)
	for i := range bufs {
		bufs[i] = make([]byte, 4)
	}
	if got := q.pop(bufs, sizes, 1); got != injected || q.dropped.Load() != 100 {
		t.Fatalf("%d left, %d dropped", got, q.dropped.Load())
	}
	if first := int(bufs[0][1])<<8 | int(bufs[0][2]); first != 100 || sizes[0] != 2 {
		t.Errorf("the oldest left is %d (%d bytes), want 100", first, sizes[0])
	}
	q.shut()
	if q.push([][]byte{{1}}) != 0 {
		t.Error("a packet is queued after the end")
	}
}

// TestVoice: the class of injected media travels in the buffer, and does not
// stay there for the next packet.
func TestVoice(t *testing.T) {
	need(t)
	s, err := New(passing(nil))
	must(t, err)
	defer s.Close()
	bufs, sizes := [][]byte{make([]byte, wgdevice.MaxMessageSize)}, make([]int, 1)
	for i, dscp := range []byte{46, 0, 46, 34} {
		p := segment(at(app, 5004), at(laptop, 5004), flagRST, 1, 0)
		p[1] = dscp << 2
		s.Inject([][]byte{p})
		if n, err := s.Device().Read(bufs, sizes, headroom); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if got := bufs[0][len(bufs[0])-1]; (got == transport.ClassVoice) != (dscp == 46) {
			t.Errorf("packet %d with DSCP %d has class %d", i, dscp, got)
		}
	}
}

// TestUnasked completes a handshake after its request has gone: nobody decided
// about that connection, so that it must not stay.
func TestUnasked(t *testing.T) {
	asked := make(chan *TCPRequest, 1)
	w := start(t, passing(func(r *TCPRequest) { asked <- r }))
	from, to := at(laptop, 40000), at(app, 443)
	w.send(t, segment(from, to, flagSYN, 100, 0))
	r := <-asked
	failed := make(chan error, 1)
	go func() {
		_, err := r.Accept(context.Background())
		failed <- err
	}()
	got := w.next(3 * time.Second)
	if got == nil || got[33] != flagSYN|flagACK {
		t.Fatalf("accepted: %x", got)
	}
	w.s.pending.withdraw(r.tuple)
	if err := <-failed; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("Accept: %v", err)
	}
	w.send(t, segment(from, to, flagACK, 101, binary.BigEndian.Uint32(got[24:])+1))
	if got := w.next(3 * time.Second); got == nil || got[33]&flagRST == 0 {
		t.Errorf("a connection nobody asked for: %x, want a reset", got)
	}
}

func TestPacketsTheKernelNeverSees(t *testing.T) {
	w := start(t, passing(nil))
	base := func(f func([]byte)) []byte {
		p := segment(at(laptop, 40000), at(app, 443), flagACK, 1, 1)
		f(p)
		p[10], p[11] = 0, 0
		binary.BigEndian.PutUint16(p[10:], checksum(0, p[:20]))
		return p
	}
	for name, p := range map[string][]byte{
		"UDP":                  base(func(p []byte) { p[9] = 17 }),
		"SCTP":                 base(func(p []byte) { p[9] = 132 }),
		"a fragment":           base(func(p []byte) { p[6] = 0x20 }),
		"a later fragment":     base(func(p []byte) { p[7] = 9 }),
		"options":              base(func(p []byte) { p[0] = 0x46 }),
		"echo to an app":       base(func(p []byte) { p[9], p[20], p[21] = 1, 8, 0 }),
		"redirect":             base(func(p []byte) { p[9], p[20], p[21] = 1, 5, 1 }),
		"no TCP header":        segment(at(laptop, 40000), at(app, 443), flagACK, 1, 1)[:39],
		"no version":           make([]byte, 60),
		"IPv6 UDP":             append([]byte{0x60, 0, 0, 20, 17, 64}, make([]byte, 54)...),
		"IPv6 with extensions": append([]byte{0x60, 0, 0, 20, 0, 64}, make([]byte, 54)...),
		"router advertisement": append(append([]byte{0x60, 0, 0, 20, 58, 255}, make([]byte, 34)...), append([]byte{134}, make([]byte, 19)...)...),
		"neighbour discovery":  append(append([]byte{0x60, 0, 0, 20, 58, 255}, make([]byte, 34)...), append([]byte{135}, make([]byte, 19)...)...),
	} {
		before := w.s.Stats().Refused
		w.send(t, p)
		if got := w.next(30 * time.Millisecond); got != nil {
			t.Errorf("%s is answered: %x", name, got)
		}
		if s := w.s.Stats(); s.Refused-before != 1 || s.NotForStack != s.Refused {
			t.Errorf("%s: %d were refused before: %+v", name, before, s)
		}
	}
}

// FuzzAdmit: nothing but TCP, echo requests to the stack's own addresses and
// news of a smaller path gets by, and the packet stays as it is.
func FuzzAdmit(f *testing.F) {
	f.Add(segment(at(laptop, 40000), at(app, 443), flagSYN, 1, 0))
	f.Add(segment(at(laptop, 40000), at(app, 443), flagACK, 1, 1))
	f.Add(segment(at(laptop, 40000), at(app, 443), flagRST, 1, 1))
	f.Add(append([]byte{0x60, 0, 0, 20, 6, 64}, make([]byte, 54)...))
	f.Add([]byte{})
	s := &Stack{opts: passing(nil)}
	s.dev = &device{stack: s}
	s.pending.table = halfopen.New(1, nil)
	f.Fuzz(func(t *testing.T, p []byte) {
		before := bytes.Clone(p)
		pass := len(p) > 0 && s.dev.admit(p, new([][]byte))
		if !bytes.Equal(p, before) {
			t.Fatal("admit changed the packet")
		}
		if !pass {
			return
		}
		proto, l4 := p[9], p[20:]
		if p[0]>>4 == 6 {
			proto, l4 = p[6], p[40:]
		} else if p[0] != 0x45 || p[6]&0x3f != 0 || p[7] != 0 {
			t.Fatalf("options or fragments: %x", p[:20])
		}
		switch {
		case proto == 6 && l4[13]&(flagSYN|flagACK|flagRST) != flagSYN:
		case proto == 1 && (l4[0] == 8 || l4[0] == 3), proto == 58 && (l4[0] == 128 || l4[0] == 2):
		default:
			t.Fatalf("protocol %d: %x", proto, p)
		}
	})
}

// BenchmarkAdmit is what a segment of a bulk transfer costs beside the filter.
func BenchmarkAdmit(b *testing.B) {
	s := &Stack{opts: passing(nil)}
	s.dev = &device{stack: s}
	p := segment(at(laptop, 40000), at(app, 443), flagACK, 1, 1)
	b.ReportAllocs()
	for b.Loop() {
		if !s.dev.admit(p, new([][]byte)) {
			b.Fatal("refused")
		}
	}
}
