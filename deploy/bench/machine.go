//go:build linux

package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/portvakt/portvakt/deploy/bench/table"
)

// profile records with perf(1) where a way's gateway spends its time until stop
// is called, if that was asked for.
func (b *bench) profile(t testSpec, w *way) (stop func() error, err error) {
	if b.profiles == "" || w.gateway == nil {
		return func() error { return nil }, nil
	}
	cmd := exec.Command("perf", "record", "-q", "-F", "999", "-g", "-o", filepath.Join(b.profiles, t.name+"-"+w.name+".perf"),
		"-p", strconv.Itoa(w.gateway.PID()))
	cmd.Stderr = b.log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("profiling: %w (Debian: apt-get install linux-perf)", err)
	}
	return func() error {
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			return fmt.Errorf("profiling: %w", err)
		}
		_ = cmd.Wait() // perf ends with the signal it was sent
		return nil
	}, nil
}

// thisMachine says on what everything ran.
func thisMachine(ctx context.Context, o options) (table.Machine, error) {
	m, err := table.Here(ctx, fmt.Sprintf("tunnel MTU %d, %d rounds of %d s", o.mtu, o.rounds, o.seconds), map[string][]string{
		"iperf3": {"iperf3", "--version"}, "nginx": {"nginx", "-v"}, "wrk": {"wrk", "-v"},
	})
	if err != nil {
		return m, err
	}
	m.Quick = o.quick
	for _, name := range []string{"wireguard-go", "portvakt-gateway"} {
		info, err := buildinfo.ReadFile(filepath.Join(o.bin, name))
		if err != nil {
			return m, fmt.Errorf("%w: reading the version of %s: %w (make bench builds it)", table.ErrUsage, name, err)
		}
		m.Versions[name] = info.Main.Version
		m.Versions["go"] = strings.TrimPrefix(info.GoVersion, "go")
	}
	return m, nil
}
