package session_test

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// Whatever ends a Session is told once, and nothing else is.
func TestSessionOver(t *testing.T) {
	g := newGateway(t)
	var told []string
	g.over = func(_ [2]netip.Addr, session string) { told = append(told, session) }
	l := g.connect("laptop-1")
	first := g.login(l, "sales")
	g.report(l, "pass")
	g.publish(crm, desk)
	if len(told) > 0 {
		t.Errorf("told %v while it holds", told)
	}
	second := g.login(l, "sales") // takes the first one's place
	now := time.Unix(0, g.now.Load())
	if err := g.m.EndSession(t.Context(), store.End{SessionID: second.ID, Reason: "revoked", By: "test", At: now}, policy.ReasonSessionRevoked); err != nil {
		t.Fatal(err)
	}
	third := g.login(l, "sales")
	g.now.Store(third.ExpiresAt.Add(time.Minute).UnixNano())
	g.publish(crm, desk) // decides everything again
	if want := []string{first.ID, second.ID, third.ID}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}
}
