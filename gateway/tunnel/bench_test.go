package tunnel

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// wire is a bind in memory: what the benchmarks measure is the responder only.
type wire struct {
	in   chan arrival
	out  func(b []byte, to netip.AddrPort)
	mu   sync.Mutex
	done chan struct{}
}

type arrival struct {
	b   []byte
	src *conn.StdNetEndpoint
}

func newWire(out func([]byte, netip.AddrPort)) *wire {
	return &wire{in: make(chan arrival, 4096), out: out}
}

func (w *wire) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	done := make(chan struct{})
	w.done = done
	return []conn.ReceiveFunc{func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case a := <-w.in:
			sizes[0], eps[0] = copy(packets[0], a.b), a.src
			return 1, nil
		case <-done:
			return 0, net.ErrClosed
		}
	}}, 51820, nil
}

func (w *wire) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done != nil {
		close(w.done)
		w.done = nil
	}
	return nil
}

func (w *wire) Send(bufs [][]byte, ep conn.Endpoint) error {
	for _, b := range bufs {
		w.out(b, ep.(*conn.StdNetEndpoint).AddrPort)
	}
	return nil
}
func (*wire) SetMark(uint32) error { return nil }
func (*wire) BatchSize() int       { return 16 }
func (*wire) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	return &conn.StdNetEndpoint{AddrPort: ap}, err
}

// fleet is devices of a responder with an initiation each in hand.
type fleet struct {
	devices     []*Initiator
	initiations []arrival
}

func newFleet(public [32]byte, n int) *fleet {
	f := &fleet{}
	for i := range n {
		f.devices = append(f.devices, NewInitiator(public))
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 40000)
		f.initiations = append(f.initiations, arrival{src: &conn.StdNetEndpoint{AddrPort: src}})
	}
	f.write()
	return f
}

// write makes everybody's next initiation.
func (f *fleet) write() {
	for i, d := range f.devices {
		f.initiations[i].b = d.Initiate(uint32(i), time.Now())
	}
}

func (f *fleet) peer(i int) Peer {
	return Peer{Key: f.devices[i].Public, PresharedKey: f.devices[i].PSK, Addresses: [2]netip.Addr{netip.AddrFrom4([4]byte{100, byte(64 + i>>16), byte(i >> 8), byte(i)})}}
}

// responder answers initiations: our tunnel, or stock.
type responder struct {
	wire     *wire
	answered chan uint32
	answers  sync.Map // index -> response
	tunnel   *Tunnel
	dev      *device.Device
	stop     func()
}

func newResponder(tb testing.TB, private [32]byte, stock bool) *responder {
	tb.Helper()
	r := &responder{answered: make(chan uint32, 1<<16)}
	r.wire = newWire(func(b []byte, _ netip.AddrPort) {
		if b[0] == device.MessageResponseType {
			i := binary.LittleEndian.Uint32(b[8:])
			r.answers.Store(i, append([]byte(nil), b...))
			r.answered <- i
		}
	})
	if stock {
		r.dev = device.NewDevice(&closable{done: make(chan struct{})}, r.wire, device.NewLogger(device.LogLevelSilent, ""))
		if err := r.dev.IpcSet(fmt.Sprintf("private_key=%x\n", private)); err != nil {
			tb.Fatal(err)
		}
		if err := r.dev.Up(); err != nil {
			tb.Fatal(err)
		}
		r.stop = r.dev.Close
		return r
	}
	var err error
	r.tunnel, err = New(Config{PrivateKey: private, Listen: "127.0.0.1:0", Addresses: [2]netip.Addr{netip.MustParseAddr("100.127.0.1"), netip.MustParseAddr("fd99::1")}, Table: tableForTest()})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.tunnel.run(ctx, r.wire) }()
	<-r.tunnel.Ready()
	r.stop = func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	}
	return r
}

func (r *responder) register(tb testing.TB, f *fleet) {
	tb.Helper()
	for i := range f.devices {
		p := f.peer(i)
		if r.tunnel != nil {
			if err := r.tunnel.AddPeer(p); err != nil {
				tb.Fatal(err)
			}
			continue
		}
		if err := r.dev.IpcSet(fmt.Sprintf("public_key=%x\npreshared_key=%x\nallowed_ip=%v/32\n", p.Key, p.PresharedKey, p.Addresses[0])); err != nil {
			tb.Fatal(err)
		}
	}
}

// handshakes has everybody's initiation answered, at most window at a time.
func (r *responder) handshakes(tb testing.TB, f *fleet, window int) {
	tb.Helper()
	r.answer(tb, f.initiations, window)
}

