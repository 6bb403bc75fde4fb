package session

import "context"

// Tick does what Run does every second.
func (m *Manager) Tick() { m.tick(m.cfg.Now(), false) }

// KeepDrains is what Run does of it beside.
func (m *Manager) KeepDrains(ctx context.Context) { m.keepDrains(ctx) }

// Awaited counts the drains whose record is not written.
func (m *Manager) Awaited() (n int) {
	for _, d := range m.all() {
		for _, f := range d.open() {
			f.mu.Lock()
			if f.drain.on && f.drain.await != nil && !f.ended && f.cut == nil {
				n++
			}
			f.mu.Unlock()
		}
	}
	return n
}

// Minute does what Run does when a minute begins.
func (m *Manager) Minute() { m.tick(m.cfg.Now(), true) }
