// Package media carries UDP between devices and apps: calls, mostly. It takes
// whole IP packets out of the tunnel and makes whole IP packets for it; no
// stack is in between, and no goroutine belongs to a packet or a flow.
//
// One upstream socket stands for one source port of a device, whatever it
// speaks to: the mapping is endpoint-independent and stays the same while
// anything uses it (RFC 4787 REQ-1), keeps the port's parity (REQ-4) and puts
// the neighbours of an RTP/RTCP pair side by side where it can (RFC 3550
// section 11). What comes in is filtered by address and port: only what an open
// flow of that socket sends to may answer (REQ-8, the strict form).
//
// Every flow is registered, decided and recorded before its first datagram
// leaves, and every datagram asks it whether it may still pass. What is refused
// is silence.
package media

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// Config is what a Relay needs. Sessions, AppByAddr, Inject and MTU are
// required.
type Config struct {
	Sessions *session.Manager
	// AppByAddr returns the app of a virtual address in the active revision,
	// nil for an address of none.
	AppByAddr func(netip.Addr) *policy.App
	// Inject sends whole IP packets into the tunnel and returns how many it
	// took. It copies them and never blocks.
	Inject func(packets [][]byte) int
	// MTU of the inside, in bytes.
	MTU int
	// Gateway are the gateway's own inner addresses, where DNS answers
	// questions (port 53): see dns.Server.Answer. Without DNS they are silent.
	Gateway [2]netip.Addr
	DNS     func(device netip.Addr, query []byte, limit int) []byte
	// Device returns the address that an inner address counts with, the same for
	// all of one device. Nil lets each count by itself.
	Device func(inner netip.Addr) netip.Addr
	// Forbidden are prefixes where no app is, unless it allows them itself.
	Forbidden []netip.Prefix
	Limits    Limits
	Timeouts  Timeouts
	// Elapsed is the clock of idle times; nil means that of Sessions, which no
	// step of the wall clock moves and which runs during suspend.
	Elapsed func() time.Duration
	Log     *slog.Logger
}

// Limits bound what one device, or all of them, can make the relay hold. A zero
// field means its default.
type Limits struct {
	DeviceFlows   int // of one inner address; 1,024
	DeviceOpening int // flows of one inner address that are not decided yet; 256
	DevicePorts   int // of the gateway's that sockets of one device have or that rest after them; 2,048
	Flows         int // of all; 65,536
	Sockets       int // of all, towards apps; 16,384, at most half of the files the process may open
	Opening       int // of all, waiting for a worker; 1,024
	Workers       int // flows that are being decided at once; 32
	Resolving     int // upstream names of one app that are being looked up at once; 8
}

// Timeouts bound how long the relay waits. A zero field means its default.
type Timeouts struct {
	Idle    time.Duration // a flow without a datagram either way; 120 s (RFC 4787 REQ-5)
	IdleDNS time.Duration // the same to port 53; 30 s
	Dial    time.Duration // looking up an upstream's name; 5 s
	Sweep   time.Duration // between two looks for what is idle, and the grain of idle times; 1 s
	// Rest is how long the port of a mapping that ended goes to nobody else, so
	// that what its app still sends reaches no other device's call; 120 s.
	Rest  time.Duration
	Drain time.Duration // how long open flows may go on when Run is to end; 5 s
}

func setDefault[T int | time.Duration](v *T, to T) {
	if *v <= 0 {
		*v = to
	}
}

