package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway/admin"
)

// table prints rows under a header, aligned.
func table(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		for i, cell := range r {
			r[i] = clean(cell)
			if cell == "" && i > 0 {
				r[i] = "-"
			}
		}
		fmt.Fprintln(tw, strings.Join(r, "\t"))
	}
	return tw.Flush()
}

// facts prints names and what there is to say of them, which goes on below
// itself when it is longer than a page of any terminal is wide.
func facts(w io.Writer, rows [][]string) error {
	const width = 80
	indent := 0
	for _, r := range rows {
		indent = max(indent, utf8.RuneCountInString(r[0])+2)
	}
	var out strings.Builder
	for _, r := range rows {
		name, line := r[0], ""
		for _, word := range strings.Fields(clean(r[1])) {
			if line != "" && indent+utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
				fmt.Fprintf(&out, "%-*s%s\n", indent, name, line)
				name, line = "", ""
			}
			line = strings.TrimPrefix(line+" "+word, " ")
		}
		if line == "" {
			line = "-"
		}
		fmt.Fprintf(&out, "%-*s%s\n", indent, name, line)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// clean makes text of others safe to show: a terminal obeys control characters.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, s)
}

// one wants exactly one argument, and says where to find it when there is none.
func one(what, list string) cobra.PositionalArgs {
	return func(_ *cobra.Command, a []string) error {
		switch {
		case len(a) == 0:
			return fmt.Errorf("which %s? see: portvakt-gateway %s", what, list)
		case len(a) > 1:
			return fmt.Errorf("wanted one %s, got %d arguments", what, len(a))
		}
		return nil
	}
}

// group is a command that only holds others: alone it shows its help, and a
// word that is none of them is a mistake.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short,
		Args: func(cmd *cobra.Command, a []string) error {
			if len(a) == 0 {
				return nil
			}
			hint := ""
			if near := cmd.SuggestionsFor(a[0]); len(near) > 0 {
				hint = "; did you mean " + strings.Join(near, " or ") + "?"
			}
			return fmt.Errorf("%q is not a command of %s%s", a[0], use, hint)
		},
		SuggestionsMinimumDistance: 2,
		RunE:                       func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(subs...)
	return c
}

func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04")
}

func inviteCmd(opt *options) *cobra.Command {
	var req admin.Invite
	c := &cobra.Command{
		Use:   "invite",
		Short: "Make a one-time code that enrols one laptop",
		Long: `Make an enrolment code. It works once, until it expires, and also tells the
laptop how to recognise this gateway. Treat it like a password: hand it to the
person by a way you trust. It cannot be shown again.`,
		Example: "  portvakt-gateway invite --name anna-laptop --serial PF3XYZ1 --expires 4h",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Expires <= 0 {
				return usageError{fmt.Errorf("--expires %s: expected a time such as 4h, at most 720h", req.Expires)}
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			inv, err := cl.Invite(cmd.Context(), req)
			if err != nil {
				return err
			}
			if opt.json {
				return printJSON(cmd.OutOrStdout(), inv)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", inv.Code)
			fmt.Fprintf(cmd.ErrOrStderr(), "Good once, until %s. On the laptop:\n  portvakt-agent enroll %s CODE\n", when(inv.ExpiresAt), inv.URL)
			return err
		},
	}
	c.Flags().StringVar(&req.Name, "name", "", "what the device is called here (default: what it calls itself)")
	c.Flags().StringVar(&req.Serial, "serial", "", "only a laptop with this serial number may use the code")
	c.Flags().DurationVar(&req.Expires, "expires", 24*time.Hour, "how long the code is good for")
	return c
}

func devicesCmd(opt *options) *cobra.Command {
	return group("devices", "List, show and revoke enrolled laptops", listDevices(opt), showDevice(opt), revokeDevice(opt))
}

func listDevices(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List enrolled devices", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			all, err := cl.Devices(cmd.Context())
			if err != nil || opt.json {
				return orJSON(cmd, all, err)
			}
			rows := [][]string{{"ID", "NAME", "STATUS", "WHO", "COUNTRY", "SEEN"}}
			for _, d := range all.Items {
				who, where := "-", "-"
				if d.Session != nil {
					who = d.Session.Name
				}
				if d.Location != nil {
					where = d.Location.Country
				}
				rows = append(rows, []string{d.ID, d.Name, d.Status, who, where, when(d.LastSeen)})
			}
			return table(cmd.OutOrStdout(), rows)
		},
	}
}

