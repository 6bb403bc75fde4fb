package session

import (
	"context"
	"time"
)

// A lapse is a time in which nothing of the gateway ran: the process was
// stopped, or the machine suspended. What was queued before it could leave
// after it although its leases are over, so whoever sends asks Awake.

// lapse is how long nothing may have run before everything is decided again:
// shorter than what is left of any lease, which is renewed every confirmEvery.
func (m *Manager) lapse() time.Duration { return m.cfg.Lease / 2 }

// settle is how long after everything was decided again nothing leaves yet:
// packets of flows that were cut may still wait inside WireGuard for a processor.
const settle = 2 * time.Second

// Awake says whether the gateway has run without a lapse, or has decided every
// open Flow again after the last one, a moment ago. While it has not, no byte of a Flow may
// leave, not even one that was let through before.
func (m *Manager) Awake() bool {
	return m.cfg.Elapsed()-time.Duration(m.beat.Load()) <= m.lapse()
}

// Decided says the same without the moment: what was cut knows it by then, and
// what is new may leave towards an app.
func (m *Manager) Decided() bool {
	return m.cfg.Elapsed()-time.Duration(m.decided.Load()) <= m.lapse()
}

// watchLapses notes every second that the gateway runs, until ctx ends.
func (m *Manager) watchLapses(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		// What is looked at is what is noted: a stop in between shows the next time.
		beat := m.cfg.Elapsed()
		gap := beat - time.Duration(m.beat.Load())
		if gap > m.lapse() {
			m.log.Warn("the gateway stood still; deciding everything again before a byte passes", "for", gap.Round(time.Second).String())
			m.tick(m.cfg.Now(), true)
		}
		m.decided.Store(int64(beat))
		if gap > m.lapse() {
			select { // what was on its way to the socket is dropped there meanwhile
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
		}
		m.beat.Store(int64(beat))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
