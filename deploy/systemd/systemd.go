// Package systemd holds the units, for those who run what they run without a
// systemd.
package systemd

import (
	_ "embed"
	"strings"
)

//go:embed portvakt-gateway.service
var gateway string

//go:embed portvakt-agent-net-helper.service
var netHelper string

// NetHelperCapabilities are all that the network helper's unit leaves to root, in
// lower case and without "cap_".
func NetHelperCapabilities() (caps []string) {
	for line := range strings.Lines(netHelper) {
		if v, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			for _, c := range strings.Fields(v) {
				caps = append(caps, strings.TrimPrefix(strings.ToLower(c), "cap_"))
			}
		}
	}
	return caps
}

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
