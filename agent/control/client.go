package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/portvakt/portvakt/internal/wire"
)

const (
	callTimeout = 15 * time.Second
	maxEvent    = 4 << 20
	askAfter    = 2 * time.Second // below a heartbeat, so that one lost connection costs less than that
)

// ErrSilent says that the event stream was silent for three heartbeats.
var ErrSilent = errors.New("nothing was heard from the gateway for too long")

// ClientConfig says how to reach the control API of one registration.
type ClientConfig struct {
	// Dial opens a TCP connection inside the tunnel.
	Dial func(ctx context.Context, addr netip.AddrPort) (net.Conn, error)
	// Gateway is the gateway's own inner address.
	Gateway netip.Addr
	// Token is the registration's control token. It is never logged.
	Token string
	// Language is what refusals are asked for in, as in Accept-Language; empty
	// is the gateway's choice.
	Language string
	// Silence is how long the event stream may be silent; 0 means three times
	// [wire.EventHeartbeat].
	Silence time.Duration
}

// Client speaks to the gateway inside the tunnel.
type Client struct {
	base    *url.URL
	head    http.Header
	calls   *http.Client
	events  *http.Client // without a timeout: the stream has its own watch
	silence time.Duration
}

// NewClient opens nothing.
func NewClient(cfg ClientConfig) *Client {
	to := netip.AddrPortFrom(cfg.Gateway, wire.ControlPort)
	transport := &http.Transport{
		// The only place this client can go, whatever a URL says.
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			conn, err := cfg.Dial(ctx, to)
			if err != nil {
				return nil, err
			}
			// A gateway that was restarted knows nothing of this connection and
			// says so, but only when it is asked.
			if k, ok := conn.(interface {
				SetKeepAliveConfig(net.KeepAliveConfig) error
			}); ok {
				err = k.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: askAfter, Interval: askAfter, Count: 5})
			}
			if err != nil {
				return nil, errors.Join(err, conn.Close())
			}
			return conn, nil
		},
		DisableCompression: true,
		IdleConnTimeout:    time.Minute,
	}
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	host := cfg.Gateway.String()
	if cfg.Gateway.Is6() {
		host = "[" + host + "]"
	}
	c := &Client{
		base:    &url.URL{Scheme: "http", Host: host},
		head:    speaking(http.Header{wire.TokenHeader: {cfg.Token}}, cfg.Language),
		calls:   &http.Client{Transport: transport, Timeout: callTimeout, CheckRedirect: noRedirect},
		events:  &http.Client{Transport: transport, CheckRedirect: noRedirect},
		silence: cfg.Silence,
	}
	if c.silence == 0 {
		c.silence = 3 * wire.EventHeartbeat
	}
	return c
}

// speaking asks for answers in a language.
func speaking(h http.Header, language string) http.Header {
	if language != "" {
		h.Set("Accept-Language", language)
	}
	return h
}

// Close lets go of idle connections.
func (c *Client) Close() { c.calls.CloseIdleConnections() }

// State reads what the gateway lets this device know about itself.
func (c *Client) State(ctx context.Context) (*wire.State, error) {
	return get[wire.State](ctx, c, wire.PathState, nil)
}

// Why asks whether an app may be used now, and why not.
func (c *Client) Why(ctx context.Context, app string) (*wire.Denial, error) {
	return get[wire.Denial](ctx, c, wire.PathWhy, url.Values{"app": {app}})
}

// Registration keeps the tunnel key for longer.
func (c *Client) Registration(ctx context.Context) (*wire.RegistrationResponse, error) {
	return post[wire.RegistrationResponse](ctx, c.calls, c.base.JoinPath(wire.PathRegistration), c.head, struct{}{})
}

// Login starts a login.
func (c *Client) Login(ctx context.Context, req wire.LoginRequest) (*wire.LoginResponse, error) {
	return post[wire.LoginResponse](ctx, c.calls, c.base.JoinPath(wire.PathLogin), c.head, req)
}

// LoginComplete hands in the identity provider's answer.
func (c *Client) LoginComplete(ctx context.Context, req wire.LoginComplete) (*wire.State, error) {
	return post[wire.State](ctx, c.calls, c.base.JoinPath(wire.PathLoginComplete), c.head, req)
}

// Logout ends the session.
func (c *Client) Logout(ctx context.Context) (*wire.State, error) {
	return post[wire.State](ctx, c.calls, c.base.JoinPath(wire.PathLogout), c.head, struct{}{})
}

// Posture sends a report.
func (c *Client) Posture(ctx context.Context, req wire.SignedReport) (*wire.PostureResponse, error) {
	return post[wire.PostureResponse](ctx, c.calls, c.base.JoinPath(wire.PathPosture), c.head, req)
}

// Events reads the event stream and hands over each event. It returns when the
// stream ends or breaks ([io.EOF], [ErrSilent], ...), when event returns an
// error, or with nil when ctx is done.
func (c *Client) Events(ctx context.Context, event func(wire.Event) error) error {
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(c.silence, func() { cancel(ErrSilent) })
	defer watch.Stop()
	err := c.stream(inner, event, func() { watch.Reset(c.silence) })
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(context.Cause(inner), ErrSilent):
		return ErrSilent
	case err == nil:
		return fmt.Errorf("reading events: %w", io.EOF)
	}
	return err
}

func (c *Client) stream(ctx context.Context, event func(wire.Event) error, heard func()) error {
	req, err := c.get(ctx, wire.PathEvents, nil)
	if err != nil {
		return err
	}
	res, err := c.events.Do(req)
	if err != nil {
		return fmt.Errorf("opening the event stream: %w", err)
	}
	defer res.Body.Close()
	heard()
	if res.StatusCode/100 != 2 {
		data, err := io.ReadAll(io.LimitReader(res.Body, wire.MaxBody))
		if err != nil {
			return fmt.Errorf("opening the event stream: %w", err)
		}
		return refusal(res, data)
	}
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(make([]byte, 0, 64<<10), maxEvent)
	for lines.Scan() {
		heard()
		if len(lines.Bytes()) == 0 {
			continue
		}
		var e wire.Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return fmt.Errorf("reading an event: %w", err)
		}
		if err := event(e); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading events: %w", err)
	}
	return nil
}

func (c *Client) get(ctx context.Context, path string, query url.Values) (*http.Request, error) {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("writing the request: %w", err)
	}
	for k, v := range c.head {
		req.Header[k] = v
	}
	return req, nil
}

func get[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	req, err := c.get(ctx, path, query)
	if err != nil {
		return nil, err
	}
	return call[T](c.calls, req, nil)
}