func (r *responder) answer(tb testing.TB, initiations []arrival, window int) {
	tb.Helper()
	sent, answered := 0, 0
	timeout := time.NewTimer(60 * time.Second)
	defer timeout.Stop()
	for answered < len(initiations) {
		for sent < len(initiations) && sent-answered < window {
			r.wire.in <- initiations[sent]
			sent++
		}
		select {
		case <-r.answered:
			answered++
		case <-timeout.C:
			why := map[string]uint64{}
			if r.tunnel != nil {
				why = r.tunnel.Refused()
			}
			tb.Fatalf("%d of %d answered; %v", answered, len(initiations), why)
		}
	}
}

// confirm proves everybody's keys and waits until they are known to be there.
func (r *responder) confirm(tb testing.TB, f *fleet) {
	tb.Helper()
	for i, d := range f.devices {
		b, ok := r.answers.Load(uint32(i))
		if !ok || d.Finish(b.([]byte)) != nil {
			tb.Fatal("a response does not open")
		}
		r.wire.in <- arrival{d.Transport(nil), f.initiations[i].src}
	}
	if r.tunnel == nil {
		return
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		r.tunnel.known.mu.RLock()
		n := len(r.tunnel.known.byPlace)
		r.tunnel.known.mu.RUnlock()
		if n == len(f.devices) {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%d of %d are located", n, len(f.devices))
		}
	}
}

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkHandshakes compares what a handshake costs: stock with the peer
// configured, ours from where a live peer is, after it moved, and for a dormant
// registration. It is the median CPU time of batches of the whole process, ours
// and stock's in turn: a machine's speed changes from one second to the next, and
// other load costs some batches more.
func BenchmarkHandshakes(b *testing.B) {
	const n, batch = 1000, 50
	private, public := pair()
	spent := map[string][]float64{} // microseconds for one, by batch
	for b.Loop() {
		measure := func(kind string, r *responder, initiations []arrival) {
			runtime.GC()
			begun := cpu()
			r.answer(b, initiations, inFlight)
			spent[kind] = append(spent[kind], float64((cpu()-begun).Nanoseconds())/1000/batch)
		}
		theirs, ours := newFleet(public, n), newFleet(public, n)
		stock, r := newResponder(b, private, true), newResponder(b, private, false)
		inTurn := func(kind string) {
			time.Sleep(2 * apart)
			theirs.write() // with a session to replace
			ours.write()
			for i := 0; i < n; i += batch {
				measure("stock", stock, theirs.initiations[i:i+batch])
				measure(kind, r, ours.initiations[i:i+batch])
			}
		}
		stock.register(b, theirs)
		stock.handshakes(b, theirs, inFlight)
		stock.confirm(b, theirs)
		r.register(b, ours)
		inTurn("dormant")
		r.confirm(b, ours)
		passed := r.tunnel.Handshakes().Passed
		inTurn("known")
		if got := r.tunnel.Handshakes().Passed - passed; got < n*9/10 {
			b.Errorf("only %d of %d known were passed on", got, n)
		}
		// Moved away from where they are known to be: a live peer, opened.
		for i := range ours.initiations {
			ep := *ours.initiations[i].src
			ep.AddrPort = netip.AddrPortFrom(ep.Addr(), 40001)
			ours.initiations[i].src = &ep
		}
		inTurn("moved")
		stock.stop()
		r.stop()
	}
	median := func(kind string) float64 {
		slices.Sort(spent[kind])
		return spent[kind][len(spent[kind])/2]
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median("stock"), "stock-us")
	b.ReportMetric(1e6/median("stock"), "stock/s")
	for _, kind := range []string{"known", "moved", "dormant"} {
		b.ReportMetric(median(kind), kind+"-us")
		b.ReportMetric(median("stock")/median(kind), kind+"-ratio")
	}
}

