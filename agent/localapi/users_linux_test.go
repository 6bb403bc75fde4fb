package localapi_test

import (
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/portvakt/portvakt/internal/wire"
)

// Two people share the laptop: what each may do depends on whose agent it is
// and on who is logged in.
func TestOtherUsers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it calls as two other users")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := copyFor(t, exe)
	const anna, bo = 12001, 12002
	annas := &wire.Session{OSUser: "12001:anna"}
	annasCall := &wire.Finish{OSUser: "12001:anna"}
	own := `limited=false session=true device="dev-1"`
	for _, tc := range []struct {
		agent   uint32
		session *wire.Session
		finish  *wire.Finish
		uid     uint32
		want    map[string]string
	}{
		{0, annas, nil, anna, map[string]string{"status": own, "apps": "ok", "why": "ok", "login": "ok", "logout": "ok"}},
		{0, annas, nil, 0, map[string]string{"status": own, "logout": "ok"}},
		{0, annas, nil, bo, map[string]string{
			"status": `limited=true session=false device=""`, "apps": "refused not_your_session", "why": "refused not_your_session",
			"login": "refused not_your_session", "logout": "refused not_your_session",
		}},
		{0, nil, nil, bo, map[string]string{"status": `limited=false session=false device="dev-1"`, "login": "ok"}},
		{0, nil, annasCall, bo, map[string]string{
			"status": `limited=true session=false device=""`, "apps": "refused not_your_session", "why": "refused not_your_session",
			"login": "refused not_your_session", "logout": "refused not_your_session",
		}},
		{0, nil, annasCall, anna, map[string]string{"status": `limited=false session=false device="dev-1"`, "login": "ok", "logout": "ok"}},
		{0, nil, &wire.Finish{}, bo, map[string]string{"logout": "refused not_your_session"}}, // nobody knows whose
		{anna, annas, nil, bo, map[string]string{"status": "failed", "login": "failed"}},
		{anna, annas, nil, 0, map[string]string{"status": own, "login": "refused not_your_agent", "logout": "ok"}},
	} {
		f := &fixture{session: tc.session, finish: tc.finish}
		serve(t, tc.agent, f)
		calls := slices.Sorted(maps.Keys(tc.want))
		cmd := exec.Command(bin)
		cmd.Env = []string{"PORTVAKT_TEST_CALL=" + strings.Join(calls, ","), "PORTVAKT_TEST_SOCKET=" + f.path}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: tc.uid, Gid: tc.uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatal(err, string(out))
		}
		said := strings.Split(strings.TrimSpace(string(out)), "\n")
		for i, call := range calls {
			if got, want := said[i], tc.want[call]; got != want && (want != "failed" || !strings.HasPrefix(got, "failed")) {
				t.Errorf("agent of %d, session %v, finish %v, caller %d, %s: %s", tc.agent, tc.session, tc.finish, tc.uid, call, got)
			}
		}
	}
}

// copyFor puts the test binary where another user may run it.
func copyFor(t *testing.T, exe string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "call")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(bin, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	return bin
}
