package session

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// EndSessions ends every Session that match names, as EndSession does: those in
// force first and at once, then those of devices that are away and could take
// them along to a new connection. It returns how many it ended; the error says
// that an end is not stored, or that those of devices away are not known.
func (m *Manager) EndSessions(ctx context.Context, match func(store.Session) bool, e store.End) (ended int, err error) {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards ended and errs
		errs []error
		done = map[string]bool{}
	)
	end := func(id string) {
		done[id] = true
		wg.Go(func() { // the cut of one does not wait for the storing of another
			one := e
			one.SessionID = id
			err := m.EndSession(ctx, one, policy.ReasonSessionRevoked)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				ended++
			case !errors.Is(err, ErrSessionOver):
				errs = append(errs, err)
			}
		})
	}
	for _, d := range m.all() {
		if s, ok := d.sessionNow(); ok && match(s) {
			end(s.ID)
		}
		if s, ok := d.finishing(); ok && match(s) {
			end(s.ID)
		}
	}
	wg.Wait()
	away, err := m.cfg.Store.Sessions(ctx, store.SessionFilter{Open: true})
	if err != nil {
		errs = append(errs, fmt.Errorf("looking for sessions of devices that are away: %w", err))
	}
	for _, s := range away {
		if !done[s.ID] && match(s) {
			end(s.ID)
		}
	}
	wg.Wait()
	return ended, errors.Join(errs...)
}
