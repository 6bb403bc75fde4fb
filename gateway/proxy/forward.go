package proxy

import (
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"

	"github.com/portvakt/portvakt/gateway/assertion"
	"github.com/portvakt/portvakt/gateway/dial"
	"github.com/portvakt/portvakt/policy"
)

type exchangeKey struct{}

func exchangeOf(r *http.Request) *exchange {
	x, _ := r.Context().Value(exchangeKey{}).(*exchange)
	return x
}

// chunkBytes is the most that passes between two checks of a Flow.
const chunkBytes = 64 << 10

type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if v, ok := b.pool.Get().(*[]byte); ok {
		return *v
	}
	return make([]byte, chunkBytes)
}

func (b *buffers) Put(v []byte) { b.pool.Put(&v) }

// chunks are the buffers of every copy in this package.
var chunks buffers

func (p *Proxy) newForward() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite:        rewrite,
		Transport:      pick{},
		ModifyResponse: p.response,
		ErrorHandler:   func(w http.ResponseWriter, r *http.Request, err error) { p.fault(w, r, exchangeOf(r), err) },
		BufferPool:     &chunks,
		ErrorLog:       log.New(debugWriter{p.log}, "", 0),
	}
}

// pick sends each exchange by the connections of its own app and login.
type pick struct{}

func (pick) RoundTrip(r *http.Request) (*http.Response, error) {
	x := exchangeOf(r)
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		GotConn:      func(info httptrace.GotConnInfo) { x.got(info.Conn) },
		WroteHeaders: x.wrote,
		WroteRequest: func(httptrace.WroteRequestInfo) { _ = x.sending.done(nil) },
	}))
	res, err := x.lane.transport.RoundTrip(r)
	if err == nil {
		x.named = nominations(res.Header["Connection"]) // ReverseProxy removes it, and http.Transport one that says close
	}
	return res, err
}

// rewrite makes the upstream request from what was decided on. ReverseProxy
// has removed the hop-by-hop headers before, so that none of them can name one
// that is set here (RFC 9110, 7.6.1).
func rewrite(pr *httputil.ProxyRequest) {
	x := exchangeOf(pr.In)
	out := pr.Out
	out.Method = x.req.method
	// Opaque, because package url would encode a path once more whose decoded
	// form it does not find in the encoded one, such as one with a kept %2F.
	out.URL = &url.URL{Scheme: x.upstream.scheme, Host: x.upstream.host, Opaque: x.req.target.escaped + x.req.target.query}
	out.Host = x.req.host
	dropReserved(out.Header)
	if cookies := theirCookies(out.Header["Cookie"]); len(cookies) > 0 {
		out.Header["Cookie"] = cookies
	} else {
		delete(out.Header, "Cookie")
	}
	named := nominations(pr.In.Header["Connection"])
	for name := range out.Trailer {
		if !trailerAllowed(name, named) {
			delete(out.Trailer, name)
		}
	}
	if b, ok := pr.In.Body.(*requestBody); ok {
		b.from, b.to = pr.In.Trailer, out.Trailer
	}
	if greedyRange(out.Header["Range"]) {
		delete(out.Header, "Range")
	}
	delete(out.Header, "Expect") // answered by our own server, when the body is first read
	remote := x.flow.Facts().Outer
	if remote == "" {
		remote = x.conn.peer.Addr().Unmap().String()
	}
	out.Header.Set("X-Forwarded-For", remote)
	out.Header.Set("X-Forwarded-Host", x.req.host)
	out.Header.Set("X-Forwarded-Proto", "https")
	out.Header.Set(assertion.Header, x.assertion)
}

// ours says what only the gateway says, and what leads around it.
func ours(name string) bool { return strings.HasPrefix(name, "Portvakt-") || name == "Alt-Svc" }

func dropOurs(h http.Header) {
	for name := range h {
		if ours(name) {
			delete(h, name)
		}
	}
	dropOurCookies(h)
}

// dropHops takes out what is about the app's connection, which ReverseProxy does
// for all answers but those before the real one.
func dropHops(h http.Header) {
	named := nominations(h["Connection"])
	for name := range h {
		if hopByHop[name] || named[name] {
			delete(h, name)
		}
	}
}

// dropTrailers leaves what may reach the device of an app's trailers, or of their
// announcement.
func (x *exchange) dropTrailers(trailer http.Header) {
	for name := range trailer {
		if !trailerReturns(name, x.named) {
			delete(trailer, name)
		}
	}
}

// response looks at an app's answer before any of it reaches the device.
func (p *Proxy) response(res *http.Response) error {
	x := exchangeOf(res.Request)
	if cut := x.flow.Check(); cut != nil {
		return cut
	}
	dropOurs(res.Header)
	x.dropTrailers(res.Trailer)
	if res.StatusCode == http.StatusSwitchingProtocols {
		back, ok := res.Body.(io.ReadWriteCloser)
		if !ok || x.req.upgrade == "" {
			return errors.New("the app switched protocols unasked")
		}
		x.deflate = compressed(res.Header)
		x.ping, x.message = p.cfg.Timeouts.Ping, p.cfg.Limits.Message
		res.Body = &upgraded{ReadWriteCloser: back, x: x}
	} else {
		if res.ContentLength != 0 && !lasting(res.Header.Get("Content-Type")) {
			x.awaited = x.waits.take(x, true)
		}
		res.Body = &responseBody{ReadCloser: res.Body, x: x, res: res}
	}
	x.note(res.StatusCode, outcomeDone)
	return nil
}

