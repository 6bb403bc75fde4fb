package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/agent/localapi"
)

func newStatus(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how this laptop is connected",
		Long: `status shows the connection, who is logged in, where the gateway sees you, what
the laptop's checks say, and where the proxy and its PAC file are. Without a
connection it says what is in the way and what to do.

It exits with 3 when the gateway refuses this laptop.`,
		Example: `  portvakt-agent status
  portvakt-agent status --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			if o.json {
				err = printJSON(cmd.OutOrStdout(), st)
			} else {
				p := newPaper(cmd.OutOrStdout())
				p.status(st)
				// Who may not see the apps, or cannot any more, has seen the status.
				if apps, err := client.Apps(cmd.Context()); err == nil && st.State == localapi.StateConnected {
					p.closed(apps.Items)
				}
			}
			if err == nil && st.State == localapi.StateRevoked {
				return &coded{exitDenied, errSaid}
			}
			return err
		},
	}
	o.addQuery(cmd)
	return cmd
}

func newApps(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "apps",
		Short: "List the apps and what stands in the way of each",
		Long: `apps lists the apps this laptop can see. For one that is refused it shows the
reason, the fact that decided, and what to do about it. Apps that are hidden
from you are not listed.`,
		Example: `  portvakt-agent apps
  portvakt-agent apps --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			apps, err := client.Apps(cmd.Context())
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), apps)
			}
			newPaper(cmd.OutOrStdout()).apps(apps.Items)
			return nil
		},
	}
	o.addQuery(cmd)
	return cmd
}

func newWhy(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "why APP",
		Short: "Ask why an app is refused",
		Long: `why asks the gateway whether you may use an app right now. If not, it shows the
reason, the fact that decided, and what to do. It exits with 3 when the app is
refused.`,
		Example: `  portvakt-agent why crm
  portvakt-agent why crm --json`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return errors.New("which app? see: portvakt-agent apps")
			case len(args) > 1:
				return fmt.Errorf("wanted one app, got %d arguments", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return &coded{exitUsage, errors.New("name an app; portvakt-agent apps lists them")}
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			d, err := client.Why(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if o.json {
				err = printJSON(cmd.OutOrStdout(), d)
			} else {
				p := newPaper(cmd.OutOrStdout())
				p.why(args[0], d)
				if apps, err := client.Apps(cmd.Context()); err == nil && !d.Allow {
					for _, a := range apps.Items {
						if a.Name == args[0] {
							p.finish(a, 2)
						}
					}
				}
			}
			if err == nil && !d.Allow {
				return &coded{exitDenied, errSaid}
			}
			return err
		},
	}
	o.addQuery(cmd)
	return cmd
}
