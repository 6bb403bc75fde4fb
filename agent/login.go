package agent

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/agent/login"
	"github.com/portvakt/portvakt/agent/peeruser"
	"github.com/portvakt/portvakt/internal/wire"
)

// patience is how long a person is kept waiting for a link that is not there.
const patience = 2 * time.Second

// ongoing is the login under way.
type ongoing struct {
	uid    uint32
	cancel context.CancelCauseFunc
	done   chan struct{}
}

var errSuperseded = errors.New("another login was started on this laptop, so this one ended")

// logIn runs one login for the caller. A second one of the same person takes
// the place of the first, whose browser page may be long gone.
func (a *agent) logIn(ctx context.Context, who localapi.Caller, page func(*wire.LoginResponse) error) (*wire.State, error) {
	userOf := peeruser.Conn
	switch {
	case peeruser.Supported:
	case a.cfg.AllowAnyLocalUser:
		userOf = func(net.Conn) (uint32, error) { return who.UID, nil }
	default:
		return nil, &wire.Error{
			Code: "not_supported", Message: "This system does not say which user a connection belongs to, so nobody can log in.",
			Remedy: "Logging in works on Linux.",
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	mine := &ongoing{who.UID, cancel, make(chan struct{})}
	if err := a.begin(ctx, mine); err != nil {
		return nil, err
	}
	defer a.end(mine)
	l, err := a.waitLink(ctx, patience)
	if err != nil {
		return nil, err
	}
	s, err := login.Run(ctx, login.Config{
		Ports: l.connect.RedirectPorts, UID: who.UID, UserOf: userOf, Language: a.cfg.Language, Now: a.gatewayNow, Log: a.cfg.Log,
		Begin: func(ctx context.Context, redirect string) (*wire.LoginResponse, error) {
			return l.client.Login(ctx, wire.LoginRequest{RedirectURI: redirect, OSUser: who.OSUser()})
		},
		Open: page,
		Complete: func(ctx context.Context, answer wire.LoginComplete) (*wire.State, error) {
			// The tunnel may have been renewed while the person typed.
			l, err := a.waitLink(ctx, 10*time.Second)
			if err != nil {
				return nil, err
			}
			s, err := l.client.LoginComplete(ctx, answer)
			if err != nil {
				return nil, err
			}
			return s, a.apply(l, s)
		},
	})
	if err == nil {
		a.cfg.Log.Info("logged in", "subject", subject(s), "session", sessionID(s))
	}
	return s, err
}

func (a *agent) begin(ctx context.Context, mine *ongoing) error {
	for {
		a.mu.Lock()
		other := a.login
		if other == nil {
			a.login = mine
			a.mu.Unlock()
			return nil
		}
		a.mu.Unlock()
		if other.uid != mine.uid {
			return &wire.Error{Code: "login_in_progress", Message: "Another user of this laptop is logging in right now.", Remedy: "Try again when they are done.", Retry: true}
		}
		other.cancel(errSuperseded)
		select {
		case <-other.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (a *agent) end(mine *ongoing) {
	a.mu.Lock()
	a.login = nil
	a.mu.Unlock()
	close(mine.done)
}

func (a *agent) logOut(ctx context.Context) error {
	l, err := a.waitLink(ctx, patience)
	if err != nil {
		return err
	}
	s, err := l.client.Logout(ctx)
	if err != nil {
		return err
	}
	return a.apply(l, s)
}

func (a *agent) why(ctx context.Context, app string) (*wire.Denial, error) {
	l, err := a.waitLink(ctx, patience)
	if err != nil {
		var e *wire.Error
		if errors.As(err, &e) && e.Denial != nil {
			return e.Denial, nil // of the device, and so of every app
		}
		return nil, err
	}
	return l.client.Why(ctx, app)
}

func subject(s *wire.State) string {
	if s == nil || s.Session == nil {
		return ""
	}
	return s.Session.Subject
}

func sessionID(s *wire.State) string {
	if s == nil || s.Session == nil {
		return ""
	}
	return s.Session.ID
}