// fault answers for an app that does not.
func (p *Proxy) fault(w http.ResponseWriter, r *http.Request, x *exchange, err error) {
	x.mu.Lock()
	clientErr, gaveUp := x.clientErr, x.stalled || x.backend.spent
	stalled := x.stalled
	x.mu.Unlock()
	// A cut is known to the Flow before anybody else learns of it; a body that
	// was refused a chunk in between is no fault of the app's either.
	if _, cut := x.flow.Cut(); cut || x.flow.Check() != nil || !gaveUp && (r.Context().Err() != nil || x.severed()) || clientErr != nil || errors.Is(err, errAsleep) {
		x.note(0, outcomeDone) // cut, or the device went away: no fault of the app's
		panic(http.ErrAbortHandler)
	}
	status, outcome, reason := http.StatusBadGateway, outcomeUnreachable, policy.ReasonUpstreamUnavailable
	var op *net.OpError
	switch {
	case errors.Is(err, dial.ErrForbidden):
		outcome, reason = outcomeForbidden, policy.ReasonUpstreamForbidden
	case errors.As(err, &op) && op.Op == "dial":
	case timedOut(err) || stalled:
		status, outcome = http.StatusGatewayTimeout, outcomeTimeout
	}
	x.note(status, outcome)
	p.log.Log(r.Context(), unanswered(err), dial.Failed(err), "app", x.app.Name, "flow", x.flow.ID(), "decision", x.decision.ID, "err", err)
	p.refuseFault(w, r, x, reason, status)
}

// counted notes what went to the device.
type counted struct {
	http.ResponseWriter
	x *exchange
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.x.out.Add(int64(n))
	return n, err
}

// WriteHeader sees the informational answers (RFC 9110, 15.2), which no
// ModifyResponse does.
func (c *counted) WriteHeader(status int) {
	if status < http.StatusOK && status != http.StatusSwitchingProtocols {
		if c.x.flow.Check() != nil {
			return
		}
		dropHops(c.Header())
		dropOurs(c.Header())
	} else if h := c.Header(); h["Content-Type"] == nil {
		h["Content-Type"] = nil // net/http would guess one
	}
	c.ResponseWriter.WriteHeader(status)
}

// Unwrap is for http.ResponseController.
func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// requestBody is the device's body; every chunk asks the Flow first.
type requestBody struct {
	io.ReadCloser
	x        *exchange
	app      *patience   // that of an app on a lane, nil on the direct road
	from, to http.Header // trailers; to holds the names that may pass
}

func (b *requestBody) Read(buf []byte) (int, error) {
	if b.app != nil { // who reads on has sent what was read before
		_ = b.app.done(nil)
	}
	n, err := b.x.asked.read(b.ReadCloser, buf)
	if cut := b.x.flow.Check(); cut != nil {
		return 0, cut
	}
	if b.app != nil && n > 0 {
		_ = b.app.begin()
	}
	b.x.in.Add(int64(n))
	switch {
	case errors.Is(err, io.EOF):
		for name := range b.to {
			if v, ok := b.from[name]; ok {
				b.to[name] = v
			}
		}
	case err != nil:
		b.x.mu.Lock()
		b.x.clientErr = err
		b.x.mu.Unlock()
	}
	return n, err
}

// responseBody is the app's body.
type responseBody struct {
	io.ReadCloser
	x   *exchange
	res *http.Response
}

func (b *responseBody) Read(buf []byte) (int, error) {
	n, err := b.x.awaited.read(b.ReadCloser, buf)
	if cut := b.x.flow.Check(); cut != nil {
		return 0, cut
	}
	switch {
	case errors.Is(err, io.EOF):
		b.x.dropTrailers(b.res.Trailer)
	case err != nil && b.res.Request.Context().Err() == nil && !b.x.severed():
		b.x.note(b.res.StatusCode, outcomeBroke)
	}
	return n, err
}

// upgraded is an app's end of a WebSocket.
type upgraded struct {
	io.ReadWriteCloser
	x *exchange
}

func (u *upgraded) Read(b []byte) (int, error) {
	n, err := u.ReadWriteCloser.Read(b)
	if cut := u.x.flow.Check(); cut != nil {
		return 0, cut
	}
	u.x.out.Add(int64(n))
	return n, err
}

func (u *upgraded) Write(b []byte) (int, error) {
	if cut := u.x.flow.Check(); cut != nil {
		return 0, cut
	}
	n, err := u.ReadWriteCloser.Write(b)
	if timedOut(err) {
		u.x.note(http.StatusSwitchingProtocols, outcomeTimeout)
	}
	u.x.in.Add(int64(n))
	return n, err
}
