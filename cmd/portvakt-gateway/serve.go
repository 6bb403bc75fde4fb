package main

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway"
	"github.com/portvakt/portvakt/internal/gc"
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
writes nothing.`,
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
			if opt.json {
				return printJSON(cmd.OutOrStdout(), map[string]any{"ok": true, "revision": rev.ID(), "apps": len(rev.Apps())})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is fine; apps: %d, policy revision: %s\n", opt.config, len(rev.Apps()), rev.ID())
			return err
		},
	}
}