func (c *Config) defaults() {
	setDefault(&c.Limits.DeviceFlows, 1024)
	setDefault(&c.Limits.DeviceOpening, 256)
	setDefault(&c.Limits.DevicePorts, 2048)
	setDefault(&c.Limits.Flows, 65536)
	setDefault(&c.Limits.Sockets, 16384)
	c.Limits.Sockets = min(c.Limits.Sockets, openFiles()/2)
	setDefault(&c.Limits.Opening, 1024)
	setDefault(&c.Limits.Workers, 32)
	setDefault(&c.Limits.Resolving, 8)
	setDefault(&c.Timeouts.Idle, 2*time.Minute)
	setDefault(&c.Timeouts.IdleDNS, 30*time.Second)
	setDefault(&c.Timeouts.Dial, 5*time.Second)
	setDefault(&c.Timeouts.Sweep, time.Second)
	setDefault(&c.Timeouts.Rest, 2*time.Minute)
	setDefault(&c.Timeouts.Drain, 5*time.Second)
	if c.Elapsed == nil {
		c.Elapsed = c.Sessions.Elapsed
	}
	if c.Device == nil {
		c.Device = func(inner netip.Addr) netip.Addr { return inner }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
}

// maxPollers is how many goroutines wait for what apps send; more than there
// are processors would only take turns.
const maxPollers = 4

// Relay carries datagrams. Its methods are safe for concurrent use.
type Relay struct {
	cfg     Config
	log     *slog.Logger
	running atomic.Bool
	ending  atomic.Bool  // running, but nothing new begins
	clock   atomic.Int64 // cfg.Elapsed at the last sweep
	work    chan *flow   // flows to decide
	ports   ports
	pollers []*poller
	next    atomic.Uint32 // poller of the next socket
	open    atomic.Int64  // flows in all tables
	sockets atomic.Int64
	counts  [causes]atomic.Uint64

	// mu guards the map, not the devices in it. A device leaves it with mu held
	// for writing and only when it has no flows.
	mu      sync.RWMutex
	devices map[netip.Addr]*device

	// resolving counts look-ups under way by app.
	resolveMu sync.Mutex
	resolving map[string]int
}

// New returns a Relay that drops everything until Run.
func New(cfg Config) (*Relay, error) {
	if cfg.Sessions == nil || cfg.AppByAddr == nil || cfg.Inject == nil || cfg.MTU < 1280 {
		return nil, errors.New("media: Sessions, AppByAddr, Inject and an MTU of at least 1280 are required")
	}
	cfg.defaults()
	r := &Relay{
		cfg: cfg, log: cfg.Log,
		work:      make(chan *flow, cfg.Limits.Opening),
		devices:   map[netip.Addr]*device{},
		resolving: map[string]int{},
	}
	r.ports.init(cfg.Timeouts.Rest, cfg.Limits.DevicePorts, cfg.Device)
	return r, nil
}

// Run carries datagrams until ctx is done. From then on no flow begins; those
// that are open go on for at most Timeouts.Drain. It returns when nothing of the
// Relay is left running.
func (r *Relay) Run(ctx context.Context) error {
	var polling, working sync.WaitGroup
	for range min(maxPollers, runtime.GOMAXPROCS(0)) {
		p, err := newPoller(r)
		if err != nil {
			for _, p := range r.pollers {
				p.close()
			}
			return err
		}
		r.pollers = append(r.pollers, p)
	}
	failed := make(chan error, len(r.pollers))
	for _, p := range r.pollers {
		polling.Go(func() {
			if err := p.run(); err != nil {
				failed <- err
			}
		})
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	for range r.cfg.Limits.Workers {
		working.Go(func() { r.worker(work, &working) })
	}
	r.clock.Store(int64(r.cfg.Elapsed()))
	r.running.Store(true)
	tick := time.NewTicker(r.cfg.Timeouts.Sweep)
	defer tick.Stop()
	var err error
	stop, drained := ctx.Done(), make(<-chan time.Time)
	for ended := false; !ended; {
		select {
		case <-stop:
			stop = nil
			r.ending.Store(true)
			drained = time.After(r.cfg.Timeouts.Drain)
			ended = r.open.Load() == 0
		case <-drained:
			ended = true
		case err = <-failed:
			ended = true
		case <-tick.C:
			r.sweep(r.cfg.Elapsed())
			ended = r.ending.Load() && r.open.Load() == 0
		}
	}
	r.running.Store(false)
	cancel()
	working.Wait()
	r.closeAll()
	for _, p := range r.pollers {
		p.close()
	}
	polling.Wait()
	return err
}

// A cause says why a datagram was dropped.
type cause uint8

const (
	passed      cause = iota
	malformed         // lengths, versions or ports that cannot be
	checksum          // wrong, or none where IPv6 needs one
	stopped           // the relay does not run
	deviceFlows       // Limits.DeviceFlows
	full              // Limits.Flows or Sockets
	noPort            // none is free, or Limits.DevicePorts
	opening           // Limits.DeviceOpening, Opening or Resolving
	queued            // more than a few before the flow was decided
	refused           // the flow was refused a moment ago
	cut               // the flow may not go on
	sending           // the system did not take it
	unsolicited       // from an address that no flow sends to
	tooBig            // from the app, larger than the inner MTU
	tunnelQueue       // the tunnel did not take it
	dnsSilent         // a question that gets no answer
	causes
)

var causeNames = [causes]string{
	malformed: "malformed", checksum: "checksum", stopped: "stopped", deviceFlows: "device_flows", full: "full", noPort: "no_port",
	opening: "opening", queued: "undecided", refused: "refused", cut: "cut", sending: "send", unsolicited: "unsolicited",
	tooBig: "too_big", tunnelQueue: "tunnel_queue", dnsSilent: "dns",
}

func (r *Relay) drop(c cause) { r.counts[c].Add(1) }

// Stats are the numbers that metrics show.
type Stats struct {
	Flows   int // open, or being decided
	Sockets int // towards apps
}

// Stats returns the current numbers.
func (r *Relay) Stats() Stats {
	return Stats{Flows: int(r.open.Load()), Sockets: int(r.sockets.Load())}
}

// Dropped counts datagrams that went no further, by cause.
func (r *Relay) Dropped() map[string]uint64 {
	m := make(map[string]uint64, causes)
	for c := passed + 1; c < causes; c++ {
		m[causeNames[c]] = r.counts[c].Load()
	}
	return m
}
