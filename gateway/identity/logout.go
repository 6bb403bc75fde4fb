package identity

import (
	"container/list"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/portvakt/portvakt/policy"
)

// logoutEvent is the member of events that makes a token a logout token
// (OpenID Connect Back-Channel Logout 1.0, section 2.4).
const logoutEvent = "http://schemas.openid.net/event/backchannel-logout"

const (
	// logoutLife is how old a logout token may be: the provider sends it at once.
	logoutLife = 5 * time.Minute
	maxJTI     = 255 // bytes
	maxSID     = 255 // bytes
	// maxSeen bounds the remembered logout tokens. Beyond it the oldest is
	// forgotten, because a logout must never fail for want of room, and a
	// replayed one only takes away.
	maxSeen = 10_000
)

// Logout says whose logins the identity provider has ended: those of one of its
// sessions, or, without SessionID, all of a person.
type Logout struct {
	Issuer             string
	Subject, SessionID string // one may be empty
	jti                string
	at                 time.Time // iat, by the provider's clock
}

// Ends says whether the logout ends a login: of that person, made in the
// provider's session with that ID ("" when the provider gave none).
func (l Logout) Ends(s policy.Subject, sid string) bool {
	if s.Issuer != l.Issuer || l.Subject != "" && s.ID != l.Subject {
		return false
	}
	if l.SessionID == "" || sid == l.SessionID {
		return true
	}
	return sid == "" && l.Subject != "" // it may be that one
}

// Logout verifies a logout token as OpenID Connect Back-Channel Logout 1.0,
// section 2.6, says. A token is good once; after [Provider.NotLoggedOut] once
// more. Its errors are of type *[Error].
func (p *Provider) Logout(ctx context.Context, raw string) (Logout, error) {
	bad := func(err error) (Logout, error) {
		return Logout{}, tokenInvalid("The logout token does not hold.", err)
	}
	if err := checkLogoutType(raw); err != nil {
		return bad(err)
	}
	d, err := p.discover(ctx)
	if err != nil {
		return Logout{}, err
	}
	c, err := p.claimsOf(ctx, d, raw)
	var e *Error
	if errors.As(err, &e) {
		return Logout{}, e
	}
	if err != nil {
		return bad(err)
	}
	aud, err := c.texts("aud")
	if err != nil {
		return bad(err)
	}
	if !slices.Contains(aud, p.cfg.ClientID) {
		return bad(errors.New("aud is there in two spellings"))
	}
	if _, has := c["nonce"]; has {
		return bad(errors.New("it has a nonce, as only an ID token has"))
	}
	var events map[string]json.RawMessage
	if json.Unmarshal(c["events"], &events) != nil || !strings.HasPrefix(string(events[logoutEvent]), "{") {
		return bad(errors.New("its events do not hold a back-channel logout"))
	}
	if err := p.checkLogoutTimes(c); err != nil {
		return bad(err)
	}
	l := Logout{Issuer: c.text("iss"), Subject: c.text("sub"), SessionID: c.text("sid"), jti: c.text("jti")}
	l.at, _ = c.time("iat") // checkLogoutTimes wants it
	for name, text := range map[string]string{"sub": l.Subject, "sid": l.SessionID} {
		if _, has := c[name]; has && (text == "" || len(text) > maxSID) {
			return bad(fmt.Errorf("%s is no text, empty or too long", name))
		}
	}
	if l.Subject == "" && l.SessionID == "" {
		return bad(errors.New("it has neither sub nor sid"))
	}
	if l.jti == "" || len(l.jti) > maxJTI {
		return bad(errors.New("jti is missing, empty or too long"))
	}
	if !p.seen.add(l, p.now()) {
		return bad(errors.New("it was used already"))
	}
	return l, nil
}

// NotLoggedOut lets the provider send the same token again, because the logout
// could not be carried out. Whom it names stays logged out.
func (p *Provider) NotLoggedOut(l Logout) { p.seen.allow(l.jti) }

// LoggedOut says whether the provider ended that login within the last quarter
// of an hour: its session by name, or all of the person's when its ID token is
// not newer than the logout. Who puts a login in force asks once more
// afterwards.
func (p *Provider) LoggedOut(l Login) bool { return p.seen.over(l) }

