//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/portvakt/portvakt/deploy/bench/lab"
	"github.com/portvakt/portvakt/deploy/demo/geoip"
	"github.com/portvakt/portvakt/deploy/demo/stage"
	"github.com/portvakt/portvakt/deploy/systemd"
)

const (
	// issuer is on the loopback of the company's namespace, as the only
	// provider may be that speaks plain HTTP. The clients' namespace has a
	// proxy to it at the same address.
	idpPort = "5556"
	issuer  = "http://127.0.0.1:" + idpPort + "/dex"

	stockPort = 51821

	startLimit = 20 * time.Second
)

// Names and ports of the apps. The same servers answer the raw and the stock
// configuration without a policy.
const (
	appIperf = "iperf"
	appPages = "pages" // nginx as a TCP app
	appWeb   = "web"   // the same nginx as an HTTP app
	appEcho  = "echo"
	appVoice = "voice"

	webHost = "web.bench.example"

	portIperf, portPages, portEcho, portVoice = 5201, 8080, 7000, 4000
	// voicePorts is how many ports from portVoice on are the voice app's.
	voicePorts = 4
)

// company is everything that runs besides the ways in.
type company struct {
	*lab.Lab
	bin  string // directory of the gateway, the agent and wireguard-go
	self string // this program, which plays the small parts
	mtu  int
}

// gateway is one of ours, with a store and a port of its own.
type gateway struct {
	*lab.Child
	addr   netip.Addr // as its laptops see it
	config string
}

// appFiles are the app catalogue: a group, a check of the laptop and a country,
// as an operator has it.
func appFiles() map[string]string {
	const access = `allow: [198.19.0.2/32]
access:
  - groups: [sales]
    posture: {host_firewall: pass}
    countries: [SE, FI]
`
	line := func(name, protocol string, port int) string {
		return fmt.Sprintf("name: %s\nprotocol: %s\nupstream: %s\nports: [%d]\n%s", name, protocol, lab.App, port, access)
	}
	var voice []string
	for i := range voicePorts {
		voice = append(voice, strconv.Itoa(portVoice+i))
	}
	return map[string]string{
		appIperf: line(appIperf, "tcp", portIperf),
		appPages: line(appPages, "tcp", portPages),
		appEcho:  line(appEcho, "tcp", portEcho),
		appVoice: fmt.Sprintf("name: %s\nprotocol: udp\nupstream: %s\nports: [%s]\n%s", appVoice, lab.App, strings.Join(voice, ", "), access),
		appWeb:   fmt.Sprintf("name: %s\nprotocol: http\nhosts: [%s]\nupstream: http://%s:%d\n%s", appWeb, webHost, lab.App, portPages, access),
	}
}

// open starts the identity provider and the servers of these apps.
func (c *company) open(ctx context.Context, apps map[string]bool) error {
	dir := filepath.Join(c.Dir, "company")
	for name, text := range appFiles() {
		if err := write(filepath.Join(dir, "apps", name+".yaml"), text); err != nil {
			return err
		}
	}
	if err := geoip.Write(filepath.Join(dir, "geo.mmdb"), map[netip.Prefix]string{netip.MustParsePrefix("198.18.0.0/16"): "SE"}); err != nil {
		return err
	}
	if err := c.serve(apps); err != nil {
		return err
	}
	if _, err := c.Start(lab.AtGateway, "idp", nil, c.self, "idp"); err != nil {
		return err
	}
	return c.Wait(ctx, startLimit, "the identity provider", func(ctx context.Context) error {
		return c.get(ctx, lab.AtGateway, issuer+"/.well-known/openid-configuration")
	})
}

// gateway starts a gateway at one of the company's addresses and waits until it
// takes calls. more is added to its tunnel's configuration.
func (c *company) gateway(ctx context.Context, name string, addr netip.Addr, healthPort int, more string) (*gateway, error) {
	g := &gateway{addr: addr, config: filepath.Join(c.Dir, "company", name+".yaml")}
	err := write(g.config, fmt.Sprintf(`data_dir: %s
public: {listen: "%s:443", url: "https://%s"}
tunnel: {listen: "%s:51820", mtu: %d%s}
health: {listen: "127.0.0.1:%d"}
identity: {issuer: "%s", client_id: %s}
location: {database: geo.mmdb}
policy: {directory: apps}
`, name, addr, addr, addr, c.mtu, more, healthPort, issuer, stage.ClientID))
	if err != nil {
		return nil, err
	}
	argv := slices.Concat([]string{"env"}, systemd.GatewayEnvironment(), []string{filepath.Join(c.bin, "portvakt-gateway"), "serve", "--config", g.config})
	g.Child, err = c.Start(lab.AtGateway, name, nil, argv...)
	if err != nil {
		return nil, err
	}
	return g, c.Wait(ctx, startLimit, "the gateway", func(ctx context.Context) error {
		return c.get(ctx, lab.AtGateway, fmt.Sprintf("http://127.0.0.1:%d/readyz", healthPort))
	})
}

// serve starts what is behind the gateway.
func (c *company) serve(apps map[string]bool) error {
	conf := filepath.Join(c.Dir, "nginx", "nginx.conf")
	text := fmt.Sprintf(`daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events { worker_connections 1024; }
http {
  access_log off;
  keepalive_requests 1000000000;
  server {
    listen %d;
    location / { default_type text/plain; return 200 "%s\n"; }
  }
}
`, portPages, strings.Repeat("p", 99))
	if err := write(conf, text); err != nil {
		return err
	}
	for _, s := range []struct {
		name string
		used bool
		argv []string
	}{
		{"iperf3", apps[appIperf], []string{"iperf3", "-s", "-p", fmt.Sprint(portIperf)}},
		{"nginx", apps[appPages] || apps[appWeb], []string{"nginx", "-p", filepath.Dir(conf) + "/", "-c", conf, "-e", "stderr"}},
		{"echo", apps[appEcho] || apps[appVoice], []string{c.self, "echo"}},
	} {
		if !s.used {
			continue
		}
		if _, err := c.Start(lab.AtApp, s.name, nil, s.argv...); err != nil {
			return err
		}
	}
	return nil
}

// get asks for a page from inside a place.
func (c *company) get(ctx context.Context, at lab.Place, url string) error {
	_, err := c.page(ctx, at, url)
	return err
}

// page is what a page says.
func (c *company) page(ctx context.Context, at lab.Place, url string) (string, error) {
	cmd := c.Command(ctx, at, c.self, "get", url)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// invite makes an enrolment code.
func (c *company) invite(ctx context.Context, g *gateway, name string) (string, error) {
	out, err := c.Command(ctx, lab.AtGateway, filepath.Join(c.bin, "portvakt-gateway"), "invite", "--name", name, "--config", g.config).Output()
	if err != nil {
		return "", fmt.Errorf("making an enrolment code: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

func write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}
