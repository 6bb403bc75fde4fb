package session

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// A lockdown of an app is about what stands behind its name. Whoever writes the
// policy may name that otherwise, so the lockdown keeps the marks of its app and
// holds for every app that bears one of them.

const hostMark, upstreamMark = "host ", "upstream "

// marksOf returns what an app is known by besides its name: its hosts, and
// where it really is, however that is spelt.
func marksOf(a *policy.App) []string {
	var out []string
	for _, h := range a.Hosts {
		out = append(out, hostMark+h)
	}
	for _, port := range a.Ports {
		host, p, err := net.SplitHostPort(a.UpstreamFor(port))
		if err != nil {
			continue // no revision has it
		}
		host = strings.TrimSuffix(strings.ToLower(host), ".")
		if addr, err := netip.ParseAddr(host); err == nil {
			host = addr.Unmap().String()
		}
		if n, err := strconv.ParseUint(p, 10, 16); err == nil {
			p = strconv.FormatUint(n, 10)
		}
		if mark := upstreamMark + net.JoinHostPort(host, p); !slices.Contains(out, mark) {
			out = append(out, mark)
		}
	}
	return out
}

// Follows returns the mark by which a lockdown of an app holds for another one,
// "" when it does not.
func Follows(l store.Lockdown, a *policy.App) string {
	if l.Scope != store.ScopeApp || a.Name == l.Value || len(l.Marks) == 0 {
		return ""
	}
	for _, mark := range marksOf(a) {
		if slices.Contains(l.Marks, mark) {
			return mark
		}
	}
	return ""
}

// marked returns l with the marks that the app of its name bears among apps. An
// upstream that it shares with another app, such as an ingress, is no mark: all
// behind it would be closed with it. Nor are those of apps it follows: a mistake
// in the policy would stick to them.
func marked(l store.Lockdown, apps []policy.App) store.Lockdown {
	if l.Scope != store.ScopeApp {
		return l
	}
	others := map[string]bool{} // upstreams of other apps; a host is of one app only
	for i := range apps {
		a := &apps[i]
		if a.Name == l.Value || Follows(l, a) != "" {
			continue
		}
		for _, mark := range marksOf(a) {
			others[mark] = strings.HasPrefix(mark, upstreamMark)
		}
	}
	for i := range apps {
		if apps[i].Name != l.Value {
			continue
		}
		for _, mark := range marksOf(&apps[i]) {
			if !others[mark] && !slices.Contains(l.Marks, mark) {
				l.Marks = append(slices.Clip(l.Marks), mark)
			}
		}
	}
	return l
}

// followApps puts every lockdown of an app in force for the apps that bear its
// marks in the revision that is about to become active, besides those of the
// active one, and returns the set of before. publishMu is held.
func (m *Manager) followApps(next []policy.App) (before *lockdownSet) {
	before = m.lockdowns.Load()
	if err := m.swapLockdowns(func(old *lockdownSet) (*lockdownSet, error) {
		list := slices.Clone(old.list)
		for i := range list {
			list[i] = marked(list[i], next)
		}
		return newLockdownSet(list, slices.Concat(old.apps, next))
	}); err != nil {
		m.log.Error("following apps that are locked down", "err", err) // every one of them was checked before
	}
	return before
}

// noteFollowing records for which of apps lockdowns hold by their marks, and
// did not before.
func (m *Manager) noteFollowing(before *lockdownSet, apps []policy.App, revision, actor string) {
	for _, l := range m.Lockdowns() {
		for i := range apps {
			a := &apps[i]
			mark := Follows(l, a)
			if mark == "" || slices.Contains(before.following[l.ID], a.Name) {
				continue
			}
			r := audit.Record{Kind: audit.KindLockdown, Actor: actor, Outcome: "follows", Revision: revision, Detail: lockdownDetail(l)}
			r.Detail["app"], r.Detail["by"] = a.Name, mark
			m.cfg.Audit.Note(r)
			m.log.Warn("a lockdown follows its app to another name", "id", l.ID, "value", l.Value, "app", a.Name, "by", mark)
		}
	}
}

// storeMarks stores what lockdowns have learnt that were as before. Without it they
// would follow no further after a restart; they are in force all the same.
func (m *Manager) storeMarks(ctx context.Context, before []store.Lockdown) {
	m.lockdownMu.Lock()
	defer m.lockdownMu.Unlock()
	for _, l := range m.Lockdowns() {
		if i := slices.IndexFunc(before, func(x store.Lockdown) bool { return x.ID == l.ID }); i >= 0 && slices.Equal(before[i].Marks, l.Marks) {
			continue
		}
		err := m.cfg.Store.MarkLockdown(context.WithoutCancel(ctx), l.ID, l.Marks)
		if err != nil && !errors.Is(err, store.ErrNotFound) { // one that is not stored yet, or could not be
			m.log.Error("storing what a locked-down app is known by", "id", l.ID, "value", l.Value, "err", err)
		}
	}
}

// forgetApps ends what lockdowns did about apps of revisions before the active
// one. publishMu is held.
func (m *Manager) forgetApps(active []policy.App) {
	err := m.swapLockdowns(func(old *lockdownSet) (*lockdownSet, error) { return newLockdownSet(old.list, active) })
	if err != nil {
		m.log.Error("following apps that are locked down", "err", err)
	}
}

// Following returns the apps that a lockdown of another one holds for.
func (m *Manager) Following(id string) []string { return m.lockdowns.Load().following[id] }
