//go:build linux

package main

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// causes are all that take away, each for one laptop's flows. Those of the
// second group leave the flows of an app with on_loss: drain open.
var causes = map[string]struct {
	fire  func(context.Context, *company, *laptop) error
	want  policy.Reason
	drain bool
}{
	"logout": {func(ctx context.Context, c *company, l *laptop) error {
		return c.manager.EndSession(ctx, store.End{SessionID: l.session.ID, Reason: "logout", By: "subject", At: time.Now()}, policy.ReasonLoginRequired)
	}, policy.ReasonLoginRequired, false},
	"logout at the provider": {func(ctx context.Context, c *company, l *laptop) error {
		_, err := c.manager.EndSessions(ctx, func(s store.Session) bool { return s.Subject.ID == l.device.ID }, store.End{Reason: "backchannel_logout", By: "idp", At: time.Now()})
		return err
	}, policy.ReasonSessionRevoked, false},
	"session revoked": {func(ctx context.Context, c *company, l *laptop) error {
		return c.manager.EndSession(ctx, store.End{SessionID: l.session.ID, Reason: "x", By: "os:0:root", At: time.Now()}, policy.ReasonSessionRevoked)
	}, policy.ReasonSessionRevoked, false},
	"device revoked": {func(_ context.Context, c *company, l *laptop) error {
		c.manager.Remove(l.device.ID, policy.NewDecision(policy.ReasonDeviceRevoked, nil))
		return nil
	}, policy.ReasonDeviceRevoked, false},
	"new connection of the laptop": {func(ctx context.Context, _ *company, l *laptop) error { return l.connect(ctx) }, policy.ReasonLoginRequired, false},
	"posture failed":               {func(_ context.Context, _ *company, l *laptop) error { return l.report(policySignals("fail")) }, policy.ReasonPostureFailed, false},
	"moved": {func(_ context.Context, c *company, l *laptop) error {
		c.country.Store("US")
		c.manager.Relocate()
		return nil
	}, policy.ReasonLocationNotAllowed, false},
	"lockdown of the person": {func(ctx context.Context, c *company, l *laptop) error {
		return c.lockdown(ctx, store.ScopeSubject, l.session.Subject.Key())
	}, policy.ReasonLockedDown, false},
	"lockdown of the device": {func(ctx context.Context, c *company, l *laptop) error {
		return c.lockdown(ctx, store.ScopeDevice, l.device.ID)
	}, policy.ReasonLockedDown, false},
	"lockdown of the site": {func(ctx context.Context, c *company, _ *laptop) error {
		return c.lockdown(ctx, store.ScopeSite, netip.MustParsePrefix("192.0.2.0/24").String())
	}, policy.ReasonLockedDown, false},
	"lockdown of all":         {func(ctx context.Context, c *company, _ *laptop) error { return c.lockdown(ctx, store.ScopeAll, "") }, policy.ReasonLockedDown, false},
	"login with other groups": {func(ctx context.Context, _ *company, l *laptop) error { return l.login(ctx, "others") }, policy.ReasonGroupNotAllowed, false},
	"policy taken away": {func(_ context.Context, c *company, l *laptop) error {
		c.engine.Activate(nil)
		return l.report(policySignals("unknown"))
	}, policy.ReasonPolicyUnavailable, false},

	"policy published": {func(ctx context.Context, c *company, _ *laptop) error {
		all := map[string]bool{}
		for _, kind := range kinds {
			all[kind+"0"] = true
		}
		return c.publish(ctx, "without", all)
	}, policy.ReasonGroupNotAllowed, true},
	"posture unknown": {func(_ context.Context, _ *company, l *laptop) error { return l.report(policySignals("unknown")) }, policy.ReasonPostureUnknown, true},
}

// world is a gateway with the apps in this process and one laptop, with further
// lines of every app's file. Its TCP connections are the kernel's, and the
// second one to the TCP app carries so much that splice moves it.
func world(t *testing.T, more string) (*company, *laptop) {
	t.Helper()
	ctx := t.Context()
	at, err := startApps()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(at.close)
	at.bulk = func(flow string) bool { return strings.HasPrefix(flow, "tcp0-0-7-") }
	var f *fleet
	c, err := open(t.TempDir(), at, func(packets [][]byte) int { return f.take(packets) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
	})
	f = newFleet(c, true)
	c.more = more
	if err := c.publish(ctx, "of the test", nil); err != nil {
		t.Fatal(err)
	}
	l, err := f.join(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.open(ctx); err != nil {
		t.Fatal(err)
	}
	if err := (pacer{at.Web}).set(ctx, time.Millisecond, l.flows); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, f := range l.flows {
			f.close()
		}
	})
	return c, l
}

