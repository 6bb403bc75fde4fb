//go:build linux

package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

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

var versionPattern = regexp.MustCompile(`\d+(\.\d+)+`)

// thisMachine says on what everything ran.
func thisMachine(ctx context.Context, o options) (table.Machine, error) {
	m := table.Machine{Quick: o.quick, Versions: map[string]string{}}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, err
	}
	m.Versions["linux"] = unix.ByteSliceToString(u.Release[:])
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return m, err
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
	m.Machine = fmt.Sprintf("%d x %s, %d GiB, tunnel MTU %d, %d rounds of %d s", runtime.NumCPU(), cpu, s.Totalram*uint64(s.Unit)>>30, o.mtu, o.rounds, o.seconds)

	for _, name := range []string{"wireguard-go", "portvakt-gateway"} {
		info, err := buildinfo.ReadFile(filepath.Join(o.bin, name))
		if err != nil {
			return m, fmt.Errorf("%w: reading the version of %s: %w (make bench builds it)", errUsage, name, err)
		}
		m.Versions[name] = info.Main.Version
		m.Versions["go"] = strings.TrimPrefix(info.GoVersion, "go")
	}
	for name, argv := range map[string][]string{"iperf3": {"iperf3", "--version"}, "nginx": {"nginx", "-v"}, "wrk": {"wrk", "-v"}} {
		out, _ := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput() // wrk -v exits with 1
		if v := versionPattern.FindString(string(out)); v != "" {
			m.Versions[name] = v
		}
	}
	return m, nil
}