// checkLogoutType refuses what says to be another kind of token.
func checkLogoutType(raw string) error {
	head, _, _ := strings.Cut(raw, ".")
	text, err := base64.RawURLEncoding.DecodeString(head)
	var h struct {
		Type string `json:"typ"`
	}
	if err != nil || json.Unmarshal(text, &h) != nil {
		return errors.New("it is not a signed token")
	}
	switch strings.TrimPrefix(strings.ToLower(h.Type), "application/") {
	case "", "jwt", "logout+jwt":
		return nil
	}
	return fmt.Errorf("its typ is %q", clean(h.Type, 60))
}

// checkLogoutTimes bounds the token's age by iat; exp is looked at when it is
// there, because older providers leave it out.
func (p *Provider) checkLogoutTimes(c claims) error {
	now := p.now()
	iat, ok := c.time("iat")
	if !ok {
		return errors.New("iat is missing")
	}
	if iat.After(now.Add(skew)) || now.Sub(iat) > logoutLife+skew {
		return fmt.Errorf("it was issued at %s, and it is %s here: compare the clocks", stamp(iat), stamp(now))
	}
	if _, has := c["exp"]; !has {
		return nil
	}
	if exp, ok := c.time("exp"); !ok || !now.Before(exp.Add(skew)) {
		return fmt.Errorf("it has expired, and it is %s here: compare the clocks", stamp(now))
	}
	return nil
}

// seenLogouts remembers used logout tokens for longer than they are good, and
// with them whom they logged out: they are for logins that are under way.
type seenLogouts struct {
	mu     sync.Mutex
	byJTI  map[string]*list.Element // guarded by mu; of seenLogout
	order  list.List                // guarded by mu; oldest first
	ended  map[string]int           // guarded by mu; how many remembered tokens name a sid
	people map[string]*loggedOut    // guarded by mu; by sub: all tokens are of one issuer
}

// loggedOut is what remembered logout tokens say about a person.
type loggedOut struct {
	tokens int // how many name the person
	// every and some are the latest iat of those without a sid, which end all
	// logins, and of all: a login without a sid may be the one that is meant.
	every, some time.Time
}

type seenLogout struct {
	Logout
	seen time.Time
}

// seenLife is longer than a token is good and than a login may take.
const seenLife = loginLife + logoutLife + 2*skew

// add returns false for a token that was used before.
func (s *seenLogouts) add(l Logout, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byJTI == nil {
		s.byJTI, s.ended, s.people = map[string]*list.Element{}, map[string]int{}, map[string]*loggedOut{}
	}
	for f := s.order.Front(); f != nil && (now.Sub(f.Value.(seenLogout).seen) > seenLife || s.order.Len() >= maxSeen); f = s.order.Front() {
		s.remove(f)
	}
	if s.byJTI[l.jti] != nil {
		return false
	}
	s.byJTI[l.jti] = s.order.PushBack(seenLogout{l, now})
	if l.SessionID != "" {
		s.ended[l.SessionID]++
	}
	if l.Subject == "" {
		return true
	}
	p := s.people[l.Subject]
	if p == nil {
		p = &loggedOut{}
		s.people[l.Subject] = p
	}
	p.tokens++
	if l.at.After(p.some) {
		p.some = l.at
	}
	if l.SessionID == "" && l.at.After(p.every) {
		p.every = l.at
	}
	return true
}

// allow lets a token be used once more.
func (s *seenLogouts) allow(jti string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byJTI, jti)
}

// over says whether the provider ended that login lately.
func (s *seenLogouts) over(l Login) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.SID != "" && s.ended[l.SID] > 0 {
		return true
	}
	p := s.people[l.Subject.ID]
	if p == nil {
		return false
	}
	until := p.every
	if l.SID == "" {
		until = p.some
	}
	return !until.IsZero() && !l.IssuedAt.After(until)
}

// remove forgets one. mu is held.
func (s *seenLogouts) remove(e *list.Element) {
	x := s.order.Remove(e).(seenLogout)
	if s.byJTI[x.jti] == e { // else it was used once more
		delete(s.byJTI, x.jti)
	}
	if s.ended[x.SessionID]--; s.ended[x.SessionID] <= 0 {
		delete(s.ended, x.SessionID)
	}
	if p := s.people[x.Subject]; p != nil {
		if p.tokens--; p.tokens == 0 {
			delete(s.people, x.Subject)
		}
	}
}
