package systemd

import (
	"slices"
	"testing"
)

func TestGatewayEnvironment(t *testing.T) {
	if got := GatewayEnvironment(); !slices.Equal(got, []string{"GODEBUG=schedtrace=2147483647"}) {
		t.Errorf("the unit's environment: %q", got)
	}
}

func TestNetHelperCapabilities(t *testing.T) {
	if got := NetHelperCapabilities(); !slices.Equal(got, []string{"net_admin", "chown", "dac_override"}) {
		t.Errorf("the unit leaves %q", got)
	}
}
