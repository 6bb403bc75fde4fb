package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/deploy/systemd"
)

// The laptop's accounts: Anna, who runs the agent and logs in, and somebody
// else.
const (
	annaUID  = 1001
	otherUID = 1002
)

// tunLaptop is an enrolled laptop whose agent runs in TUN mode as an ordinary
// user, with the helper beside it.
type tunLaptop struct {
	*lab
	dir    string // where the accounts may go
	agent  string
	helper *exec.Cmd
	run    *exec.Cmd
}

func newTUNLaptop(t *testing.T) *tunLaptop {
	t.Helper()
	l := &tunLaptop{lab: newLab(t)}
	// `ip netns exec` shows the laptop this one as its /etc/resolv.conf.
	l.must(os.MkdirAll(filepath.Dir(l.resolvConf()), 0o755))
	t.Cleanup(func() { _ = os.RemoveAll(filepath.Dir(l.resolvConf())) })
	l.must(os.WriteFile(l.resolvConf(), []byte(homeDNS), 0o644))
	l.write("apps/wiki.yaml", `name: wiki
title: Wiki
protocol: http
hosts: [wiki.example.com]
upstream: http://127.0.0.1:8081
allow: [127.0.0.1/32]
access:
  - groups: [sales]
`)
	dir, err := os.MkdirTemp("", "pvtun")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l.dir = dir
	l.agent = filepath.Join(dir, "portvakt-agent")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", l.agent, "./cmd/portvakt-agent")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the agent: %v\n%s", err, out)
	}
	for _, d := range []string{"state", "run"} {
		l.must(os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	l.must(os.Chmod(dir, 0o755))
	l.must(os.Chmod(filepath.Join(dir, "state"), 0o700))
	l.must(os.Chown(filepath.Join(dir, "state"), annaUID, annaUID))
	l.as(annaUID, l.agent, "enroll", "https://"+companyAddr, l.admin("invite", "--name", "tun"), "--state", l.state())
	l.startHelper()
	l.startAgent()
	return l
}

func (l *tunLaptop) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// homeDNS is a laptop's resolv.conf at home; the company's machine plays the
// home router as well.
const homeDNS = "# home\nnameserver " + companyAddr + "\noptions edns0 timeout:2\n"

func (l *tunLaptop) resolvConf() string { return filepath.Join("/etc/netns", l.laptop, "resolv.conf") }

func (l *tunLaptop) state() string  { return filepath.Join(l.dir, "state") }
func (l *tunLaptop) socket() string { return filepath.Join(l.dir, "run", "net.sock") }

// command runs a program on the laptop as one of its accounts.
func (l *tunLaptop) command(uid int, args ...string) *exec.Cmd {
	id := strconv.Itoa(uid)
	return exec.Command("ip", append([]string{"netns", "exec", l.laptop, "setpriv", "--reuid", id, "--regid", id, "--clear-groups"}, args...)...)
}

func (l *tunLaptop) try(uid int, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	cmd := l.command(uid, args...)
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })()
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (l *tunLaptop) as(uid int, args ...string) string {
	l.t.Helper()
	out, err := l.try(uid, args...)
	if err != nil {
		l.t.Fatalf("user %d: %s: %v\n%s", uid, strings.Join(args, " "), err, out)
	}
	return out
}

