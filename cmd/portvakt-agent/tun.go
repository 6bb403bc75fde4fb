package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"github.com/portvakt/portvakt/agent"
	"github.com/portvakt/portvakt/agent/nethelper"
)

// tunFlags are what `run` knows about TUN mode.
type tunFlags struct {
	on           bool
	helper, name string
	noDNS        bool
	pools        []string
	domains      []string
}

func (t *tunFlags) add(f *pflag.FlagSet) {
	f.BoolVar(&t.on, "tun", false, "use a network interface instead of the userspace stack (Linux)")
	f.StringVar(&t.helper, "net-socket", "", "with --tun: Unix socket of the network helper (default "+nethelper.DefaultSocket+"; as root: a helper of its own)")
	f.StringVar(&t.name, "tun-name", agent.DefaultInterface, "with --tun: name of the interface, portvakt0 to portvakt999")
	f.BoolVar(&t.noDNS, "no-dns", false, "with --tun: leave this laptop's DNS alone")
	addBounds(f, &t.pools, &t.domains, "with --tun as root: ")
}

// addBounds adds what bounds the helper, whatever the agent asks for.
func addBounds(f *pflag.FlagSet, pools, domains *[]string, when string) {
	var all []string
	for _, p := range nethelper.DefaultPools() {
		all = append(all, p.String())
	}
	f.StringSliceVar(pools, "pool", all, when+"prefixes that routes must lie in, the gateway's tunnel.ipv4 and tunnel.ipv6 among them")
	f.StringSliceVar(domains, "domain", nil, when+"domains that the apps' names must lie in; more than one may be given (default any but public suffixes)")
}

func (t *tunFlags) check() error {
	if t.on && runtime.GOOS != "linux" {
		return errors.New("--tun is not available on this system yet, only on Linux; without it the agent works through its loopback proxies")
	}
	if !t.on {
		return nil
	}
	if err := nethelper.CheckName(t.name); err != nil {
		return fmt.Errorf("--tun-name: %w", err)
	}
	return nil
}

// needUID is for helpers: one that serves root alone would look like one that
// works.
func needUID(f *pflag.FlagSet) error {
	if !f.Changed("allow-uid") {
		return &coded{exitUsage, errors.New("--allow-uid UID is needed: the user id that the agent runs as (id -u says it; 0 for an agent that is root)")}
	}
	return nil
}

// run runs the agent, and below a root agent in TUN mode a helper of its own.
func (t *tunFlags) run(ctx context.Context, cfg agent.Config) error {
	if !t.on {
		return agent.Run(ctx, cfg)
	}
	cfg.TUN = &agent.TUN{HelperSocket: t.helper, Interface: t.name, NoDNS: t.noDNS}
	if t.helper != "" || os.Geteuid() != 0 {
		return agent.Run(ctx, cfg)
	}
	h, err := startHelper(cfg.State.File("net.sock"), t.pools, t.domains)
	if err != nil {
		return fmt.Errorf("starting the network helper: %w", err)
	}
	cfg.TUN.HelperSocket = h.socket
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer h.stdin.Close() // the helper takes that for the end
		return agent.Run(ctx, cfg)
	})
	g.Go(func() error {
		err := h.cmd.Wait()
		if err == nil && ctx.Err() == nil {
			err = errors.New("it ended by itself")
		}
		if err != nil {
			return fmt.Errorf("running the network helper: %w", err)
		}
		return nil
	})
	return g.Wait()
}

// childHelper is the helper of an agent that runs as root.
type childHelper struct {
	socket string
	cmd    *exec.Cmd
	stdin  io.Closer
}

// startHelper starts one that ends when this process does, in whatever way,
// and returns when it listens.
func startHelper(socket string, pools, domains []string) (*childHelper, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	args := []string{"net-helper", "--until-stdin-ends", "--socket", socket, "--allow-uid", "0"}
	for _, p := range pools {
		args = append(args, "--pool", p)
	}
	for _, d := range domains {
		args = append(args, "--domain", d)
	}
	h := &childHelper{socket: socket, cmd: exec.Command(self, args...)}
	h.cmd.Stdout, h.cmd.Stderr = os.Stderr, os.Stderr
	apart(h.cmd) // a Ctrl-C is for the agent, which ends its helper last
	if h.stdin, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	// Until it listens it says so on descriptor 3.
	ready, said, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ready.Close()
	h.cmd.ExtraFiles = []*os.File{said}
	err = h.cmd.Start()
	said.Close()
	if err != nil {
		return nil, err
	}
	ready.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		h.stdin.Close()
		return nil, errors.Join(errors.New("it does not come up"), h.cmd.Wait())
	}
	return h, nil
}

func newNetHelper() *cobra.Command {
	var cfg nethelper.HelperConfig
	var pools []string
	var child bool
	cmd := &cobra.Command{
		Use:   "net-helper",
		Short: "Own the network interface of an agent with --tun (root)",
		Long: `net-helper runs as root and serves one agent ("portvakt-agent run --tun") over a
Unix socket: it makes the tunnel's interface, hands it to the agent, sets the
routes to the apps for the OS user who logged in, and points the apps' names at
the gateway in systemd-resolved, NetworkManager's dnsmasq or, where neither is
in use, /etc/resolv.conf. It reads nothing from the network. A route is always
to a single address inside --pool, into the tunnel, and never to a network this
laptop is attached to. A name is never one under which the public registers
names (com, github.io) nor one of the laptop's own (.arpa, .localhost,
.localdomain), and with --domain always inside it. Root gets no way into the
tunnel, unless the agent is root.

It stays in the foreground and must stay running, as a service: there is a unit
in deploy/systemd. The directory of its socket has to be there, and is gone
after a reboot when it is below /run.

When the agent ends, also by kill -9, everything is undone. What a helper that
was killed itself left behind is undone at the next start.`,
		Example: "  sudo portvakt-agent net-helper --allow-uid 1000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needUID(cmd.Flags()); err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(cmd.Context())
			defer cancel()
			for _, text := range pools {
				p, err := netip.ParsePrefix(text)
				if err != nil {
					return &coded{exitUsage, fmt.Errorf("--pool %q is no prefix such as 100.96.0.0/16", text)}
				}
				cfg.Pools = append(cfg.Pools, p)
			}
			cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
			if child {
				ready := os.NewFile(3, "ready")
				cfg.Ready = func() {
					_, _ = ready.Write([]byte{1})
					_ = ready.Close()
				}
				go func() { // ends with the process at the latest
					_, _ = io.Copy(io.Discard, cmd.InOrStdin())
					cancel()
				}()
			}
			return nethelper.Run(ctx, cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Socket, "socket", nethelper.DefaultSocket, "Unix socket to answer at")
	f.IntVar(&cfg.AllowUID, "allow-uid", 0, "user id of the agent, the only one besides root that is served")
	f.BoolVar(&child, "until-stdin-ends", false, "end with the agent that started this helper")
	_ = f.MarkHidden("until-stdin-ends")
	addBounds(f, &pools, &cfg.Domains, "")
	return cmd
}
