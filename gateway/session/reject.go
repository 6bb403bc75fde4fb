package session

import (
	"net/netip"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/policy"
)

// Rejection is a request refused before policy was asked: it named another
// host, came from another page, or could be read in two ways.
type Rejection struct {
	Peer               netip.AddrPort
	App                *policy.App
	Decision           policy.Decision
	Method, Host, Path string
	RequestHash        string // empty when it could not be read in one way
}

// Reject records a refusal that needed no policy, and returns its Decision with
// an ID to show.
func (m *Manager) Reject(r Rejection) policy.Decision {
	dec := r.Decision
	dec.ID, dec.App, dec.Time = newID("d-"), r.App.Name, m.cfg.Now()
	rec := audit.Record{Kind: audit.KindDecision, App: r.App.Name, Method: r.Method, Host: r.Host, Path: r.Path, RequestHash: r.RequestHash}
	rec.SetDecision(dec)
	m.mu.RLock()
	d := m.inner[r.Peer.Addr().Unmap()]
	m.mu.RUnlock()
	if d != nil {
		rec.Device = d.record.ID
		d.mu.Lock()
		rec.Remote = d.location.Address
		noteSession(&rec, d.session)
		d.mu.Unlock()
	}
	m.refused.Add(1)
	if d == nil {
		m.cfg.Audit.Note(rec) // it went between its packet and this; that bounds itself
		return dec
	}
	d.refusals.Note(rec)
	return dec
}

// refuseGone refuses and records a Flow of a device that is not connected. It
// went between its packet and this, which bounds how many there are.
func (m *Manager) refuseGone(b Begin) *Refused {
	dec := policy.NewDecision(policy.ReasonLoginRequired, nil)
	dec.ID, dec.App, dec.Time = newID("d-"), b.App.Name, m.cfg.Now()
	rec := audit.Record{Kind: audit.KindDecision, App: b.App.Name, RequestHash: b.RequestHash}
	if b.Action == policy.ActionFlow {
		rec.Kind = audit.KindFlowOpen
	}
	rec.SetDecision(dec)
	m.refused.Add(1)
	m.cfg.Audit.Note(rec)
	return &Refused{dec}
}
