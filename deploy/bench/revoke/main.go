//go:build linux

// Revoke measures how long after an event the last byte of what it ends comes:
// one gateway with 1,000 sessions and 10,000 open flows of all kinds.
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
	"time"

	"github.com/portvakt/portvakt/deploy/bench/table"
	"github.com/portvakt/portvakt/deploy/demo/idp"
	"github.com/portvakt/portvakt/deploy/demo/stage"
)

// roleApps is the argument by which this program plays the apps.
const roleApps = "apps"

func main() { table.Main("bench-revoke", dispatch) }

// options are the command line.
type options struct {
	sessions, rounds, trials int
	quick                    bool
	output                   table.Output
	profile                  string
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench-revoke", flag.ContinueOnError)
	fs.IntVar(&o.sessions, "sessions", 1000, "how many laptops are logged in, with ten flows each")
	fs.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	fs.IntVar(&o.trials, "trials", 40, "how many events of each kind a round has")
	fs.BoolVar(&o.quick, "quick", false, "one short round with 100 sessions; only floors are judged")
	o.output.Define(fs)
	fs.StringVar(&o.profile, "profile", "", "write a CPU profile of the gateway's process during the events to this file")
	if err := table.Parse(fs, args); err != nil {
		return o, err
	}
	if o.quick {
		o.sessions, o.rounds, o.trials = 100, 1, 10
	}
	if fs.NArg() > 0 || o.sessions < 20 || o.rounds < 1 || o.trials < 1 || o.output.Both() {
		return o, fmt.Errorf("%w: bench-revoke [--sessions N] [--rounds N] [--trials N] [--quick] [--json | --markdown] [--profile FILE]", table.ErrUsage)
	}
	return o, nil
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == roleApps {
		return playApps(ctx)
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	m, err := table.Here(ctx, fmt.Sprintf("%d sessions, %d flows, %d rounds of %d events of each kind", o.sessions, 10*o.sessions, o.rounds, o.trials), map[string][]string{"go": {"go", "version"}})
	if err != nil {
		return err
	}
	m.Quick = o.quick
	rows, err := run(ctx, o, os.Stderr)
	if err != nil {
		return err
	}
	return o.output.Print(os.Stdout, m, rows)
}

// playApps serves until stdin ends, and says where.
func playApps(ctx context.Context) error {
	a, err := startApps()
	if err != nil {
		return err
	}
	defer a.close()
	fmt.Println(a.Web, a.TCP, a.UDP)
	over := make(chan struct{})
	go func() { defer close(over); _, _ = io.Copy(io.Discard, os.Stdin) }()
	select {
	case <-over:
	case <-ctx.Done():
	}
	return nil
}

// childApps plays the apps in a process of their own, so that their files are
// not the gateway's.
func childApps(ctx context.Context) (a *apps, stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self, roleApps)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	a = &apps{}
	if _, err := fmt.Fscanln(out, &a.Web, &a.TCP, &a.UDP); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("starting the apps: %w", err), in.Close(), cmd.Wait())
	}
	return a, func() { _ = in.Close(); _ = cmd.Wait() }, nil
}

// prepare starts everything and opens all flows.
func prepare(ctx context.Context, dir string, sessions int, at *apps, log io.Writer) (*bench, error) {
	b := &bench{pacer: pacer{at.Web}}
	c, err := open(dir, at, func(packets [][]byte) int { return b.take(packets) })
	if err != nil {
		return nil, err
	}
	b.fleet = newFleet(c, false)
	began := time.Now()
	for n := range sessions {
		l, err := b.join(ctx, n)
		if err != nil {
			return b, err
		}
		b.laptops = append(b.laptops, l)
	}
	fmt.Fprintf(log, "%d laptops are connected and logged in after %s\n", sessions, time.Since(began).Round(100*time.Millisecond))
	if err := each(ctx, b.laptops, func(ctx context.Context, l *laptop) error { return l.open(ctx) }); err != nil {
		return b, err
	}
	fmt.Fprintf(log, "%d flows are open after %s\n", c.manager.Counts().Flows, time.Since(began).Round(100*time.Millisecond))
	// The last app of each kind is no event's, nor are the last laptops.
	for _, l := range b.laptops[sessions-sessions/10:] {
		if l.n%appsOfKind == appsOfKind-1 {
			b.watchers = append(b.watchers, l.flows...)
		}
	}
	return b, b.set(ctx, watched, b.watchers)
}

// furnish makes a posture root whose firewall can be turned off.
func furnish(dir string) (string, error) {
	l := stage.NewLaptop(idp.Person{}, "", filepath.Join(dir, "laptop"))
	return l.Root, l.Furnish()
}
