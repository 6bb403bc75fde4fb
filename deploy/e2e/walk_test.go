// Package e2e plays whole roads against real binaries and real peers.
package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/deploy/demo/idp"
	"github.com/portvakt/portvakt/deploy/idplogin"
)

// The walk happens in two network namespaces joined by one cable: the company
// (gateway, identity provider, apps) and the laptop (Debian's wireguard-go).
const (
	companyAddr = "198.18.0.1"
	laptopAddr  = "198.18.0.2"
	issuer      = "http://127.0.0.1:5556/dex" // loopback of the company's namespace
	roleEnv     = "PORTVAKT_E2E_ROLE"
)

func TestMain(m *testing.M) {
	role := os.Getenv(roleEnv)
	if role == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	play := site
	if role == "laptop" {
		play = func(ctx context.Context) error { return laptopRole(ctx, os.Args[1], os.Args[2], os.Args[3]) }
	}
	if err := play(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// site is what the company has besides the gateway: a Dex, a web app, and a
// browser that logs in for the laptop.
func site(ctx context.Context) error {
	dex, err := idp.New(ctx, idp.Config{
		Issuer: issuer, ClientID: "portvakt",
		People: []idp.Person{{Name: "Anna Berg", Email: "anna@demo.example", Password: "anna", Groups: []string{"sales"}}},
	})
	if err != nil {
		return err
	}
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "app sees %s assertion=%t\n", r.URL.Path, r.Header.Get("Portvakt-Assertion") != "")
	})
	browser := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		back, err := idplogin.Login(r.Context(), r.URL.Query().Get("url"), "anna@demo.example", "anna")
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		fmt.Fprint(w, back)
	})
	home, err := startHomeDNS(companyAddr + ":53")
	if err != nil {
		return err
	}
	defer home.Close()
	failed := make(chan error, 8)
	endless(ctx, failed)
	for addr, h := range map[string]http.Handler{"127.0.0.1:5556": dex, "127.0.0.1:8081": app, companyAddr + ":9999": browser, companyAddr + ":9998": home} {
		srv := &http.Server{Addr: addr, Handler: h, ReadHeaderTimeout: 5 * time.Second}
		go func() { failed <- srv.ListenAndServe() }()
		defer srv.Close()
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// need skips a test that this machine cannot run, and says what is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (Debian: apt-get install iproute2 wireguard-go wireguard-tools curl openssl jq bind9-dnsutils strace)", p)
		}
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		t.Skip("needs /dev/net/tun")
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// lab is the two namespaces with a gateway running in one of them.
type lab struct {
	t               *testing.T
	dir             string
	company, laptop string // names of the namespaces
	gateway, gwLog  string
	config          string
}

// newLab takes further lines of gateway.yaml.
func newLab(t *testing.T, config ...string) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir(), company: fmt.Sprintf("pvco%d", os.Getpid()), laptop: fmt.Sprintf("pvla%d", os.Getpid())}
	for _, ns := range []string{l.company, l.laptop} {
		run(t, "ip", "netns", "add", ns)
		t.Cleanup(func() {
			out, _ := exec.Command("ip", "netns", "pids", ns).Output()
			for _, pid := range strings.Fields(string(out)) {
				_ = exec.Command("kill", pid).Run()
			}
			_ = exec.Command("ip", "netns", "del", ns).Run()
		})
		run(t, "ip", "-n", ns, "link", "set", "lo", "up")
	}
	run(t, "ip", "link", "add", "wan", "netns", l.company, "type", "veth", "peer", "name", "wan", "netns", l.laptop)
	for ns, addr := range map[string]string{l.company: companyAddr, l.laptop: laptopAddr} {
		run(t, "ip", "-n", ns, "address", "add", addr+"/24", "dev", "wan")
		run(t, "ip", "-n", ns, "link", "set", "wan", "up")
	}
	l.gateway = filepath.Join(l.dir, "portvakt-gateway")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", l.gateway, "./cmd/portvakt-gateway")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the gateway: %v\n%s", err, out)
	}
	l.start(config...)
	return l
}

