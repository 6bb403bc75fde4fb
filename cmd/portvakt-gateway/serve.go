package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway"
	"github.com/portvakt/portvakt/internal/gc"
	"github.com/portvakt/portvakt/policy"
)

func serveCmd(opt *options) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the gateway until it is told to stop",
		Long: `Run the gateway in the foreground. It stops in order on SIGTERM or Ctrl-C.
A configuration that is wrong stops it before anything is opened or written.
It needs no root: give it a port above 1023, or CAP_NET_BIND_SERVICE for 443.`,
		Example: "  portvakt-gateway serve --config /etc/portvakt/gateway.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := gateway.LoadConfig(opt.config)
			if err != nil {
				return usageError{err}
			}
			log := newLogger(cmd, cfg)
			gc.Pace()
			return gateway.Run(cmd.Context(), cfg, log)
		},
	}
}

func newLogger(cmd *cobra.Command, cfg *gateway.Config) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Log.Level)); err != nil {
		level = slog.LevelInfo // LoadConfig refused every other word
	}
	ho := &slog.HandlerOptions{Level: level}
	if cfg.Log.Format == "json" {
		return slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), ho))
	}
	return slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), ho))
}

func checkCmd(opt *options) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration and the policy without running anything",
		Long: `Read the configuration and every app and Rego file it names, say what is wrong
with file, line and key, and exit with 2 if anything is. Opens no port and
writes nothing. Where the gateway runs, say also which of the apps a lockdown
in force would hold for under another name.`,
		Example: "  portvakt-gateway check --config /etc/portvakt/gateway.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := gateway.LoadConfig(opt.config)
			if err != nil {
				return usageError{err}
			}
			rev, err := gateway.LoadPolicy(cfg)
			if err != nil {
				return usageError{err}
			}
			held := heldApps(cmd.Context(), opt, rev.Apps())
			if opt.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"ok": true, "revision": rev.ID(), "apps": len(rev.Apps()), "locked_down": held})
			}
			if _, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is fine; apps: %d, policy revision: %s\n", opt.config, len(rev.Apps()), rev.ID()); err != nil {
				return err
			}
			for _, h := range held {
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "Note: the lockdown %[1]s of app %[2]s would hold for app %[3]s too, which has its %[4]s. To open it: portvakt-gateway lockdown off %[1]s (another administrator approves)\n",
					h.Lockdown, clean(h.Of), h.App, h.By)
				if err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// heldApp is an app of a policy that a lockdown of another one holds for.
type heldApp struct {
	App      string `json:"app"`
	Lockdown string `json:"lockdown"`
	Of       string `json:"of"`
	By       string `json:"by"`
}

// heldApps asks the gateway, if one runs here, for its lockdowns.
func heldApps(ctx context.Context, opt *options, apps []policy.App) []heldApp {
	held := []heldApp{}
	cl, err := opt.client()
	if err != nil {
		return held
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	all, err := cl.Lockdowns(ctx)
	if err != nil {
		return held
	}
	for _, l := range all.Items {
		for i := range apps {
			if mark := l.Follows(&apps[i]); mark != "" {
				held = append(held, heldApp{App: apps[i].Name, Lockdown: l.ID, Of: l.Value, By: mark})
			}
		}
	}
	return held
}
