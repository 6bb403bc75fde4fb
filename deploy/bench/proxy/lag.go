//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/deploy/bench/table"
)

// yield makes the app run only where nothing else wants to from now on, and wrk
// when it is started: while it is measured how long the gateway has a request,
// they must not take its processors. Where a gateway serves, they have a machine
// of their own.
func (s *stand) yield() error {
	pids, err := s.processes("app")
	if err != nil {
		return err
	}
	idle := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}
	for _, pid := range pids {
		if err := unix.SchedSetAttr(pid, idle, 0); err != nil {
			return fmt.Errorf("making the app yield: %w", err)
		}
	}
	s.yields = true
	return nil
}

// lags measures how long requests are with the gateway, alone and while it does
// half of what it can.
func (s *stand) lags(ctx context.Context, o options) (rows []table.Row, err error) {
	one, half := loads[0], loads[1]
	found := map[string][]float64{}
	for range o.rounds {
		pause, err := s.halfPause(ctx, o, wayOurs)
		if err != nil {
			return nil, err
		}
		for _, m := range []struct {
			row   string
			load  load
			pause time.Duration
		}{{rowOne, one, 0}, {rowHalf, half, pause}} {
			l, err := s.lagUnder(ctx, o, m.row, wayOurs, m.load, m.pause)
			if err != nil {
				return nil, err
			}
			found[m.row+", p50"] = append(found[m.row+", p50"], l.P50)
			found[m.row+", p99"] = append(found[m.row+", p99"], l.P99)
		}
	}
	for _, row := range []string{rowOne, rowHalf} {
		for _, q := range []struct {
			name  string
			floor float64
		}{{", p50", 20}, {", p99", 200}} {
			rows = append(rows, table.Row{Name: row + q.name, Unit: "us", LowerIsBetter: true, Floor: table.Value(q.floor), Ours: found[row+q.name]})
		}
	}
	return rows, nil
}

// strict measures what it adds that a record must be on the disk, and not only
// with the kernel, before the app is asked: both while the strict app does half
// of what it can.
func (s *stand) strict(ctx context.Context, o options) ([]table.Row, error) {
	rows := []table.Row{
		{Name: rowStrict + ", p50", Unit: "ms", LowerIsBetter: true, Floor: table.Value(2)},
		{Name: rowStrict + ", p99", Unit: "ms", LowerIsBetter: true, Floor: table.Value(10)},
	}
	for range o.rounds {
		pause, err := s.halfPause(ctx, o, wayStrict)
		if err != nil {
			return nil, err
		}
		kill, err := s.lagUnder(ctx, o, "as many with durability kill", wayOurs, loads[1], pause)
		if err != nil {
			return nil, err
		}
		strict, err := s.lagUnder(ctx, o, "with durability strict", wayStrict, loads[1], pause)
		if err != nil {
			return nil, err
		}
		rows[0].Ours = append(rows[0].Ours, max(0, strict.P50-kill.P50)/1e3)
		rows[1].Ours = append(rows[1].Ours, max(0, strict.P99-kill.P99)/1e3)
	}
	return rows, nil
}

// halfPause is how long each of 64 connections pauses between an answer and the
// next request, so that all of them together ask for half of what the way can do;
// what an answer takes is little beside it.
func (s *stand) halfPause(ctx context.Context, o options, way string) (time.Duration, error) {
	full, err := s.wrk(ctx, o, way, loads[1], 0)
	if err != nil {
		return 0, err
	}
	return time.Duration(float64(loads[1].conns) / (full / 2) * float64(time.Second)), nil
}

// lagUnder is how long requests are with the gateway under a load.
func (s *stand) lagUnder(ctx context.Context, o options, name, way string, l load, pause time.Duration) (lag, error) {
	before, err := s.lag(ctx)
	if err != nil {
		return lag{}, err
	}
	rate, err := s.wrk(ctx, o, way, l, pause)
	if err != nil {
		return lag{}, err
	}
	after, err := s.lag(ctx)
	if err != nil {
		return lag{}, err
	}
	if after.Count == before.Count {
		return lag{}, errors.New("the gateway counted no request")
	}
	fmt.Fprintf(os.Stderr, "%s: %.0f requests/s, p50 %.1f us, p99 %.1f us\n", name, rate, after.P50, after.P99)
	return after, nil
}
