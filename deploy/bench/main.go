//go:build linux

// Bench measures Portvakt's tunnel against stock wireguard-go, interleaved in
// one run, in network namespaces of its own: client - gateway - app. It needs
// root, iperf3, nginx and wrk, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/lab"
	"github.com/portvakt/portvakt/deploy/bench/table"
)

func main() { table.Main("bench", dispatch) }

func dispatch(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if play, ok := roles[args[0]]; ok {
			return play(ctx, args[1:])
		}
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	rows, machine, err := run(ctx, o, os.Stderr)
	if err != nil {
		return err
	}
	return o.output.Print(os.Stdout, machine, rows)
}

// options are the command line.
type options struct {
	bin      string
	rounds   int
	seconds  int
	mtu      int
	only     func(row string) bool
	ways     []string
	quick    bool
	output   table.Output
	profiles string
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.bin, "bin", "", "directory of portvakt-gateway, portvakt-agent and wireguard-go (default: that of this program)")
	fs.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	fs.IntVar(&o.seconds, "seconds", 3, "length of each measurement")
	fs.IntVar(&o.mtu, "mtu", 1420, "of the inside of both tunnels, in bytes")
	o.only = table.Only(fs)
	config := fs.String("config", "", "measure only these ways, of "+strings.Join(wayNames, ", ")+" (comma between; default all but neighbours); stock is always measured")
	fs.BoolVar(&o.quick, "quick", false, "one short round; only floors are judged")
	o.output.Define(fs)
	fs.StringVar(&o.profiles, "profiles", "", "directory for a profile of the gateway in each measurement, by perf (perf report -i FILE)")
	if err := table.Parse(fs, args); err != nil {
		return o, err
	}
	if o.quick {
		o.rounds, o.seconds = 1, 1
	}
	if fs.NArg() > 0 || o.rounds < 1 || o.seconds < 1 || o.output.Both() {
		return o, fmt.Errorf("%w: bench [--rounds N] [--seconds N] [--only REGEXP] [--config WAYS] [--quick] [--json | --markdown]", table.ErrUsage)
	}
	// Attacks leave ports and connections behind that the other rows would see:
	// they are measured by themselves.
	o.ways = slices.DeleteFunc(slices.Clone(wayNames), func(w string) bool { return w == wayNeighbours || o.quick && w == wayRaw })
	if *config != "" {
		o.ways = strings.Split(*config, ",")
	}
	for _, w := range o.ways {
		if !slices.Contains(wayNames, w) {
			return o, fmt.Errorf("%w: there is no way %q; there are %s", table.ErrUsage, w, strings.Join(wayNames, ", "))
		}
	}
	if o.bin == "" {
		self, err := os.Executable()
		if err != nil {
			return o, err
		}
		o.bin = filepath.Dir(self)
	}
	return o, nil
}

// needs says what this machine lacks for measuring with these apps.
func needs(apps map[string]bool) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: it needs root, to make network namespaces", table.ErrUsage)
	}
	var missing []string
	for _, p := range []struct {
		program, pkg string
		used         bool
	}{
		{"ip", "iproute2", true},
		{"chrt", "util-linux", true},
		{"iperf3", "iperf3", apps[appIperf]},
		{"nginx", "nginx-light", apps[appPages] || apps[appWeb]},
		{"wrk", "wrk", apps[appPages] || apps[appWeb]},
	} {
		if _, err := exec.LookPath(p.program); err != nil && p.used {
			missing = append(missing, p.pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: it needs other programs; on Debian: apt-get install %s", table.ErrUsage, strings.Join(missing, " "))
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("%w: it needs /dev/net/tun: %w", table.ErrUsage, err)
	}
	return nil
}

// bench is one run.
type bench struct {
	*company
	length   time.Duration // of one measurement
	profiles string        // directory for them; empty means none
	log      io.Writer
}

// run measures everything that was asked for.
func run(ctx context.Context, o options, log io.Writer) (_ []table.Row, _ table.Machine, err error) {
	began := time.Now()
	specs := slices.DeleteFunc(slices.Clone(rowSpecs), func(s rowSpec) bool {
		return !o.only(s.name) || !slices.Contains(o.ways, s.way)
	})
	if len(specs) == 0 {
		return nil, table.Machine{}, fmt.Errorf("%w: no row is called that; without --only all are measured", table.ErrUsage)
	}
	if err := needs(appsOf(specs)); err != nil {
		return nil, table.Machine{}, err
	}
	machine, err := thisMachine(ctx, o)
	if err != nil {
		return nil, machine, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, machine, err
	}
	l, err := lab.New(ctx)
	if err != nil {
		return nil, machine, err
	}
	b := &bench{
		company: &company{Lab: l, bin: o.bin, self: self, mtu: o.mtu},
		length:  time.Duration(o.seconds) * time.Second, profiles: o.profiles, log: log,
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w\nthe programs' last lines:\n%s", err, l.Logs(6))
		}
		err = errors.Join(err, l.Close())
	}()
	ways, err := b.ways(ctx, o, specs)
	if err != nil {
		return nil, machine, err
	}
	fmt.Fprintf(log, "ready after %.1f s\n", time.Since(began).Seconds())
	found, err := b.rounds(ctx, o, specs, ways)
	if err != nil {
		return nil, machine, err
	}
	rows := make([]table.Row, 0, len(specs))
	for _, s := range specs {
		rows = append(rows, s.row(found))
	}
	fmt.Fprintf(log, "took %.0f s\n", time.Since(began).Seconds())
	return rows, machine, nil
}

// rounds measures round by round, test by test, way by way, so that what
// disturbs the machine for a while disturbs all ways alike. Each round begins
// with another way.
func (b *bench) rounds(ctx context.Context, o options, specs []rowSpec, ways []*way) (measured, error) {
	found := measured{}
	for round := range o.rounds {
		for _, t := range tests {
			turn := slices.Clone(ways)
			turn = append(turn[round%len(turn):], turn[:round%len(turn)]...)
			for _, w := range turn {
				if !wanted(specs, t.name, w.name) {
					continue
				}
				s, err := b.measure(ctx, t, w)
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				if fell := b.Fallen(); fell != nil {
					return nil, errors.Join(err, fell)
				}
				if err != nil {
					fmt.Fprintf(b.log, "round %d  %-10s  %-10s  FAILED: %v\n", round+1, t.name, w.name, err)
					s = nil
				} else {
					line := fmt.Sprintf("round %d  %-10s  %-10s  %10.1f %s", round+1, t.name, w.name, s[t.print], t.unit)
					if cpu, ok := s[metricCPU]; ok {
						line += fmt.Sprintf("  (gateway: %.2f s CPU, %.0f MiB)", cpu, s[metricPeak])
					}
					fmt.Fprintln(b.log, line)
				}
				key := [2]string{t.name, w.name}
				found[key] = append(found[key], s)
			}
		}
	}
	return found, nil
}

// appsOf are the apps that the rows are measured with.
func appsOf(specs []rowSpec) map[string]bool {
	out := map[string]bool{}
	for _, t := range tests {
		if t.app != "" && slices.ContainsFunc(specs, func(s rowSpec) bool { return s.test == t.name || s.baseTest() == t.name }) {
			out[t.app] = true
		}
	}
	return out
}

// wanted says whether some row needs this test on this way.
func wanted(specs []rowSpec, test, way string) bool {
	return slices.ContainsFunc(specs, func(s rowSpec) bool {
		if way == wayStock || way == wayRaw {
			return s.baseTest() == test && !s.alone()
		}
		return s.test == test && s.way == way
	})
}
