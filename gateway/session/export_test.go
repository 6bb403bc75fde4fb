package session

// Tick does what Run does every second.
func (m *Manager) Tick() { m.tick(m.cfg.Now(), false) }

// Minute does what Run does when a minute begins.
func (m *Manager) Minute() { m.tick(m.cfg.Now(), true) }
