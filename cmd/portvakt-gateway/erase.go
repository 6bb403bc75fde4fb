package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway/admin"
)

func auditEraseCmd(opt *options) *cobra.Command {
	var req admin.Erase
	c := &cobra.Command{
		Use: "erase", Short: "Ask that a person's data in the log can be read by nobody any more", Args: cobra.NoArgs,
		Long: `Ask for the destruction of the key under which the decision log holds the
personal data of one person: who they are, from where they came, what was known
about them. The records stay, and audit verify still finds them unchanged. It
happens when another administrator, with another user of this machine, approves
within 24 hours, and cannot be undone but from a backup of data_dir/people.`,
		Example: `  portvakt-gateway audit erase --subject https://login.example.com#00u1abcd --reason 'request of 2026-05-04'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (req.Subject == "") == (req.Device == "") {
				return usageError{errors.New("one of --subject and --device is needed; see: portvakt-gateway audit erase --help")}
			}
			if err := needReason(req.Reason); err != nil {
				return err
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			act, err := cl.Erase(cmd.Context(), req)
			return printAct(cmd, opt, act, err)
		},
	}
	c.Flags().StringVar(&req.Subject, "subject", "", "the person: ISS#SUB, or a name or e-mail address")
	c.Flags().StringVar(&req.Device, "device", "", "what is recorded of a device (`id` or name) while nobody was known to use it")
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the other administrator and the record")
	return c
}

func auditTrustClockCmd(opt *options) *cobra.Command {
	var req admin.TrustClock
	c := &cobra.Command{
		Use: "trust-clock", Short: "Ask that the gateway believes a clock that leapt", Args: cobra.NoArgs,
		Long: `Say that the machine's clock is right although it leapt by more than a week
(or half of the shortest time in audit.retention), as it does when the gateway
was off for months (audit_clock in /healthz). What is
older than audit.retention says by that clock is destroyed then, and cannot be
brought back. It happens when another administrator, with another user of this
machine, approves within 24 hours. A wrong clock is to be set right instead.`,
		Example: `  date && portvakt-gateway audit trust-clock --reason 'it was off over the summer'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needReason(req.Reason); err != nil {
				return err
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			act, err := cl.TrustClock(cmd.Context(), req)
			return printAct(cmd, opt, act, err)
		},
	}
	c.Flags().StringVar(&req.Reason, "reason", "", "why, for the other administrator and the record")
	return c
}