func (l *tunLaptop) begin(name string, cmd *exec.Cmd) *exec.Cmd {
	l.t.Helper()
	out, err := os.OpenFile(filepath.Join(l.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	l.must(err)
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	l.must(cmd.Start())
	l.t.Cleanup(func() {
		l.end(cmd, syscall.SIGTERM)
		if l.t.Failed() {
			data, _ := os.ReadFile(out.Name())
			l.t.Logf("%s said:\n%s", name, data)
		}
	})
	return cmd
}

func (l *tunLaptop) end(cmd *exec.Cmd, sig os.Signal) {
	if err := cmd.Process.Signal(sig); !errors.Is(err, os.ErrProcessDone) {
		_ = cmd.Wait()
	}
}

// startHelper starts one with the privileges that its unit leaves to it.
func (l *tunLaptop) startHelper() {
	bounding := "--bounding-set=-all"
	for _, c := range systemd.NetHelperCapabilities() {
		bounding += ",+" + c
	}
	l.helper = l.begin("helper", l.command(0, "setpriv", "--no-new-privs", bounding, l.agent, "net-helper", "--socket", l.socket(), "--allow-uid", strconv.Itoa(annaUID)))
}

func (l *tunLaptop) startAgent() {
	l.run = l.begin("agent", l.command(annaUID, l.agent, "run", "--tun", "--net-socket", l.socket(), "--state", l.state(),
		"--proxy-addr", "127.0.0.1:9180"))
	l.eventually("the agent is connected", func() error {
		if st := l.status(); st.State != "connected" {
			return fmt.Errorf("the state is %q: %s", st.State, st.Trouble.Message)
		}
		return nil
	})
}

type tunStatus struct {
	State, Mode string
	Trouble     struct{ Message string }
	Tunnel      struct{ Addresses, Gateway []string }
	DNS         struct{ Manager, Problem string }
}

func (l *tunLaptop) status() (st tunStatus) {
	out, err := l.try(annaUID, l.agent, "status", "--json", "--state", l.state())
	if err != nil {
		st.Trouble.Message = out
		return st
	}
	l.must(json.Unmarshal([]byte(out), &st))
	return st
}

func (l *tunLaptop) eventually(what string, f func() error) {
	l.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s: %v", what, err)
		}
	}
}

// login logs Anna in; the company's browser types for her.
func (l *tunLaptop) login() {
	l.t.Helper()
	cmd := l.command(annaUID, l.agent, "login", "--no-browser", "--state", l.state())
	out, err := cmd.StdoutPipe()
	l.must(err)
	l.must(cmd.Start())
	buf := make([]byte, 4096)
	var page string
	for said := ""; page == ""; {
		n, err := out.Read(buf)
		if err != nil {
			l.t.Fatalf("the login prints no address: %q", said)
		}
		said += string(buf[:n])
		page = regexp.MustCompile(`http\S+\n`).FindString(said)
	}
	back := run(l.t, "ip", "netns", "exec", l.company, "curl", "-sSf", "-G", "--data-urlencode", "url="+strings.TrimSpace(page), "http://"+companyAddr+":9999/")
	l.as(annaUID, "curl", "-sSf", "-o", "/dev/null", back)
	l.must(cmd.Wait())
}

// apps returns the first address of each visible app.
func (l *tunLaptop) apps() map[string]string {
	l.t.Helper()
	var list struct {
		Items []struct {
			Name      string
			Addresses []string
		}
	}
	l.must(json.Unmarshal([]byte(l.as(annaUID, l.agent, "apps", "--json", "--state", l.state())), &list))
	out := map[string]string{}
	for _, a := range list.Items {
		out[a.Name] = a.Addresses[0]
	}
	return out
}

// open asks an app by its address, past every proxy.
func (l *tunLaptop) open(uid int, host, addr string) (string, error) {
	return l.try(uid, "curl", "-sS", "-m", "4", "--noproxy", "*", "--cacert", filepath.Join(l.state(), "ca.pem"), "--resolve", host+":443:"+addr, "https://"+host+"/x")
}

func (l *tunLaptop) ip(args ...string) string {
	l.t.Helper()
	return strings.TrimSpace(run(l.t, "ip", append([]string{"-n", l.laptop}, args...)...))
}

// leftovers are what TUN mode changes on a laptop.
func (l *tunLaptop) leftovers() string {
	var left []string
	for _, f := range []string{"-4", "-6"} {
		for line := range strings.Lines(l.ip(f, "rule")) {
			if !strings.Contains(line, "lookup local") && !strings.Contains(line, "lookup main") && !strings.Contains(line, "lookup default") {
				left = append(left, strings.TrimSpace(line))
			}
		}
		for _, table := range []string{"20714", "20715"} {
			out, _ := exec.Command("ip", "-n", l.laptop, f, "route", "show", "table", table).Output()
			if s := strings.TrimSpace(string(out)); s != "" {
				left = append(left, s)
			}
		}
	}
	if out, err := exec.Command("ip", "-n", l.laptop, "link", "show", "portvakt0").CombinedOutput(); err == nil {
		left = append(left, string(out))
	}
	if out, err := exec.Command("ip", "netns", "exec", l.laptop, "nft", "list", "tables").CombinedOutput(); err != nil || len(out) != 0 {
		left = append(left, fmt.Sprintf("nftables %v: %s", err, out))
	}
	if text, err := os.ReadFile(l.resolvConf()); err != nil || string(text) != homeDNS {
		left = append(left, fmt.Sprintf("resolv.conf %v: %s", err, text))
	}
	return strings.Join(left, "\n")
}

