//go:build linux

// Proxy measures requests through everything the gateway does with them but the
// tunnel - TLS, strict reading, policy, decision log, assertion - beside a bare
// httputil.ReverseProxy, nginx and Caddy, which only pass them on. All of it is
// on loopback, interleaved in one run, with wrk as the load. It needs nginx,
// caddy and wrk, and leaves nothing behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"github.com/portvakt/portvakt/deploy/bench/table"
)

// Exit codes: a floor is missed or the run failed; this machine cannot run it.
const (
	exitMissed = 1
	exitUsage  = 2
)

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
		os.Exit(exitMissed) // the table has said it
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "bench-proxy:", err)
		os.Exit(exitUsage)
	default:
		fmt.Fprintln(os.Stderr, "bench-proxy:", err)
		os.Exit(exitMissed)
	}
}

func dispatch(ctx context.Context, args []string) error {
	if len(args) == 2 {
		if play, ok := roles[args[0]]; ok {
			return play(ctx, args[1])
		}
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err := needs(); err != nil {
		return err
	}
	machine, err := table.Here(ctx, fmt.Sprintf("%d rounds of %d s", o.rounds, o.seconds), map[string][]string{
		"nginx": {"nginx", "-v"}, "wrk": {"wrk", "-v"}, "caddy": {"caddy", "version"}, "go": {"go", "version"},
	})
	if err != nil {
		return err
	}
	machine.Quick = o.quick
	rows, err := run(ctx, o)
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
	if err := show(os.Stdout, machine, rows); err != nil {
		return err
	}
	if !table.AllMet(rows) {
		return errMissed
	}
	return nil
}

// options are the command line.
type options struct {
	bin            string
	rounds         int
	seconds        int
	only           *regexp.Regexp
	quick          bool
	json, markdown bool
	profiles       string
}

func parse(args []string) (options, error) {
	o := options{only: regexp.MustCompile("")}
	fs := flag.NewFlagSet("bench-proxy", flag.ContinueOnError)
	fs.StringVar(&o.bin, "bin", "", "directory of audit.test and notary.test (default: that of this program)")
	fs.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	fs.IntVar(&o.seconds, "seconds", 3, "length of each measurement")
	fs.Func("only", "measure only the rows whose names match this regular expression", func(s string) (err error) {
		o.only, err = regexp.Compile("(?i)" + s)
		return err
	})
	fs.BoolVar(&o.quick, "quick", false, "one short round; only floors are judged")
	fs.BoolVar(&o.json, "json", false, "print one JSON object")
	fs.BoolVar(&o.markdown, "markdown", false, "print the section of docs/benchmarks.md")
	fs.StringVar(&o.profiles, "profiles", "", "directory for a profile of the gateway in each measurement (go tool pprof)")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, fmt.Errorf("%w: %w", errUsage, err)
	}
	if o.quick {
		o.rounds, o.seconds = 1, 1
	}
	if fs.NArg() > 0 || o.rounds < 1 || o.seconds < 1 || o.json && o.markdown {
		return o, fmt.Errorf("%w: bench-proxy [--rounds N] [--seconds N] [--only REGEXP] [--quick] [--json | --markdown]", errUsage)
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

// needs says what this machine lacks.
func needs() error {
	var missing []string
	for program, pkg := range map[string]string{"nginx": "nginx-light", "caddy": "caddy", "wrk": "wrk"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: it needs other programs; on Debian: apt-get install %s", errUsage, strings.Join(missing, " "))
	}
	return nil
}
