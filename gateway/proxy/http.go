package proxy

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/http1"
	"github.com/portvakt/portvakt/gateway/refusal"
	"github.com/portvakt/portvakt/gateway/session"
	"github.com/portvakt/portvakt/policy"
)

// Outcomes of a Flow, as its closing record shows them.
const (
	outcomeDone        = "done"
	outcomeCut         = "cut"
	outcomeUnreachable = "upstream_unavailable"
	outcomeTimeout     = "upstream_timeout"
	outcomeForbidden   = "upstream_forbidden"
	outcomeBroke       = "upstream_broke_off"
	outcomeTooLarge    = "message_too_large" // of a WebSocket, from either side
	outcomeFrames      = "malformed_frames"  // likewise
	outcomeSilent      = "device_silent"     // it answers no ping
	outcomeStalled     = "device_stalled"    // it takes nothing of what it is sent, or sends nothing more of a body
)

// exchange is one HTTP request on its way, from the Decision on.
type exchange struct {
	begun     time.Time // when it had been parsed
	conn      *conn
	stream    *stream // of HTTP/2
	app       *policy.App
	req       request
	flow      *session.Flow
	decision  policy.Decision
	assertion string
	upstream  *upstream
	lane      *lane // nil on the direct road

	in, out atomic.Int64 // body bytes from and to the device

	// Of a WebSocket, from when the app accepts it: whether its messages may be
	// compressed, how large they may be, and how often the device is pinged.
	deflate bool
	message int64
	ping    time.Duration

	// Of a lane: what was read of the device's body and the app has not taken.
	// HTTP/2 may take everything else on its connection and nothing of this.
	sending patience
	named   nominated // of its answer

	held   held // of direct, as what follows
	upload upload

	// While the device's body and the app's are waited for; nil otherwise, and
	// of those that may be silent.
	asked, awaited *wait
	waits          *waits

	// mu guards the fields below, which the upstream's goroutines touch too.
	mu        sync.Mutex
	status    int
	outcome   string
	clientErr error   // of reading the device's body
	stalled   bool    // the app takes nothing of it
	backend   backend // of a lane
}

func (x *exchange) end() {
	x.mu.Lock()
	res := session.Result{Outcome: x.outcome, Status: x.status, BytesIn: x.in.Load(), BytesOut: x.out.Load()}
	x.mu.Unlock()
	x.waits.let(x.awaited, true)
	stalled := x.waits.let(x.asked, x.lane == nil) // of a lane somebody may still be reading
	if stalled || x.conn.patience.gaveUp() || x.stream != nil && x.stream.gaveUp() {
		res.Outcome = outcomeStalled
	}
	if _, cut := x.flow.Cut(); cut {
		res.Outcome = outcomeCut
	}
	x.flow.End(res)
}

func (x *exchange) note(status int, outcome string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.status, x.outcome = status, outcome
}

// stall notes that the app takes nothing of what it is sent.
func (x *exchange) stall() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.outcome, x.stalled = outcomeTimeout, true
}

// serveHTTP takes one request to an http app, or why none could be read.
func (p *Proxy) serveHTTP(w http.ResponseWriter, r *http.Request, why *http1.Malformed) {
	c := connOf(r)
	if c == nil {
		panic(http.ErrAbortHandler)
	}
	app := p.cfg.AppByAddr(c.local.Addr())
	if app == nil || app.Protocol != "http" {
		c.reset() // the app was removed; its address belongs to nobody now
		panic(http.ErrAbortHandler)
	}
	req, rej := read(r, why, c.name, app)
	begun := time.Now()
	if rej == nil {
		rej = crossSite(r, req, app)
	}
	if rej != nil {
		d := p.cfg.Session.Reject(session.Rejection{Peer: c.peer, App: app, Decision: rej.decision, Method: req.method, Host: req.host, Path: req.target.path, RequestHash: req.hash()})
		p.refuse(w, r, rej.status, app, d, rej.close)
		return
	}
	flow, err := p.cfg.Session.Begin(session.Begin{Peer: c.peer, App: app, Action: policy.ActionRequest, Port: c.local.Port(), RequestHash: req.hash()})
	if err != nil {
		var refused *session.Refused
		if !errors.As(err, &refused) {
			panic(http.ErrAbortHandler)
		}
		d := refused.Decision
		// The device is gone or holds too much: nothing more on this connection.
		p.refuse(w, r, refusal.StatusOf(d.Reason), app, d, true)
		return
	}
	x := &exchange{begun: begun, conn: c, app: flow.App(), req: req, flow: flow, waits: &p.waits}
	x.stream, _ = w.(*stream)
	defer x.end()
	d, err := flow.Authorize(r.Context(), req.policy())
	if err != nil || !d.Allow {
		p.refuse(w, r, refusal.StatusOf(d.Reason), app, d, false)
		return
	}
	x.decision = d
	p.proceed(w, r, x)
	// What the device has not taken yet a cut still reaches: only then the Flow
	// is over.
	_ = finish(w)
}

// finish sends what is left of an answer and returns once the connection has
// taken it, or died.
func finish(w http.ResponseWriter) error {
	if one, ok := w.(interface{ Finish() error }); ok {
		return one.Finish()
	}
	return http.NewResponseController(w).Flush() // HTTP/2
}

