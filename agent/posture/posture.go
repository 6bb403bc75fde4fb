// Package posture says what a device is like: each of [wire.Signals] as pass,
// fail or unknown, with what was seen.
//
// Two signals are collected on Linux, disk_encryption and host_firewall; the
// others are unknown ("not_supported"). On every other system all are unknown:
// there is no collector, and none of this has run there.
//
// What is read lies below [Config.Root]: a container that is given the host's
// tree, or a test's directory, is judged as the laptop it depicts. Symbolic
// links that lead out of it, absolute ones included, are not followed. With a
// Root other than "/" the kernel's firewall rules are not consulted, since they
// belong to another system.
//
// A signal never passes on what could not be read. What takes privilege (the
// kernel's firewall rules) is asked of the helper ([RunHelper]) and is unknown
// ("needs_helper") without it.
package posture

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/portvakt/portvakt/internal/wire"
)

// Causes a signal is unknown for, beside "error: ...".
const (
	CauseNotSupported = "not_supported" // no collector for it on this system
	CauseNeedsHelper  = "needs_helper"  // it takes the posture helper's privilege
)

// Config says what to look at.
type Config struct {
	// Root is the tree that is judged; empty means "/".
	Root string
	// HelperSocket is where RunHelper listens; empty means that there is none.
	HelperSocket string
	// Now may be nil.
	Now func() time.Time
	// Log may be nil.
	Log *slog.Logger
}

// Collector collects signals. It may be used by several goroutines.
type Collector struct {
	cfg  Config
	busy chan struct{} // one collection at a time; a stuck one keeps it
}

// New returns a collector; it reads nothing yet.
func New(cfg Config) *Collector {
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Collector{cfg: cfg, busy: make(chan struct{}, 1)}
}

// collectTimeout bounds Collect; a file system that hangs makes the signals
// unknown.
const collectTimeout = 2 * time.Second

// Collect returns all of [wire.Signals] in their order, within two seconds.
func (c *Collector) Collect(ctx context.Context) []wire.Signal {
	ctx, cancel := context.WithTimeout(ctx, collectTimeout)
	defer cancel()
	select {
	case c.busy <- struct{}{}:
	case <-ctx.Done():
		return failed("error: an earlier check has not ended")
	}
	begin := c.cfg.Now()
	done := make(chan []wire.Signal, 1)
	go func() { // outlives the call only while the system keeps a file read waiting
		defer func() { <-c.busy }()
		done <- collect(ctx, c.cfg)
	}()
	select {
	case found := <-done:
		signals := complete(found)
		for i := range signals {
			signals[i].AgeSeconds = max(0, int(c.cfg.Now().Sub(begin)/time.Second))
		}
		return signals
	case <-ctx.Done():
		return failed("error: the check took too long")
	}
}

// Watch collects at once and then every interval (a second if it is not
// positive), and calls changed at the start and whenever a state or value is
// not what it was. It returns nil when ctx is cancelled.
func (c *Collector) Watch(ctx context.Context, every time.Duration, changed func([]wire.Signal)) error {
	if every <= 0 {
		every = time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last []wire.Signal
	for {
		now := c.Collect(ctx)
		if ctx.Err() != nil {
			return nil // what a cancelled collection says is not news
		}
		if !slices.EqualFunc(last, now, sameFact) {
			last = now
			changed(slices.Clone(now))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func sameFact(a, b wire.Signal) bool {
	return a.Name == b.Name && a.State == b.State && a.Value == b.Value
}

// complete puts what was found in the reports' order and fills in the rest.
func complete(found []wire.Signal) []wire.Signal {
	all := make([]wire.Signal, len(wire.Signals))
	for i, name := range wire.Signals {
		all[i] = wire.Signal{Name: name, State: wire.SignalUnknown, Value: CauseNotSupported}
		for _, s := range found {
			if s.Name == name {
				all[i] = s
			}
		}
	}
	return all
}

func failed(cause string) []wire.Signal {
	all := complete(nil)
	for i := range all {
		if supported(all[i].Name) {
			all[i].Value = cause
		}
	}
	return all
}
