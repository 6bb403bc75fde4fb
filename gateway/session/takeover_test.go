package session_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

func (g *gw) loginAs(l *laptop, sub, osUser string, groups ...string) (store.Session, error) {
	now := time.Unix(0, g.now.Load())
	return g.m.Login(context.Background(), store.Session{
		DeviceID: l.ID, OSUser: osUser, Subject: policy.Subject{Issuer: "https://idp", ID: sub, Name: sub, Groups: groups, AuthenticatedAt: now},
		StartedAt: now, LastSeen: now, ExpiresAt: now.Add(12 * time.Hour),
	})
}

// A flow belongs to the person it was opened for: another one who logs in on
// the same laptop does not inherit it, whatever policy allows them.
func TestAnotherPersonInheritsNoFlow(t *testing.T) {
	for name, next := range map[string][2]string{
		"another subject": {"bert", "1000:anna"},
		"another OS user": {"anna", "1001:bert"},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGateway(t)
			l := g.ready("anna")
			f := g.open(l, "desk")
			if _, err := g.loginAs(l, next[0], next[1], "sales"); err != nil {
				t.Fatal(err)
			}
			if f.Check() == nil {
				t.Errorf("the flow of %s goes on under %v", f.Facts().Subject.ID, next)
			}
			if cuts := g.records(audit.KindFlowCut); len(cuts) != 1 || cuts[0].Subject != "https://idp#anna" {
				t.Errorf("cuts: %+v", cuts)
			}
			g.open(l, "desk")
		})
	}
	t.Run("the same person", func(t *testing.T) {
		g := newGateway(t)
		l := g.ready("anna")
		f := g.open(l, "desk")
		g.login(l, "sales")
		if err := f.Check(); err != nil {
			t.Errorf("a second login of the same person cut their call: %v", err)
		}
	})
}

// A session that was revoked between the registration's write and its coming
// into force is not resumed.
func TestConnectTakesNoEndedSessionAlong(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	reg := l.reg
	reg.TunnelKey[0] ^= 1
	resumed, err := g.store.PutRegistration(t.Context(), reg)
	if err != nil || resumed == nil {
		t.Fatal(resumed, err)
	}
	err = g.m.EndSession(t.Context(), store.End{SessionID: resumed.ID, Reason: "revoked", By: "test", At: time.Unix(0, g.now.Load())}, policy.ReasonSessionRevoked)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.m.Connect(session.Connection{Device: l.Device, Registration: reg, Session: resumed, Nonce: "n"}); err != nil {
		t.Fatal(err)
	}
	if s, ok := g.m.SessionOf(l.ID); ok {
		t.Errorf("the revoked session %s is in force", s.ID)
	}
}

// Whoever revokes a session the moment the store has it ends it.
func TestLoginDoesNotOutliveItsRevocation(t *testing.T) {
	g := newGateway(t)
	l := g.ready("anna")
	for i := range 20 {
		stop := make(chan struct{})
		var killer sync.WaitGroup
		killer.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				open, err := g.store.Sessions(context.Background(), store.SessionFilter{Active: true, DeviceID: l.ID})
				if err != nil || len(open) == 0 {
					continue
				}
				for _, s := range open {
					_ = g.m.EndSession(context.Background(), store.End{SessionID: s.ID, Reason: "revoked", By: "test", At: time.Unix(0, g.now.Load())}, policy.ReasonSessionRevoked)
				}
			}
		})
		var logins sync.WaitGroup
		for range 2 {
			logins.Go(func() { _, _ = g.loginAs(l, "anna", "1000:anna", "sales") })
		}
		logins.Wait()
		for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
			if open, err := g.store.Sessions(context.Background(), store.SessionFilter{Active: true, DeviceID: l.ID}); err == nil && len(open) == 0 {
				break
			}
		}
		close(stop)
		killer.Wait()
		if s, ok := g.m.SessionOf(l.ID); ok {
			stored, err := g.store.Session(context.Background(), s.ID)
			t.Fatalf("round %d: session %s is in force, but the store says it ended %v (%q) %v", i, s.ID, stored.EndedAt, stored.EndReason, err)
		}
	}
}

// A device that is removed while it connects leaves no peer behind.
func TestRemoveDuringConnectLeavesNoPeer(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	g.beforeAdd = func() { g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil)) }
	reg := l.reg
	reg.TunnelKey[0] ^= 1
	if _, err := g.store.PutRegistration(t.Context(), reg); err != nil {
		t.Fatal(err)
	}
	err := g.m.Connect(session.Connection{Device: l.Device, Registration: reg, Nonce: "n"})
	if err != nil && !errors.Is(err, session.ErrUnknownDevice) {
		t.Fatal(err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.peers) != 0 {
		t.Errorf("%d peers are left of a device that was removed", len(g.peers))
	}
}

// A device has left once it is removed, not when it connects anew.
func TestLeft(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	reg := l.reg
	reg.TunnelKey[0] ^= 1
	if _, err := g.store.PutRegistration(t.Context(), reg); err != nil {
		t.Fatal(err)
	}
	if err := g.m.Connect(session.Connection{Device: l.Device, Registration: reg, Nonce: "n"}); err != nil {
		t.Fatal(err)
	}
	left := func() []string {
		g.mu.Lock()
		defer g.mu.Unlock()
		return slices.Clone(g.left)
	}
	if got := left(); len(got) != 0 {
		t.Errorf("who connects anew has left: %q", got)
	}
	g.m.Remove(l.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
	if got := left(); !slices.Equal(got, []string{l.ID}) {
		t.Errorf("%q left, want %q", got, l.ID)
	}
}

// What a restart restores has no nonce; an empty one must not pass for it.
func TestRestoredDeviceTakesNoEmptyNonce(t *testing.T) {
	g := newGateway(t)
	l := g.connect("anna")
	if err := g.m.Connect(session.Connection{Device: l.Device, Registration: l.reg}); err != nil {
		t.Fatal(err)
	}
	_, err := g.m.Posture(l.ID, "", "boot", map[string]policy.Signal{"host_firewall": {State: "pass"}})
	if !errors.Is(err, session.ErrNonce) {
		t.Errorf("a report with an empty nonce: %v", err)
	}
}