func (l *lab) write(name, text string) string {
	l.t.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		l.t.Fatal(err)
	}
	return path
}

func (l *lab) start(config ...string) {
	l.t.Helper()
	l.write("apps/crm.yaml", `name: crm
title: CRM
protocol: http
hosts: [crm.example.com]
upstream: http://127.0.0.1:8081
allow: [127.0.0.1/32]
access:
  - groups: [sales]
    posture: {disk_encryption: pass, host_firewall: pass}
`)
	l.write("apps/payments.yaml", `name: payments
title: Payments
protocol: http
hosts: [pay.example.com]
upstream: http://127.0.0.1:8081
allow: [127.0.0.1/32]
access:
  - groups: [finance]
`)
	l.config = l.write("gateway.yaml", `data_dir: data
public: {listen: "`+companyAddr+`:443", url: "https://`+companyAddr+`"}
health: {listen: "127.0.0.1:9100"}
identity: {issuer: "`+issuer+`", client_id: portvakt}
policy: {directory: apps}
`+strings.Join(config, "\n"))
	self, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	l.background("site", "env", roleEnv+"=site", self)
	l.gwLog = l.background("gateway", l.gateway, "serve", "--config", l.config)
	l.waitFor("the gateway", "curl", "-sf", "http://127.0.0.1:9100/readyz")
	l.waitFor("the identity provider", "curl", "-sf", issuer+"/.well-known/openid-configuration")
}

// background starts a program in the company's namespace until the test ends,
// and returns the path of its output.
func (l *lab) background(name string, args ...string) string {
	l.t.Helper()
	out, err := os.Create(filepath.Join(l.dir, name+".log"))
	if err != nil {
		l.t.Fatal(err)
	}
	cmd := exec.Command("ip", append([]string{"netns", "exec", l.company}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		out.Close()
		if l.t.Failed() {
			data, _ := os.ReadFile(out.Name())
			l.t.Logf("%s said:\n%s", name, data)
		}
	})
	return out.Name()
}

func (l *lab) waitFor(what string, args ...string) {
	l.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		out, err := exec.Command("ip", append([]string{"netns", "exec", l.company}, args...)...).CombinedOutput()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s is not up: %v %s", what, err, out)
		}
	}
}

// admin runs an administrator's command.
func (l *lab) admin(args ...string) string {
	l.t.Helper()
	cmd := exec.CommandContext(l.t.Context(), l.gateway, append(args, "--config", l.config)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("portvakt-gateway %s: %v %s", strings.Join(args, " "), err, stderr.String())
	}
	return strings.TrimSpace(string(out))
}

// hand runs a shell script on the laptop, in one directory that goes on from
// script to script, and returns what it printed.
func (l *lab) hand(script string) string {
	l.t.Helper()
	work := filepath.Join(l.dir, "laptop")
	if err := os.MkdirAll(work, 0o700); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", l.laptop, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = work
	// wireguard-go stays behind as a daemon with our pipes: do not wait for it.
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil && !strings.Contains(err.Error(), "WaitDelay") {
		l.t.Fatalf("by hand: %v\n%s", err, out)
	}
	return string(out)
}

var shellBlock = regexp.MustCompile("(?s)```sh\n(.*?)```")

// walk returns the shell commands of docs/protocol.md, in their order, with the
// reader's own values filled in: a person's code, host and browser.
func walk(t *testing.T, code string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	var script strings.Builder
	for _, m := range shellBlock.FindAllStringSubmatch(string(page), -1) {
		script.WriteString(m[1])
		if strings.Contains(m[1], "> login.json") {
			// The reader opens the page in a browser; here the company's
			// namespace has one.
			script.WriteString(`CALLBACK=$(curl -sSf -G --data-urlencode "url=$(jq -r .url login.json)" http://` + companyAddr + `:9999/)
AUTH_CODE=$(echo "$CALLBACK" | sed 's/.*[?&]code=\([^&]*\).*/\1/'); STATE=$(echo "$CALLBACK" | sed 's/.*[?&]state=\([^&]*\).*/\1/')
`)
		}
		script.WriteString("echo ---\n")
	}
	text := script.String()
	for _, own := range [][2]string{
		{`CODE='pv1.…'`, "CODE='" + code + "'"},
		{"HOST=gateway.example.com", "HOST=" + companyAddr},
	} {
		if strings.Count(text, own[0]) != 1 {
			t.Fatalf("docs/protocol.md has %q %d times", own[0], strings.Count(text, own[0]))
		}
		text = strings.Replace(text, own[0], own[1], 1)
	}
	return text
}