// Every cause ends every kind of flow, for good: nothing comes after it.
func TestEveryCauseCutsEveryKind(t *testing.T) {
	for name, cause := range causes {
		t.Run(name, func(t *testing.T) {
			c, l := world(t, "")
			if n := c.manager.Counts().Flows; n != len(l.flows) {
				t.Errorf("%d flows are open, want %d", n, len(l.flows))
			}
			at := fire(t, c, l, cause.fire)
			for _, f := range l.flows {
				if _, err := f.livedAfter(at); err != nil {
					t.Errorf("%s: %v", f.kind, err)
				}
			}
			before := map[*flow]int64{}
			for _, f := range l.flows {
				before[f], _, _ = f.state()
			}
			time.Sleep(50 * time.Millisecond)
			for _, f := range l.flows {
				if n, _, _ := f.state(); n != before[f] {
					t.Errorf("%s: %d ticks came after the end", f.kind, n-before[f])
				}
			}
			cut := c.records(t, audit.KindFlowCut)
			// The cut of one HTTP/2 stream ends the connection, and may end the other.
			if len(cut) < len(l.flows)-1 {
				t.Errorf("%d flows were cut, want %d", len(cut), len(l.flows))
			}
			for _, r := range cut {
				if r.Reason != string(cause.want) {
					t.Errorf("%s was cut with %s, want %s", r.App, r.Reason, cause.want)
				}
			}
		})
	}
}

// In apps that let what is open be finished, soft causes leave every kind open,
// and a hard one that follows ends every kind.
func TestEveryKindDrains(t *testing.T) {
	for name, cause := range causes {
		if !cause.drain {
			continue
		}
		t.Run(name, func(t *testing.T) {
			c, l := world(t, "on_loss: {drain: 5m}\n")
			fire(t, c, l, cause.fire)
			before := map[*flow]int64{}
			for _, f := range l.flows {
				before[f], _, _ = f.state()
			}
			for _, f := range l.flows {
				for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
					n, _, ended := f.state()
					if n > before[f] {
						break
					}
					if !ended.IsZero() || time.Now().After(deadline) {
						t.Fatalf("%s does not go on: %v", f.kind, f.err)
					}
				}
			}
			if n := c.manager.Counts().Draining; n != len(l.flows) {
				t.Errorf("%d flows drain, want %d", n, len(l.flows))
			}
			// Nothing new, of any kind, also on a connection that is open.
			for _, kind := range kinds {
				f := &flow{name: "new-" + kind, kind: kind, app: kind + "0", close: func() {}}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				if err := l.dial(ctx, f, 1); err == nil { // h2: on the connection there is
					t.Errorf("a new %s was opened", kind)
				}
				cancel()
			}
			at := time.Now()
			if err := causes["device revoked"].fire(t.Context(), c, l); err != nil {
				t.Fatal(err)
			}
			for _, f := range l.flows {
				if _, err := f.livedAfter(at); err != nil {
					t.Errorf("%s: %v", f.kind, err)
				}
			}
		})
	}
}

// fire lets ticks come, brings the cause about and returns when it began to.
func fire(t *testing.T, c *company, l *laptop, cause func(context.Context, *company, *laptop) error) (at time.Time) {
	t.Helper()
	for _, f := range l.flows {
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			n, _, ended := f.state()
			if n > 3 {
				break
			}
			if !ended.IsZero() || time.Now().After(deadline) {
				t.Fatalf("%s: nothing comes: %d, %v", f.kind, n, f.err)
			}
		}
	}
	at = time.Now()
	if err := cause(t.Context(), c, l); err != nil {
		t.Fatal(err)
	}
	return at
}

func (c *company) records(t *testing.T, kind audit.Kind) (out []audit.Record) {
	t.Helper()
	for deadline := time.Now().Add(patience); c.log.Pending() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	err := audit.Scan(c.log.Path(), func(_ []byte, r *audit.Record) bool {
		if r.Kind == kind {
			out = append(out, *r)
		}
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
