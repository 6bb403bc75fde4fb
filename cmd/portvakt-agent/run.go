package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/agent"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/posture"
)

// defaultHelperSocket is where the posture helper listens unless it is told otherwise.
const defaultHelperSocket = "/run/portvakt/posture.sock"

func newRun(o *options) *cobra.Command {
	var cfg agent.Config
	var level string
	var tun tunFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Keep this laptop connected",
		Long: `run opens the tunnel to the gateway this laptop is enrolled with and keeps it
open: through sleep, other networks and restarts of the gateway. It needs no
privilege. It stops with Ctrl-C or SIGTERM.

With --tun (Linux) the apps' addresses are reached through a network interface,
by any program of the OS user who logged in, without a proxy. A small helper
with root's privilege makes the interface and its routes and must stay running:
"sudo portvakt-agent net-helper --allow-uid UID", with --pool for pools outside
100.64.0.0/10 and fd00::/8. An agent that runs as root starts one of its own.
The proxies below work as well.

Apps are reached on this laptop's own loopback:
  - web apps by their own addresses through the proxy: set the browser's
    automatic proxy configuration to the PAC file that is printed;
  - other apps at a port of 127.0.0.1 each, which is printed too, or through the
    proxy as SOCKS5, UDP (RFC 1928's UDP ASSOCIATE) for calls included.
Only the OS user who logged in can use them.

With --json it prints one object a line at every change: "status" as the status
command has it, "items" as the apps command has them.

For a service, set PORTVAKT_STATE or --state. Checks that need privilege come
from "portvakt-agent posture-helper".`,
		Example: `  portvakt-agent run
  portvakt-agent run --proxy-addr 127.0.0.1:9280
  portvakt-agent run --tun    (with net-helper running)
  portvakt-agent run --endpoint 192.0.2.10:51820 --log-level debug`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var lv slog.Level
			if err := lv.UnmarshalText([]byte(level)); err != nil {
				return &coded{exitUsage, fmt.Errorf("--log-level must be debug, info, warn or error, not %q", level)}
			}
			if err := tun.check(); err != nil {
				return &coded{exitUsage, err}
			}
			if cmd.Flags().Changed("language") {
				if err := checkLanguage(cfg.Language); err != nil {
					return &coded{exitUsage, err}
				}
			}
			dir, err := o.open()
			if err != nil {
				return err
			}
			if _, err := dir.Load(); err != nil {
				return &coded{exitUsage, err}
			}
			cfg.State, cfg.Version, cfg.Socket = dir, moduleVersion(), o.socket
			cfg.Log = slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: lv}))
			teller := &teller{out: cmd.OutOrStdout(), json: o.json}
			cfg.Notify = teller.tell
			return tun.run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	tun.add(f)
	f.StringVar(&cfg.ProxyAddr, "proxy-addr", agent.DefaultProxyAddr, "loopback address of the HTTP and SOCKS5 proxy; port 0 takes a free one and keeps it")
	f.StringVar(&cfg.Endpoint, "endpoint", "", "UDP endpoint of the tunnel, host:port, instead of the gateway's word")
	f.BoolVar(&cfg.UDPGSOOff, "no-udp-gso", false, "send every datagram to the kernel by itself; for a kernel that corrupts those it is given together")
	f.StringVar(&cfg.PostureRoot, "posture-root", "/", "root directory the posture checks read below, for containers and tests")
	f.StringVar(&cfg.HelperSocket, "posture-socket", defaultHelperSocket, "Unix socket of the posture helper")
	f.StringVar(&cfg.Language, "language", languageOf(os.Getenv), "language of refusals: en, sv, nb, da, fi or nl (default that of the environment)")
	f.Lookup("language").DefValue = "" // what the environment says is told above
	o.addQuery(cmd)
	f.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	f.BoolVar(&cfg.AllowAnyLocalUser, "allow-any-local-user", false, "on systems that cannot name the owner of a connection (all but Linux): let every account of this laptop use the apps")
	return cmd
}

