package agent

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/portvakt/portvakt/agent/control"
	"github.com/portvakt/portvakt/internal/wire"
)

// reopened is how long a gateway that was restarted may take to say something on
// a new event stream, and lasting how long that must last for another one to
// follow at once.
const (
	reopened = 5 * time.Second
	lasting  = time.Second
)

// follow applies what the event stream says. A reset of the stream is the word
// of a gateway that is being restarted, or was and knows this tunnel, but nothing
// of what was open in it: the link stays, and what it consists of begins anew
// inside. That spares both ends the handing-in of a new key, and calls that go on
// by UDP the break in them.
func (a *agent) follow(ctx context.Context, l *link) error {
	var restarted time.Time // zero: not under this link
	for attempt := 0; ; attempt++ {
		began := time.Now()
		heard, err := a.stream(ctx, l, restarted)
		reset := errors.Is(err, syscall.ECONNRESET)
		switch {
		case ctx.Err() != nil:
			return nil
		case reset && heard && (restarted.IsZero() || time.Since(began) >= lasting):
			a.cfg.Log.Info("the gateway was restarted; the tunnel stays", "err", err)
			a.mu.Lock()
			l.seen = false // its epochs begin anew, too
			a.mu.Unlock()
			l.client.Close() // what is idle is as lost
			poke(l.again)
			restarted, attempt = time.Now(), 0
		case (reset || errors.Is(err, syscall.ECONNREFUSED)) && !heard && time.Since(restarted) < reopened:
			sleep(ctx, backoff(attempt)) // it is still busy with its start
		default:
			return err
		}
	}
}

// stream follows one event stream and says whether anything was heard of it. One
// that is opened since a restart has to say something in time.
func (a *agent) stream(ctx context.Context, l *link, restarted time.Time) (heard bool, err error) {
	inner, end := context.WithCancel(ctx)
	defer end()
	patience := time.Hour // the client has its own
	if !restarted.IsZero() {
		patience = reopened - time.Since(restarted)
	}
	late := time.AfterFunc(patience, end)
	defer late.Stop()
	err = l.client.Events(inner, func(e wire.Event) error {
		heard = true
		late.Stop()
		return a.event(ctx, l, e)
	})
	if err == nil && ctx.Err() == nil {
		err = control.ErrSilent
	}
	return heard, err
}

// event applies one event of the stream.
func (a *agent) event(ctx context.Context, l *link, e wire.Event) error {
	switch {
	case e.Type == wire.EventRevoked:
		d := e.Denial
		if d == nil {
			d = &wire.Denial{Reason: codeRevoked, Message: "The gateway refuses this laptop.", Remedy: "Ask your IT support.", Time: a.cfg.Now()}
		}
		if d.Reason != codeRevoked {
			// The registration ended, or a newer one took its place: connecting
			// again tells whether this laptop may.
			return fmt.Errorf("the gateway ended the connection: %s", d.Message)
		}
		return &revokedError{d}
	case e.Type == wire.EventState && e.State != nil:
		return a.apply(l, e.State)
	case !a.hasState(l):
		s, err := l.client.State(ctx)
		if err != nil {
			return err
		}
		return a.apply(l, s)
	}
	return nil
}
