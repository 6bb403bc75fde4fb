// Command portvakt-agent is the laptop's side of Portvakt: it enrols the
// laptop, keeps the tunnel to the gateway, and tells the person what they may
// use and why not.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/state"
	"github.com/portvakt/portvakt/internal/wire"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitDenied = 3
)

// coded is an error that chose its exit code.
type coded struct {
	code int
	err  error
}

func (e *coded) Error() string { return e.err.Error() }
func (e *coded) Unwrap() error { return e.err }

// errSaid ends a command whose answer was already printed.
var errSaid = errors.New("")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	var started bool
	root := newRoot(&started)
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitDone
	}
	code := exitCode(err)
	if !started { // a flag, an argument or the command itself was wrong
		code = exitUsage
	}
	if !errors.Is(err, errSaid) {
		fmt.Fprintf(errs, "portvakt-agent: %s\n", sentence(err))
		if !started {
			fmt.Fprintf(errs, "See: %s --help\n", cmd.CommandPath())
		}
	}
	return code
}

func exitCode(err error) int {
	var c *coded
	var refused *localapi.RefusedError
	switch {
	case errors.As(err, &c):
		return c.code
	case errors.As(err, &refused):
		return exitDenied
	case errors.Is(err, state.ErrNotEnrolled):
		return exitUsage
	}
	return exitFailed
}

// sentence gives a gateway's or the agent's refusal its remedy on a line of its
// own. What others wrote of it cannot command the terminal.
func sentence(err error) string {
	text := err.Error()
	var e *wire.Error
	if errors.As(err, &e) && e.Remedy != "" && e.Message != "" && text == e.Error() {
		text = e.Message + "\n" + e.Remedy
	}
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = clean(line)
	}
	return strings.Join(lines, "\n")
}

func newRoot(started *bool) *cobra.Command {
	o := &options{}
	root := &cobra.Command{
		Use:   "portvakt-agent",
		Short: "Reach your company's approved apps from home",
		Long: `portvakt-agent connects this laptop to your company's Portvakt gateway. It opens
a tunnel that reaches the approved apps and nothing else, and when something is
refused it tells you why and what to do.

The first time:
  1. Your IT support gives you an address and a one-time code.
  2. portvakt-agent enroll https://gateway.example.com CODE
  3. portvakt-agent run          (keep it running; a service can do that)
  4. portvakt-agent login        (every shift, in your browser)
  5. Set your browser's automatic proxy configuration to the PAC file that
     "run" and "status" show, and open your apps by their own addresses.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 denied.`,
		Example: `  portvakt-agent enroll https://gateway.example.com pv1.SECRET.CAHASH
  portvakt-agent run
  portvakt-agent login
  portvakt-agent apps
  portvakt-agent why crm`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       moduleVersion(),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				hint = "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return fmt.Errorf("unknown command %q%s", args[0], hint)
		},
		SuggestionsMinimumDistance: 2,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		// cobra runs this after flags and arguments were found right.
		PersistentPreRun: func(*cobra.Command, []string) { *started = true },
	}
	root.PersistentFlags().StringVar(&o.state, "state", "",
		"directory of the laptop's enrolment (default $PORTVAKT_STATE, else "+defaultStateHint()+")")
	root.SetVersionTemplate("portvakt-agent {{.Version}}\n")
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 80"))
	root.AddCommand(
		newEnroll(o), newRun(o), newLogin(o), newLogout(o), newStatus(o), newApps(o), newWhy(o), newPostureHelper(), newNetHelper(), newVersion(),
	)
	return root
}
