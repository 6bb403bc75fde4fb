package media

import (
	"bytes"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/internal/voice"
)

const (
	dnsPort = 53

	// maxQueued is how many datagrams of a flow wait for its Decision; a call
	// sends one every 20 ms and a decision takes a few.
	maxQueued = 4

	// refusedFor is how long a refused flow is not decided anew, whatever its
	// device sends.
	refusedFor = time.Second
)

// device is what one inner address has open. Its flows' datagrams come in on
// one goroutine, so that mu is hardly ever waited for.
type device struct {
	addr netip.Addr

	mu      sync.Mutex // guards what follows; taken last of all locks
	flows   map[flowKey]*flow
	opening int // flows that are not decided yet

	// socketMu is held while a socket of the device comes or goes, for a few
	// system calls. It is taken before a socket's lock.
	socketMu sync.Mutex
	sockets  map[socketKey][]*socket
}

// flowKey names a flow of a device: its source port and where it sends.
type flowKey struct {
	port uint16
	app  netip.AddrPort
}

type flowState uint32

const (
	flowOpening flowState = iota // a worker has it
	flowOpen
	flowRefused // a worker said no; forgotten by a sweep
	flowClosed  // out of the table
)

// flow is one device's (address, port) speaking to one (address, port) of an app.
// With a thousand calls every datagram meets its flow cold: what one way needs
// stands together, and apart from what is written the other way, which may be
// on another core.
type flow struct {
	state atomic.Uint32 // a flowState; changes with dev.mu held
	mark  atomic.Bool   // the app's calls are told to the network; as it was at the last sweep
	last  atomic.Int64  // Relay.clock at the last datagram either way

	// Set by the worker before the flow is open.
	session *session.Flow
	socket  *socket
	target  target
	in      atomic.Int64 // bytes from the device
	up      voice.Flow   // what the device sends

	dev   *device
	key   flowKey
	to    netip.AddrPort
	queue [][]byte // of the opening flow; guarded by dev.mu

	back header       // of what goes to the device
	out  atomic.Int64 // bytes to the device
	down voice.Flow   // what the app sends
}

// used notes that a datagram passed. The clock moves with every sweep only.
func (f *flow) used(clock int64) {
	if f.last.Load() != clock {
		f.last.Store(clock)
	}
}

func (f *flow) peer() netip.AddrPort { return netip.AddrPortFrom(f.dev.addr, f.key.port) }

func (f *flow) is(s flowState) bool { return flowState(f.state.Load()) == s }

// Take consumes UDP packets that came out of a device's tunnel together and that
// the device's segment allows. It does not keep them and never blocks.
func (r *Relay) Take(packets [][]byte) {
	b := batches.Get().(*batch)
	for _, p := range packets {
		r.take(b, p)
	}
	r.flush(b)
	b.dev, b.addr = nil, netip.Addr{}
	batches.Put(b)
}

func (r *Relay) take(b *batch, packet []byte) {
	var d datagram
	if c := parse(packet, &d); c != passed {
		r.drop(c)
		return
	}
	if !r.running.Load() {
		r.drop(stopped)
		return
	}
	if a := d.dst.Addr(); a == r.cfg.Gateway[0] || a == r.cfg.Gateway[1] {
		r.answer(&d)
		return
	}
	f := b.find(r, &d)
	switch {
	case f == nil && r.ending.Load():
		r.drop(stopped)
	case f == nil:
		r.begin(&d)
	case f.is(flowOpen) || r.hold(f, d.payload):
		r.forward(b, f, d.payload)
	}
}

// hold keeps a datagram of a flow that is being decided. It reports whether the
// flow is open after all.
func (r *Relay) hold(f *flow, payload []byte) (open bool) {
	f.dev.mu.Lock()
	state := flowState(f.state.Load())
	if state == flowOpening && len(f.queue) < maxQueued {
		f.queue = append(f.queue, bytes.Clone(payload))
		f.dev.mu.Unlock()
		return false
	}
	f.dev.mu.Unlock()
	switch state {
	case flowOpen: // decided in between
		return true
	case flowOpening:
		r.drop(queued)
	case flowRefused:
		r.drop(refused)
	default:
		r.drop(cut)
	}
	return false
}

