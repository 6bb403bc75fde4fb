package identity

import (
	"sync"
	"time"
)

// Bounds of unfinished logins.
const (
	loginLife    = 10 * time.Minute
	maxPending   = 10_000
	maxPerDevice = 5
)

// pendingKey holds the device too, so that another device's Finish neither
// finds nor uses up a login.
type pendingKey struct{ device, state string }

// login is what the gateway keeps of an unfinished login.
type login struct {
	nonce, verifier  string
	osUser, redirect string
	expires          time.Time
}

// pendingTable holds the unfinished logins, in memory only: a restart of the
// gateway costs whoever is typing a password one more try.
type pendingTable struct {
	mu       sync.Mutex
	logins   map[pendingKey]*login   // guarded by mu
	byDevice map[string][]pendingKey // guarded by mu; oldest first
	order    []pendingKey            // guarded by mu; oldest first, may name logins that are gone
}

func (t *pendingTable) init() {
	t.logins = make(map[pendingKey]*login)
	t.byDevice = make(map[string][]pendingKey)
}

// add keeps l for loginLife. A device's sixth login replaces its oldest: a
// person who closes login pages and begins anew must not be locked out.
func (t *pendingTable) add(k pendingKey, l *login, now time.Time) (time.Time, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.expire(now)
	if mine := t.byDevice[k.device]; len(mine) >= maxPerDevice {
		t.remove(mine[0])
	}
	if len(t.logins) >= maxPending {
		return time.Time{}, &Error{
			Code: CodeTooMany, Message: "Too many people are logging in at this moment.",
			Remedy: "Try again in a few minutes.", Retry: true,
		}
	}
	l.expires = now.Add(loginLife)
	t.logins[k] = l
	t.byDevice[k.device] = append(t.byDevice[k.device], k)
	t.order = append(t.order, k)
	return l.expires, nil
}

// take returns the login and forgets it; nil when there is none, or it ran out.
func (t *pendingTable) take(k pendingKey, now time.Time) *login {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.logins[k]
	if l == nil {
		return nil
	}
	t.remove(k)
	if !now.Before(l.expires) {
		return nil
	}
	return l
}

// expire drops what ran out from the front of the order. mu is held.
func (t *pendingTable) expire(now time.Time) {
	for len(t.order) > 0 {
		l := t.logins[t.order[0]]
		if l != nil && now.Before(l.expires) {
			break
		}
		if l != nil {
			t.remove(t.order[0])
		}
		t.order = t.order[1:]
	}
	// Finished logins behind an unfinished one stay in order; without this
	// a busy gateway with one abandoned login grows for ten minutes.
	if len(t.order) > 2*maxPending {
		kept := make([]pendingKey, 0, len(t.logins))
		for _, k := range t.order {
			if t.logins[k] != nil {
				kept = append(kept, k)
			}
		}
		t.order = kept
	}
}

// remove forgets a login. mu is held.
func (t *pendingTable) remove(k pendingKey) {
	delete(t.logins, k)
	mine := t.byDevice[k.device]
	for i := range mine {
		if mine[i] == k {
			mine = append(mine[:i:i], mine[i+1:]...)
			break
		}
	}
	if len(mine) == 0 {
		delete(t.byDevice, k.device)
		return
	}
	t.byDevice[k.device] = mine
}
