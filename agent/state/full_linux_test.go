package state_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/state"
)

func TestFullDiskLosesNothing(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=64k,mode=0700"); err != nil {
		t.Skip("needs root and the right to mount a tmpfs:", err)
	}
	t.Cleanup(func() { unix.Unmount(mount, unix.MNT_DETACH) })
	d, err := state.Open(filepath.Join(mount, "s"))
	if err != nil {
		t.Fatal(err)
	}
	ca := newCA(t)
	key, err := d.EnsureKey(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SaveEnrolment(state.Identity{Gateway: "https://g", DeviceID: "d1"}, issue(t, ca, "d1", key), ca.RootPEM(), false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mount, "ballast"), bytes.Repeat([]byte("x"), 64<<10), 0o600); err == nil {
		t.Fatal("the disk is not full")
	}
	if _, err := d.EnsureKey(true); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("a new key: %v", err)
	}
	fresh, err := state.ParseCertificate(issue(t, ca, "d1", key))
	if err != nil {
		t.Fatal(err)
	}
	err = d.SaveCertificate(&state.Credentials{Device: fresh, CA: ca.Root()})
	if err == nil || !strings.Contains(err.Error(), "nothing was lost") {
		t.Errorf("a new certificate: %v", err)
	}
	if c, err := d.Load(); err != nil || !c.Key.Equal(key) {
		t.Error("the old state was lost:", err)
	}
	files, err := os.ReadDir(d.File(""))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".tmp-") {
			t.Error("left behind:", f.Name())
		}
	}
}
