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
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/table"
)

// TestMain plays the roles that the program under test starts itself for.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && roles[os.Args[1]] != nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
		defer stop()
		if err := roles[os.Args[1]](ctx, os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	m.Run()
}

func TestParse(t *testing.T) {
	for args, ok := range map[string]bool{
		"": true, "--quick": true, "--only nginx --rounds 2": true, "--json": true,
		"--rounds 0": false, "--only (": false, "--json --markdown": false, "more": false,
	} {
		if _, err := parse(strings.Fields(args)); (err == nil) != ok || err != nil && !errors.Is(err, table.ErrUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
}

// Every load is judged beside the bare proxy, and a measurement that failed
// misses its floor.
func TestRateRows(t *testing.T) {
	found := map[string][]sample{wayOurs: {{rate: 240, cpu: 10}}, wayBare: {{rate: 100, cpu: 20}}, wayNginx: {{rate: 300}}, wayCaddy: {{rate: 80}}}
	for _, l := range loads {
		rows := rateRows(l, found)
		if len(rows) != len(ways) || !rows[0].Met() || !rows[0].GoalMet() || rows[0].BaselineName != wayBare || rows[0].Ratio().Median != 2.4 {
			t.Errorf("%+v", rows)
		}
		if cpu := rows[len(rows)-1]; cpu.Ratio().Median != 0.5 || !cpu.LowerIsBetter {
			t.Errorf("%+v", cpu)
		}
	}
	found[wayOurs] = append(found[wayOurs], sample{math.NaN(), math.NaN()})
	found[wayBare] = append(found[wayBare], sample{100, 20})
	if table.AllMet(rateRows(loads[0], found)) {
		t.Error("a round that failed is taken for one that met its floor")
	}
	o, err := parse([]string{"--only", "beside nginx"})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := wanted(o, loads[0]); !ok {
		t.Error("a row that is asked for is not measured")
	}
}

func TestCPU(t *testing.T) {
	s := &stand{groups: map[string]int{}}
	if err := s.run(t.Context(), "spin", "sh", "-c", "while :; do :; done"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.close() }()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		used, err := s.cpu("spin")
		if err != nil {
			t.Fatal(err)
		}
		if used > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a process that spins uses no CPU")
		}
	}
	if used, err := s.cpu("nobody"); err == nil {
		t.Errorf("nobody used %v", used)
	}
}

// All of it, for a moment.
func TestStand(t *testing.T) {
	for _, program := range []string{"nginx", "caddy", "wrk"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("it needs %s", program)
		}
	}
	t.Setenv("TMPDIR", t.TempDir())
	o, err := parse([]string{"--quick", "--only", "100 B, 64"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, way := range ways {
		m, err := s.measure(t.Context(), o, way, loads[1])
		if err != nil || m.rate == 0 || m.cpu == 0 {
			t.Errorf("%s: %+v %v", way, m, err)
		}
	}
	l, err := s.lag(t.Context())
	if err != nil || l.Count == 0 || l.P50 == 0 || l.P99 < l.P50 {
		t.Errorf("%+v %v", l, err)
	}
	if err := s.close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}
