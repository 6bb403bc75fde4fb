// Command portvakt-gateway is the company's side of Portvakt: it runs the
// gateway and speaks to a running one.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway"
	"github.com/portvakt/portvakt/gateway/admin"
	"github.com/portvakt/portvakt/internal/wire"
)

// Exit codes, the same for both programs.
const (
	exitFailed = 1
	exitUsage  = 2
	exitDenied = 3
)

// usageError is a mistake in the command line or the configuration.
type usageError struct{ error }

// errDenied ends `why` when the answer is no; the answer is printed already.
var errDenied = errors.New("denied")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var started bool
	root := newRoot(&started)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !started { // a flag, an argument or the command itself was wrong
		fmt.Fprintf(stderr, "portvakt-gateway: %v\nSee: %s --help\n", err, cmd.CommandPath())
		return exitUsage
	}
	var usage usageError
	var refused *wire.Error
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errDenied):
		return exitDenied
	case errors.As(err, &usage), errors.As(err, &refused) && refused.Code == "bad_request":
		fmt.Fprintf(stderr, "portvakt-gateway: %v\n", err)
		return exitUsage
	default:
		fmt.Fprintf(stderr, "portvakt-gateway: %v\n", err)
		return exitFailed
	}
}

// options are the flags that every command has.
type options struct {
	config string
	socket string
	json   bool
	stderr io.Writer
}

func newRoot(started *bool) *cobra.Command {
	opt := &options{}
	root := &cobra.Command{
		Use:   "portvakt-gateway",
		Short: "Zero-trust access gateway for contact centres",
		Long: `portvakt-gateway lets enrolled laptops reach approved apps and nothing else.
It checks who is asking (OIDC), from what device (posture) and from where
(location) before it proxies each request, and records every decision.

Start with a configuration file (deploy/config/gateway.yaml of the source shows
every key):

  portvakt-gateway check --config gateway.yaml
  portvakt-gateway serve --config gateway.yaml

and enrol the first laptop from another terminal on the same machine:

  portvakt-gateway invite --config gateway.yaml

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 denied.`,
		Version:       moduleVersion(),
		SilenceUsage:  true,
		SilenceErrors: true,
		// cobra runs this after flags and arguments were found right.
		PersistentPreRun: func(cmd *cobra.Command, _ []string) { *started, opt.stderr = true, cmd.ErrOrStderr() },
	}
	root.PersistentFlags().StringVarP(&opt.config, "config", "c", "gateway.yaml", "the gateway's configuration `file`")
	root.PersistentFlags().StringVar(&opt.socket, "socket", "", "admin socket of a running gateway (default: the one of the configuration)")
	root.PersistentFlags().BoolVar(&opt.json, "json", false, "print JSON for programs")
	root.SetVersionTemplate("portvakt-gateway {{.Version}}\n")
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 80"))
	root.AddCommand(
		serveCmd(opt), checkCmd(opt), inviteCmd(opt), devicesCmd(opt), sessionsCmd(opt),
		appsCmd(opt), flowsCmd(opt), lockdownCmd(opt), approvalsCmd(opt), breakGlassCmd(opt), whyCmd(opt), auditCmd(opt), policyCmd(opt), versionCmd(opt),
	)
	return root
}

// client finds the running gateway.
func (o *options) client() (*admin.Client, error) {
	socket := o.socket
	if socket == "" {
		var err error
		if socket, err = gateway.FindSocket(o.config); err != nil {
			return nil, usageError{err}
		}
	}
	cl := admin.NewClient(socket)
	cl.Announce = func(running []admin.BreakGlass) {
		for _, b := range running {
			fmt.Fprintf(o.stderr, "Break-glass: %s may act alone until %s: %s\n", clean(b.By), when(*b.Until), clean(b.Reason))
		}
	}
	return cl, nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func moduleVersion() string {
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "devel"
}

func versionCmd(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opt.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": moduleVersion(), "go": runtime.Version(), "protocol": "v1"})
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "portvakt-gateway %s (%s, protocol v1)\n", moduleVersion(), runtime.Version())
			return err
		},
	}
}