// begin opens a flow with its first datagram.
func (r *Relay) begin(d *datagram) {
	addr := d.src.Addr()
	r.mu.RLock()
	dev := r.devices[addr]
	if dev != nil {
		r.admit(dev, d)
		r.mu.RUnlock()
		return
	}
	r.mu.RUnlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if dev = r.devices[addr]; dev == nil {
		dev = &device{addr: addr, flows: map[flowKey]*flow{}, sockets: map[socketKey][]*socket{}}
		r.devices[addr] = dev
	}
	r.admit(dev, d)
}

// admit puts a new flow into its device's table and before a worker, within
// the limits. mu is held.
func (r *Relay) admit(dev *device, d *datagram) {
	dev.mu.Lock()
	defer dev.mu.Unlock()
	key := flowKey{d.src.Port(), d.dst}
	switch {
	case dev.flows[key] != nil: // begun meanwhile; another in its place would leave it to nobody
		r.drop(queued)
		return
	case len(dev.flows) >= r.cfg.Limits.DeviceFlows:
		r.drop(deviceFlows)
		return
	case r.open.Load() >= int64(r.cfg.Limits.Flows), r.sockets.Load() >= int64(r.cfg.Limits.Sockets):
		r.drop(full)
		return
	case dev.opening >= r.cfg.Limits.DeviceOpening:
		r.drop(opening)
		return
	}
	f := &flow{dev: dev, key: key, back: newHeader(d.dst, d.src), queue: [][]byte{bytes.Clone(d.payload)}}
	f.last.Store(r.clock.Load())
	select {
	case r.work <- f:
	default:
		r.drop(opening)
		return
	}
	dev.flows[f.key] = f
	dev.opening++
	r.open.Add(1)
}

// forget takes a flow out of its device's table. dev.mu is held.
func (r *Relay) forget(f *flow) {
	delete(f.dev.flows, f.key)
	f.state.Store(uint32(flowClosed))
	r.open.Add(-1)
}

// answer answers a question to the gateway itself.
func (r *Relay) answer(d *datagram) {
	if r.cfg.DNS == nil || d.dst.Port() != dnsPort {
		r.drop(dnsSilent)
		return
	}
	h, asker := newHeader(d.dst, d.src), d.src.Addr()
	if r.cfg.Device != nil {
		asker = r.cfg.Device(asker)
	}
	a := r.cfg.DNS(asker, d.payload, r.cfg.MTU-h.size)
	if a == nil {
		r.drop(dnsSilent)
		return
	}
	buf := make([]byte, headMax+len(a))
	copy(buf[headMax:], a)
	if r.cfg.Inject([][]byte{h.wrap(buf, 0)}) == 0 {
		r.drop(tunnelQueue)
	}
}

// reply sends what an app answered into its device's tunnel with p's next
// batch. f is nil when no flow sends to where it came from.
func (r *Relay) reply(p *poller, f *flow, buf []byte, n int, truncated bool) {
	switch {
	case f == nil:
		r.drop(unsolicited)
		return
	case truncated || n > r.cfg.MTU-f.back.size:
		// No tunnel takes fragments, and nothing is said to the app: its own
		// way to the gateway is not the narrow one.
		r.drop(tooBig)
		return
	case f.is(flowClosed), f.session.Check() != nil:
		r.drop(cut)
		return
	}
	payload := buf[headMax : headMax+n]
	var class byte
	if f.mark.Load() && f.down.Look(payload) {
		class = voice.DSCP
	}
	f.used(r.clock.Load())
	f.out.Add(int64(n))
	p.queue(f, f.back.wrap(buf[:headMax+n], class))
}
