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
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/deploy/bench/table"
	"github.com/portvakt/portvakt/deploy/demo/idp"
	"github.com/portvakt/portvakt/deploy/demo/stage"
)

// roleApps is the argument by which this program plays the apps.
const roleApps = "apps"

var (
	errMissed = errors.New("a floor is missed")
	errUsage  = errors.New("usage")
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := dispatch(ctx, os.Args[1:])
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errMissed):
		os.Exit(1) // the table has said it
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "bench-revoke:", err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench-revoke:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	sessions, rounds, trials int
	quick, json, markdown    bool
	profile                  string
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench-revoke", flag.ContinueOnError)
	fs.IntVar(&o.sessions, "sessions", 1000, "how many laptops are logged in, with ten flows each")
	fs.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	fs.IntVar(&o.trials, "trials", 40, "how many events of each kind a round has")
	fs.BoolVar(&o.quick, "quick", false, "one short round with 100 sessions; only floors are judged")
	fs.BoolVar(&o.json, "json", false, "print one JSON object")
	fs.BoolVar(&o.markdown, "markdown", false, "print the section of docs/benchmarks.md")
	fs.StringVar(&o.profile, "profile", "", "write a CPU profile of the gateway's process during the events to this file")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: %w", errUsage, err)
	}
	if o.quick {
		o.sessions, o.rounds, o.trials = 100, 1, 10
	}
	if fs.NArg() > 0 || o.sessions < 20 || o.rounds < 1 || o.trials < 1 || o.json && o.markdown {
		return o, fmt.Errorf("%w: bench-revoke [--sessions N] [--rounds N] [--trials N] [--quick] [--json | --markdown] [--profile FILE]", errUsage)
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
	m, err := thisMachine(o)
	if err != nil {
		return err
	}
	rows, err := run(ctx, o, os.Stderr)
	if err != nil {
		return err
	}
	show := table.Text
	switch {
	case o.json:
		show = table.JSON
	case o.markdown:
		show = table.Markdown
	}
	if err := show(os.Stdout, m, rows); err != nil {
		return err
	}
	if !table.AllMet(rows) {
		return errMissed
	}
	return nil
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

func thisMachine(o options) (table.Machine, error) {
	m := table.Machine{Quick: o.quick, Versions: map[string]string{"go": strings.TrimPrefix(runtime.Version(), "go")}}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, err
	}
	m.Versions["linux"] = unix.ByteSliceToString(u.Release[:])
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				m.Versions["portvakt"] = s.Value[:min(12, len(s.Value))]
			}
		}
	}
	cpu := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return m, err
	}
	m.Machine = fmt.Sprintf("%d x %s, load %s before; %d sessions, %d flows, %d rounds of %d events of each kind",
		runtime.NumCPU(), cpu, strings.Join(strings.Fields(string(load))[:3], " "), o.sessions, 10*o.sessions, o.rounds, o.trials)
	return m, nil
}

// furnish makes a posture root whose firewall can be turned off.
func furnish(dir string) (string, error) {
	l := stage.NewLaptop(idp.Person{}, "", filepath.Join(dir, "laptop"))
	return l.Root, l.Furnish()
}