func showDevice(opt *options) *cobra.Command {
	return &cobra.Command{
		Use: "show ID|NAME", Short: "Show one device with its facts", Args: one("ID or name", "devices list"),
		RunE: func(cmd *cobra.Command, a []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			d, err := cl.Device(cmd.Context(), a[0])
			if err != nil || opt.json {
				return orJSON(cmd, d, err)
			}
			rows := [][]string{
				{"id", d.ID},
				{"name", d.Name},
				{"serial", d.Serial},
				{"system", d.OS},
				{"key", d.KeyTier},
				{"status", d.Status},
				{"addresses", strings.Join(d.Addresses, ", ")},
				{"enrolled", when(d.EnrolledAt)},
				{"last seen", when(d.LastSeen)},
			}
			if d.RevokedAt != nil {
				rows = append(rows, []string{"revoked", when(*d.RevokedAt) + " by " + d.RevokedBy + " " + d.Reason})
			}
			if d.Session != nil {
				rows = append(rows, []string{"session", d.Session.ID}, []string{"who", d.Session.Name + " (" + strings.Join(d.Session.Groups, ", ") + ")"})
			}
			if d.Location != nil {
				rows = append(rows, []string{"where", strings.TrimSpace(d.Location.Country + " " + d.Location.Address)})
			}
			for _, s := range d.Posture {
				rows = append(rows, []string{s.Name, strings.TrimSpace(s.State + " " + s.Value)})
			}
			return table(cmd.OutOrStdout(), append(rows, []string{"open flows", fmt.Sprint(d.Flows)}))
		},
	}
}

func revokeDevice(opt *options) *cobra.Command {
	var req admin.Revoke
	revoke := &cobra.Command{
		Use: "revoke ID|NAME", Short: "Cut a device off at once and for good", Args: one("ID or name", "devices list"),
		Long: `Cut every open flow of a device, remove its tunnel and refuse it from now on.
It comes back only by enrolling anew with a new code.`,
		Example: "  portvakt-gateway devices revoke dev-0123456789abcdef --reason 'laptop stolen'",
		RunE: func(cmd *cobra.Command, a []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			d, err := cl.RevokeDevice(cmd.Context(), a[0], req)
			if err != nil || opt.json {
				return orJSON(cmd, d, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s (%s) is revoked; all its flows are cut\n", d.ID, clean(d.Name))
			return err
		},
	}
	revoke.Flags().StringVar(&req.Reason, "reason", "", "why, for the record and for the person")
	return revoke
}

func sessionsCmd(opt *options) *cobra.Command {
	var all bool
	list := &cobra.Command{
		Use: "list", Short: "List who is logged in", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			items, err := cl.Sessions(cmd.Context(), all)
			if err != nil || opt.json {
				return orJSON(cmd, items, err)
			}
			rows := [][]string{{"ID", "WHO", "GROUPS", "UNTIL"}}
			if all {
				rows[0] = append(rows[0], "STATE")
			}
			for _, s := range items.Items {
				row := []string{s.ID, s.Name, strings.Join(s.Groups, ","), when(s.ExpiresAt)}
				if all && s.Active {
					row = append(row, "active")
				} else if all {
					row = append(row, "ended "+s.EndReason)
				}
				rows = append(rows, row)
			}
			return table(cmd.OutOrStdout(), rows)
		},
	}
	list.Flags().BoolVar(&all, "all", false, "also those that have ended")
	show := &cobra.Command{
		Use: "show ID", Short: "Show one session", Args: one("ID", "sessions list"),
		RunE: func(cmd *cobra.Command, a []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			s, err := cl.Session(cmd.Context(), a[0])
			if err != nil || opt.json {
				return orJSON(cmd, s, err)
			}
			rows := [][]string{
				{"id", s.ID},
				{"who", s.Name},
				{"subject", s.Subject},
				{"groups", strings.Join(s.Groups, ", ")},
				{"device", s.Device},
				{"os user", s.OSUser},
				{"started", when(s.StartedAt)},
				{"until", when(s.ExpiresAt)},
			}
			if s.EndedAt != nil {
				rows = append(rows, []string{"ended", when(*s.EndedAt) + " " + s.EndReason + " by " + s.EndedBy})
			}
			return table(cmd.OutOrStdout(), rows)
		},
	}
	var req admin.Revoke
	revoke := &cobra.Command{
		Use: "revoke ID", Short: "End a session at once", Args: one("ID", "sessions list"),
		RunE: func(cmd *cobra.Command, a []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			s, err := cl.RevokeSession(cmd.Context(), a[0], req)
			if err != nil || opt.json {
				return orJSON(cmd, s, err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s of %s is ended; what it had open is cut\n", s.ID, clean(s.Name))
			return err
		},
	}
	revoke.Flags().StringVar(&req.Reason, "reason", "", "why, for the record")
	return group("sessions", "List, show and end logins", list, show, revoke)
}

func appsCmd(opt *options) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the apps of the policy in force", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			items, err := cl.Apps(cmd.Context())
			if err != nil || opt.json {
				return orJSON(cmd, items, err)
			}
			rows := [][]string{{"NAME", "PROTOCOL", "ADDRESS", "HOSTS", "UPSTREAM", "DURABILITY", "ON LOSS"}}
			for _, a := range items.Items {
				rows = append(rows, []string{a.Name, a.Protocol, a.Addresses[0], strings.Join(a.Hosts, ","), a.Upstream, a.Durability, a.OnLoss})
			}
			return table(cmd.OutOrStdout(), rows)
		},
	}
	return group("apps", "Show the apps", list)
}

// orJSON ends a command whose call failed, or whose answer is for a program.
func orJSON(cmd *cobra.Command, v any, err error) error {
	if err != nil {
		return err
	}
	return printJSON(cmd.OutOrStdout(), v)
}
