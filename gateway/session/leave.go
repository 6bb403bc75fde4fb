package session

import (
	"time"

	"github.com/portvakt/portvakt/policy"
)

// Remove forgets a device's connection: its Flows are cut with the Decision,
// its segment emptied, its peer removed, its event streams told. A Decision of
// the zero value means that the registration merely ended.
func (m *Manager) Remove(id string, why policy.Decision) { m.remove(id, nil, why) }

// remove does nothing when only is given and a newer connection has taken its
// place.
func (m *Manager) remove(id string, only *device, why policy.Decision) {
	for {
		d, err := m.device(id)
		if err != nil || only != nil && d != only {
			return
		}
		d.end(why)
		if m.forget(d) {
			m.dissolve(d, true)
			return
		}
		// Another one took d out, or a newer connection its place: that one ends too.
	}
}

// forget takes a device that has ended out of the maps, and reports false when
// it is not in them any more.
func (m *Manager) forget(d *device) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.devices[d.record.ID] != d {
		return false
	}
	delete(m.devices, d.record.ID)
	for _, a := range d.record.Addresses {
		if m.inner[a] == d {
			delete(m.inner, a)
		}
	}
	if m.keys[d.key] == d {
		delete(m.keys, d.key)
	}
	return true
}

// dissolve tidies up after a device that has ended and is out of the maps. With
// last set nobody follows on its addresses; otherwise a newer connection of the
// same device already has them.
func (m *Manager) dissolve(d *device, last bool) {
	d.refreshMu.Lock() // of a refresh that goes on nothing stays
	defer d.refreshMu.Unlock()
	if last {
		m.mu.RLock()
		// Whoever connected since d left the maps sets its segment after mu, and
		// keeps it.
		if m.devices[d.record.ID] == nil {
			m.cfg.Table.Delete(d.record.Addresses)
			if m.cfg.Left != nil {
				m.cfg.Left(d.record.ID)
			}
		}
		m.mu.RUnlock()
	}
	if m.cfg.Gone != nil {
		m.cfg.Gone(d.record.Addresses)
	}
	d.publish(nil)
	if last {
		d.farewell() // a superseded connection's agent is the one that superseded it
	}
	if err := m.cfg.RemovePeer(d.key); err != nil {
		m.log.Error("removing a tunnel peer", "device", d.record.ID, "err", err)
	}
}

// end ends a connection: nothing of it passes a byte any more when this
// returns, and nothing begins. It waits for nobody. A Decision of the zero
// value means that the registration merely ended.
func (d *device) end(why policy.Decision) {
	if why.Reason == "" {
		why = policy.NewDecision(policy.ReasonLoginRequired, nil)
	}
	d.mu.Lock()
	if d.gone == nil {
		d.gone = &why
		d.epoch.Add(1)
	}
	d.mu.Unlock()
	var kills []func()
	for _, f := range d.open() {
		if kill := f.condemn(nil, why); kill != nil {
			kills = append(kills, kill)
		}
	}
	for _, kill := range kills {
		kill()
	}
}

// farewell waits until the event streams have told the device why its
// connection ends, for at most a tenth of a second: its flows are cut already,
// and the tunnel must not outlive them for longer.
func (d *device) farewell() {
	for range 20 {
		d.mu.Lock()
		left := len(d.watchers)
		d.mu.Unlock()
		if left == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}
