//go:build linux

package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/portvakt/portvakt/agent/posture"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

const (
	// fast is how often apps send on the flows that an event is about.
	fast = 2 * time.Millisecond

	// watched is how often they send on flows that no event is about and that
	// are looked at.
	watched = 20 * time.Millisecond

	// silence is how long after its last byte a UDP flow is taken for over.
	silence = 100 * time.Millisecond

	// patience bounds the wait for the end of what was to be cut.
	patience = 10 * time.Second
)

// event ends something of one laptop or app and returns when that is in force.
type event struct {
	name string
	// fire is called with the laptop that it is about.
	fire func(context.Context, *bench, *laptop) error
	// hits says which of all flows it ends.
	hits func(*laptop, *flow) bool
	// mend gives back what it took.
	mend func(context.Context, *bench, *laptop) error
}

// events are those about one Session, Device, App or Subject.
var events = []event{
	{
		name: "Session revoked",
		fire: func(ctx context.Context, b *bench, l *laptop) error {
			return b.manager.EndSession(ctx, store.End{SessionID: l.session.ID, Reason: "revoked", By: "bench", At: time.Now()}, policy.ReasonSessionRevoked)
		},
		mend: func(ctx context.Context, _ *bench, l *laptop) error { return l.login(ctx, "agents") },
	},
	{
		name: "Device revoked",
		fire: func(_ context.Context, b *bench, l *laptop) error {
			b.manager.Remove(l.device.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
			return nil
		},
		mend: func(ctx context.Context, _ *bench, l *laptop) error { return l.connect(ctx) },
	},
	{
		name: "Subject locked down",
		fire: func(ctx context.Context, b *bench, l *laptop) error {
			return b.lockdown(ctx, store.ScopeSubject, l.session.Subject.Key())
		},
		mend: func(ctx context.Context, b *bench, _ *laptop) error { return b.lift(ctx) },
	},
	{
		name: "App locked down",
		fire: func(ctx context.Context, b *bench, l *laptop) error {
			return b.lockdown(ctx, store.ScopeApp, l.flows[0].app)
		},
		hits: func(l *laptop, f *flow) bool { return f.app == l.flows[0].app },
		mend: func(ctx context.Context, b *bench, _ *laptop) error { return b.lift(ctx) },
	},
}

func (c *company) lockdown(ctx context.Context, scope store.Scope, value string) error {
	_, _, err := c.manager.Lockdown(ctx, store.Lockdown{Scope: scope, Value: value, Reason: "bench", By: "os:0:root", At: time.Now()})
	return err
}

func (c *company) lift(ctx context.Context) error {
	for _, l := range c.manager.Lockdowns() {
		if _, err := c.manager.LiftLockdown(ctx, session.Lift{ID: l.ID, By: "os:1:second", At: time.Now()}); err != nil {
			return err
		}
	}
	return nil
}

// bench is a gateway with a fleet.
type bench struct {
	*fleet
	pacer
	laptops []*laptop
	// watchers are flows of laptops that no event is about.
	watchers []*flow
	late     []time.Duration // of their ticks during this round's events
	lost     int64
	gone     []*laptop // their flows are to be opened again
}

// lives are those of many flows.
type lives struct{ bytes, connections []time.Duration }

// trial fires an event at a laptop and notes how long what it ends lived: the
// last byte of flows on which the app sends fast, the connections of all.
func (b *bench) trial(ctx context.Context, e event, l *laptop, to *lives) error {
	var hit []*flow
	touched := map[*laptop]bool{}
	for _, x := range b.laptops {
		for _, f := range x.flows {
			if e.hits == nil && x == l || e.hits != nil && e.hits(l, f) {
				hit = append(hit, f)
				touched[x] = true
			}
		}
	}
	// At an event that ends hundreds of flows the apps send fast on some.
	looked := hit[:min(len(hit), 20)]
	if err := b.set(ctx, fast, looked); err != nil {
		return err
	}
	time.Sleep(20 * time.Millisecond)
	at := time.Now()
	late, lost, err := b.watch(func() error {
		if err := e.fire(ctx, b, l); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
		for i, f := range hit {
			d, err := f.livedAfter(at)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", e.name, f.name, err)
			}
			if i < len(looked) {
				to.bytes = append(to.bytes, d.byte)
			}
			to.connections = append(to.connections, d.connection)
		}
		return nil
	})
	if err != nil {
		return err
	}
	b.late, b.lost = append(b.late, late...), b.lost+lost
	if e.mend != nil {
		if err := e.mend(ctx, b, l); err != nil {
			return fmt.Errorf("mending after %s: %w", e.name, err)
		}
	}
	for x := range touched {
		b.gone = append(b.gone, x)
	}
	return b.reopen(ctx)
}

// reopen opens again what events ended.
func (b *bench) reopen(ctx context.Context) error {
	gone := b.gone
	b.gone = nil
	return each(ctx, gone, func(ctx context.Context, l *laptop) error { return l.open(ctx) })
}

// life is how long after an event a flow's last byte came, and how long after it
// the laptop knew that the connection is over. A UDP exchange has its last byte
// only, and so has in connection what it has in byte.
type life struct{ byte, connection time.Duration }

