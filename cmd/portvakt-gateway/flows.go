package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway/admin"
)

func flowsCmd(opt *options) *cobra.Command {
	var only admin.FlowFilter
	list := &cobra.Command{
		Use: "list", Short: "List what is open, the oldest first", Args: cobra.NoArgs,
		Long: `List the connections, calls and requests that are open. One that is allowed no
more but may be finished (on_loss: drain in the app's file) is "draining", with
why and the time at which it is cut.`,
		Example: "  portvakt-gateway flows list --app voice --draining",
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := opt.client()
			if err != nil {
				return err
			}
			all, err := cl.Flows(cmd.Context(), only)
			if err != nil || opt.json {
				return orJSON(cmd, all, err)
			}
			return printFlows(cmd.OutOrStdout(), all.Items)
		},
	}
	list.Flags().StringVar(&only.Device, "device", "", "of one device (`id` or name)")
	list.Flags().StringVar(&only.App, "app", "", "to one app (`name`)")
	list.Flags().BoolVar(&only.Draining, "draining", false, "only what is allowed no more and may be finished")
	return group("flows", "Show what is open", list)
}

// printFlows prints the ID last: it is the longest, and the least read.
func printFlows(w io.Writer, all []admin.Flow) error {
	rows := [][]string{{"APP", "WHO", "DEVICE", "SINCE", "STATE", "FLOW"}}
	for _, f := range all {
		state := f.State
		if f.DrainUntil != nil { // within half an hour
			state += " until " + f.DrainUntil.Local().Format("15:04") + ": " + strings.ReplaceAll(f.Reason, "_", " ")
		}
		rows = append(rows, []string{f.App, f.Name, f.DeviceName, when(f.OpenedAt), state, f.ID})
	}
	return table(w, rows)
}
