//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/output"
	"github.com/portvakt/portvakt/deploy/bench/table"
)

// Ways a request can take. ours is first in every round but as often last.
const (
	wayOurs  = "ours"
	wayBare  = "ReverseProxy"
	wayNginx = "nginx"
	wayCaddy = "Caddy"
)

// wayStrict is ours to an app with durability strict; it is beside the others.
const wayStrict = "strict"

var ways = []string{wayOurs, wayBare, wayNginx, wayCaddy}

// load is one kind of it.
type load struct {
	name  string
	path  string
	conns int
}

var loads = []load{
	{"100 B, 1 connection", "/100", 1},
	{"100 B, 64 connections", "/100", 64},
	{"16 KiB, 1 connection", "/16k", 1},
	{"16 KiB, 64 connections", "/16k", 64},
}

// Names of the rows that are not about requests per second.
const (
	rowOne    = "end of parsing to the app, 100 B, 1 connection"
	rowHalf   = "end of parsing to the app, 100 B, 64 connections, half saturated"
	rowStrict = "durability strict adds, 100 B, 64 connections, half saturated"
	rowAppend = "records appended to the decision log, one core"
	rowVerify = "verifying 1,000,000 records"
)

// run measures everything that was asked for.
func run(ctx context.Context, o options) (rows []table.Row, err error) {
	s, err := start(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	for _, l := range loads {
		if l, ok := wanted(o, l); ok {
			found, err := s.rates(ctx, o, l)
			if err != nil {
				return nil, err
			}
			rows = append(rows, rateRows(l, found)...)
		}
	}
	if err := s.yield(); err != nil {
		return nil, err
	}
	if o.only(rowOne) || o.only(rowHalf) {
		lags, err := s.lags(ctx, o)
		if err != nil {
			return nil, err
		}
		rows = append(rows, lags...)
	}
	if o.only(rowStrict) {
		added, err := s.strict(ctx, o)
		if err != nil {
			return nil, err
		}
		rows = append(rows, added...)
	}
	log, err := logRows(ctx, o)
	return append(rows, log...), err
}

func wanted(o options, l load) (load, bool) {
	for _, w := range ways[1:] {
		if o.only(rowName(l, w)) {
			return l, true
		}
	}
	return l, false
}

func rowName(l load, way string) string {
	if way == wayBare {
		return l.name
	}
	return l.name + ", beside " + way
}

// sample is one measurement of one way.
type sample struct {
	rate float64 // requests/s
	cpu  float64 // of the proxy, microseconds a request
}

// rates measures a load on every way in turn, in another order each round.
func (s *stand) rates(ctx context.Context, o options, l load) (map[string][]sample, error) {
	found := map[string][]sample{}
	for round := range o.rounds {
		turn := append(slices.Clone(ways[round%len(ways):]), ways[:round%len(ways)]...)
		for _, way := range turn {
			m, err := s.measure(ctx, o, way, l)
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
			if err != nil {
				fmt.Fprintf(os.Stderr, "round %d  %-24s  %-12s  FAILED: %v\n", round+1, l.name, way, err)
				m = sample{math.NaN(), math.NaN()}
			} else {
				fmt.Fprintf(os.Stderr, "round %d  %-24s  %-12s  %9.1f requests/s  %6.1f us CPU\n", round+1, l.name, way, m.rate, m.cpu)
			}
			found[way] = append(found[way], m)
		}
	}
	return found, nil
}

// rateRows judges a load beside what it must be judged by, and shows the others.
func rateRows(l load, found map[string][]sample) (rows []table.Row) {
	each := func(way string, of func(sample) float64) (all []float64) {
		for _, m := range found[way] {
			all = append(all, of(m))
		}
		return all
	}
	rate, cpu := func(m sample) float64 { return m.rate }, func(m sample) float64 { return m.cpu }
	for _, way := range ways[1:] {
		r := table.Row{Name: rowName(l, way), Unit: "requests/s", Ours: each(wayOurs, rate), Baseline: each(way, rate), BaselineName: way}
		if way == wayBare {
			r.Floor, r.Goal = table.Ratio(1.2), table.Ratio(2)
		}
		rows = append(rows, r)
	}
	// What a machine that is busy with something else disturbs least.
	return append(rows, table.Row{
		Name: l.name + ", CPU of the proxy", Unit: "us", LowerIsBetter: true,
		Ours: each(wayOurs, cpu), Baseline: each(wayBare, cpu), BaselineName: wayBare,
	})
}

// measure loads a way, with its CPU time around it.
func (s *stand) measure(ctx context.Context, o options, way string, l load) (sample, error) {
	before, err := s.cpu(way)
	if err != nil {
		return sample{}, err
	}
	rate, err := s.wrk(ctx, o, way, l, 0)
	if err != nil {
		return sample{}, err
	}
	after, err := s.cpu(way)
	return sample{rate, float64((after - before).Microseconds()) / rate / float64(o.seconds)}, err
}

// logRows runs the decision log's own benchmarks.
func logRows(ctx context.Context, o options) (rows []table.Row, err error) {
	length := "2s"
	if o.quick {
		length = "300ms"
	}
	for _, b := range []struct {
		row     table.Row
		program string
		pattern string
		args    []string
		metric  string
		of      func(float64) float64
	}{
		{
			table.Row{Name: rowAppend, Unit: "records/s", Floor: table.Value(100_000)},
			"audit.test", "^BenchmarkAppend$",
			[]string{"-test.cpu", "1", "-test.benchtime", length},
			"BenchmarkAppend records/s",
			func(v float64) float64 { return v },
		},
		{
			table.Row{Name: rowVerify, Unit: "s", LowerIsBetter: true, Floor: table.Value(10)},
			"notary.test", "^BenchmarkVerify$",
			[]string{"-test.benchtime", "1x"},
			"BenchmarkVerify verified/s",
			func(v float64) float64 { return 1e6 / v },
		},
	} {
		if !o.only(b.row.Name) {
			continue
		}
		rounds := o.rounds
		if b.program == "notary.test" {
			rounds = 1 // a log of 700 MB is made for it
		}
		for range rounds {
			v, err := goBench(ctx, filepath.Join(o.bin, b.program), b.pattern, b.args, b.metric)
			if err != nil {
				return nil, err
			}
			b.row.Ours = append(b.row.Ours, b.of(v))
		}
		fmt.Fprintf(os.Stderr, "%s: %s %s\n", b.row.Name, table.Of(b.row.Ours), b.row.Unit)
		rows = append(rows, b.row)
	}
	return rows, nil
}

func goBench(ctx context.Context, program, pattern string, args []string, metric string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"-test.run", "^$", "-test.bench", pattern}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %.600s", filepath.Base(program), err, out)
	}
	found, err := output.Benchmarks(string(out))
	if err != nil {
		return 0, err
	}
	v, ok := found[metric]
	if !ok {
		return 0, fmt.Errorf("%s printed no %s", filepath.Base(program), strconv.Quote(metric))
	}
	return v, nil
}
