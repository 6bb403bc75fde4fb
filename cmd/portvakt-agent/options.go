package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/state"
)

// protocol is the version in the paths of docs/protocol.md.
const protocol = "v1"

// options are the flags that several commands share.
type options struct {
	state, socket string
	json          bool
}

func (o *options) addSocket(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.socket, "socket", "", "Unix socket of the running agent (default agent.sock in the state directory)")
}

func (o *options) addQuery(cmd *cobra.Command) {
	o.addSocket(cmd)
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON for programs")
}

func (o *options) open() (*state.Dir, error) {
	d, err := state.Open(o.state)
	if err != nil {
		return nil, &coded{exitUsage, err}
	}
	return d, nil
}

// client speaks to the running agent; it makes no directory.
func (o *options) client() (*localapi.Client, error) {
	path := o.socket
	if path == "" {
		dir := o.state
		if dir == "" {
			var err error
			if dir, err = state.Default(); err != nil {
				return nil, &coded{exitUsage, err}
			}
		}
		path = filepath.Join(dir, state.FileSocket)
	}
	return localapi.NewClient(path), nil
}

func defaultStateHint() string {
	switch runtime.GOOS {
	case "darwin":
		return "~/Library/Application Support/Portvakt"
	case "windows":
		return `%LocalAppData%\Portvakt`
	}
	return "$XDG_STATE_HOME/portvakt or ~/.local/state/portvakt"
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("printing: %w", err)
	}
	return nil
}

func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

type version struct {
	Version  string `json:"version"`
	Go       string `json:"go"`
	Protocol string `json:"protocol"`
	Platform string `json:"platform"`
}

func newVersion() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version of this program",
		Long:    "version prints the agent's version, the Go it was built with, and the version\nof the protocol it speaks with gateways.",
		Example: "  portvakt-agent version\n  portvakt-agent version --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := version{moduleVersion(), runtime.Version(), protocol, runtime.GOOS + "/" + runtime.GOARCH}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), v)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "portvakt-agent %s\ngo             %s\nprotocol       %s\nplatform       %s\n", v.Version, v.Go, v.Protocol, v.Platform)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}
