package session

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// State is what a device may know about itself, its denials in one of
// policy.Languages.
func (m *Manager) State(id, lang string) (wire.State, error) {
	d, err := m.device(id)
	if err != nil {
		return wire.State{}, err
	}
	st, v := m.facts(d)
	drains, osUser, _ := d.drains()
	cat, now := m.catalogue.Load(), m.cfg.Now()
	for _, a := range cat.visible(v, drains) {
		addrs := cat.addrs[a.Name]
		app := wire.App{
			Name: a.Name, Title: a.Title, Protocol: a.Protocol, Hosts: a.Hosts,
			Addresses: []netip.Addr{addrs[0], addrs[1]}, Ports: PortsOf(a), DSCP: a.DSCP, Allowed: v[a.Name],
		}
		if !app.Allowed {
			dec := m.answer(context.Background(), &basis{facts: d.facts(now, m.cfg.Elapsed()), question: reachQuestion(now, a)})
			// Allowed by now: the refresh that follows the fact tells of it again.
			if app.Allowed = dec.Allow; !dec.Allow {
				app.Denial = Denial(dec.In(lang))
			}
		}
		if until, ok := drains[a.Name]; ok {
			until = until.UTC()
			app.FinishBy = &until
			if st.Finish == nil {
				st.Finish = &wire.Finish{OSUser: osUser, Message: policy.Finish[lang]}
			}
			if until.After(st.Finish.Until) {
				st.Finish.Until = until
			}
		}
		st.Apps = append(st.Apps, app)
	}
	return st, nil
}

// facts are a device's state without its apps, and what it reaches.
func (m *Manager) facts(d *device) (wire.State, view) {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := wire.State{
		DeviceID: d.record.ID,
		Epoch:    d.epoch.Load(),
		Location: wire.Location{Address: d.location.Address, Country: d.location.Country},
		Posture:  []wire.Signal{},
		Apps:     []wire.App{},
		Time:     m.cfg.Now().UTC(),
	}
	if r := m.cfg.Engine.Active(); r != nil {
		st.Revision = r.ID()
	}
	if s := d.session; s != nil {
		st.Session = &wire.Session{
			ID: s.ID, Subject: s.Subject.Key(), Name: s.Subject.Name, Groups: s.Subject.Groups,
			OSUser: s.OSUser, StartedAt: s.StartedAt.UTC(), ExpiresAt: s.ExpiresAt.UTC(),
		}
	}
	elapsed := m.cfg.Elapsed()
	if p := d.posture; p.counts(elapsed) {
		for _, name := range wire.Signals {
			if s, ok := p.signals[name]; ok {
				st.Posture = append(st.Posture, wire.Signal{
					Name: name, State: s.State, Value: s.Value, AgeSeconds: int((elapsed - p.at) / time.Second),
				})
			}
		}
	}
	return st, d.view
}

// PortsOf lists the ports of an app on its virtual address.
func PortsOf(a policy.App) []uint16 {
	if a.Protocol == "http" {
		return []uint16{443, 80}
	}
	return a.Ports
}

// Denial is a Decision in the form of the wire.
func Denial(dec policy.Decision) *wire.Denial {
	out := &wire.Denial{
		Decision: dec.ID, Allow: dec.Allow, Reason: string(dec.Reason), Message: dec.Message,
		Remedy: dec.Remedy, App: dec.App, Revision: dec.Revision, Time: dec.Time,
	}
	if f := dec.Fact; f != nil {
		out.Fact = &wire.Fact{Name: f.Name, Value: f.Value, Wanted: f.Wanted}
	}
	return out
}

// WhyDevice answers a device's own question about an app. An app that is
// hidden from it gets the answer of an app that does not exist: both come from
// the same look-up in the device's view, so that neither bytes nor time tell
// them apart.
func (m *Manager) WhyDevice(id, app string) (policy.Decision, error) {
	d, err := m.device(id)
	if err != nil {
		return policy.Decision{}, err
	}
	drains, _, _ := d.drains()
	for _, a := range m.catalogue.Load().visible(d.viewNow(), drains) {
		if a.Name == app {
			now := m.cfg.Now()
			on := &basis{facts: d.facts(now, m.cfg.Elapsed()), question: reachQuestion(now, a)}
			dec := m.answer(context.Background(), on)
			m.noteWhy(d, dec, on)
			return dec, nil
		}
	}
	dec := policy.NewDecision(policy.ReasonUnknownApp, nil)
	dec.ID, dec.App, dec.Time = newID("d-"), app, m.cfg.Now()
	m.noteWhy(d, dec, nil)
	return dec, nil
}

// noteWhy records an answer, so that IT finds the decision whose number the
// worker reads out.
func (m *Manager) noteWhy(d *device, dec policy.Decision, on *basis) {
	r := audit.Record{Kind: audit.KindWhy, Device: d.record.ID}
	r.SetDecision(dec)
	if s, ok := d.sessionNow(); ok {
		noteSession(&r, &s)
	}
	if on != nil {
		r.Remote = on.facts.Address()
		on.keep(&r, nil)
	}
	d.refusals.Note(r)
}

// Status is one connected device for administrators.
type Status struct {
	Session  *store.Session
	Posture  policy.Posture
	Location policy.Location
	Epoch    uint64
	Flows    int
	Expires  time.Time
}

// Status returns what is known about a connected device.
func (m *Manager) Status(id string) (Status, bool) {
	d, err := m.device(id)
	if err != nil {
		return Status{}, false
	}
	now := m.cfg.Now()
	in := d.facts(now, m.cfg.Elapsed()).Input(reachQuestion(now, policy.App{}))
	d.mu.Lock()
	defer d.mu.Unlock()
	st := Status{Posture: in.Posture, Location: in.Location, Epoch: d.epoch.Load(), Flows: len(d.flows), Expires: d.expires}
	if d.session != nil {
		s := *d.session
		st.Session = &s
	}
	return st, true
}

// Input returns the facts of a connected device as policy would see them now.
func (m *Manager) Input(id string, a policy.App) (*policy.Input, error) {
	d, err := m.device(id)
	if err != nil {
		return nil, err
	}
	now := m.cfg.Now()
	return d.facts(now, m.cfg.Elapsed()).Input(reachQuestion(now, a)), nil
}

// OpenFlow is one open Flow for administrators.
type OpenFlow struct {
	ID       string
	App      *policy.App
	OpenedAt time.Time
	// DrainUntil is when it is cut, zero unless it drains; Reason is why.
	DrainUntil time.Time
	Reason     policy.Reason
	Facts
}

// Flows returns what is open and was allowed, the earliest first.
func (m *Manager) Flows() []OpenFlow {
	var out []OpenFlow
	for _, d := range m.all() {
		for _, f := range d.open() {
			f.mu.Lock()
			o := OpenFlow{ID: f.id, App: f.begin.App, OpenedAt: f.opened, Facts: f.facts}
			shown := f.decided && !f.ended && f.cut == nil
			if f.drain.on {
				o.DrainUntil, o.Reason = f.drain.until, f.drain.why.Reason
			}
			f.mu.Unlock()
			if shown {
				out = append(out, o)
			}
		}
	}
	slices.SortFunc(out, func(a, b OpenFlow) int { return a.OpenedAt.Compare(b.OpenedAt) })
	return out
}
