// Package systemd holds the units, for those who run what they run without a
// systemd.
package systemd

import (
	_ "embed"
	"strings"
)

//go:embed portvakt-gateway.service
var gateway string

// GatewayEnvironment is what the gateway's unit adds to its environment, as
// NAME=value.
func GatewayEnvironment() (env []string) {
	for line := range strings.Lines(gateway) {
		if v, ok := strings.CutPrefix(line, "Environment="); ok {
			env = append(env, strings.TrimSpace(v))
		}
	}
	return env
}
