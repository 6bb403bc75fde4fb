package lab

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseProc(t *testing.T) {
	d, err := parseCPU("12 (a (b) c) S 1 12 12 0 -1 4194560 900 0 0 0 150 50 0 0 20 0 9 0 100 1 2\n")
	if err != nil || d != 2*time.Second {
		t.Errorf("CPU time: %v %v", d, err)
	}
	for _, bad := range []string{"", "12 (x) S 1", "1 (x) S 1 2 3 4 5 6 7 8 9 10 a b"} {
		if d, err := parseCPU(bad); err == nil {
			t.Errorf("CPU time of %q: %v", bad, d)
		}
	}
	n, err := parsePeak("Name:\tx\nVmPeak:\t  99 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n")
	if err != nil || n != 2<<20 {
		t.Errorf("peak: %v %v", n, err)
	}
	if n, err := parsePeak("VmRSS: 1 kB\n"); err == nil {
		t.Errorf("a peak from nowhere: %v", n)
	}
	sent, err := parseDev("Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n" +
		"    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n   wan:10 1 0 0 0 0 0 0 484 2 0 0 0 0 0 0\n")
	if err != nil || len(sent) != 2 || sent["wan"] != (Traffic{484, 2}) {
		t.Errorf("counters: %v %v", sent, err)
	}
	for _, bad := range []string{"wan: 1 2 3\n", "wan: 1 2 3 4 5 6 7 8 a b 11 12 13 14 15 16\n"} {
		if sent, err := parseDev(bad); err == nil {
			t.Errorf("counters of %q: %v", bad, sent)
		}
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip (Debian: apt-get install iproute2)")
	}
}

// A run that was killed leaves its namespaces and a process in them; the next
// one removes them, and leaves those of a living run alone.
func TestLeftovers(t *testing.T) {
	needRoot(t)
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sleeper, err := l.Start(AtApp, "sleeper", nil, "sleep", "300")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"/run/netns/" + l.name(AtApp), filepath.Join(nameDir, l.name(AtApp)), l.Dir}
	exist := func() (out []string) {
		for _, n := range names {
			if _, err := os.Stat(n); err == nil {
				out = append(out, n)
			}
		}
		return out
	}
	if err := removeLeftovers(ctx); err != nil || len(exist()) != len(names) || l.Fallen() != nil {
		t.Fatalf("a living run is taken for a leftover: %v, left %v, %v", err, exist(), l.Fallen())
	}
	if err := l.lock.Close(); err != nil { // what the kernel does for a killed process
		t.Fatal(err)
	}
	if err := removeLeftovers(ctx); err != nil || len(exist()) != 0 {
		t.Errorf("leftovers are left: %v, %v", err, exist())
	}
	select {
	case <-sleeper.done:
	case <-time.After(5 * time.Second):
		t.Error("a process in a leftover namespace lives on")
	}
	l.lock = nil
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestPlaces(t *testing.T) {
	needRoot(t)
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	l, err := New(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if left, _ := filepath.Glob("/run/netns/" + nsPrefix + l.id + "*"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}()
	if err := l.Names(AtClient, "192.0.2.7 some.example"); err != nil {
		t.Fatal(err)
	}
	// The client reaches the app through the gateway and sees its own hosts
	// file; the machine does not.
	out, err := l.Command(ctx, AtClient, "sh", "-c", "ip route get "+App.String()+"; cat /etc/hosts").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "via "+Gateway.String()) || !strings.Contains(string(out), "some.example") {
		t.Errorf("at the client: %v\n%s", err, out)
	}
	if b, err := os.ReadFile("/etc/hosts"); err == nil && strings.Contains(string(b), "some.example") {
		t.Error("the machine's hosts file was changed")
	}
	c, err := l.Start(AtGateway, "quick", nil, "sh", "-c", "echo the end >&2; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	<-c.done
	if fell := l.Fallen(); fell == nil || !strings.Contains(fell.Error(), "quick ended by itself (exit status 3)") || !strings.Contains(fell.Error(), "the end") {
		t.Errorf("of a program that ended: %v", fell)
	}
	l.Yield(AtClient3)
	for at, yields := range map[Place]bool{AtClient2: false, AtClient3: true} {
		out, err := l.Command(ctx, at, "sh", "-c", "chrt -p $$").Output()
		if err != nil || strings.Contains(string(out), "SCHED_IDLE") != yields {
			t.Errorf("priority at %s: %q %v", at, out, err)
		}
	}
	began := time.Now()
	short, stop := context.WithTimeout(ctx, 200*time.Millisecond)
	defer stop()
	if err := l.Command(short, AtGateway, "sh", "-c", "sleep 60 & sleep 60").Run(); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("a command past its time: %v after %s", err, time.Since(began))
	}
}
