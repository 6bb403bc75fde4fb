package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/gateway/store"
	"github.com/portvakt/portvakt/policy"
)

// Lockdown asks for a lockdown, or is one.
type Lockdown struct {
	ID string `json:"id,omitempty"`
	// Scope is all, app, subject, device or site. Value names the app, the
	// person (ISS#SUB, or a name or e-mail address that one person has), the
	// device (ID or name) or the address prefix.
	Scope  string     `json:"scope"`
	Value  string     `json:"value,omitempty"`
	Reason string     `json:"reason,omitempty"`
	By     string     `json:"by,omitempty"`
	At     *time.Time `json:"at,omitempty"`
	// Marks are what the app is known by besides its name, and Also the apps of
	// other names that bear one: it holds for them too.
	Marks []string `json:"marks,omitempty"`
	Also  []string `json:"also,omitempty"`
	// Cuts is how many open flows were cut, in the answer that put it in force.
	Cuts *int `json:"cuts,omitempty"`
}

// Lockdowns are those in force, and who may lift them alone.
type Lockdowns struct {
	Items      []Lockdown   `json:"items"`
	BreakGlass []BreakGlass `json:"break_glass"`
}

func lockdownOf(l store.Lockdown) Lockdown {
	at := l.At.UTC()
	return Lockdown{ID: l.ID, Scope: string(l.Scope), Value: l.Value, Reason: l.Reason, By: l.By, At: &at, Marks: l.Marks}
}

// Follows returns the mark by which the lockdown holds for an app of another
// name, "" when it does not.
func (l Lockdown) Follows(a *policy.App) string {
	return session.Follows(store.Lockdown{Scope: store.Scope(l.Scope), Value: l.Value, Marks: l.Marks}, a)
}

func (s *Server) lockdowns(w http.ResponseWriter, _ *http.Request) {
	out := Lockdowns{Items: []Lockdown{}, BreakGlass: s.BreakGlass()}
	for _, l := range s.cfg.Sessions.Lockdowns() {
		item := lockdownOf(l)
		item.Also = s.cfg.Sessions.Following(l.ID)
		out.Items = append(out.Items, item)
	}
	s.answer(w, out)
}

// lockdown waits for neither the store nor the log, but where a name has to be
// looked up to know whom it is about.
func (s *Server) lockdown(w http.ResponseWriter, r *http.Request) {
	var req Lockdown
	if err := decode(w, r, &req); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	value, err := s.scopeValue(r.Context(), store.Scope(req.Scope), req.Value)
	if err != nil {
		s.asked(w, "lockdown of "+req.Scope+" "+req.Value, err)
		return
	}
	l := store.Lockdown{Scope: store.Scope(req.Scope), Value: value, Reason: req.Reason, By: actor(r), At: s.cfg.Now()}
	if err := session.CheckLockdown(l); err != nil {
		s.fail(w, http.StatusBadRequest, "bad_request", err.Error()+".")
		return
	}
	// An administrator who hangs up now has still locked down.
	l, cuts, err := s.cfg.Sessions.Lockdown(context.WithoutCancel(r.Context()), l)
	if err != nil {
		s.failed(w, "the lockdown "+l.ID+" is in force, but storing it failed, so a restart of the gateway would end it: try again", err)
		return
	}
	out := lockdownOf(l)
	out.Cuts = &cuts
	s.answer(w, out)
}

// scopeValue makes of what people type what facts are compared with. What names
// nothing is refused: a lockdown that locks nothing would be believed in.
func (s *Server) scopeValue(ctx context.Context, scope store.Scope, value string) (string, error) {
	if value == "" {
		return "", nil
	}
	switch scope {
	case store.ScopeApp:
		if rev := s.cfg.Engine.Active(); rev != nil {
			for _, a := range rev.Apps() {
				if a.Name == value {
					return value, nil
				}
			}
			return "", badQuestion(fmt.Sprintf("The policy in force has no app %q; list them with: portvakt-gateway apps list", value))
		}
	case store.ScopeDevice:
		if _, ok := s.cfg.Sessions.Status(value); ok {
			return value, nil
		}
		d, err := s.named(ctx, value)
		return d.ID, err
	case store.ScopeSubject:
		if strings.Contains(value, "://") && strings.Contains(value, "#") {
			return value, nil // perhaps of somebody who has not logged in yet
		}
		x, err := s.latest(ctx, value, "")
		if err != nil {
			return "", err
		}
		if x == nil {
			return "", badQuestion(fmt.Sprintf("Nobody called %q has logged in here; name the person by ISS#SUB.", value))
		}
		return x.Subject.Key(), nil
	case store.ScopeSite:
		p, err := session.Site(value)
		if err != nil {
			text := err.Error()
			return "", badQuestion(strings.ToUpper(text[:1]) + text[1:] + ".")
		}
		return p.String(), nil
	}
	return value, nil
}

// Lockdowns lists the lockdowns in force.
func (c *Client) Lockdowns(ctx context.Context) (out Lockdowns, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/lockdowns", nil, &out)
}

// Lockdown puts a lockdown in force.
func (c *Client) Lockdown(ctx context.Context, req Lockdown) (out Lockdown, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/lockdowns", req, &out)
}

// LiftLockdown asks for the end of a lockdown.
func (c *Client) LiftLockdown(ctx context.Context, id string, req Revoke) (out Act, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/lockdowns/"+url.PathEscape(id)+"/off", req, &out)
}
