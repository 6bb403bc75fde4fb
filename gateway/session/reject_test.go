package session_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// A device that went between its packet and the flow it asked for is refused,
// and that has an ID and a record as any other refusal.
func TestAFlowOfADeviceThatIsGoneIsRecorded(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
	for _, c := range []struct {
		action policy.Action
		kind   audit.Kind
	}{{policy.ActionRequest, audit.KindDecision}, {policy.ActionFlow, audit.KindFlowOpen}} {
		_, err := g.m.Begin(session.Begin{Peer: netip.AddrPortFrom(l.Addresses[0], 1), App: g.app("crm"), Action: c.action, RequestHash: "h"})
		var r *session.Refused
		if !errors.As(err, &r) || r.Decision.ID == "" || r.Decision.Reason != policy.ReasonLoginRequired {
			t.Fatalf("%s: %v", c.kind, err)
		}
		recs := g.records(c.kind)
		if len(recs) != 1 || recs[0].Decision != r.Decision.ID || recs[0].App != "crm" || recs[0].RequestHash != "h" || recs[0].Allow == nil || *recs[0].Allow {
			t.Errorf("%s: recorded %+v", c.kind, recs)
		}
	}
}
