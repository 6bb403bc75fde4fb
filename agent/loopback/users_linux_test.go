package loopback_test

import (
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/agent/loopback"
	"github.com/portvakt/portvakt/internal/wire"
)

const nobody = 65534

// reachAs uses roads ("tcp/ADDR") as another user and returns what each gave.
func reachAs(t *testing.T, uid uint32, roads ...string) map[string]string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"LOOPBACK_CLIENT=" + strings.Join(roads, " ")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, l := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		kind, answer, _ := strings.Cut(l, " ")
		got[kind] = answer
	}
	return got
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
			g, in := newGateway(t), newInside(t, "10.99.0.18:7001")
			s := serve(t, loopback.Config{Dial: g.dial, ListenUDP: in.listen, UserAllowed: func(uid uint32) bool { return uid == who.allowed }}, crm, desk, voice)
			roads := []string{"associate/" + proxyOf(s), "http/" + proxyOf(s), "connect/" + proxyOf(s), "socks/" + proxyOf(s), "tcp/" + portOf(t, s, "desk"), "udp/" + portOf(t, s, "voice")}
			refused := map[string]string{"associate": "refused", "http": "refused", "connect": "refused", "socks": "refused", "tcp": "refused", "udp": "refused"}
			if d := cmp.Diff(refused, reachAs(t, who.other, roads...)); d != "" {
				t.Errorf("user %d: %s", who.other, d)
			}
			for key := range g.real {
				if n := g.count(key); n != 0 {
					t.Errorf("the refused user caused %d dials of %s", n, key)
				}
			}
			want := map[string]string{"http": "HTTP/1.1 200 OK", "connect": "crm:hi", "socks": "crm:hi", "tcp": "desk:hi", "udp": "voice:hi"}
			got := reachAs(t, who.allowed, roads...)
			if f := strings.Fields(got["associate"]); len(f) != 3 || f[0] != "10.99.0.18:7001" || f[2] != "hi" {
				t.Errorf("the association carried %q", got["associate"])
			}
			delete(got, "associate")
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("user %d: %s", who.allowed, d)
			}
		})
	}
}

// An association is for who asked for it, also before their first datagram.
func TestAssociationIsNotTaken(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a second user is impersonated")
	}
	in := newInside(t, "10.99.0.18:7001")
	s := serve(t, loopback.Config{Dial: newGateway(t).dial, ListenUDP: in.listen, UserAllowed: func(uid uint32) bool { return uid == 0 }}, voice)
	u := associate(t, proxyOf(s))
	if got := reachAs(t, nobody, "relay/"+u.relay.String()); got["relay"] != "refused" {
		t.Errorf("another account's datagram was answered with %q", got["relay"])
	}
	u.wantEcho("10.99.0.18", 7001, "10.99.0.18:7001")
}

// A logout cuts what is open on every road, and nothing new gets through.
func TestALogoutCutsOpenConnections(t *testing.T) {
	loopback.SetBounds(t, time.Second, time.Second, time.Minute, time.Minute)
	g := newGateway(t)
	var out atomic.Bool
	in := newInside(t, "10.99.0.18:7001")
	s := serve(t, loopback.Config{Dial: g.dial, ListenUDP: in.listen, UserAllowed: func(uint32) bool { return !out.Load() }}, crm, desk, voice)
	call := associate(t, proxyOf(s))
	call.wantEcho("10.99.0.18", 7001, "10.99.0.18:7001")
	tunnel := connectTo(t, s, "crm.example.test:443")
	tcp := dial(t, "tcp", portOf(t, s, "desk"))
	udp := dial(t, "udp", portOf(t, s, "voice"))
	idle := dial(t, "tcp", proxyOf(s))
	wantEcho(t, tunnel, "crm:")
	wantEcho(t, tcp, "desk:")
	wantEcho(t, udp, "voice:")
	out.Store(true)
	s.SetApps([]wire.App{crm, desk, voice})
	wantCut(t, tunnel)
	wantCut(t, tcp)
	wantCut(t, idle)
	wantCut(t, call.control)
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

	got := reachAs(t, nobody, "udpfrom/"+portOf(t, s, "voice")+"/"+local)
	if got["udpfrom"] != "refused" {
		t.Errorf("the next owner of %s got %q on the old one's flow", local, got)
	}
}
