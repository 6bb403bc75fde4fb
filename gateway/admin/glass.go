package admin

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// glass are the break-glass times that run. They live in memory alone: a
// restart ends them, which is the safe side.
type glass struct {
	mu     sync.Mutex
	active map[string]BreakGlass // by uidOf
}

// put begins one; of the same administrator the new one counts.
func (g *glass) put(b BreakGlass) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active == nil {
		g.active = map[string]BreakGlass{}
	}
	g.active[uidOf(b.By)] = b
}

// of returns the one that runs for an actor.
func (g *glass) of(actor string, now time.Time) (BreakGlass, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b, ok := g.active[uidOf(actor)]
	return b, ok && now.Before(*b.Until)
}

// BreakGlass returns the break-glass times that run now.
func (s *Server) BreakGlass() []BreakGlass {
	s.glass.mu.Lock()
	defer s.glass.mu.Unlock()
	out := []BreakGlass{}
	for uid, b := range s.glass.active {
		if !s.cfg.Now().Before(*b.Until) {
			delete(s.glass.active, uid)
			continue
		}
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b BreakGlass) int { return strings.Compare(a.By, b.By) })
	return out
}
