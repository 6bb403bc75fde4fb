package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/nethelper"
	"github.com/portvakt/portvakt/agent/state"
	"github.com/portvakt/portvakt/internal/wire"
)

// codeRevoked is the Reason of a device that may not connect any more.
const codeRevoked = "device_revoked"

// revokedError says that the gateway refuses this device.
type revokedError struct{ denial *wire.Denial }

func (e *revokedError) Error() string { return e.denial.Message }

// asRevoked finds out whether an error means that the device is refused for
// good, and gives the Denial to show.
func asRevoked(err error, now time.Time) (*wire.Denial, bool) {
	var revoked *revokedError
	if errors.As(err, &revoked) {
		return revoked.denial, true
	}
	var e *wire.Error
	if !errors.As(err, &e) {
		return nil, false
	}
	if e.Denial != nil && !e.Denial.Allow && e.Denial.Reason == codeRevoked {
		return e.Denial, true
	}
	if e.Code == codeRevoked {
		return &wire.Denial{Reason: e.Code, Message: e.Message, Remedy: e.Remedy, Time: now}, true
	}
	return nil, false
}

func (a *agent) setIdentity(c *state.Credentials) {
	a.current.Store(c)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Version = a.cfg.Version
	a.status.Gateway = c.Identity.Gateway
	a.status.DeviceID = c.Identity.DeviceID
	until := c.Device.NotAfter
	a.status.CertificateExpiresAt = &until
}

// settle records why there is no link, and returns how long to wait when that
// is not for the usual backoff to say.
func (a *agent) settle(err error, wait time.Duration) time.Duration {
	if denial, ok := asRevoked(err, a.cfg.Now()); ok {
		a.mu.Lock()
		first := a.status.State != localapi.StateRevoked
		a.setState(localapi.StateRevoked)
		a.status.Denial, a.status.Trouble = denial, nil
		a.status.Session, a.status.Finish, a.apps = nil, nil, nil
		a.mu.Unlock()
		if first {
			a.cfg.Log.Error("the gateway refuses this device", "reason", denial.Reason, "err", err)
		}
		a.applying.Lock()
		a.loopback.SetApps(nil)
		if a.network != nil {
			a.network.close()
		}
		a.applying.Unlock()
		a.mark()
		return a.cfg.refused
	}
	if err == nil || isResumed(err) {
		a.mu.Lock()
		a.setState(localapi.StateConnecting)
		a.status.Denial, a.status.Trouble = nil, nil
		a.mu.Unlock()
		a.mark()
		return 0
	}
	t := control.Diagnose(err)
	var name *net.DNSError
	if a.network != nil && errors.As(err, &name) {
		a.network.unresolved()
	}
	var dark *noHandshake
	var bare *noInterface
	if errors.As(err, &bare) {
		t = control.Trouble{
			Code: "interface", Message: "The tunnel's network interface cannot be used: " + bare.Error() + ".",
			Remedy: "The agent tries again by itself. If it persists, ask your IT support, or run the agent without --tun.",
		}
	}
	if errors.As(err, &dark) && (t.Code == "timeout" || t.Code == "silent") {
		t = control.Trouble{
			Code: "no_tunnel", Message: "The gateway answers, but the tunnel to it does not come up.",
			Remedy: "The network may block UDP: try another one, or ask your IT support.",
		}
	}
	a.mu.Lock()
	same := a.status.Trouble != nil && *a.status.Trouble == t
	a.setState(localapi.StateWaiting)
	a.status.Denial, a.status.Trouble = nil, &t
	a.mu.Unlock()
	if !same {
		a.cfg.Log.Warn("no connection to the gateway", "reason", t.Code, "err", err)
	}
	a.mark()
	var refused *refusedConnect
	var e *wire.Error
	if errors.As(err, &refused) && errors.As(err, &e) && !e.Retry {
		return max(wait, a.cfg.refused/2)
	}
	return 0
}

// setState is called with mu held.
func (a *agent) setState(s string) {
	if a.status.State != s {
		a.status.State, a.status.Since = s, a.cfg.Now()
	}
}

func (a *agent) retryAt(wait time.Duration) {
	at := a.cfg.Now().Add(wait)
	a.mu.Lock()
	a.status.RetryAt = &at
	a.mu.Unlock()
}

func (a *agent) setLink(l *link) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.link = l
	close(a.linked)
	a.linked = make(chan struct{})
}