// read takes a request that came on a connection whose handshake asked for a
// name.
func read(r *http.Request, why *http1.Malformed, name string, app *policy.App) (request, *rejection) {
	switch {
	case why == nil:
		return examine(r, name, app)
	case why.Status == http.StatusMisdirectedRequest:
		rej := misdirected("host", "another one in the target", app)
		rej.close = true
		return request{}, rej
	}
	return request{}, badRequest(why.Status, "message", why.Why, "an HTTP/1.1 message whose length is clear")
}

// proceed forwards a request that was allowed.
func (p *Proxy) proceed(w http.ResponseWriter, r *http.Request, x *exchange) {
	token, err := p.cfg.Signer.Sign(claims(x.app, x.flow.Facts()))
	if err != nil {
		p.log.Error("asserting who asks; refusing the request", "app", x.app.Name, "flow", x.flow.ID(), "err", err)
		x.flow.OnCut(x.conn.reset)
		x.note(http.StatusBadGateway, outcomeUnreachable)
		p.refuseFault(w, r, x, policy.ReasonUpstreamUnavailable, http.StatusBadGateway)
		return
	}
	x.assertion = token
	if x.upstream, err = p.upstreams.of(x.app); err != nil {
		p.log.Error("preparing an app's upstream", "app", x.app.Name, "err", err)
		x.flow.OnCut(x.conn.reset)
		x.note(http.StatusBadGateway, outcomeUnreachable)
		p.refuseFault(w, r, x, policy.ReasonUpstreamUnavailable, http.StatusBadGateway)
		return
	}
	if x.upstream.pool != nil && x.req.upgrade == "" {
		p.direct(w, r, x)
		return
	}
	x.lane = p.upstreams.enter(x.upstream, x.holder())
	defer p.upstreams.leave(x.lane)
	defer x.release()
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), exchangeKey{}, x))
	defer cancel()
	x.backend.cancel, x.backend.cuts = cancel, x.lane.cuts.Load()
	// The cut: the connections to the device and to the app die with what is
	// queued on them, other HTTP/2 streams of the same device and app included,
	// because bytes of this one may wait among theirs.
	x.flow.OnCut(func() {
		x.conn.reset()
		x.abort()
	})
	x.sending = patience{within: p.cfg.Timeouts.Write, over: func() { x.stall(); cancel() }}
	defer x.sending.stop()
	if r.ContentLength != 0 && !(r.ProtoMajor == 2 && lasting(r.Header.Get("Content-Type"))) {
		x.asked = x.waits.take(x, false)
	}
	r = r.WithContext(ctx)
	r.Body = &requestBody{ReadCloser: r.Body, x: x, app: &x.sending}
	p.forward.ServeHTTP(&counted{ResponseWriter: w, x: x}, r)
}

func claims(app *policy.App, f session.Facts) assertion.Claims {
	c := assertion.Claims{Audience: app.Name, Device: f.Device.ID}
	if f.Subject != nil {
		c.Subject = f.SubjectKey
		c.Name, c.Email, c.Groups = f.Subject.Name, f.Subject.Email, f.Subject.Groups
	}
	if f.Session != nil {
		c.Session = f.Session.ID
	}
	return c
}

// refuse answers with a Decision that does not allow.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, status int, app *policy.App, d policy.Decision, closing bool) {
	if err := (refusal.Answer{Decision: d, Status: status, App: app, Close: closing, Allow: methods}).Write(w, r); err != nil {
		p.log.Debug("answering a refused request", "app", app.Name, "decision", d.ID, "err", err)
	}
}

// refuseFault tells that an allowed request could not be answered. It carries
// the ID of the Decision that allowed it: under that one the log has both.
func (p *Proxy) refuseFault(w http.ResponseWriter, r *http.Request, x *exchange, reason policy.Reason, status int) {
	d := policy.NewDecision(reason, nil)
	d.ID, d.App, d.Revision, d.Time = x.decision.ID, x.app.Name, x.decision.Revision, time.Now()
	p.refuse(w, r, status, x.app, d, false)
}

// redirect serves port 80 of an app: it only sends its own names to https.
func (p *Proxy) redirect(w http.ResponseWriter, r *http.Request, why *http1.Malformed) {
	c := connOf(r)
	if c == nil {
		panic(http.ErrAbortHandler)
	}
	app := p.cfg.AppByAddr(c.local.Addr())
	if app == nil {
		c.reset()
		panic(http.ErrAbortHandler)
	}
	plain := *r
	plain.Host = strings.TrimSuffix(r.Host, ":80")
	if rest, ok := strings.CutPrefix(r.RequestURI, "http://"+r.Host+"/"); ok {
		plain.RequestURI = "/" + rest
	}
	req, rej := read(&plain, why, c.name, app)
	if rej == nil && req.upgrade != "" {
		rej = badRequest(http.StatusBadRequest, "upgrade", "websocket over plain http", "wss://")
	}
	if rej != nil {
		d := p.cfg.Session.Reject(session.Rejection{Peer: c.peer, App: app, Decision: rej.decision, Method: req.method, Host: req.host, Path: req.target.path, RequestHash: req.hash()})
		p.refuse(w, r, rej.status, app, d, rej.close)
		return
	}
	h := w.Header()
	h.Set("Location", "https://"+req.host+req.target.escaped+req.target.query)
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Length", "0")
	w.WriteHeader(http.StatusPermanentRedirect)
}
