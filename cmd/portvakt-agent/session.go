package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/login"
)

func newLogin(o *options) *cobra.Command {
	var noBrowser bool
	cmd := &cobra.Command{
		Use:   "login",
		Short: "Log in with your company account, in your browser",
		Long: `login opens your company's login page in your browser and waits until you are
done. Ctrl-C gives up. The agent must be running ("portvakt-agent run").

With --no-browser the page's address is printed instead; open it in a browser
on this same laptop, as the same user. The address works only there and only
once.`,
		Example: `  portvakt-agent login
  portvakt-agent login --no-browser`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			ctx, out, errs := cmd.Context(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			if o.json {
				out = errs // the JSON of the end has standard output to itself
			}
			session, err := client.Login(ctx, func(e localapi.LoginEvent) error {
				if !noBrowser {
					if err := login.OpenBrowser(ctx, e.URL); err == nil {
						fmt.Fprintf(out, "Your browser shows the login page. Should it not, open this address in it:\n%s\n", clean(e.URL))
						return nil
					}
				}
				// The address stands alone on its line, for copying and for scripts.
				fmt.Fprintf(out, "Open this address in a browser on this laptop:\n%s\n", clean(e.URL))
				return nil
			})
			switch {
			case errors.Is(err, context.Canceled) && ctx.Err() != nil:
				return errors.New("given up")
			case err != nil:
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), session)
			}
			if session == nil {
				return errors.New("the login went through, but the gateway keeps no session; run: portvakt-agent status")
			}
			fmt.Fprintf(out, "Logged in as %s until %s.\n", clean(session.Name), clock(session.ExpiresAt))
			return nil
		},
	}
	cmd.Flags().BoolVar(&noBrowser, "no-browser", false, "print the page's address and open nothing")
	o.addQuery(cmd)
	return cmd
}

func newLogout(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "logout",
		Short:   "End your login",
		Long:    "logout ends your login at the gateway. Open connections to apps are cut at\nonce. The laptop stays enrolled and connected.",
		Example: "  portvakt-agent logout",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			st, err := client.Logout(cmd.Context())
			if err != nil {
				return err
			}
			if o.json {
				return printJSON(cmd.OutOrStdout(), st)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "Logged out.")
			return nil
		},
	}
	o.addQuery(cmd)
	return cmd
}
