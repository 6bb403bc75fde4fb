//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/table"
)

// TestMain plays the parts of the benchmark's own binary, which starts itself
// again in the namespaces.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && roles[os.Args[1]] != nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		if err := dispatch(ctx, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func build(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	for _, args := range [][]string{
		{"-o", bin + "/", "./cmd/portvakt-gateway", "./cmd/portvakt-agent"},
		{"-o", filepath.Join(bin, "wireguard-go"), "golang.zx2c4.com/wireguard"},
	} {
		cmd := exec.CommandContext(t.Context(), "go", append([]string{"build"}, args...)...)
		cmd.Dir = "../.."
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building: %v\n%s", err, out)
		}
	}
	return bin
}

// TestSmoke measures one small row for a second on every way that they have,
// with the real gateway, and looks that nothing is left behind.
func TestSmoke(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	for _, p := range []string{"ip"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (Debian: apt-get install iproute2)", p)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o, err := parse([]string{"--bin", build(t), "--rounds", "1", "--seconds", "1", "--only", "round trip p50"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	var log strings.Builder
	rows, machine, err := run(ctx, o, &log)
	t.Logf("progress:\n%s", log.String())
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || machine.Versions["wireguard-go"] == "" {
		t.Fatalf("%d rows, versions %v", len(rows), machine.Versions)
	}
	for _, r := range rows {
		if len(r.Ours) != 1 || len(r.Baseline) != 1 || len(r.Raw) != 1 || math.IsNaN(r.Ours[0]) || math.IsNaN(r.Baseline[0]) {
			t.Errorf("%s: ours %v, baseline %v, raw %v", r.Name, r.Ours, r.Baseline, r.Raw)
		}
	}
	if rtt := rows[0]; rtt.Ours[0] < rtt.Raw[0] {
		t.Errorf("a tunnel is faster than its cable: %v, %v", rtt.Ours, rtt.Raw)
	}
	if left, err := filepath.Glob(os.Getenv("TMPDIR") + "/*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		args string
		ways []string
		ok   bool
	}{
		{"", []string{wayRaw, wayStock, wayUserspace, wayTUN, wayRootless, wayProcess}, true},
		{"--quick", []string{wayStock, wayUserspace, wayTUN, wayRootless, wayProcess}, true},
		{"--config neighbours", []string{wayNeighbours}, true},
		{"--config userspace,raw", []string{wayUserspace, wayRaw}, true},
		{"--config nosuch", nil, false},
		{"--rounds 0", nil, false},
		{"--only (", nil, false},
		{"--json --markdown", nil, false},
		{"more", nil, false},
	} {
		o, err := parse(strings.Fields(c.args))
		if (err == nil) != c.ok || c.ok && !slices.Equal(o.ways, c.ways) {
			t.Errorf("%q: ways %v, error %v", c.args, o.ways, err)
		}
		if err != nil && !errors.Is(err, table.ErrUsage) {
			t.Errorf("%q: %v is no usage error", c.args, err)
		}
	}
}

func TestReadTools(t *testing.T) {
	s, err := readIperf([]byte(`{"end":{"sum_sent":{"bytes":9},"sum_received":{"seconds":2,"bytes":250000000,"bits_per_second":1e9}}}`))
	if err != nil || s[metricRate] != 1000 || s["bytes"] != 25e7 {
		t.Errorf("iperf3: %v %v", s, err)
	}
	for _, bad := range []string{"", "{}", `{"error":"the server is busy running a test. try again later","end":{}}`} {
		if s, err := readIperf([]byte(bad)); err == nil {
			t.Errorf("iperf3 said %q: %v", bad, s)
		}
	}
}

// A row whose metric is missing from what was measured is a failed row.
func TestMissingMetrics(t *testing.T) {
	m := measured{{testPeers, wayProcess}: {sample{metricReturn: 3}}}
	for _, spec := range rowSpecs {
		if r := spec.row(m); spec.way == wayProcess && r.Met() != (spec.name == "10,000 dormant devices back") {
			t.Errorf("%s: met is %t with %v", r.Name, r.Met(), r.Ours)
		}
	}
}

// Every row must name a test and a way that there are, or it would never be
// measured and never be missed.
func TestRowsAreMeasured(t *testing.T) {
	names := map[string]bool{}
	for _, s := range rowSpecs {
		if names[s.name] {
			t.Errorf("two rows are called %s", s.name)
		}
		names[s.name] = true
		for _, test := range []string{s.test, s.baseTest()} {
			if !slices.ContainsFunc(tests, func(t testSpec) bool { return t.name == test }) {
				t.Errorf("%s: there is no test %s", s.name, test)
			}
		}
		if !slices.Contains(wayNames, s.way) || !s.floor.Set {
			t.Errorf("%s: way %q, floor %v", s.name, s.way, s.floor)
		}
	}
}
