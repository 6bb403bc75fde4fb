//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/pprof"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/table"
)

// Limits: an event about one thing, in milliseconds, and one about everybody.
const (
	eventP50, eventP99 = 20, 250
	everybody          = 1000
	postureP99         = 2000

	// undisturbed is how late the ticks of flows that no event is about may be
	// at p99, as a multiple of what they are without events, and never less than
	// leastLate in milliseconds.
	undisturbed = 2
	leastLate   = 20
)

// run measures everything.
func run(ctx context.Context, o options, log io.Writer) (_ []table.Row, err error) {
	dir, err := os.MkdirTemp("", "portvakt-bench-revoke-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	at, stop, err := childApps(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	root, err := furnish(dir)
	if err != nil {
		return nil, err
	}
	b, err := prepare(ctx, dir, o.sessions, at, log)
	if b != nil {
		defer func() { err = errors.Join(err, b.close()) }()
	}
	if err != nil {
		return nil, err
	}
	all := newResults()
	for round := range o.rounds {
		began := time.Now()
		if err := b.round(ctx, o, round, root, all); err != nil {
			return nil, err
		}
		fmt.Fprintf(log, "round %d of %d after %s, %d flows open\n", round+1, o.rounds, time.Since(began).Round(time.Second), b.manager.Counts().Flows)
	}
	return all.rows(), nil
}

// results are the rows' values, one a round.
type results struct {
	order []string
	by    map[string]*table.Row
}

func newResults() *results { return &results{by: map[string]*table.Row{}} }

// add notes a round's value of a row whose floor and goal are the same.
func (r *results) add(name, unit string, value float64, limit table.Limit) *table.Row {
	row := r.by[name]
	if row == nil {
		row = &table.Row{Name: name, Unit: unit, LowerIsBetter: true, Floor: limit, Goal: limit}
		r.by[name] = row
		r.order = append(r.order, name)
	}
	row.Ours = append(row.Ours, value)
	return row
}

func (r *results) rows() (rows []table.Row) {
	for _, name := range r.order {
		rows = append(rows, *r.by[name])
	}
	return rows
}

func (b *bench) round(ctx context.Context, o options, round int, root string, all *results) error {
	quiet, _, err := b.watch(func() error { time.Sleep(3 * time.Second); return nil })
	if err != nil {
		return err
	}
	if o.profile != "" && round == 0 {
		f, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	next := round * 7 // which laptop is next; the watched ones never are
	pick := func() *laptop {
		for {
			next++
			l := b.laptops[next%(o.sessions-o.sessions/10)]
			if l.n%appsOfKind != appsOfKind-1 {
				return l
			}
		}
	}
	b.late, b.lost = nil, 0
	for _, e := range events {
		trials := o.trials
		if e.hits != nil {
			trials = max(1, trials/10) // each ends hundreds
		}
		var lived lives
		for range trials {
			if err := b.trial(ctx, e, pick(), &lived); err != nil {
				return err
			}
		}
		all.add(e.name+", last byte p50", "ms", quantile(lived.bytes, 0.5), table.Value(eventP50))
		all.add(e.name+", last byte p99", "ms", quantile(lived.bytes, 0.99), table.Value(eventP99))
		all.add(e.name+", connection over p99", "ms", quantile(lived.connections, 0.99), table.Limit{}) // for orientation
	}
	all.add("other flows, ticks lost", "", float64(b.lost), table.Value(0))
	row := all.add("other flows, ticks late by, p99", "ms", quantile(b.late, 0.99), table.Ratio(undisturbed))
	row.Baseline, row.BaselineName = append(row.Baseline, quantile(quiet, 0.99)), "without events"
	row.Goal = table.Value(leastLate)

	if err := b.everybodyRows(ctx, round, all); err != nil {
		return err
	}
	var lived []time.Duration
	for range max(2, o.trials/4) {
		d, err := b.postureTrial(ctx, root, pick())
		if err != nil {
			return err
		}
		lived = append(lived, d...)
	}
	all.add("posture change on the laptop, p99", "ms", quantile(lived, 0.99), table.Value(postureP99))
	return nil
}

// everybodyRows are those of events about everybody.
func (b *bench) everybodyRows(ctx context.Context, round int, all *results) error {
	d, err := b.publishAll(ctx, fmt.Sprintf("round %d", round))
	if err != nil {
		return err
	}
	all.add("policy publish, all decided again", "ms", quantile([]time.Duration{d}, 1), table.Value(everybody))
	without := map[string]bool{}
	for _, kind := range kinds {
		without[kind+"0"] = true
	}
	if d, err = b.withdraw(ctx, without); err != nil {
		return err
	}
	all.add("policy publish, all decided again, a quarter cut", "ms", quantile([]time.Duration{d}, 1), table.Value(everybody))
	all.add("location database, all decided again", "ms", quantile([]time.Duration{b.relocate()}, 1), table.Value(everybody))
	return nil
}
