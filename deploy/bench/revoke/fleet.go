//go:build linux

package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// fleet is laptops with flows open.
type fleet struct {
	*company
	kernel bool // TCP connections of laptops are the kernel's: splice moves them

	ports atomic.Uint32

	mu  sync.RWMutex
	udp map[netip.AddrPort]*flow // by the laptop's address and port; guarded by mu
}

// laptop is a connected device with somebody logged in.
type laptop struct {
	*fleet
	n       int
	device  store.Device
	nonce   string
	session store.Session
	h2      *h2Client // both streams of kind h2
	flows   []*flow
}

// flow is one of a laptop, with what came of it.
type flow struct {
	name, kind, app string

	mu      sync.Mutex // guards the fields below
	ticks   int64
	next    uint64
	lost    int64
	last    time.Time // when the last byte came
	late    []time.Duration
	ended   time.Time
	err     error
	sampled bool // late is kept
	close   func()

	dead bool // it was seen to end; of the goroutine that fires events
}

// took notes a tick.
func (f *flow) took(tick []byte) {
	now := time.Now()
	n := binary.BigEndian.Uint64(tick)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ticks++
	if f.ticks > 1 && n > f.next {
		f.lost += int64(n - f.next)
	}
	f.next, f.last = n+1, now
	if f.sampled {
		f.late = append(f.late, now.Sub(time.Unix(0, int64(binary.BigEndian.Uint64(tick[8:])))))
	}
}

func (f *flow) over(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended.IsZero() {
		f.ended, f.err = time.Now(), err
	}
}

func (f *flow) state() (ticks int64, last, ended time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ticks, f.last, f.ended
}

// sample begins or ends to keep how late ticks are, and returns what was kept.
func (f *flow) sample(on bool) (late []time.Duration, lost int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	late, lost = f.late, f.lost
	f.late, f.lost, f.sampled = nil, 0, on
	return late, lost
}

func newFleet(c *company, kernel bool) *fleet {
	f := &fleet{company: c, kernel: kernel, udp: map[netip.AddrPort]*flow{}}
	f.ports.Store(10000)
	return f
}

// join enrols, connects and logs in a laptop.
func (f *fleet) join(ctx context.Context, n int) (*laptop, error) {
	var id [32]byte
	rand.Read(id[:])
	now := time.Now()
	if err := f.store.CreateInvite(ctx, store.Invite{SecretHash: id, CreatedBy: "bench", CreatedAt: now, ExpiresAt: now.Add(time.Hour)}); err != nil {
		return nil, err
	}
	l := &laptop{fleet: f, n: n}
	var err error
	l.device, err = f.store.RedeemInvite(ctx, store.Redeem{SecretHash: id, Now: now, Device: store.Device{
		ID: fmt.Sprintf("dev-%05d", n), Name: fmt.Sprintf("laptop-%d", n), OS: "linux", Arch: "amd64", KeyTier: "software", KeyHash: id, PublicKey: id[:],
	}})
	if err != nil {
		return nil, err
	}
	return l, l.connect(ctx)
}

// connect makes a new connection of the laptop, logs in and reports.
func (l *laptop) connect(ctx context.Context) error {
	reg := store.Registration{DeviceID: l.device.ID, BootID: "boot", CreatedAt: time.Now(), ExpiresAt: time.Now().Add(12 * time.Hour)}
	rand.Read(reg.TunnelKey[:])
	resumed, err := l.store.PutRegistration(ctx, reg)
	if err != nil {
		return err
	}
	l.nonce = "n"
	if err := l.manager.Connect(session.Connection{Device: l.device, Registration: reg, Session: resumed, Nonce: l.nonce}); err != nil {
		return err
	}
	l.manager.Endpoint(reg.TunnelKey, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(l.n)}), 4000))
	if err := l.login(ctx, "agents"); err != nil {
		return err
	}
	return l.report(policySignals("pass"))
}

func (l *laptop) login(ctx context.Context, groups ...string) error {
	now := time.Now()
	var err error
	l.session, err = l.manager.Login(ctx, store.Session{
		DeviceID: l.device.ID, OSUser: "1000:agent", StartedAt: now, LastSeen: now, ExpiresAt: now.Add(8 * time.Hour),
		Subject: policy.Subject{Issuer: "https://idp.example", ID: l.device.ID, Name: l.device.Name, Groups: groups, AuthenticatedAt: now},
	})
	return err
}

func policySignals(firewall string) map[string]policy.Signal {
	return map[string]policy.Signal{"host_firewall": {State: firewall}, "disk_encryption": {State: "pass"}}
}

func (l *laptop) report(signals map[string]policy.Signal) error {
	next, err := l.manager.Posture(l.device.ID, l.nonce, "boot", signals)
	l.nonce = next
	return err
}

// open opens two flows of each kind, to apps that the laptop's number chooses;
// those that are open stay.
func (l *laptop) open(ctx context.Context) error {
	if l.flows == nil {
		for _, kind := range kinds {
			for range 2 {
				l.flows = append(l.flows, &flow{kind: kind, dead: true, close: func() {}})
			}
		}
	}
	for i, old := range l.flows {
		if !old.dead {
			continue
		}
		old.close()
		app := fmt.Sprintf("%s%d", old.kind, l.n%appsOfKind)
		f := &flow{name: fmt.Sprintf("%s-%d-%d-%d", app, l.n, i, l.ports.Add(1)), kind: old.kind, app: app, close: func() {}}
		if err := l.dial(ctx, f, i%2); err != nil {
			return fmt.Errorf("opening %s of laptop %d: %w", app, l.n, err)
		}
		l.flows[i] = f
	}
	return nil
}

// mend opens what has ended by itself.
func (l *laptop) mend(ctx context.Context) error {
	for _, f := range l.flows {
		_, _, ended := f.state()
		f.dead = f.dead || !ended.IsZero()
	}
	return l.open(ctx)
}

// each runs do for every laptop, a few at a time.
func each(ctx context.Context, all []*laptop, do func(context.Context, *laptop) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan *laptop)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for l := range work {
				if err := do(ctx, l); err != nil {
					cancel(err)
				}
			}
		})
	}
	for _, l := range all {
		select {
		case work <- l:
		case <-ctx.Done():
		}
	}
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}