// waitLink returns the link, waiting for the next one when there is none. The
// error is the trouble in the way.
func (a *agent) waitLink(ctx context.Context, patience time.Duration) (*link, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		a.mu.Lock()
		l, next, st := a.link, a.linked, a.status
		a.mu.Unlock()
		if l != nil {
			return l, nil
		}
		if st.State == localapi.StateRevoked {
			return nil, notConnected(st)
		}
		select {
		case <-next:
		case <-timer.C:
			return nil, notConnected(st)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// notConnected puts the state of the connection in the form of a refusal.
func notConnected(st localapi.Status) error {
	switch {
	case st.Denial != nil:
		return &wire.Error{Code: st.Denial.Reason, Message: st.Denial.Message, Remedy: st.Denial.Remedy, Denial: st.Denial}
	case st.Trouble != nil:
		return &wire.Error{Code: st.Trouble.Code, Message: st.Trouble.Message, Remedy: st.Trouble.Remedy, Retry: true}
	}
	return &wire.Error{Code: "not_connected", Message: "The agent is not connected to the gateway yet.", Remedy: "Try again in a moment.", Retry: true}
}

// apply makes a State the one in force: first what the tunnel lets out, then
// what the loopback offers. A State of a former link, or an older one, is
// passed over.
func (a *agent) apply(l *link, s *wire.State) error {
	a.applying.Lock()
	defer a.applying.Unlock()
	a.mu.Lock()
	if a.link != l || l.seen && s.Epoch < a.status.Epoch {
		a.mu.Unlock()
		return nil
	}
	first := a.status.State != localapi.StateConnected
	l.seen = true
	a.setState(localapi.StateConnected)
	a.status.Denial, a.status.Trouble, a.status.RetryAt = nil, nil, nil
	a.status.Session, a.status.Finish, a.status.Location = s.Session, s.Finish, s.Location
	a.status.Epoch, a.status.Revision = s.Epoch, s.Revision
	a.skew, a.status.ClockSkewSeconds = 0, 0
	if !s.Time.IsZero() {
		a.skew = a.cfg.Now().Sub(s.Time)
	}
	if skew := a.skew.Round(time.Second); skew.Abs() > 30*time.Second {
		a.status.ClockSkewSeconds = int64(skew / time.Second)
	}
	a.apps = s.Apps
	a.mu.Unlock()

	if a.network != nil {
		if err := a.network.setUser(a.tunnelUser(s)); err != nil {
			return &noInterface{err}
		}
	}
	if err := l.tun.setAllowed(allowed(l.connect, s.Apps)); err != nil {
		return fmt.Errorf("setting the tunnel's addresses: %w", err)
	}
	l.tun.setCalls(told(s.Apps))
	if a.network != nil {
		a.network.setDNS(l.connect.Gateway.Addresses, s.Apps, a.ownNames(l))
	}
	// Also asks userAllowed about every open connection: one that outlives the
	// login it was opened under would be decided by the next person's session.
	a.loopback.SetApps(s.Apps)
	if first {
		a.cfg.Log.Info("connected", "remote", l.endpoint)
	}
	a.mark()
	return nil
}

// gatewayNow is the time by the gateway's clock, as far as it is known.
func (a *agent) gatewayNow() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg.Now().Add(-a.skew)
}

// ownNames are the names through which the agent reaches the gateway.
func (a *agent) ownNames(l *link) (names []string) {
	places := append(slices.Clone(l.connect.Gateway.Endpoints), a.cfg.Endpoint)
	if u, err := control.ParseURL(a.current.Load().Identity.Gateway); err == nil {
		names = append(names, strings.TrimSuffix(u.Hostname(), "."))
	}
	for _, p := range places {
		if host, _, err := net.SplitHostPort(p); err == nil {
			names = append(names, strings.ToLower(strings.TrimSuffix(host, ".")))
		}
	}
	return names
}

// tunnelUser is who may use the tunnel's interface: as [agent.userAllowed] has
// it for the loopback proxies.
func (a *agent) tunnelUser(s *wire.State) uint32 {
	if s.Session == nil && s.Finish == nil {
		return a.own
	}
	// The helper gives root no way in, unless the agent is root itself.
	if uid, ok := localapi.UserOf(s.Session, s.Finish); ok && (uid != 0 || a.own == 0) {
		return uid
	}
	return nethelper.NoUser
}

// allowed is exactly the gateway and the visible apps.
func allowed(c *wire.ConnectResponse, apps []wire.App) []netip.Addr {
	addrs := slices.Clone(c.Gateway.Addresses)
	for _, app := range apps {
		addrs = append(addrs, app.Addresses...)
	}
	return addrs
}

// told is where the apps are whose calls are told to the network.
func told(apps []wire.App) (at []netip.AddrPort) {
	for _, app := range apps {
		if app.Protocol != "udp" || app.DSCP != wire.DSCPAuto {
			continue
		}
		for _, addr := range app.Addresses {
			for _, port := range app.Ports {
				at = append(at, netip.AddrPortFrom(addr, port))
			}
		}
	}
	return at
}
