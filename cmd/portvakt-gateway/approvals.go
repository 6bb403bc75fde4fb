package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway/admin"
)

func approvalsCmd(opt *options) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List what was asked for in the last 30 days", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			all, err := cl.Approvals(cmd.Context())
			if err != nil || opt.json {
				return orJSON(cmd, all, err)
			}
			rows := [][]string{{"ID", "ACT", "TARGET", "STATUS", "ASKED", "BY", "REASON"}}
			for _, a := range all.Items {
				rows = append(rows, []string{a.ID, a.Kind, a.Target, a.Status, when(a.RequestedAt), a.RequestedBy, a.Reason})
			}
			return table(cmd.OutOrStdout(), rows)
		},
	}
	decide := func(use, short string, call func(*admin.Client, context.Context, string) (admin.Act, error)) *cobra.Command {
		return &cobra.Command{
			Use: use + " ID", Short: short, Args: one("ID", "approvals list"),
			RunE: func(cmd *cobra.Command, a []string) error {
				cl, err := opt.client()
				if err != nil {
					return err
				}
				act, err := call(cl, cmd.Context(), a[0])
				return printAct(cmd, opt, act, err)
			},
		}
	}
	return group("approvals", "What needs a second administrator", list,
		decide("approve", "Approve what another administrator asked for: it happens now", (*admin.Client).Approve),
		decide("reject", "Reject what was asked for, or take it back", (*admin.Client).Reject))
}

// needReason is for what another administrator has to approve.
func needReason(reason string) error {
	if strings.TrimSpace(reason) == "" {
		return usageError{errors.New("--reason is needed: whoever approves reads it")}
	}
	return nil
}

// printAct says what became of an act.
func printAct(cmd *cobra.Command, opt *options, a admin.Act, err error) error {
	if err != nil || opt.json {
		return orJSON(cmd, a, err)
	}
	text := fmt.Sprintf("%s is done: %s %s\n", a.ID, strings.ReplaceAll(a.Kind, "_", " "), a.Target)
	switch a.Status {
	case "pending":
		text = fmt.Sprintf("%s is pending until %s. Another administrator decides with:\n  portvakt-gateway approvals approve %[1]s\n", a.ID, when(a.ExpiresAt))
	case "rejected":
		text = a.ID + " is rejected\n"
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), text)
	return err
}

func breakGlassCmd(opt *options) *cobra.Command {
	var req admin.BreakGlass
	c := &cobra.Command{
		Use: "break-glass", Short: "Act without a second administrator for some minutes", Args: cobra.NoArgs,
		Long: `Let yourself carry out, for some minutes, what otherwise needs a second
administrator. It is for when none can be reached: it is recorded first, and
shown to everybody who administers or watches this gateway. Another one takes
the place of yours that runs: with --minutes 1 it ends early.`,
		Example: "  portvakt-gateway break-glass --minutes 10 --reason 'incident 42, nobody else awake'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var wrong []string
			if strings.TrimSpace(req.Reason) == "" {
				wrong = append(wrong, "--reason is needed: why, for the record and everybody else")
			}
			if req.Minutes < 1 || req.Minutes > 60 {
				wrong = append(wrong, fmt.Sprintf("--minutes %d: expected from 1 to 60", req.Minutes))
			}
			if len(wrong) > 0 {
				return usageError{errors.New(strings.Join(wrong, "; "))}
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			b, err := cl.BreakGlass(cmd.Context(), req)
			if err != nil || opt.json {
				return orJSON(cmd, b, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s may act alone until %s\n", clean(b.By), when(*b.Until))
			return err
		},
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the record and everybody else")
	c.Flags().IntVar(&req.Minutes, "minutes", 0, "for how long, 1 to 60")
	return c
}
