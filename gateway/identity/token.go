package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/portvakt/portvakt/policy"
)

// Bounds of what is taken from an ID token.
const (
	skew         = time.Minute // of the provider's clock against ours
	maxGroups    = 1000
	maxGroupLen  = 256     // bytes
	maxTextLen   = 256     // runes of name and email
	maxClaimLen  = 4 << 10 // bytes of JSON of a kept claim
	maxSubjectID = 255     // bytes (OpenID Connect Core section 2)
	maxToken     = 256 << 10
)

// claimsOf verifies what ID tokens and logout tokens have in common: signature,
// issuer and audience, and returns the claims. An error of type *[Error] says
// that this could not be done now.
func (p *Provider) claimsOf(ctx context.Context, d *discovered, raw string) (claims, error) {
	if len(raw) > maxToken {
		return nil, fmt.Errorf("it is larger than %d bytes", maxToken)
	}
	ctx, cancel := context.WithTimeout(ctx, httpTimeout)
	defer cancel()
	tok, err := d.verifier.Verify(ctx, raw)
	if err != nil {
		text := clean(err.Error(), 300)
		if strings.Contains(text, "fetching keys") {
			return nil, unavailable(errors.New(text))
		}
		return nil, errors.New(text)
	}
	var payload json.RawMessage
	if err := tok.Claims(&payload); err != nil {
		return nil, errors.New("reading its claims")
	}
	c, err := parseClaims(payload)
	if err != nil {
		return nil, err
	}
	// go-oidc reads names without regard to case; a claim "SUB" beside "sub"
	// must not become the subject.
	if iss := c.text("iss"); iss != tok.Issuer || iss != p.cfg.Issuer || c.text("sub") != tok.Subject {
		return nil, errors.New("iss or sub is there in two spellings")
	}
	return c, nil
}

// verify checks an ID token as OpenID Connect Core section 3.1.3.7 says and
// returns the login it stands for, but for the OS user.
func (p *Provider) verify(ctx context.Context, d *discovered, raw, nonce string) (Login, error) {
	bad := func(err error) (Login, error) {
		return Login{}, tokenInvalid("The identity provider's ID token does not hold.", err)
	}
	c, err := p.claimsOf(ctx, d, raw)
	var e *Error
	if errors.As(err, &e) {
		return Login{}, e
	}
	if err != nil {
		return bad(err)
	}
	sub := c.text("sub")
	if err := checkSubjectID(sub); err != nil {
		return bad(err)
	}
	if !sameText(c.text("nonce"), nonce) {
		return bad(errors.New("the nonce is not the one of this login"))
	}
	if err := p.checkAudience(c); err != nil {
		return bad(err)
	}
	if err := p.checkTimes(c); err != nil {
		return bad(err)
	}
	s, err := p.subject(c)
	if err != nil {
		return bad(err)
	}
	sid := c.text("sid")
	if len(sid) > maxSID {
		return bad(errors.New("sid is too long"))
	}
	iat, _ := c.time("iat") // checkTimes wants it
	return Login{Subject: s, SID: sid, IssuedAt: iat.UTC()}, nil
}

func checkSubjectID(sub string) error {
	if sub == "" || len(sub) > maxSubjectID {
		return errors.New("sub is empty or too long")
	}
	if strings.ContainsFunc(sub, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return errors.New("sub holds unprintable characters")
	}
	return nil
}

func (p *Provider) checkAudience(c claims) error {
	aud, err := c.texts("aud")
	if err != nil {
		return err
	}
	if !slices.Contains(aud, p.cfg.ClientID) {
		return fmt.Errorf("aud %q is not this gateway", clean(strings.Join(aud, " "), 200))
	}
	if _, has := c["azp"]; !has && len(aud) == 1 {
		return nil
	}
	// Core section 3.1.3.7, 4 and 5.
	if azp := c.text("azp"); azp != p.cfg.ClientID {
		return fmt.Errorf("azp %q is not this gateway", clean(azp, 200))
	}
	return nil
}