// checkLanguage refuses what no refusal is written in. What the environment says
// is not checked: there English takes the place of a language that is missing.
func checkLanguage(wanted string) error {
	for tag := range strings.SplitSeq(wanted, ",") {
		tag, _, _ = strings.Cut(strings.TrimSpace(tag), ";")
		base, _, _ := strings.Cut(strings.ToLower(tag), "-")
		if !slices.Contains([]string{"en", "sv", "nb", "da", "fi", "nl"}, base) {
			return fmt.Errorf("--language %q: expected en, sv, nb, da, fi or nl", wanted)
		}
	}
	return nil
}

// languageOf is the language of the person's environment in the form of
// Accept-Language: the variables of POSIX 8.2 in their order.
func languageOf(getenv func(string) string) string {
	for _, name := range []string{"LC_ALL", "LC_MESSAGES", "LANG"} {
		v := getenv(name)
		if v == "" {
			continue
		}
		v, _, _ = strings.Cut(v, ".")
		v, _, _ = strings.Cut(v, "@")
		if v == "C" || v == "POSIX" {
			return ""
		}
		return strings.ReplaceAll(v, "_", "-")
	}
	return ""
}

// teller says what happens to the person who watches `run`.
type teller struct {
	out   io.Writer
	json  bool
	last  string
	proxy bool
	ports map[string]bool
}

func (t *teller) tell(st localapi.Status, apps []localapi.App) {
	if t.json {
		if apps == nil {
			apps = []localapi.App{}
		}
		e := json.NewEncoder(t.out)
		e.SetEscapeHTML(false)
		// A program that no longer reads must not end the tunnel.
		_ = e.Encode(struct {
			Status localapi.Status `json:"status"`
			Items  []localapi.App  `json:"items"`
		}{st, apps})
		return
	}
	if !t.proxy && st.Proxy != nil {
		t.proxy = true
		fmt.Fprintf(t.out, "proxy     http://%s (HTTP and SOCKS5)\nPAC file  %s\n", st.Proxy.Address, st.Proxy.PAC)
	}
	line := clean(connection(st))
	if st.State == localapi.StateConnected {
		line = "connected to " + clean(st.Gateway)
		if st.Session != nil {
			line += ", logged in as " + clean(st.Session.Name)
		} else {
			line += "; next: portvakt-agent login"
		}
	}
	if f := st.Finish; f != nil {
		line += "\nuntil " + clock(f.Until) + ": " + clean(f.Message)
	}
	if line != t.last {
		t.last = line
		fmt.Fprintln(t.out, line)
	}
	if t.ports == nil {
		t.ports = map[string]bool{}
	}
	for _, a := range apps {
		for _, m := range a.Local {
			s := fmt.Sprintf("app       %s: %s (%s %d)", clean(a.Name), m.Local, clean(a.Protocol), m.Port)
			if !t.ports[s] {
				t.ports[s] = true
				fmt.Fprintln(t.out, s)
			}
		}
	}
}

func newPostureHelper() *cobra.Command {
	var cfg posture.HelperConfig
	cmd := &cobra.Command{
		Use:   "posture-helper",
		Short: "Answer the posture checks that need root",
		Long: `posture-helper runs as root and answers the agent over a Unix socket with a
fixed set of checks (disk encryption, host firewall). It takes no parameters
from the agent, opens no network connection and changes nothing. Without it,
checks that need privilege are reported as unknown, never as passed.`,
		Example: "  sudo portvakt-agent posture-helper --allow-uid 1000",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needUID(cmd.Flags()); err != nil {
				return err
			}
			return posture.RunHelper(cmd.Context(), cfg)
		},
	}
	cmd.Flags().StringVar(&cfg.Socket, "socket", defaultHelperSocket, "Unix socket to answer at")
	cmd.Flags().StringVar(&cfg.Root, "root", "/", "root directory the checks read below")
	cmd.Flags().IntVar(&cfg.AllowUID, "allow-uid", 0, "user id of the agent, the only one besides root that is answered")
	return cmd
}
