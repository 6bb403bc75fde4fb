//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/agent/enroll"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/state"
	"github.com/portvakt/portvakt/deploy/bench/lab"
	"github.com/portvakt/portvakt/deploy/demo/stage"
	"github.com/portvakt/portvakt/deploy/idplogin"
	"github.com/portvakt/portvakt/internal/wire"
)

// reach is where the apps are for a client, by the apps' names.
type reach map[string]netip.AddrPort

// client starts a role that stands for a worker's laptop, and returns where the
// apps are for it once its person is logged in.
func (c *company) client(ctx context.Context, role string, args ...string) (*lab.Child, reach, error) {
	code, err := c.invite(ctx, role)
	if err != nil {
		return nil, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	child, err := c.Start(lab.AtClient, role, w, append([]string{
		c.self, role, "--bin", c.bin, "--dir", filepath.Join(c.Dir, role), "--code", code,
	}, args...)...)
	w.Close()
	if err != nil {
		return nil, nil, err
	}
	if err := r.SetReadDeadline(time.Now().Add(2 * startLimit)); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	line, err := bufio.NewReader(r).ReadBytes('\n')
	if err != nil {
		time.Sleep(100 * time.Millisecond) // it is about to say why
		return nil, nil, fmt.Errorf("bringing up the %s: %w: %s", role, err, child.Tail(8))
	}
	var to reach
	if err := json.Unmarshal(line, &to); err != nil {
		return nil, nil, fmt.Errorf("bringing up the %s: %w", role, err)
	}
	return child, to, nil
}

// clientFlags are what every client role is told.
type clientFlags struct{ bin, dir, code, iface string }

func parseClient(name string, args []string) (f clientFlags, err error) {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.StringVar(&f.bin, "bin", "", "directory of the programs")
	fs.StringVar(&f.dir, "dir", "", "directory of this client")
	fs.StringVar(&f.code, "code", "", "enrolment code")
	fs.StringVar(&f.iface, "interface", "", "name of the tunnel interface")
	return f, fs.Parse(args)
}

// frontOfIdP lets a browser in the client's namespace reach the identity
// provider at the issuer's own address.
func frontOfIdP(ctx context.Context) error {
	to := &url.URL{Scheme: "http", Host: net.JoinHostPort(lab.Gateway.String(), idpPort)}
	return serve(ctx, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
	}}, "127.0.0.1:"+idpPort)
}