func (p *Provider) checkTimes(c claims) error {
	now := p.now()
	exp, ok := c.time("exp")
	if !ok {
		return errors.New("exp is missing")
	}
	if !now.Before(exp.Add(skew)) {
		return fmt.Errorf("it expired at %s, and it is %s here: compare the clocks", stamp(exp), stamp(now))
	}
	iat, ok := c.time("iat")
	if !ok {
		return errors.New("iat is missing")
	}
	for _, name := range []string{"iat", "nbf", "auth_time"} {
		if _, has := c[name]; !has {
			continue
		}
		t, ok := c.time(name)
		if !ok {
			return fmt.Errorf("%s is not a time", name)
		}
		if t.After(now.Add(skew)) {
			return fmt.Errorf("its %s is %s, and it is %s here: compare the clocks", name, stamp(t), stamp(now))
		}
	}
	if now.Sub(iat) > loginLife+skew {
		return fmt.Errorf("it was issued at %s, long before this login", stamp(iat))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// subject takes the facts out of verified claims.
func (p *Provider) subject(c claims) (policy.Subject, error) {
	s := policy.Subject{Issuer: c.text("iss"), ID: c.text("sub")}
	for _, name := range []string{p.cfg.NameClaim, "preferred_username"} {
		if s.Name = clean(c.text(name), maxTextLen); s.Name != "" {
			break
		}
	}
	if string(c["email_verified"]) == "true" {
		s.Email = clean(c.text("email"), maxTextLen)
	}
	groups, err := c.texts(p.cfg.GroupsClaim)
	if err != nil {
		return policy.Subject{}, err
	}
	if len(groups) > maxGroups {
		return policy.Subject{}, fmt.Errorf("%s holds %d groups, more than %d; have the identity provider send only the ones that policy uses",
			p.cfg.GroupsClaim, len(groups), maxGroups)
	}
	for _, g := range groups {
		if len(g) > maxGroupLen {
			return policy.Subject{}, fmt.Errorf("%s holds a name longer than %d bytes", p.cfg.GroupsClaim, maxGroupLen)
		}
	}
	slices.Sort(groups)
	if s.Groups = slices.Compact(groups); s.Groups == nil {
		s.Groups = []string{} // Rego iterates over it
	}
	var overage map[string]json.RawMessage
	if _, has := c[p.cfg.GroupsClaim]; !has && json.Unmarshal(c["_claim_names"], &overage) == nil && overage[p.cfg.GroupsClaim] != nil {
		p.log.Warn("the identity provider left the groups out of the ID token, as it does when there are many; have it send only the ones that policy uses",
			"subject", s.Issuer+"#"+s.ID)
	}
	for _, name := range p.cfg.KeepClaims {
		raw, has := c[name]
		if !has {
			continue
		}
		if len(raw) > maxClaimLen {
			p.log.Warn("a claim is too large to keep", "subject", s.Issuer+"#"+s.ID, "claim", name, "bytes", len(raw))
			continue
		}
		dec := json.NewDecoder(bytes.NewReader(raw))
		dec.UseNumber() // an employee number must not become a float
		var v any
		if err := dec.Decode(&v); err != nil {
			return policy.Subject{}, fmt.Errorf("reading claim %s: %w", name, err)
		}
		if s.Claims == nil {
			s.Claims = make(map[string]any)
		}
		s.Claims[name] = v
	}
	at, ok := c.time("auth_time")
	if !ok {
		at, _ = c.time("iat")
	}
	s.AuthenticatedAt = at.UTC()
	return s, nil
}

// claims are the members of an ID token's payload, by their exact names.
type claims map[string]json.RawMessage

// parseClaims refuses a payload that names a claim twice: which of the two
// counts is a question that two readers answer differently.
func parseClaims(payload []byte) (claims, error) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("the claims are not an object")
	}
	c := make(claims)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, errors.New("the claims are not an object")
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("the claims are not an object")
		}
		if _, has := c[name]; has {
			return nil, fmt.Errorf("claim %q is there twice", clean(name, 60))
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, fmt.Errorf("claim %q is not JSON", clean(name, 60))
		}
		c[name] = v
	}
	if _, err := dec.Token(); err != nil {
		return nil, errors.New("the claims are cut off")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the claims")
	}
	return c, nil
}

// text returns a claim that is a string, else "".
func (c claims) text(name string) string {
	var s string
	if raw := c[name]; len(raw) == 0 || json.Unmarshal(raw, &s) != nil {
		return ""
	}
	return s
}

// texts returns a claim that is a string or a list of strings; nil when it is
// absent or null.
func (c claims) texts(name string) ([]string, error) {
	raw, has := c[name]
	if !has || string(raw) == "null" {
		return nil, nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var parts []json.RawMessage
	if json.Unmarshal(raw, &parts) != nil {
		return nil, fmt.Errorf("%s is neither a text nor a list of texts", name)
	}
	out := make([]string, 0, len(parts))
	for _, part := range parts {
		var s string
		// null would pass for "" otherwise.
		if len(part) == 0 || part[0] != '"' || json.Unmarshal(part, &s) != nil {
			return nil, fmt.Errorf("%s is neither a text nor a list of texts", name)
		}
		out = append(out, s)
	}
	return out, nil
}

// time returns a claim that is a NumericDate (RFC 7519 section 2) between 1970
// and 9999.
func (c claims) time(name string) (time.Time, bool) {
	var f float64
	if raw := c[name]; len(raw) == 0 || raw[0] == 'n' || json.Unmarshal(raw, &f) != nil {
		return time.Time{}, false
	}
	if f < 0 || f > 253402300799 {
		return time.Time{}, false
	}
	return time.Unix(int64(f), 0), true
}
