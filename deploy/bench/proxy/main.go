//go:build linux

// Proxy measures requests through everything the gateway does with them but the
// tunnel - TLS, strict reading, policy, decision log, assertion - beside a bare
// httputil.ReverseProxy, nginx and Caddy, which only pass them on. All of it is
// on loopback, interleaved in one run, with wrk as the load. It needs nginx,
// caddy and wrk, and leaves nothing behind.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/portvakt/portvakt/deploy/bench/table"
)

func main() { table.Main("bench-proxy", dispatch) }

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
	return o.output.Print(os.Stdout, machine, rows)
}

// options are the command line.
type options struct {
	bin      string
	rounds   int
	seconds  int
	only     func(row string) bool
	quick    bool
	output   table.Output
	profiles string
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench-proxy", flag.ContinueOnError)
	fs.StringVar(&o.bin, "bin", "", "directory of audit.test and notary.test (default: that of this program)")
	fs.IntVar(&o.rounds, "rounds", 3, "how often everything is measured")
	fs.IntVar(&o.seconds, "seconds", 3, "length of each measurement")
	o.only = table.Only(fs)
	fs.BoolVar(&o.quick, "quick", false, "one short round; only floors are judged")
	o.output.Define(fs)
	fs.StringVar(&o.profiles, "profiles", "", "directory for a profile of the gateway in each measurement (go tool pprof)")
	if err := table.Parse(fs, args); err != nil {
		return o, err
	}
	if o.quick {
		o.rounds, o.seconds = 1, 1
	}
	if fs.NArg() > 0 || o.rounds < 1 || o.seconds < 1 || o.output.Both() {
		return o, fmt.Errorf("%w: bench-proxy [--rounds N] [--seconds N] [--only REGEXP] [--quick] [--json | --markdown]", table.ErrUsage)
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
	for program, pkg := range map[string]string{"nginx": "nginx-light", "caddy": "caddy", "wrk": "wrk", "chrt": "util-linux"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: it needs other programs; on Debian: apt-get install %s", table.ErrUsage, strings.Join(missing, " "))
	}
	return nil
}
