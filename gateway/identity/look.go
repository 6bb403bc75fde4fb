package identity

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync/atomic"
	"time"
)

// A login asks whether the provider answers at this moment.
const (
	lookTimeout = 3 * time.Second // for one look
	lookLife    = 3 * time.Second // of its result, for everyone who logs in
)

// look is the last that was learnt of whether the provider answers.
type look struct {
	at  time.Time // when it was learnt
	err error     // nil when it answered
}

// answers returns why a login would end at a dead page, or nil. One look runs
// at a time, for everyone who waits. It tells nothing of a provider that was
// never heard of: that is for [Provider.discover].
func (p *Provider) answers(ctx context.Context) error {
	if known, err := p.looked(); known {
		return err
	}
	ch := p.flight.DoChan("look", func() (any, error) {
		if known, err := p.looked(); known {
			return nil, err
		}
		return nil, p.note(p.look(context.WithoutCancel(ctx)))
	})
	select {
	case <-ctx.Done():
		return unavailable(fmt.Errorf("asking whether it answers: %w", ctx.Err()))
	case res := <-ch:
		return res.Err
	}
}

// looked returns what is known without a look.
func (p *Provider) looked() (known bool, err error) {
	p.disc.mu.Lock()
	defer p.disc.mu.Unlock()
	last := p.disc.look
	return p.disc.good == nil || p.now().Sub(last.at) < lookLife, last.err
}

// note keeps the result of a look. The health page shows a silence at once, and
// its end.
func (p *Provider) note(err error) error {
	p.disc.mu.Lock()
	defer p.disc.mu.Unlock()
	was, now := p.disc.look, look{at: p.now(), err: err}
	p.disc.look = now
	switch {
	case err != nil && p.disc.err == nil:
		p.log.Warn(saidSilent, "url", p.cfg.Issuer, "err", cause(err))
		p.disc.err = err
	case err == nil && was.err != nil && errors.Is(p.disc.err, was.err):
		p.log.Info(saidAnswers, "url", p.cfg.Issuer)
		p.disc.err = nil
	}
	return err
}

// look asks for the discovery document, and whether it is a good one is not its
// business. Silence is no connection within lookTimeout, a broken one, or a
// 5xx. A provider that took the connection, TLS and all, and then is slow is
// there: the person's browser may wait longer than this, and a second request
// that has to be quick would be one more thing for a login to depend on. Who
// cannot be connected to for so long would fail the exchange of the code, too.
func (p *Provider) look(ctx context.Context) error {
	ctx, cancel := p.bound(ctx)
	defer cancel()
	var connected atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(p.cfg.Issuer, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return unavailable(fmt.Errorf("asking whether it answers: %w", err))
	}
	resp, err := p.looker.Do(req)
	switch {
	case err != nil && connected.Load() && ctx.Err() != nil:
		return nil
	case err != nil:
		return unavailable(fmt.Errorf("asking whether it answers: %w", err))
	}
	_ = resp.Body.Close() // nothing of it was wanted
	if resp.StatusCode >= http.StatusInternalServerError {
		return unavailable(fmt.Errorf("asking whether it answers: %s", resp.Status))
	}
	return nil
}