// BenchmarkFirstContact is a dormant device's initiation in to response out, one
// at a time, and the stages it is made of.
func BenchmarkFirstContact(b *testing.B) {
	const n = 400
	private, public := pair()
	var times []time.Duration
	var open, add time.Duration
	for b.Loop() {
		f := newFleet(public, n)
		r := newResponder(b, private, false)
		r.register(b, f)
		runtime.GC()
		for i := range n {
			begun := time.Now()
			r.wire.in <- f.initiations[i]
			<-r.answered
			times = append(times, time.Since(begun))
			time.Sleep(time.Millisecond)
		}
		// The stages by themselves, with other devices.
		g := newFleet(public, 100)
		for i := range g.devices {
			p := g.peer(i)
			p.Addresses[0] = netip.AddrFrom4([4]byte{100, 80, 0, byte(i)})
			if err := r.tunnel.AddPeer(p); err != nil {
				b.Fatal(err)
			}
			j := &job{datagram: datagram(g.initiations[i].b), src: place{addr: g.initiations[i].src.AddrPort}}
			begun := time.Now()
			reg, _, cause := r.tunnel.gate.judge(j)
			open += time.Since(begun)
			if cause != nil {
				b.Fatal("not opened")
			}
			begun = time.Now()
			if err := r.tunnel.raise(reg); err != nil {
				b.Fatal(err)
			}
			add += time.Since(begun)
		}
		r.stop()
	}
	slices.Sort(times)
	us := func(d time.Duration) float64 { return float64(d.Microseconds()) }
	p50 := us(times[len(times)/2])
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(p50, "p50-us")
	b.ReportMetric(us(times[len(times)*99/100]), "p99-us")
	b.ReportMetric(us(open)/float64(100*b.N), "open-us")
	b.ReportMetric(us(add)/float64(100*b.N), "add-us")
	b.ReportMetric(p50-(us(open)+us(add))/float64(100*b.N), "answer-us")
}

// BenchmarkTenThousandBack has 10,000 dormant devices come in, as fast as the
// responder answers.
func BenchmarkTenThousandBack(b *testing.B) {
	const n = 10_000
	private, public := pair()
	var wall, spent time.Duration
	for b.Loop() {
		f := newFleet(public, n)
		r := newResponder(b, private, false)
		r.register(b, f)
		runtime.GC()
		begun, c := time.Now(), cpu()
		r.handshakes(b, f, 4*inFlight)
		wall += time.Since(begun)
		spent += cpu() - c
		r.stop()
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(wall.Seconds()/float64(b.N), "s")
	b.ReportMetric(spent.Seconds()/float64(b.N), "cpu-s")
}

// BenchmarkDormantMemory is the tunnel's memory for a registration and for an
// active device: heap and stacks.
func BenchmarkDormantMemory(b *testing.B) {
	const n, active = 20_000, 2000
	private, public := pair()
	used := func() float64 {
		for range 4 { // finalizers free what the next one takes
			runtime.GC()
			time.Sleep(10 * time.Millisecond)
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc + m.StackInuse)
	}
	var dormant, slept, live float64
	for b.Loop() {
		r := newResponder(b, private, false)
		f := newFleet(public, active)
		before := used()
		for i := range n {
			p := Peer{Key: [32]byte{9, 9, byte(i >> 16), byte(i >> 8), byte(i)}, Addresses: [2]netip.Addr{
				netip.AddrFrom4([4]byte{100, 70, byte(i >> 8), byte(i)}), netip.AddrFrom16([16]byte{0xfd, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}),
			}, From: netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)})}
			if err := r.tunnel.AddPeer(p); err != nil {
				b.Fatal(err)
			}
		}
		after := used()
		dormant += (after - before) / n
		r.register(b, f)
		r.handshakes(b, f, inFlight)
		r.confirm(b, f)
		r.answers.Clear()
		busy := used()
		live += (busy - after) / active
		for _, reg := range r.tunnel.known.lives() {
			r.tunnel.mu.Lock()
			r.tunnel.lowerLocked(reg)
			r.tunnel.mu.Unlock()
		}
		// What a device leaves that slept again: its place, its newest initiation.
		slept += (used() - after) / active
		r.stop()
		runtime.KeepAlive(f)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(dormant/float64(b.N), "B/registration")
	b.ReportMetric(slept/float64(b.N), "B/slept")
	b.ReportMetric(live/float64(b.N), "B/active")
}

// BenchmarkStranger is what an initiation costs the receiving goroutine that
// opens to nothing, while cookies are asked for.
func BenchmarkStranger(b *testing.B) {
	private, public := pair()
	t, err := New(Config{PrivateKey: private, Listen: "127.0.0.1:0", Table: tableForTest()})
	if err != nil {
		b.Fatal(err)
	}
	t.bind = newIngress(t, nil)
	ctx, cancel := context.WithCancel(context.Background())
	var drained atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.gate.cookies:
			case <-t.gate.strangers:
			}
			drained.Add(1)
		}
	})
	f := newFleet(public, 1)
	d := (*datagram)(f.initiations[0].b)
	b.ReportAllocs()
	for b.Loop() {
		t.gate.admit(d, f.initiations[0].src)
	}
	cancel()
	wg.Wait()
}
