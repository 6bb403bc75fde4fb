package posture_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/portvakt/portvakt/agent/posture"
	"github.com/portvakt/portvakt/internal/wire"
)

// unpack writes a txtar tree below a new directory. Its comment holds what is
// expected ("disk: STATE VALUE") and the links, which txtar cannot hold.
func unpack(t *testing.T, name string) (root string, expect map[string]string) {
	t.Helper()
	root = t.TempDir()
	a, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Files {
		write(t, filepath.Join(root, f.Name), string(f.Data))
	}
	expect = map[string]string{}
	for _, l := range strings.Split(string(a.Comment), "\n") {
		key, value, _ := strings.Cut(l, ": ")
		switch key {
		case "disk", "firewall":
			expect[key] = value
		case "link":
			from, to, _ := strings.Cut(value, " -> ")
			os.MkdirAll(filepath.Dir(filepath.Join(root, from)), 0o755)
			if err := os.Symlink(to, filepath.Join(root, from)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root, expect
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func says(s wire.Signal) string { return s.State + " " + s.Value }

func TestTrees(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d trees, %v", len(files), err)
	}
	for _, f := range files {
		name := strings.TrimSuffix(filepath.Base(f), ".txtar")
		t.Run(name, func(t *testing.T) {
			root, want := unpack(t, name)
			got := posture.New(posture.Config{Root: root}).Collect(context.Background())
			var names []string
			for _, s := range got {
				names = append(names, s.Name)
			}
			if d := cmp.Diff(wire.Signals, names); d != "" {
				t.Fatal(d)
			}
			if says(got[0]) != want["disk"] {
				t.Errorf("disk: %s\n want %s", says(got[0]), want["disk"])
			}
			if says(got[1]) != want["firewall"] {
				t.Errorf("firewall: %s\n    want %s", says(got[1]), want["firewall"])
			}
			for _, s := range got[2:] {
				if says(s) != "unknown not_supported" {
					t.Errorf("%s: %s", s.Name, says(s))
				}
			}
		})
	}
}

// Whatever stands in a file's place, the agent neither hangs nor passes.
func TestOddFiles(t *testing.T) {
	for name, place := range map[string]func(path string) error{
		"fifo":      func(p string) error { return syscall.Mkfifo(p, 0o644) },
		"directory": func(p string) error { return os.Mkdir(p, 0o755) },
		"huge":      func(p string) error { return os.WriteFile(p, make([]byte, 2<<20), 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := unpack(t, "luks-ufw-on")
			conf := filepath.Join(root, "etc/ufw/ufw.conf")
			os.Remove(conf)
			if err := place(conf); err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			got := posture.New(posture.Config{Root: root}).Collect(context.Background())[1]
			if got.State != wire.SignalUnknown || !strings.HasPrefix(got.Value, "error: ") || time.Since(start) > time.Second {
				t.Errorf("%s after %v", says(got), time.Since(start))
			}
		})
	}
	got := posture.New(posture.Config{Root: "/no/such/root"}).Collect(context.Background())
	if got[0].State != wire.SignalUnknown || got[1].State != wire.SignalUnknown {
		t.Errorf("without a root: %v", got)
	}
}

func TestWatch(t *testing.T) {
	root, _ := unpack(t, "luks-ufw-on")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	seen := make(chan string, 16)
	done := make(chan error, 1)
	go func() {
		done <- posture.New(posture.Config{Root: root}).Watch(ctx, 5*time.Millisecond, func(s []wire.Signal) { seen <- says(s[1]) })
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(3 * time.Second):
			t.Fatalf("no change seen, want %q", want)
		}
	}
	next("pass ufw: on")
	replace := func(text string) { // whole, so that no half-written file is seen
		write(t, filepath.Join(root, "new"), text)
		if err := os.Rename(filepath.Join(root, "new"), filepath.Join(root, "etc/ufw/ufw.conf")); err != nil {
			t.Fatal(err)
		}
	}
	replace("ENABLED=no\n")
	next("fail ufw: off")
	time.Sleep(50 * time.Millisecond)
	replace("ENABLED=yes\n")
	next("pass ufw: on")
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Watch: %v", err)
	}
	if len(seen) != 0 {
		t.Errorf("called without a change: %s", <-seen)
	}
}
