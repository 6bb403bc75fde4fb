package loopback_test

import (
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/agent/loopback"
)

const nobody = 65534

func reachAs(t *testing.T, uid uint32, kind, addr string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"LOOPBACK_CLIENT=" + kind + "/" + addr}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func roads(t *testing.T, s *loopback.Server) map[string]string {
	return map[string]string{"http": proxyOf(s), "connect": proxyOf(s), "socks": proxyOf(s), "tcp": portOf(t, s, "desk"), "udp": portOf(t, s, "voice")}
}

// Who logged in passes on every road, any other account on none; root is
// another account too.
func TestOnlyTheAllowedUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a second user is impersonated")
	}
	for name, who := range map[string]struct{ allowed, other uint32 }{
		"nobody logged in": {nobody, 0},
		"root logged in":   {0, nobody},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			s := serve(t, loopback.Config{Dial: g.dial, UserAllowed: func(uid uint32) bool { return uid == who.allowed }}, crm, desk, voice)
			want := map[string]string{"http": "got HTTP/1.1 200 OK", "connect": "got crm:hi", "socks": "got crm:hi", "tcp": "got desk:hi", "udp": "got voice:hi"}
			for kind, addr := range roads(t, s) {
				if got := reachAs(t, who.other, kind, addr); got != "refused" {
					t.Errorf("%s: user %d got %q, want a refusal", kind, who.other, got)
				}
			}
			for key := range g.real {
				if n := g.count(key); n != 0 {
					t.Errorf("the refused user caused %d dials of %s", n, key)
				}
			}
			for kind, addr := range roads(t, s) {
				if got := reachAs(t, who.allowed, kind, addr); got != want[kind] {
					t.Errorf("%s: user %d got %q, want %q", kind, who.allowed, got, want[kind])
				}
			}
		})
	}
}

// A logout cuts what is open on every road, and nothing new gets through.
func TestUsersChangedCutsOpenConnections(t *testing.T) {
	loopback.SetBounds(t, time.Second, time.Second, time.Minute, time.Minute)
	g := newGateway(t)
	var out atomic.Bool
	s := serve(t, loopback.Config{Dial: g.dial, UserAllowed: func(uint32) bool { return !out.Load() }}, crm, desk, voice)
	tunnel := connectTo(t, s, "crm.example.test:443")
	tcp := dial(t, "tcp", portOf(t, s, "desk"))
	udp := dial(t, "udp", portOf(t, s, "voice"))
	idle := dial(t, "tcp", proxyOf(s))
	wantEcho(t, tunnel, "crm:")
	wantEcho(t, tcp, "desk:")
	wantEcho(t, udp, "voice:")
	out.Store(true)
	s.UsersChanged()
	wantCut(t, tunnel)
	wantCut(t, tcp)
	wantCut(t, idle)
	udp.Write([]byte("hi\n"))
	wantSilence(t, udp)
}

// A port that one program frees may be another account's the next moment.
func TestUDPOwnerIsCheckedAgain(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a second user is impersonated")
	}
	loopback.SetBounds(t, time.Second, time.Second, time.Minute, 20*time.Millisecond)
	g := newGateway(t)
	s := serve(t, loopback.Config{Dial: g.dial, UserAllowed: func(uid uint32) bool { return uid == 0 }}, voice)
	first := dial(t, "udp", portOf(t, s, "voice"))
	wantEcho(t, first, "voice:")
	local := first.LocalAddr().String()
	first.Close()
	time.Sleep(30 * time.Millisecond)

	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"LOOPBACK_CLIENT=udpfrom/" + portOf(t, s, "voice") + "/" + local}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	got, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != "refused" {
		t.Errorf("the next owner of %s got %q on the old one's flow", local, got)
	}
}
