package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway/admin"
)

func whyCmd(opt *options) *cobra.Command {
	var (
		q       admin.Why
		groups  string
		signals []string
		at      string
	)
	c := &cobra.Command{
		Use:   "why",
		Short: "Say what policy answers a person, and why",
		Long: `Say whether somebody may use an app and why, with the facts of their live
session. Flags put other facts in the place of the real ones, so the same
command answers "what if": other groups, a failed signal, another place, another
time. Nothing is changed by asking. Exit code 3 when the answer is no.`,
		Example: `  portvakt-gateway why --app crm --subject "Anna Berg"
  portvakt-gateway why --app crm --subject "Anna Berg" --signal host_firewall=fail
  portvakt-gateway why --app crm --subject new.person --groups sales --signal disk_encryption=pass --from 192.0.2.7
  portvakt-gateway why --app crm --subject "Anna Berg" --at 2026-12-24T22:00:00+01:00`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if q.App == "" || (q.Subject == "" && q.Device == "") {
				return usageError{errors.New("--app and one of --subject and --device are needed; see: portvakt-gateway why --help")}
			}
			if cmd.Flags().Changed("groups") {
				q.Groups = []string{}
				for g := range strings.SplitSeq(groups, ",") {
					if g = strings.TrimSpace(g); g != "" {
						q.Groups = append(q.Groups, g)
					}
				}
			}
			for _, s := range signals {
				name, state, ok := strings.Cut(s, "=")
				if !ok {
					return usageError{fmt.Errorf("--signal %q: expected NAME=pass, NAME=fail or NAME=unknown", s)}
				}
				if q.Signals == nil {
					q.Signals = map[string]string{}
				}
				q.Signals[name] = state
			}
			if at != "" {
				t, err := time.Parse(time.RFC3339, at)
				if err != nil {
					return usageError{fmt.Errorf("--at %q: expected a time such as 2026-12-24T22:00:00+01:00", at)}
				}
				q.At = &t
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			b, err := cl.Why(cmd.Context(), q)
			if err != nil {
				return err
			}
			if opt.json {
				err = printJSON(cmd.OutOrStdout(), b)
			} else {
				err = printBecause(cmd.OutOrStdout(), b)
			}
			if err == nil && !b.Allow {
				err = errDenied
			}
			return err
		},
	}
	c.Flags().StringVar(&q.App, "app", "", "the app's `name`")
	c.Flags().StringVar(&q.Subject, "subject", "", "who: ISS#SUB, or a name or e-mail address")
	c.Flags().StringVar(&q.Device, "device", "", "on which device (`id`)")
	c.Flags().StringVar(&groups, "groups", "", "suppose these groups, comma separated")
	c.Flags().StringArrayVar(&signals, "signal", nil, "suppose a posture signal, `name=state`; repeatable")
	c.Flags().StringVar(&q.From, "from", "", "suppose this outer IP `address`")
	c.Flags().StringVar(&at, "at", "", "suppose this `time` (RFC 3339)")
	c.Flags().StringVar(&q.Method, "method", "", "ask about one request with this method")
	c.Flags().StringVar(&q.Path, "path", "", "ask about one request with this path")
	return c
}

func printBecause(w io.Writer, b admin.Because) error {
	answer := "no"
	if b.Allow {
		answer = "yes"
	}
	rows := [][]string{{"answer", answer}, {"decision", b.Decision}, {"reason", b.Reason}, {"", b.Message}}
	if b.Fact != nil {
		rows = append(rows, []string{"fact", fmt.Sprintf("%s is %q, wanted %q", b.Fact.Name, b.Fact.Value, b.Fact.Wanted)})
	}
	if b.Remedy != "" {
		rows = append(rows, []string{"remedy", b.Remedy})
	}
	if b.Rule != "" {
		rows = append(rows, []string{"rule", b.Rule})
	}
	in := b.Input
	if in.Subject != nil {
		rows = append(rows, []string{"groups", strings.Join(in.Subject.Groups, ", ")})
	}
	for _, name := range []string{"disk_encryption", "host_firewall"} {
		if s, ok := in.Posture.Signals[name]; ok {
			rows = append(rows, []string{name, strings.TrimSpace(s.State + " " + s.Value)})
		}
	}
	if in.Location.Address != "" {
		rows = append(rows, []string{"where", strings.TrimSpace(in.Location.Country + " " + in.Location.Address)})
	}
	rows = append(rows, []string{"at", in.Time.Format(time.RFC3339)}, []string{"revision", b.Revision}, []string{"facts of", b.Basis})
	return facts(w, rows)
}

