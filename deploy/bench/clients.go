//go:build linux

package main

import (
	"bufio"
	"context"
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
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/deploy/bench/lab"
	"github.com/portvakt/portvakt/deploy/demo/stage"
)

// reach is where the apps are for a client, by the apps' names.
type reach map[string]netip.AddrPort

// laptop starts a worker's laptop as a process of its own in a place, with the
// agent in TUN mode or as anyone may start it, and returns where the apps are
// for it once its person is logged in.
func (c *company) laptop(ctx context.Context, at lab.Place, name string, g *gateway, tun bool) (reach, *lab.Child, error) {
	code, err := c.invite(ctx, g, name)
	if err != nil {
		return nil, nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	child, err := c.Start(at, name, w, c.self, "laptop", "--bin", c.bin, "--dir", filepath.Join(c.Dir, name),
		"--code", code, "--gateway", g.addr.String(), fmt.Sprintf("--tun=%t", tun))
	w.Close()
	if err != nil {
		return nil, nil, err
	}
	if err := r.SetReadDeadline(time.Now().Add(2 * startLimit)); err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { r.Close() })
	defer stop()
	var to reach
	if err := json.NewDecoder(bufio.NewReader(r)).Decode(&to); err != nil {
		if fell := c.Fallen(); fell != nil {
			err = fell
		}
		return nil, nil, fmt.Errorf("bringing up the laptop %s: %w\n%s", name, err, child.Tail(8))
	}
	return to, child, nil
}

// playLaptop is a laptop with the agent: it enrols, connects and logs in by the
// agent's own commands, says where the apps are, and stays. The agent stands
// still from a SIGUSR1 to a SIGUSR2.
func playLaptop(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("laptop", flag.ContinueOnError)
	bin := fs.String("bin", "", "directory of portvakt-agent")
	dir := fs.String("dir", "", "directory of this laptop")
	code := fs.String("code", "", "enrolment code")
	gateway := fs.String("gateway", "", "address of the gateway")
	tun := fs.Bool("tun", false, "run the agent in TUN mode")
	if err := fs.Parse(args); err != nil {
		return err
	}
	front, stop := context.WithCancel(ctx)
	defer stop()
	fronted := make(chan error, 1)
	go func() { fronted <- frontOfIdP(front, *gateway) }()

	l := stage.NewLaptop(stage.Anna, *bin, *dir)
	if err := l.Furnish(); err != nil {
		return err
	}
	if _, err := l.Agent(ctx, "enroll", "https://"+*gateway, *code); err != nil {
		return err
	}
	agent := exec.CommandContext(ctx, filepath.Join(*bin, "portvakt-agent"), "run", "--state", l.State,
		"--posture-root", l.Root, "--proxy-addr", "127.0.0.1:0", fmt.Sprintf("--tun=%t", *tun))
	agent.Stdout, agent.Stderr = os.Stderr, os.Stderr
	agent.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	agent.Cancel = func() error { return agent.Process.Signal(syscall.SIGTERM) }
	agent.WaitDelay = 4 * time.Second
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
	var to reach
	if err := until(ctx, "the apps", func() (err error) {
		to, err = whereApps(ctx, l, *tun)
		return err
	}); err != nil {
		return err
	}
	stop()
	if err := errors.Join(<-fronted, say(to, nil)); err != nil {
		return err
	}
	still := make(chan os.Signal, 2)
	signal.Notify(still, syscall.SIGUSR1, syscall.SIGUSR2)
	for {
		select {
		case s := <-still:
			to := syscall.SIGCONT
			if s == syscall.SIGUSR1 {
				to = syscall.SIGSTOP
			}
			if err := agent.Process.Signal(to); err != nil {
				return err
			}
		case err := <-ended:
			return fmt.Errorf("the agent ended: %w", err)
		case <-ctx.Done():
			_ = agent.Process.Signal(syscall.SIGCONT)
			<-ended
			return nil
		}
	}
}

// whereApps asks the agent: in TUN mode the apps are at their own addresses, a
// web app at 443, otherwise at ports of the loopback, where a web app has none.
func whereApps(ctx context.Context, l *stage.Laptop, tun bool) (reach, error) {
	var apps localapi.Apps
	if err := l.AgentJSON(ctx, &apps, "apps"); err != nil {
		return nil, err
	}
	to := reach{}
	for _, a := range apps.Items {
		if !a.Allowed {
			return nil, fmt.Errorf("the app %s is not allowed: %+v", a.Name, a.Denial)
		}
		switch {
		case tun && a.Name == appWeb:
			to[a.Name] = netip.AddrPortFrom(a.Addresses[0], 443)
		case tun:
			to[a.Name] = netip.AddrPortFrom(a.Addresses[0], a.Ports[0])
		}
		if !tun && len(a.Local) > 0 {
			local, err := netip.ParseAddrPort(a.Local[0].Local)
			if err != nil {
				return nil, err
			}
			to[a.Name] = local
		}
	}
	want := len(appFiles())
	if !tun {
		want-- // the web app
	}
	if len(to) < want {
		return nil, fmt.Errorf("%d of %d are there", len(to), want)
	}
	return to, nil
}

// frontOfIdP lets a browser in a laptop's namespace reach the identity provider
// at the issuer's own address.
func frontOfIdP(ctx context.Context, gateway string) error {
	to := &url.URL{Scheme: "http", Host: net.JoinHostPort(gateway, idpPort)}
	return serve(ctx, &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.Host = r.In.Host
	}}, "127.0.0.1:"+idpPort)
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