// playLaptop is a laptop with the agent as anyone may start it: no privilege,
// apps at ports of its loopback.
func playLaptop(ctx context.Context, args []string) error {
	f, err := parseClient("laptop", args)
	if err != nil {
		return err
	}
	front, stop := context.WithCancel(ctx)
	defer stop()
	fronted := make(chan error, 1)
	go func() { fronted <- frontOfIdP(front) }()

	l := stage.NewLaptop(stage.Anna, f.bin, f.dir)
	if err := l.Furnish(); err != nil {
		return err
	}
	if _, err := l.Agent(ctx, "enroll", gatewayURL, f.code); err != nil {
		return err
	}
	agent := exec.CommandContext(ctx, filepath.Join(f.bin, "portvakt-agent"),
		"run", "--state", l.State, "--posture-root", l.Root, "--proxy-addr", "127.0.0.1:0")
	agent.Stdout, agent.Stderr = os.Stderr, os.Stderr
	agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	agent.Cancel = func() error { return agent.Process.Signal(syscall.SIGTERM) }
	agent.WaitDelay = 5 * time.Second
	if err := agent.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- agent.Wait() }()
	if err := until(ctx, "the agent to connect", func() error {
		var st localapi.Status
		if err := l.AgentJSON(ctx, &st, "status"); err != nil {
			return err
		}
		if st.State != localapi.StateConnected || st.PostureSentAt == nil {
			return fmt.Errorf("its state is %s", st.State)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := l.Login(ctx); err != nil {
		return err
	}
	to := reach{}
	if err := until(ctx, "the apps' local ports", func() error {
		var apps localapi.Apps
		if err := l.AgentJSON(ctx, &apps, "apps"); err != nil {
			return err
		}
		for _, a := range apps.Items {
			for _, m := range a.Local {
				to[a.Name], err = netip.ParseAddrPort(m.Local)
				if err != nil {
					return err
				}
			}
		}
		if len(to) < 4 { // all but the web app, which has no port
			return fmt.Errorf("there are %d", len(to))
		}
		return nil
	}); err != nil {
		return err
	}
	stop()
	if err := errors.Join(<-fronted, say(to, nil)); err != nil {
		return err
	}
	select {
	case err := <-ended:
		return fmt.Errorf("the agent ended: %w", err)
	case <-ctx.Done():
		<-ended
		return nil
	}
}

// until calls ready until it returns nil.
func until(ctx context.Context, what string, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// playStockClient does by hand what docs/protocol.md says, with a stock
// wireguard-go: the laptop is the same for both gateways.
func playStockClient(ctx context.Context, args []string) error {
	f, err := parseClient("stock-client", args)
	if err != nil {
		return err
	}
	dir, err := state.Open(f.dir)
	if err != nil {
		return err
	}
	cfg := enroll.Config{State: dir, Info: enroll.LocalInfo()}
	if _, err := enroll.Enroll(ctx, cfg, gatewayURL, f.code); err != nil {
		return err
	}
	cred, err := dir.Load()
	if err != nil {
		return err
	}
	h := &byHand{key: cred.Key, iface: f.iface, boot: rand.Text()}
	if err := h.connect(ctx, cred, filepath.Join(f.bin, "wireguard-go")); err != nil {
		return err
	}
	defer h.close()
	if err := h.report(ctx); err != nil {
		return err
	}
	if err := h.login(ctx); err != nil {
		return err
	}
	to, err := h.open(ctx)
	if err != nil {
		return err
	}
	if err := say(to, nil); err != nil {
		return err
	}
	for tick := time.NewTicker(wire.ReportInterval); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := h.report(ctx); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// byHand is a device without an agent.
type byHand struct {
	key         *ecdsa.PrivateKey
	iface, boot string
	answer      *wire.ConnectResponse
	nonce       string
	peer        string // the gateway's tunnel key, hex
	api         *control.Client
	wireguard   *exec.Cmd
}

func (h *byHand) connect(ctx context.Context, cred *state.Credentials, program string) error {
	public, err := control.NewPublic(control.PublicConfig{
		URL: gatewayURL, CAHash: control.SPKIHash(cred.CA),
		Certificate: &tls.Certificate{Certificate: [][]byte{cred.Device.Raw}, PrivateKey: cred.Key, Leaf: cred.Device},
	})
	if err != nil {
		return err
	}
	defer public.Close()
	private, own, err := lab.Key()
	if err != nil {
		return err
	}
	raw, err := hex.DecodeString(own)
	if err != nil {
		return err
	}
	h.answer, err = public.Connect(ctx, wire.ConnectRequest{
		TunnelKey: base64.StdEncoding.EncodeToString(raw), BootID: h.boot, AgentVersion: "benchmark, stock wireguard-go",
	})
	if err != nil {
		return err
	}
	h.nonce = h.answer.PostureNonce
	psk, err := inHex(h.answer.PresharedKey)
	if err != nil {
		return err
	}
	if h.peer, err = inHex(h.answer.Gateway.TunnelKey); err != nil {
		return err
	}
	h.wireguard = exec.CommandContext(ctx, program, "-f", h.iface)
	h.wireguard.Stdout, h.wireguard.Stderr = os.Stderr, os.Stderr
	h.wireguard.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	h.wireguard.Cancel = func() error { return h.wireguard.Process.Signal(syscall.SIGTERM) }
	if err := h.wireguard.Start(); err != nil {
		return err
	}
	lines := []string{
		"private_key=" + private, "public_key=" + h.peer, "preshared_key=" + psk,
		"endpoint=" + netip.AddrPortFrom(lab.Gateway, 51820).String(), "persistent_keepalive_interval=25",
	}
	commands := []string{}
	for _, a := range h.answer.Gateway.Addresses {
		lines = append(lines, "allowed_ip="+netip.PrefixFrom(a, a.BitLen()).String())
		commands = append(commands, fmt.Sprintf("route add %s dev %s", a, h.iface))
	}
	if err := lab.Configure(ctx, h.iface, lines...); err != nil {
		return err
	}
	up := []string{}
	for _, a := range h.answer.Addresses {
		up = append(up, fmt.Sprintf("addr add %s dev %s", netip.PrefixFrom(a, a.BitLen()), h.iface))
	}
	up = append(up, fmt.Sprintf("link set %s mtu %d up", h.iface, h.answer.MTU))
	if err := ipHere(ctx, append(up, commands...)...); err != nil {
		return err
	}
	h.api = control.NewClient(control.ClientConfig{
		Gateway: h.answer.Gateway.Addresses[0], Token: h.answer.ControlToken,
		Dial: func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", to.String())
		},
	})
	return nil
}

func (h *byHand) close() {
	h.api.Close()
	_ = h.wireguard.Process.Signal(syscall.SIGTERM)
	_ = h.wireguard.Wait()
}

// report says that the laptop is sound.
func (h *byHand) report(ctx context.Context) error {
	text, err := json.Marshal(wire.Report{
		DeviceID: h.answer.DeviceID, Nonce: h.nonce, BootID: h.boot, Time: time.Now().UTC(),
		Signals: []wire.Signal{{Name: wire.SignalHostFirewall, State: wire.SignalPass, Value: "nftables"}},
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(text)
	sig, err := ecdsa.SignASN1(rand.Reader, h.key, sum[:])
	if err != nil {
		return err
	}
	res, err := h.api.Posture(ctx, wire.SignedReport{Report: text, Signature: sig})
	if err != nil {
		return fmt.Errorf("reporting posture: %w", err)
	}
	h.nonce = res.Nonce
	return nil
}

func (h *byHand) login(ctx context.Context) error {
	front, stop := context.WithCancel(ctx)
	fronted := make(chan error, 1)
	go func() { fronted <- frontOfIdP(front) }()
	defer func() {
		stop()
		<-fronted
	}()
	res, err := h.api.Login(ctx, wire.LoginRequest{RedirectURI: "http://127.0.0.1:8123/callback", OSUser: "0:root"})
	if err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	back, err := idplogin.Login(ctx, res.URL, stage.Anna.Email, stage.Anna.Password)
	if err != nil {
		return err
	}
	u, err := url.Parse(back)
	if err != nil {
		return err
	}
	q := u.Query()
	_, err = h.api.LoginComplete(ctx, wire.LoginComplete{State: q.Get("state"), Code: q.Get("code"), Issuer: q.Get("iss")})
	if err != nil {
		return fmt.Errorf("logging in: %w", err)
	}
	return nil
}

// open routes the visible apps into the tunnel.
func (h *byHand) open(ctx context.Context) (reach, error) {
	to := reach{}
	lines := []string{"public_key=" + h.peer, "update_only=true"}
	var routes []string
	st, err := h.api.State(ctx)
	if err != nil {
		return nil, err
	}
	for _, a := range st.Apps {
		if !a.Allowed {
			return nil, fmt.Errorf("the app %s is not allowed: %+v", a.Name, a.Denial)
		}
		for _, addr := range a.Addresses {
			lines = append(lines, "allowed_ip="+netip.PrefixFrom(addr, addr.BitLen()).String())
			routes = append(routes, fmt.Sprintf("route add %s dev %s", addr, h.iface))
		}
		to[a.Name] = netip.AddrPortFrom(a.Addresses[0], a.Ports[0])
	}
	if len(to) < len(appFiles()) {
		return nil, fmt.Errorf("only %d apps are visible", len(to))
	}
	// An HTTP app has 80, which redirects, beside 443.
	to[appWeb] = netip.AddrPortFrom(to[appWeb].Addr(), 443)
	if err := lab.Configure(ctx, h.iface, lines...); err != nil {
		return nil, err
	}
	return to, ipHere(ctx, routes...)
}

// ipHere runs commands of ip(8) in this program's namespace.
func ipHere(ctx context.Context, lines ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

func inHex(key string) (string, error) {
	b, err := base64.StdEncoding.DecodeString(key)
	return hex.EncodeToString(b), err
}
