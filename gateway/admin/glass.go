package admin

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// glass are the break-glass times that run. They live in memory alone: a
// restart ends them, which is the safe side.
type glass struct {
	mu     sync.Mutex
	active map[string]breakGlassTime // by uidOf
}

// breakGlassTime ends at its Until, which is recorded and which whoever sets the
// wall clock can move, or when as much has elapsed, suspend included; whichever
// is first.
type breakGlassTime struct {
	BreakGlass
	end time.Duration // session.Manager.Elapsed
}

func (b *breakGlassTime) over(now time.Time, elapsed time.Duration) bool {
	return elapsed >= b.end || !now.Before(*b.Until)
}

// put begins one; of the same administrator the new one counts.
func (g *glass) put(b breakGlassTime) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.active == nil {
		g.active = map[string]breakGlassTime{}
	}
	g.active[uidOf(b.By)] = b
}

// glassHeader lists, in every answer, the break-glass times that run: JSON in the
// alphabet of URLs, since a reason is in any language.
const glassHeader = "Portvakt-Break-Glass"

// announce says in an answer, whatever it is about, who may act alone.
func (s *Server) announce(w http.ResponseWriter) {
	running := s.BreakGlass()
	if len(running) == 0 {
		return
	}
	text, err := json.Marshal(running)
	if err != nil {
		s.log.Error("announcing a break-glass", "err", err)
		return
	}
	w.Header().Set(glassHeader, base64.RawURLEncoding.EncodeToString(text))
}

// announced reads what announce wrote.
func announced(h http.Header) (running []BreakGlass, err error) {
	text, err := base64.RawURLEncoding.DecodeString(h.Get(glassHeader))
	if err != nil || len(text) == 0 {
		return nil, err
	}
	return running, json.Unmarshal(text, &running)
}

// glassOf returns the break-glass time that runs for an actor.
func (s *Server) glassOf(actor string) (BreakGlass, bool) {
	s.glass.mu.Lock()
	defer s.glass.mu.Unlock()
	b, ok := s.glass.active[uidOf(actor)]
	return b.BreakGlass, ok && !b.over(s.cfg.Now(), s.cfg.Sessions.Elapsed())
}

// BreakGlass returns the break-glass times that run now.
func (s *Server) BreakGlass() []BreakGlass {
	s.glass.mu.Lock()
	defer s.glass.mu.Unlock()
	now, elapsed := s.cfg.Now(), s.cfg.Sessions.Elapsed()
	out := []BreakGlass{}
	for uid, b := range s.glass.active {
		if b.over(now, elapsed) {
			delete(s.glass.active, uid)
			continue
		}
		out = append(out, b.BreakGlass)
	}
	slices.SortFunc(out, func(a, b BreakGlass) int { return strings.Compare(a.By, b.By) })
	return out
}
