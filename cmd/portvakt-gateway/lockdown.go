package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway/admin"
)

func lockdownCmd(opt *options) *cobra.Command {
	c := group("lockdown", "Close an app, a person, a device, a site or all", lockdownOnCmd(opt), lockdownOffCmd(opt), lockdownListCmd(opt))
	c.Long = c.Short + `.

To quarantine a device, lock it down (lockdown on --device): everything it has
open is cut and no app is allowed it. It stays connected, so that its person is
told, and another administrator has to approve its end. devices revoke ends a
device for good.`
	c.SuggestFor = []string{"quarantine", "isolate"}
	return c
}

func lockdownOnCmd(opt *options) *cobra.Command {
	var (
		all    bool
		reason string
		values = map[string]*string{"app": new(string), "subject": new(string), "device": new(string), "site": new(string)}
	)
	c := &cobra.Command{
		Use: "on", Short: "Cut what is open and let nothing through, at once", Args: cobra.NoArgs,
		Long: `Cut every open flow of one scope and refuse what is of it from now on, whatever
policy says, until the lockdown is lifted. It survives a restart. Several
lockdowns may be in force; each is lifted by itself. A lockdown of an app holds
for every app that has one of its hosts, or its upstream where no other had it.`,
		Example: `  portvakt-gateway lockdown on --app crm --reason 'incident 42'
  portvakt-gateway lockdown on --subject "Anna Berg"
  portvakt-gateway lockdown on --device anna-laptop   # quarantine
  portvakt-gateway lockdown on --site 198.51.100.0/24
  portvakt-gateway lockdown on --all`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := admin.Lockdown{Reason: reason}
			n := 0
			if all {
				req.Scope, n = "all", 1
			}
			for scope, v := range values {
				if cmd.Flags().Changed(scope) {
					req.Scope, req.Value = scope, *v
					n++
				}
			}
			if n != 1 || (req.Value == "" && !all) {
				return usageError{errors.New("exactly one of --all, --app, --subject, --device and --site is needed; see: portvakt-gateway lockdown on --help")}
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			l, err := cl.Lockdown(cmd.Context(), req)
			if err != nil || opt.json {
				return orJSON(cmd, l, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is in force: %s is locked down, open flows cut: %d\n", l.ID, scopeText(l), *l.Cuts)
			return err
		},
	}
	c.Flags().BoolVar(&all, "all", false, "everything")
	c.Flags().StringVar(values["app"], "app", "", "one app (`name`)")
	c.Flags().StringVar(values["subject"], "subject", "", "one person: ISS#SUB, or a name or e-mail address")
	c.Flags().StringVar(values["device"], "device", "", "one device (`id` or name)")
	c.Flags().StringVar(values["site"], "site", "", "all devices behind an outer `address` or prefix")
	c.Flags().StringVar(&reason, "reason", "", "why, for the record and other administrators")
	return c
}

func scopeText(l admin.Lockdown) string {
	if l.Scope == "all" {
		return "everything"
	}
	return l.Scope + " " + clean(l.Value)
}

func lockdownOffCmd(opt *options) *cobra.Command {
	var req admin.Revoke
	c := &cobra.Command{
		Use: "off ID", Short: "Ask for the end of a lockdown", Args: one("ID", "lockdown list"),
		Long: `Ask for the end of a lockdown. It ends when another administrator, with another
user of this machine, approves within 24 hours. The exit code is 0 when it was
asked for and when it has ended; --json says which in "status".`,
		Example: `  portvakt-gateway lockdown off lock-3fa9c210 --reason 'incident 42 is over'`,
		RunE: func(cmd *cobra.Command, a []string) error {
			if err := needReason(req.Reason); err != nil {
				return err
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			act, err := cl.LiftLockdown(cmd.Context(), a[0], req)
			return printAct(cmd, opt, act, err)
		},
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the other administrator and the record")
	return c
}

func lockdownListCmd(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the lockdowns in force", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			all, err := cl.Lockdowns(cmd.Context())
			if err != nil || opt.json {
				return orJSON(cmd, all, err)
			}
			rows := [][]string{{"ID", "SCOPE", "VALUE", "SINCE", "BY", "REASON"}}
			for _, l := range all.Items {
				value := l.Value
				if len(l.Also) > 0 {
					value += " (also " + strings.Join(l.Also, ", ") + ")"
				}
				rows = append(rows, []string{l.ID, l.Scope, value, when(*l.At), l.By, l.Reason})
			}
			return table(cmd.OutOrStdout(), rows)
		},
	}
}
