package stage

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func shell(t *testing.T, script string) (*Process, chan *Process) {
	t.Helper()
	ended := make(chan *Process, 1)
	p, err := startProcess("shell", filepath.Join(t.TempDir(), "log"), []string{"/bin/sh", "-c", script}, func(p *Process) { ended <- p })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.stop() })
	return p, ended
}

func TestProcessThatDies(t *testing.T) {
	p, ended := shell(t, "echo one; echo two >&2; exit 7")
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("nobody was told")
	}
	if err := p.died(); !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "one\ntwo") {
		t.Errorf("it says %q", err)
	}
	if p.Alive() || p.stop() != nil {
		t.Error("it is not known to have ended")
	}
	if got := p.Tail(1); got != "two" {
		t.Errorf("the last line is %q", got)
	}
}

func TestProcessStops(t *testing.T) {
	p, _ := shell(t, "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done")
	if err := waitFor(t.Context(), 5*time.Second, "the shell", func(context.Context) error {
		if p.Tail(1) != "up" {
			return errors.New("not up")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.stop(); err != nil || p.Alive() || p.Tail(1) != "bye" {
		t.Errorf("stopping: %v, alive %t, last line %q", err, p.Alive(), p.Tail(1))
	}
}

func TestFreePorts(t *testing.T) {
	got, err := freePorts(10)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int]bool{}
	for _, p := range got {
		if seen[p] {
			t.Errorf("port %d came twice", p)
		}
		seen[p] = true
		l, err := net.Listen("tcp", loopback(p))
		if err != nil {
			t.Error(err)
			continue
		}
		l.Close()
	}
}

// A demo whose programs cannot start says which, and leaves nothing.
func TestUpCleansUpAfterAFailure(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	self := filepath.Join(t.TempDir(), "self")
	if err := os.WriteFile(self, []byte("#!/bin/sh\necho no identity today\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := Up(t.Context(), Config{Bin: t.TempDir(), Self: self})
	if err == nil {
		_ = s.Down()
		t.Fatal("it came up")
	}
	if !strings.Contains(err.Error(), "idp ended by itself (exit status 3)") || !strings.Contains(err.Error(), "no identity today") {
		t.Errorf("it says %q", err)
	}
	if left, _ := os.ReadDir(tmp); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestFirewallFileIsReplaced(t *testing.T) {
	l := &Laptop{Root: t.TempDir()}
	if err := l.Furnish(); err != nil {
		t.Fatal(err)
	}
	for _, on := range []bool{true, false, true} {
		if err := l.Firewall(on); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(l.FirewallFile())
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{true: "ENABLED=yes", false: "ENABLED=no"}[on]; !strings.Contains(string(b), want) {
			t.Errorf("%q, want %s", b, want)
		}
	}
}