// TestWalkByHand does what docs/protocol.md says, exactly as it says it: with
// openssl, curl, jq and Debian's wireguard-go and wg a person enrols, renews,
// connects, logs in, reports posture and uses an app. Then security and IT do
// their part.
func TestWalkByHand(t *testing.T) {
	need(t, "ip", "wireguard-go", "wg", "curl", "openssl", "jq", "dig")
	for _, mode := range []string{"userspace", "tun"} {
		t.Run(mode, func(t *testing.T) { walkByHand(t, newLab(t, "tunnel: {mode: "+mode+"}")) })
	}
}

func walkByHand(t *testing.T, l *lab) {
	code := l.admin("invite", "--name", "by-hand")
	_, hash, _ := strings.Cut(strings.TrimPrefix(code, "pv1."), ".")
	script := walk(t, code)
	out := l.hand(script)
	steps := strings.Split(out, "---\n")
	if !strings.Contains(steps[0], hash) {
		t.Errorf("the CA's hash by hand is %q, the code's is %s", steps[0], hash)
	}
	if !strings.Contains(out, "app sees / assertion=true") {
		t.Errorf("the app was not reached:\n%s", out)
	}
	if last := steps[len(steps)-2]; !strings.Contains(last, "100.96.0.16") {
		t.Errorf("the app's name is %q, want its address", last)
	}

	again := script[strings.Index(script, "get() {"):]
	again = again[:strings.Index(again, "\n")+1] + `GW=http://$(get '.gateway.addresses[0]')
pt() { curl -sS -m 10 -H "Portvakt-Control-Token: $(get .control_token)" "$@"; }
`
	if why := l.hand(again + `pt "$GW/v1/why?app=payments"`); !strings.Contains(why, `"reason":"group_not_allowed"`) {
		t.Errorf("why not payments: %s", why)
	}
	if got := l.hand(again + `curl -s -o /dev/null -w '%{http_code}' -H 'Origin: https://evil.example' -H "Portvakt-Control-Token: $(get .control_token)" $GW/v1/state`); got != "403" {
		t.Errorf("a web page's call to the control API: %s", got)
	}
	// A key that is not registered: silence. Not one byte comes back.
	silent := l.hand(`wireguard-go pv1 2>/dev/null; until wg show pv1 >/dev/null 2>&1; do sleep 0.1; done
umask 077; wg genkey > stranger.key
wg set pv1 private-key stranger.key peer "$(jq -r .gateway.tunnel_key connected.json)" endpoint ` + companyAddr + `:51820 persistent-keepalive 1 allowed-ips 100.96.0.1/32
ip link set pv1 up; sleep 3; wg show pv1 transfer; ip link del pv1`)
	if f := strings.Fields(silent); len(f) != 3 || f[1] != "0" || f[2] == "0" {
		t.Errorf("a stranger's key got %q (peer, received, sent)", silent)
	}
	device := regexp.MustCompile(`dev-[0-9a-f]+`).FindString(l.admin("devices", "list"))
	l.admin("devices", "revoke", device, "--reason", "end of the walk")
	if got := l.hand(again + `pt -m 2 $GW/v1/state || echo "gone $?"`); !strings.Contains(got, "gone 28") {
		t.Errorf("after the revocation the tunnel answers: %s", got)
	}
	log := l.admin("audit", "tail", "-n", "0")
	at := -1
	for _, kind := range []string{"invite", "enroll", "renew", "connect", "login", "posture", "decision", "revoke"} {
		i := strings.Index(log, `"kind":"`+kind+`"`)
		if i <= at {
			t.Errorf("the log does not have %s where it belongs:\n%s", kind, log)
		}
		at = i
	}
}
