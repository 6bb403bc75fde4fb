// Package login carries a person's login from their browser back to the
// gateway: a loopback listener that takes the identity provider's one answer
// (RFC 8252 section 7.3), and the page that tells the person how it went. The
// agent learns no secret on the way: state, nonce and verifier are the
// gateway's.
package login

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/portvakt/portvakt/internal/page"
	"github.com/portvakt/portvakt/internal/wire"
)

// CallbackPath is the only path the listener knows.
const CallbackPath = "/callback"

// DefaultTimeout bounds a login whose end the gateway does not name.
const DefaultTimeout = 10 * time.Minute

const completeTimeout = 30 * time.Second

// Errors of a login that did not reach the gateway.
var (
	ErrTimeout = errors.New("nobody finished the login in time; start it again")
	ErrPort    = errors.New("none of the ports the identity provider accepts is free on this laptop")
)

// Config is one login.
type Config struct {
	// Ports are the loopback ports the identity provider accepts; empty means any.
	Ports []uint16
	// UID is the OS user who logs in. Connections of others are closed unread.
	UID uint32
	// UserOf names the OS user at the other end of an accepted connection. Nil,
	// and every error, refuses the connection.
	UserOf func(net.Conn) (uint32, error)
	// Begin asks the gateway for the page to open.
	Begin func(ctx context.Context, redirectURI string) (*wire.LoginResponse, error)
	// Open shows that page to the person, or prints its address.
	Open func(*wire.LoginResponse) error
	// Complete hands the answer to the gateway.
	Complete func(context.Context, wire.LoginComplete) (*wire.State, error)
	// Language is what the person is told the end in, as in Accept-Language.
	Language string
	Now      func() time.Time // by the gateway's clock; nil means time.Now
	Log      *slog.Logger     // nil discards
}

// Run takes one login from its start to its end. It returns the State after
// the login, the gateway's refusal (*[wire.Error]), [ErrTimeout], [ErrPort], or
// ctx's error when the person gave up.
func Run(ctx context.Context, cfg Config) (*wire.State, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	ln, err := listen(ctx, cfg.Ports)
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	host := ln.Addr().String()
	begun, err := cfg.Begin(ctx, "http://"+host+CallbackPath)
	if err != nil {
		return nil, err
	}
	until := DefaultTimeout
	if d := begun.ExpiresAt.Sub(cfg.Now()); d > 0 && d < until {
		until = d // a clock that is wrong all the same must not end the login at once
	}
	waiting, cancel := context.WithTimeoutCause(ctx, until, ErrTimeout)
	defer cancel()

	h := &handler{cfg: cfg, host: host, state: stateOf(begun.URL), ctx: waiting, done: make(chan outcome, 1)}
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
		IdleTimeout: 10 * time.Second, MaxHeaderBytes: 32 << 10,
		ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(&guarded{Listener: ln, cfg: cfg}) })
	defer serving.Wait()
	defer srv.Close()

	if err := cfg.Open(begun); err != nil {
		return nil, err
	}
	select {
	case o := <-h.done:
		// Let the page reach the browser before the listener goes.
		bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		srv.Shutdown(bye)
		return o.state, o.err
	case <-waiting.Done():
		return nil, context.Cause(waiting)
	}
}

// listen takes the first free one of the ports, on the IPv4 loopback only: the
// name localhost may resolve to something else (RFC 8252 section 8.3).
func listen(ctx context.Context, ports []uint16) (net.Listener, error) {
	if len(ports) == 0 {
		ports = []uint16{0}
	}
	var first error
	for _, p := range ports {
		ln, err := new(net.ListenConfig).Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(p))))
		if err == nil {
			return ln, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrPort, first)
}

// stateOf returns the state parameter of the page's address. The gateway
// checks it; the agent compares it only so that another page's request cannot
// use up the listener's one answer.
func stateOf(page string) string {
	u, err := url.Parse(page)
	if err != nil {
		return ""
	}
	return u.Query().Get("state")
}

// guarded closes connections of other OS users before a byte is read.
type guarded struct {
	net.Listener
	cfg Config
}

func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g.cfg.UserOf == nil {
			c.Close()
			continue
		}
		uid, err := g.cfg.UserOf(c)
		if err == nil && uid == g.cfg.UID {
			return c, nil
		}
		g.cfg.Log.Warn("refused a connection to the login listener", "remote", c.RemoteAddr().String(), "uid", uid, "err", err)
		c.Close()
	}
}

type outcome struct {
	state *wire.State
	err   error
}

type handler struct {
	cfg   Config
	host  string
	state string
	ctx   context.Context // of the whole login: a closed tab does not stop it
	done  chan outcome    // capacity 1; written once

	mu   sync.Mutex
	used bool // guarded by mu
}

func (h *handler) take() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.used {
		return false
	}
	h.used = true
	return true
}

// ServeHTTP takes the identity provider's answer.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, io.LimitReader(r.Body, 1<<10))
	lang := page.Language(h.cfg.Language)
	say := languages[lang]
	elsewhere := answer(lang, say.NotHere, say.UnderWay, say.Back, "")
	switch {
	case r.Host != h.host:
		// Another name for this address is a page trying DNS rebinding.
		writePage(w, http.StatusMisdirectedRequest, elsewhere)
		return
	case r.URL.Path != CallbackPath:
		writePage(w, http.StatusNotFound, elsewhere)
		return
	case r.Method != http.MethodGet:
		w.Header().Set("Allow", http.MethodGet)
		writePage(w, http.StatusMethodNotAllowed, elsewhere)
		return
	}
	got, err := parse(r.URL.RawQuery)
	if err == nil && h.state != "" && got.State != h.state {
		err = errors.New("it belongs to another login")
	}
	if err != nil {
		h.cfg.Log.Warn("what came back from the login page is not the answer", "err", err)
		writePage(w, http.StatusBadRequest, answer(lang, say.NotTheAnswer, say.Misread, say.Back+" "+say.Again, ""))
		return
	}
	if !h.take() {
		writePage(w, http.StatusGone, answer(lang, say.Used, say.Once, say.Unless, ""))
		return
	}
	ctx, cancel := context.WithTimeout(h.ctx, completeTimeout)
	defer cancel()
	st, err := h.cfg.Complete(ctx, got)
	defer func() { h.done <- outcome{st, err} }()
	if err != nil {
		writePage(w, http.StatusForbidden, failure(err, lang))
		return
	}
	p := answer(lang, say.LoggedIn, say.Close, "", "")
	p.Good = true
	if st != nil && st.Session != nil && st.Session.Name != "" {
		p.Text = fmt.Sprintf(say.Welcome, st.Session.Name) + " " + p.Text
	}
	writePage(w, http.StatusOK, p)
}

// parse reads the answer exactly as it came. A parameter given twice is
// refused (RFC 6749 section 3.1).
func parse(raw string) (wire.LoginComplete, error) {
	var a wire.LoginComplete
	q, err := url.ParseQuery(raw)
	if err != nil {
		return a, errors.New("its address is garbled")
	}
	for name, into := range map[string]*string{
		"state": &a.State, "code": &a.Code, "iss": &a.Issuer, "error": &a.Error, "error_description": &a.ErrorDescription,
	} {
		switch v := q[name]; len(v) {
		case 0:
		case 1:
			*into = v[0]
		default:
			return wire.LoginComplete{}, fmt.Errorf("it says %q twice", name)
		}
	}
	switch {
	case a.State == "":
		return wire.LoginComplete{}, errors.New("it carries no state")
	case a.Code == "" && a.Error == "":
		return wire.LoginComplete{}, errors.New("it carries neither a code nor an error")
	}
	return a, nil
}