func auditCmd(opt *options) *cobra.Command {
	var (
		n              int
		follow, denied bool
		input          bool
	)
	tail := &cobra.Command{
		Use: "tail", Short: "Print the last records, one JSON line each", Args: cobra.NoArgs,
		Long: `Print records of the decision log as they are stored. docs/audit.md describes
every field.`,
		Example: "  portvakt-gateway audit tail --follow --denied",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			return cl.AuditTail(cmd.Context(), cmd.OutOrStdout(), n, follow, denied)
		},
	}
	tail.Flags().IntVarP(&n, "lines", "n", 20, "how many records; 0 means all")
	tail.Flags().BoolVarP(&follow, "follow", "f", false, "go on with each new record")
	tail.Flags().BoolVar(&denied, "denied", false, "only what was denied")
	show := &cobra.Command{
		Use: "show ID", Short: "Print one record", Args: one("ID", "audit tail"),
		Long: `Print the record with that decision ID or sequence number. With --input print
only what was decided on, for:

  portvakt-gateway audit show ID --input > in.json
  portvakt-gateway policy build --revision REVISION -o b.tar.gz
  opa eval -b b.tar.gz -i in.json data.portvakt.decision`,
		RunE: func(cmd *cobra.Command, a []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			return cl.AuditShow(cmd.Context(), cmd.OutOrStdout(), a[0], input)
		},
	}
	show.Flags().BoolVar(&input, "input", false, "only the policy input")
	return group("audit", "Read the decision log, and prove what it says", tail, show, auditExportCmd(opt), auditVerifyCmd(opt), auditProveCmd(opt), auditEraseCmd(opt), auditTrustClockCmd(opt))
}

func auditExportCmd(opt *options) *cobra.Command {
	var format, since, until, out string
	c := &cobra.Command{
		Use: "export", Short: "Write records in a form that other systems read", Args: cobra.NoArgs,
		Long: `Write the records of a time as JSON Lines, as OCSF events, in the Common Event
Format, or as CSV for a spreadsheet. Every record names the gateway and its
number: together they are its identity. docs/audit.md describes the forms.`,
		Example: `  portvakt-gateway audit export --format csv --since 2026-05-01T00:00:00+02:00 --until 2026-06-01T00:00:00+02:00 -o may.csv
  portvakt-gateway audit export --format ocsf > events.jsonl`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			for name, v := range map[string]string{"since": since, "until": until} {
				if _, err := time.Parse(time.RFC3339, v); v != "" && err != nil {
					return usageError{fmt.Errorf("--%s %q: expected a time such as 2026-12-24T22:00:00+01:00", name, v)}
				}
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			if out == "" {
				return cl.Export(cmd.Context(), cmd.OutOrStdout(), format, since, until)
			}
			return replaceFile(out, 0o600, func(w io.Writer) error { return cl.Export(cmd.Context(), w, format, since, until) })
		},
	}
	c.Flags().StringVar(&format, "format", "jsonl", "jsonl, ocsf, cef or csv")
	c.Flags().StringVar(&since, "since", "", "from this `time` on (RFC 3339)")
	c.Flags().StringVar(&until, "until", "", "before this `time` (RFC 3339)")
	c.Flags().StringVarP(&out, "output", "o", "", "the `file` to write (default: standard output)")
	return c
}

// replaceFile leaves what was there unless all of the new one can be written.
func replaceFile(path string, mode os.FileMode, write func(io.Writer) error) error {
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(mode))
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := write(f); err != nil {
		return errors.Join(err, f.Cleanup())
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return errors.Join(fmt.Errorf("writing %s: %w", path, err), f.Cleanup())
	}
	return nil
}

func policyCmd(opt *options) *cobra.Command {
	var out, revision string
	build := &cobra.Command{
		Use: "build", Short: "Write a policy revision as an OPA bundle", Args: cobra.NoArgs,
		Long: `Write the revision in force, or one that was, as a bundle that the stock opa
evaluates: opa eval -b b.tar.gz -i in.json data.portvakt.decision`,
		Example: "  portvakt-gateway policy build -o b.tar.gz",
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if out == "" {
				return usageError{errors.New("-o FILE is needed; see: portvakt-gateway policy build --help")}
			}
			cl, err := opt.client()
			if err != nil {
				return err
			}
			var rev string
			err = replaceFile(out, 0o644, func(w io.Writer) (err error) {
				rev, err = cl.Bundle(cmd.Context(), w, revision)
				return err
			})
			if err != nil {
				return err
			}
			if opt.json {
				return printJSON(cmd.OutOrStdout(), map[string]string{"revision": rev, "file": out})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s holds revision %s\n", out, rev)
			return err
		},
	}
	build.Flags().StringVarP(&out, "output", "o", "", "the `file` to write")
	build.Flags().StringVar(&revision, "revision", "", "a revision that was active, from a record (default: the one in force)")
	return group("policy", "Work with policy revisions", build)
}