// livedAfter waits for the end of a flow that an event at that time ends.
func (f *flow) livedAfter(at time.Time) (life, error) {
	for deadline := at.Add(patience); ; time.Sleep(time.Millisecond) {
		_, last, ended := f.state()
		switch {
		case f.kind == "udp" && time.Since(later(last, at)) > silence:
			f.dead = true
			return life{later(last, at).Sub(at), later(last, at).Sub(at)}, nil
		case f.kind != "udp" && !ended.IsZero():
			if ended.Before(at) {
				return life{}, fmt.Errorf("it had ended before: %w", f.err)
			}
			f.dead = true
			return life{later(last, at).Sub(at), later(last, ended).Sub(at)}, nil
		case time.Now().After(deadline):
			return life{}, fmt.Errorf("it goes on after %s; its last byte came %s after the event", patience, last.Sub(at))
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// watch runs do and returns how late ticks of the watched flows were meanwhile,
// and how many did not come.
func (b *bench) watch(do func() error) (late []time.Duration, lost int64, err error) {
	for _, f := range b.watchers {
		f.sample(true)
	}
	err = do()
	for _, f := range b.watchers {
		d, n := f.sample(false)
		late, lost = append(late, d...), lost+n
		if _, _, ended := f.state(); !ended.IsZero() {
			err = fmt.Errorf("%s, which no event was about, ended: %w", f.name, f.err)
		}
	}
	return late, lost, err
}

// publishAll measures how long it takes until a publish has decided everything.
func (b *bench) publishAll(ctx context.Context, title string) (time.Duration, error) {
	rev, err := b.revision(title, nil)
	if err != nil {
		return 0, err
	}
	at := time.Now()
	if err := b.manager.Publish(ctx, rev, "bench"); err != nil {
		return 0, err
	}
	return time.Since(at), nil
}

// withdraw publishes a policy without some apps, and returns how long it took
// until everything was decided, their flows cut. It waits for the ends of those.
func (b *bench) withdraw(ctx context.Context, without map[string]bool) (time.Duration, error) {
	rev, err := b.revision("without", without)
	if err != nil {
		return 0, err
	}
	at := time.Now()
	if err := b.manager.Publish(ctx, rev, "bench"); err != nil {
		return 0, err
	}
	took := time.Since(at)
	for _, l := range b.laptops {
		hit := false
		for _, f := range l.flows {
			if !without[f.app] {
				continue
			}
			if _, err := f.livedAfter(at); err != nil {
				return 0, fmt.Errorf("%s, of an app that was withdrawn: %w", f.name, err)
			}
			hit = true
		}
		if hit {
			b.gone = append(b.gone, l)
		}
	}
	if err := b.publish(ctx, "again", nil); err != nil {
		return 0, err
	}
	return took, b.reopen(ctx)
}

// relocate loads another location database, by which everybody is elsewhere.
func (b *bench) relocate() time.Duration {
	to := "NO"
	if b.country.Load() == "NO" {
		to = "SE"
	}
	b.country.Store(to)
	at := time.Now()
	b.manager.Relocate()
	return time.Since(at)
}

// postureTrial turns the firewall of a laptop off, as its agent's checks see it,
// and returns how long after that its flows lived. Between the agent's watch
// and the gateway there is no network here.
func (b *bench) postureTrial(ctx context.Context, dir string, l *laptop) (lived []time.Duration, err error) {
	conf := filepath.Join(dir, "etc/ufw/ufw.conf")
	if err := firewall(conf, true); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	collector := posture.New(posture.Config{Root: dir})
	var mu sync.Mutex // guards what the watch reports
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = collector.Watch(ctx, 0, func(signals []wire.Signal) {
			in := map[string]policy.Signal{}
			for _, s := range signals {
				in[s.Name] = policy.Signal{State: s.State, Value: s.Value}
			}
			mu.Lock()
			defer mu.Unlock()
			if err := l.report(in); err != nil {
				failed = err
			}
		})
	})
	defer wg.Wait()
	defer cancel()
	// Anywhere within the watch's second, and after its first report: on a busy
	// machine that one may say unknown, which cuts.
	time.Sleep(1500*time.Millisecond + time.Duration(time.Now().UnixNano()%int64(time.Second)))
	if err := l.mend(ctx); err != nil {
		return nil, err
	}
	if err := b.set(ctx, fast, l.flows); err != nil {
		return nil, err
	}
	time.Sleep(20 * time.Millisecond)
	at := time.Now()
	if err := firewall(conf, false); err != nil {
		return nil, err
	}
	for _, f := range l.flows {
		d, err := f.livedAfter(at)
		if err != nil {
			return nil, fmt.Errorf("posture: %s: %w", f.name, err)
		}
		lived = append(lived, d.byte)
	}
	cancel()
	wg.Wait()
	if failed != nil {
		return nil, failed
	}
	if err := l.report(policySignals("pass")); err != nil {
		return nil, err
	}
	return lived, l.open(context.WithoutCancel(ctx))
}

func firewall(conf string, on bool) error {
	word := "no"
	if on {
		word = "yes"
	}
	if err := os.WriteFile(conf+".new", []byte("ENABLED="+word+"\n"), 0o644); err != nil {
		return err
	}
	return os.Rename(conf+".new", conf)
}

// quantile of durations, in milliseconds.
func quantile(all []time.Duration, q float64) float64 {
	if len(all) == 0 {
		return math.NaN()
	}
	all = slices.Sorted(slices.Values(all))
	return float64(all[min(len(all)-1, int(q*float64(len(all))))]) / float64(time.Millisecond)
}
