package gateway_test

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/gateway"
)

// Who starts the gateway without the rights it needs is told what gives them.
func TestWithoutRights(t *testing.T) {
	cfg, _ := runnable(t)
	dir := filepath.Dir(cfg.DataDir)
	voice := filepath.Join(cfg.Policy.Directory, "voice.yaml")
	if err := os.WriteFile(voice, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{voice: 0, cfg.Policy.Directory: 0o755, filepath.Dir(dir): 0o755, dir: 0o555} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o755) })
	var started, loaded error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its rights
		if os.Geteuid() == 0 {
			_ = unix.Setfsuid(65534) // root may everything, nobody may not
		}
		started = gateway.Run(t.Context(), cfg, nil)
		_, loaded = gateway.LoadPolicy(cfg)
	}()
	<-done
	if started == nil || !strings.Contains(started.Error(), "permission denied; run: install -d -m 700 -o ") || !strings.HasSuffix(started.Error(), " "+cfg.DataDir) {
		t.Errorf("starting: %v", started)
	}
	if loaded == nil || !strings.Contains(loaded.Error(), "voice.yaml: wanted a file that uid ") || !strings.Contains(loaded.Error(), "(this program's user) may read: permission denied") {
		t.Errorf("loading: %v", loaded)
	}
}
