package e2e

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// rootless is an enrolled laptop whose agent runs without an interface.
type rootless struct {
	*lab
	agent, state string
	stop         func() // the agent
}

func newRootless(t *testing.T, l *lab) *rootless {
	t.Helper()
	r := &rootless{lab: l, agent: filepath.Join(l.dir, "portvakt-agent"), state: filepath.Join(l.dir, "state")}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", r.agent, "./cmd/portvakt-agent")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}
	r.must(r.command("enroll", "https://"+companyAddr, l.admin("invite", "--name", "rootless"), "--state", r.state).CombinedOutput())
	return r
}

func (r *rootless) must(out []byte, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
}

// command runs the agent on the laptop.
func (r *rootless) command(args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", r.laptop, r.agent}, args...)...)
}

// start runs the agent until the test ends.
func (r *rootless) start(env ...string) {
	r.t.Helper()
	cmd := r.command("run", "--state", r.state, "--proxy-addr", "127.0.0.1:0", "--log-level", "debug")
	cmd.Env = append(os.Environ(), env...)
	out, err := os.Create(filepath.Join(r.dir, "agent.log"))
	r.must(nil, err)
	cmd.Stdout, cmd.Stderr = out, out
	r.must(nil, cmd.Start())
	r.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	r.t.Cleanup(func() {
		r.stop()
		out.Close()
		if r.t.Failed() {
			data, _ := os.ReadFile(out.Name())
			r.t.Logf("the agent said:\n%s", data)
		}
	})
}

// agentStatus is what `status --json` says, as far as a test looks.
type agentStatus struct {
	State  string    `json:"state"`
	Since  time.Time `json:"since"`
	Tunnel *struct {
		MTU             int    `json:"mtu"`
		Transport       string `json:"transport"`
		TransportReason string `json:"transport_reason"`
		PostQuantum     bool   `json:"post_quantum"`
	} `json:"tunnel"`
	Trouble *struct {
		Code, Message string
	} `json:"trouble"`
	Location struct {
		Address string `json:"address"`
	} `json:"location"`
}

func (r *rootless) status() (st agentStatus) {
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	cmd := r.command("status", "--state", r.state, "--json")
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	out, _ := cmd.Output()
	_ = json.Unmarshal(out, &st)
	return st
}

// reaches waits until the status is as wanted.
func (r *rootless) reaches(what string, within time.Duration, ok func(agentStatus) bool) agentStatus {
	r.t.Helper()
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		st := r.status()
		if ok(st) {
			r.t.Logf("%s after %v", what, time.Since(begun).Round(10*time.Millisecond))
			return st
		}
		if time.Since(begun) > within {
			out, _ := json.Marshal(st)
			r.t.Fatalf("not %s within %v: %s", what, within, out)
		}
	}
}

func on(transport string) func(agentStatus) bool {
	return func(st agentStatus) bool {
		return st.State == "connected" && st.Tunnel != nil && st.Tunnel.Transport == transport
	}
}

// block makes the company's firewall drop the tunnel's UDP, both ways.
func (l *lab) block() {
	l.t.Helper()
	run(l.t, "ip", "netns", "exec", l.company, "nft", `table inet pv {
	chain in { type filter hook input priority 0; udp dport 51820 drop; }
	chain out { type filter hook output priority 0; udp sport 51820 drop; }
}`)
}

func (l *lab) unblock() {
	l.t.Helper()
	run(l.t, "ip", "netns", "exec", l.company, "nft", "delete table inet pv")
}

// TestUDPBlockedAndBack starts a laptop where UDP is blocked, lets UDP through,
// and blocks it again. The event stream, a TCP connection inside the tunnel, is
// the same from beginning to end, or the agent would have connected anew.
func TestUDPBlockedAndBack(t *testing.T) {
	need(t, "ip", "nft")
	l := newLab(t)
	l.block()
	r := newRootless(t, l)
	r.start()
	st := r.reaches("connected by WebSocket", 4*time.Second, on("websocket"))
	if !strings.Contains(st.Tunnel.TransportReason, companyAddr+":51820") || !st.Tunnel.PostQuantum || st.Location.Address != laptopAddr {
		t.Errorf("status %+v %+v", st, *st.Tunnel)
	}
	since := st.Since
	text, err := r.command("status", "--state", r.state).Output()
	if err != nil || !strings.Contains(string(text), "WebSocket: UDP to "+companyAddr) {
		t.Errorf("status in words: %v\n%s", err, text)
	}
	for range 2 {
		l.unblock()
		r.reaches("back on UDP", 30*time.Second, on("udp"))
		l.block()
		r.reaches("on a WebSocket again", 15*time.Second, on("websocket"))
		// Alive means that the gateway still hears of it.
		time.Sleep(6 * time.Second)
	}
	if st = r.status(); st.State != "connected" || !st.Since.Equal(since) {
		t.Errorf("the connection inside did not last: %s since %v, was %v", st.State, st.Since, since)
	}
}

// TestOuterMTUOf1280 has a network that loses datagrams longer than an outer MTU
// of 1,280 bytes and sends no ICMP about it, and one whose links are that short.
func TestOuterMTUOf1280(t *testing.T) {
	need(t, "ip", "nft")
	l := newLab(t)
	run(t, "ip", "netns", "exec", l.company, "nft", `table inet pv {
	chain in { type filter hook input priority 0; meta l4proto udp meta length > 1280 drop; }
	chain out { type filter hook output priority 0; meta l4proto udp meta length > 1280 drop; ip protocol icmp drop; }
}`)
	r := newRootless(t, l)
	r.start()
	fits := func(mtu int) func(agentStatus) bool {
		return func(st agentStatus) bool { return on("udp")(st) && st.Tunnel.MTU == mtu }
	}
	r.reaches("on UDP with what fits", 15*time.Second, fits(1216))
	run(t, "ip", "netns", "exec", l.company, "nft", "delete table inet pv")
	r.stop()
	for _, ns := range []string{l.company, l.laptop} {
		run(t, "ip", "-n", ns, "link", "set", "wan", "mtu", "1280")
	}
	r.start()
	r.reaches("on UDP over short links", 15*time.Second, fits(1280)) // cut up by the two ends themselves
}