func (l *tunLaptop) clean(after string) {
	l.t.Helper()
	l.eventually("nothing is left after "+after, func() error {
		if s := l.leftovers(); s != "" {
			return errors.New(s)
		}
		return nil
	})
}

// TestTUN is a laptop in TUN mode from enrolment to its crashes.
func TestTUN(t *testing.T) {
	need(t, "ip", "curl", "setpriv", "nft")
	l := newTUNLaptop(t)
	if st := l.status(); st.Mode != "tun" {
		t.Errorf("the mode is %q", st.Mode)
	}
	l.login()
	var wiki string
	l.eventually("the wiki is visible", func() error {
		if wiki = l.apps()["wiki"]; wiki == "" {
			return errors.New("no wiki")
		}
		return nil
	})
	works := func(when string) {
		t.Helper()
		l.eventually("the wiki answers "+when, func() error {
			out, err := l.open(annaUID, "wiki.example.com", wiki)
			if err == nil && !strings.Contains(out, "app sees /x") {
				err = errors.New("another page")
			}
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
	works("at first")

	t.Run("exactly the apps are routed", func(t *testing.T) {
		want := append(l.status().Tunnel.Gateway, "")
		for _, a := range l.apps() {
			want = append(want, a)
		}
		for line := range strings.Lines(l.ip("route", "show", "table", "20714")) {
			f := strings.Fields(line)
			if strings.Contains(f[0], "/") || !strings.Contains(strings.Join(want, " ")+" ", f[0]+" ") {
				t.Errorf("routed: %s", line)
			}
		}
		if out := l.ip("route", "show", "dev", "portvakt0"); out != "" {
			t.Errorf("the main table has %s", out)
		}
	})
	t.Run("the gateway is asked for names", func(t *testing.T) {
		if d := l.status().DNS; d.Manager != "resolv.conf" || d.Problem != "" {
			t.Errorf("DNS is %+v", d)
		}
		text, err := os.ReadFile(l.resolvConf())
		l.must(err)
		if gw, home := strings.Index(string(text), "nameserver 100.96.0.1\n"), strings.Index(string(text), "nameserver "+companyAddr); gw < 0 || gw > home {
			t.Errorf("resolv.conf is %s", text)
		}
		// And it answers, whoever on the laptop asks; the home's server is there
		// for the names it refuses.
		l.eventually("the wiki's name resolves", func() error {
			out, err := l.try(annaUID, "getent", "ahosts", "wiki.example.com")
			if err == nil && !strings.Contains(out, wiki) {
				err = errors.New("another address")
			}
			if err != nil {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
		if out := l.as(annaUID, "getent", "ahostsv4", "nowhere.example.com"); !strings.HasPrefix(out, homeAddr) {
			t.Errorf("a name of no app is %s", out)
		}
	})
	t.Run("by name, through the kernel", func(t *testing.T) {
		const url = "https://wiki.example.com/by-name"
		ask := []string{"curl", "-sS", "-m", "5", "--noproxy", "*", "--cacert", filepath.Join(l.state(), "ca.pem")}
		if out := l.as(annaUID, append(ask, url)...); !strings.Contains(out, "app sees /by-name assertion=true") {
			t.Errorf("the wiki by its name: %s", out)
		}
		if out, err := l.try(otherUID, append(ask, url)...); err == nil {
			t.Errorf("another account got %s", out)
		}
		// The gateway refuses names that are no apps', and the home's server
		// is asked.
		for _, uid := range []int{annaUID, otherUID} {
			if out := l.as(uid, "getent", "ahostsv4", "www.home.example"); !strings.HasPrefix(out, homeAddr) {
				t.Errorf("user %d: another name is %s", uid, out)
			}
		}
		asked := run(t, "ip", "netns", "exec", l.company, "curl", "-sSf", "http://"+companyAddr+":9998/")
		if strings.Contains(asked, "wiki.example.com.") || !strings.Contains(asked, "www.home.example.") {
			t.Errorf("the home's server was asked for %s", asked)
		}
	})
	t.Run("the LAN claims the app", func(t *testing.T) {
		// DHCP option 121, TunnelVision: as specific as it gets.
		l.ip("route", "add", wiki+"/32", "dev", "wan", "metric", "1")
		works("past the LAN's route")
		if out, err := l.open(otherUID, "wiki.example.com", wiki); err == nil {
			t.Errorf("another account got %s", out)
		}
		if out := l.ip("neigh", "show", "dev", "wan"); strings.Contains(out, wiki) {
			t.Errorf("a packet for the app was about to leave on the LAN: %s", out)
		}
		l.ip("route", "del", wiki+"/32", "dev", "wan", "metric", "1")
		// An address of nobody's shows that this is how one would be seen.
		const nobodys = "100.96.77.77"
		l.ip("route", "add", nobodys+"/32", "dev", "wan")
		if out, err := l.open(annaUID, "wiki.example.com", nobodys); err == nil {
			t.Errorf("nobody's address answered %s", out)
		}
		if out := l.ip("neigh", "show", "dev", "wan"); !strings.Contains(out, nobodys) {
			t.Errorf("a packet that left on the LAN does not show: %s", out)
		}
		l.ip("route", "del", nobodys+"/32", "dev", "wan")
	})
	t.Run("a neighbour finds nothing", func(t *testing.T) {
		own := l.status().Tunnel.Addresses[0]
		run(t, "ip", "-n", l.company, "route", "add", own+"/32", "via", laptopAddr)
		ask := func(addr string) string {
			out, _ := exec.Command("ip", "netns", "exec", l.company, "curl", "-sS", "-m", "2", "http://"+addr+":1/").CombinedOutput()
			return string(out)
		}
		if out := ask(own); !strings.Contains(out, "timed out") {
			t.Errorf("from the LAN the laptop's own address answers %s", out)
		}
		if out := ask(laptopAddr); strings.Contains(out, "timed out") {
			t.Errorf("no answer at all from the LAN shows nothing: %s", out)
		}
	})
	t.Run("another account is refused", func(t *testing.T) {
		for _, uid := range []int{otherUID, 0} {
			if out, err := l.open(uid, "wiki.example.com", wiki); err == nil {
				t.Errorf("user %d got %s", uid, out)
			}
		}
		if out, err := l.try(otherUID, l.agent, "net-helper", "--allow-uid", "0"); err == nil || !strings.Contains(out, "must run as root") {
			t.Errorf("a helper of another account: %v %s", err, out)
		}
	})
	t.Run("agent killed", func(t *testing.T) {
		l.end(l.run, syscall.SIGKILL)
		l.clean("the agent was killed")
		l.startAgent()
		works("with a new agent")
	})
	t.Run("helper killed", func(t *testing.T) {
		l.end(l.helper, syscall.SIGKILL)
		l.startHelper()
		works("with a new helper")
	})
	t.Run("both killed", func(t *testing.T) {
		l.end(l.helper, syscall.SIGKILL)
		l.end(l.run, syscall.SIGKILL)
		if l.leftovers() == "" {
			t.Error("killing both left nothing behind, so this test proves nothing")
		}
		l.startHelper()
		l.clean("a new helper came up")
		l.startAgent()
		works("after both were killed")
	})
	t.Run("stopped", func(t *testing.T) {
		l.end(l.run, syscall.SIGTERM)
		l.clean("the agent ended")
	})
	t.Run("as root", func(t *testing.T) {
		l.end(l.helper, syscall.SIGTERM)
		l.must(exec.Command("chown", "-R", "root:root", l.state()).Run())
		agent := func() *exec.Cmd {
			cmd := l.begin("root", l.command(0, l.agent, "run", "--tun", "--state", l.state(), "--proxy-addr", "127.0.0.1:9180"))
			l.eventually("the agent is connected", func() error {
				out, err := l.try(0, l.agent, "status", "--json", "--state", l.state())
				if err != nil || !strings.Contains(out, `"state": "connected"`) {
					return fmt.Errorf("%w: %s", err, out)
				}
				return nil
			})
			l.eventually("the gateway is routed", func() error {
				if !strings.Contains(l.ip("route", "show", "table", "20714"), "100.96.0.1") {
					return errors.New("no route")
				}
				return nil
			})
			return cmd
		}
		l.end(agent(), syscall.SIGKILL)
		l.clean("an agent with a helper of its own was killed")
		l.end(agent(), syscall.SIGTERM)
		l.clean("an agent with a helper of its own ended")
	})
}
