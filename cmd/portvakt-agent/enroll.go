package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/agent"
	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/agent/enroll"
	"github.com/portvakt/portvakt/internal/wire"
)

func newEnroll(o *options) *cobra.Command {
	info := enroll.LocalInfo()
	var force, asJSON bool
	cmd := &cobra.Command{
		Use:   "enroll URL CODE",
		Short: "Make this laptop one of your company's (once)",
		Long: `enroll redeems the one-time code your IT support made with "portvakt-gateway
invite". The laptop makes a key of its own, which never leaves it, and gets a
certificate that renews itself from then on.

The code is sent only to the gateway it was made for: another server that
answers at URL learns nothing. Give CODE as "-" to read it from standard input,
so that it shows neither in the list of processes nor in the shell's history.

If the answer is lost on the way, run the same command again: nothing is lost.`,
		Example: `  portvakt-agent enroll https://gateway.example.com pv1.SECRET.CAHASH
  portvakt-agent enroll https://gateway.example.com -`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("wanted the gateway's address and the code, got %d arguments; your IT support has both", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			text := args[1]
			if text == "-" {
				line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 4096)).ReadString('\n')
				if err != nil && !errors.Is(err, io.EOF) {
					return fmt.Errorf("reading the code: %w", err)
				}
				text = strings.TrimSpace(line)
			}
			// What the person typed is judged before anything is made.
			if _, err := wire.ParseCode(text); err != nil {
				return &coded{exitUsage, err}
			}
			if _, err := control.ParseURL(args[0]); err != nil {
				return &coded{exitUsage, err}
			}
			dir, err := o.open()
			if err != nil {
				return err
			}
			release, err := dir.Lock()
			if err != nil {
				return err
			}
			defer release()
			id, err := enroll.Enroll(cmd.Context(), enroll.Config{
				State: dir, Info: info, Force: force, Language: languageOf(os.Getenv), OwnProxy: agent.DefaultProxyAddr,
			}, args[0], text)
			var refused *wire.Error
			switch {
			case errors.Is(err, enroll.ErrAlreadyEnrolled):
				return &coded{exitUsage, err}
			case errors.As(err, &refused) && !refused.Retry:
				return &coded{exitDenied, err}
			case err != nil:
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), id)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "This laptop is enrolled with %s as %s.\nNext: portvakt-agent run, then portvakt-agent login\n", id.Gateway, id.DeviceID)
			return nil
		},
	}
	cmd.Flags().StringVar(&info.Name, "name", info.Name, "name under which your IT support sees this laptop")
	cmd.Flags().StringVar(&info.Serial, "serial", info.Serial, "serial number, for codes that are made for one laptop (read from the firmware where that is allowed)")
	cmd.Flags().BoolVar(&force, "force", false, "enrol again, as a new device with a new key")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON for programs")
	return cmd
}
