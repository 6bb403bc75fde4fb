package state_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/agent/state"
	"github.com/portvakt/portvakt/certs"
)

func open(t *testing.T) *state.Dir {
	t.Helper()
	d, err := state.Open(filepath.Join(t.TempDir(), "a", "state"))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func issue(t *testing.T, ca *certs.CA, id string, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	pem, _, err := ca.IssueDevice(id, &key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return pem
}

func newCA(t *testing.T) *certs.CA {
	t.Helper()
	ca, err := certs.OpenCA(certs.CAConfig{Dir: filepath.Join(t.TempDir(), "ca")})
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func TestOpenRefusesDirectoriesOthersMayEnter(t *testing.T) {
	for _, tc := range []struct {
		mode fs.FileMode
		ok   bool
	}{{0o700, true}, {0o500, true}, {0o710, false}, {0o701, false}, {0o755, false}, {0o770, false}, {0o777, false}} {
		dir := filepath.Join(t.TempDir(), "s")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, tc.mode); err != nil {
			t.Fatal(err)
		}
		_, err := state.Open(dir)
		if (err == nil) != tc.ok {
			t.Errorf("mode %o: %v", tc.mode, err)
		}
		if err != nil && !strings.Contains(err.Error(), "chmod 0700 "+dir) {
			t.Errorf("mode %o: the error does not say what to do: %v", tc.mode, err)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(file); err == nil {
		t.Error("a file was taken for a directory")
	}
}

func TestOpenRefusesAnotherOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: only root can give a directory away")
	}
	dir := filepath.Join(t.TempDir(), "s")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, 12345, -1); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Open(dir); err == nil || !strings.Contains(err.Error(), "uid 12345") {
		t.Errorf("got %v", err)
	}
}

func TestDefault(t *testing.T) {
	t.Setenv("PORTVAKT_STATE", "")
	t.Setenv("HOME", "/home/x")
	t.Setenv("XDG_STATE_HOME", "/xdg")
	for _, tc := range []struct{ env, xdg, want string }{
		{"", "/xdg", "/xdg/portvakt"},
		{"", "", "/home/x/.local/state/portvakt"},
		{"", "relative", "/home/x/.local/state/portvakt"}, // XDG: relative paths are to be ignored
		{"/p", "/xdg", "/p"},
	} {
		t.Setenv("PORTVAKT_STATE", tc.env)
		t.Setenv("XDG_STATE_HOME", tc.xdg)
		if got, err := state.Default(); err != nil || got != tc.want {
			t.Errorf("%+v: %q, %v", tc, got, err)
		}
	}
}

func TestEnrolmentRoundTrip(t *testing.T) {
	d, ca := open(t), newCA(t)
	if _, err := d.Load(); !errors.Is(err, state.ErrNotEnrolled) {
		t.Fatalf("before: %v", err)
	}
	key, err := d.EnsureKey(false)
	if err != nil {
		t.Fatal(err)
	}
	again, err := d.EnsureKey(false)
	if err != nil || !again.Equal(key) {
		t.Fatal("a second call made another key", err)
	}
	id := state.Identity{Gateway: "https://g", DeviceID: "d1", EnrolledAt: time.Now().UTC().Truncate(time.Second)}
	if err := d.SaveEnrolment(id, issue(t, ca, "d1", key), ca.RootPEM(), false); err != nil {
		t.Fatal(err)
	}
	c, err := d.Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(id, c.Identity); diff != "" {
		t.Error(diff)
	}
	files, err := os.ReadDir(d.File(""))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, f.Name())
		if st, err := f.Info(); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", f.Name(), st.Mode(), err)
		}
	}
	if diff := cmp.Diff([]string{"ca.pem", "device.key", "device.pem", "identity.json"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestFreshKeyTakesItsPlaceOnlyWithTheEnrolment(t *testing.T) {
	d, ca := open(t), newCA(t)
	old, err := d.EnsureKey(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.SaveEnrolment(state.Identity{Gateway: "https://g", DeviceID: "d1"}, issue(t, ca, "d1", old), ca.RootPEM(), false); err != nil {
		t.Fatal(err)
	}
	fresh, err := d.EnsureKey(true)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := d.Load(); err != nil || !c.Key.Equal(old) {
		t.Fatal("the old enrolment was lost before the new one was there", err)
	}
	if err := d.SaveEnrolment(state.Identity{Gateway: "https://g", DeviceID: "d2"}, issue(t, ca, "d2", fresh), ca.RootPEM(), true); err != nil {
		t.Fatal(err)
	}
	if c, err := d.Load(); err != nil || !c.Key.Equal(fresh) || c.Identity.DeviceID != "d2" {
		t.Fatal("the new enrolment is not in force", err)
	}
}

func TestDamagedFilesAreNamed(t *testing.T) {
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := newCA(t)
	for name, breakIt := range map[string]func(d *state.Dir) error{
		"identity.json": func(d *state.Dir) error { return os.Truncate(d.File(state.FileIdentity), 9) },
		"device.key":    func(d *state.Dir) error { return os.Truncate(d.File(state.FileKey), 60) },
		"device.pem":    func(d *state.Dir) error { return os.Remove(d.File(state.FileDevice)) },
		"ca.pem":        func(d *state.Dir) error { return os.Truncate(d.File(state.FileCA), 0) },
		"not for the key": func(d *state.Dir) error {
			return os.WriteFile(d.File(state.FileDevice), issue(t, ca, "d1", other), 0o600)
		},
		"for device": func(d *state.Dir) error {
			key, err := d.Key()
			if err != nil {
				return err
			}
			return os.WriteFile(d.File(state.FileDevice), issue(t, ca, "d9", key), 0o600)
		},
		"not signed by": func(d *state.Dir) error { return os.WriteFile(d.File(state.FileCA), newCA(t).RootPEM(), 0o600) },
		"chmod 0600":    func(d *state.Dir) error { return os.Chmod(d.File(state.FileKey), 0o640) },
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t)
			key, err := d.EnsureKey(false)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.SaveEnrolment(state.Identity{Gateway: "https://g", DeviceID: "d1"}, issue(t, ca, "d1", key), ca.RootPEM(), false); err != nil {
				t.Fatal(err)
			}
			if err := breakIt(d); err != nil {
				t.Fatal(err)
			}
			_, err = d.Load()
			if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), d.File("")) && !strings.Contains(err.Error(), "key in") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestLock(t *testing.T) {
	d := open(t)
	litter := d.File(".tmp-identity.json-123")
	if err := os.WriteFile(litter, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	release, err := d.Lock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(litter); !errors.Is(err, fs.ErrNotExist) {
		t.Error("what a crash left behind is still there")
	}
	if _, err := d.Lock(); !errors.Is(err, state.ErrLocked) || !strings.Contains(err.Error(), d.File("")) {
		t.Errorf("a second agent: %v", err)
	}
	release()
	release, err = d.Lock()
	if err != nil {
		t.Fatal("after the first is gone:", err)
	}
	release()
}

func TestPortsSurviveAndDamageIsNothing(t *testing.T) {
	d := open(t)
	want := map[string]uint16{"proxy": 9180, "desk/tcp/22": 40022}
	if err := d.SavePorts(want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, d.Ports()); diff != "" {
		t.Error(diff)
	}
	if err := os.WriteFile(d.File(state.FilePorts), []byte(`{"proxy": 99999`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := d.Ports(); len(got) != 0 {
		t.Errorf("from a torn file: %v", got)
	}
}
