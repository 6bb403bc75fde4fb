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
