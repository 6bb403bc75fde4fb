package localapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"github.com/portvakt/portvakt/internal/wire"
)

// ErrNotRunning says that no agent answers at the socket.
var ErrNotRunning = errors.New("no portvakt-agent is running here; start it with: portvakt-agent run")

// Client calls a running agent.
type Client struct{ http *http.Client }

// NewClient opens nothing.
func NewClient(path string) *Client {
	return &Client{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unix", path)
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
				return nil, ErrNotRunning
			case errors.Is(err, fs.ErrPermission):
				return nil, fmt.Errorf("the agent's socket %s belongs to another user: %w", path, fs.ErrPermission)
			}
			return c, err
		},
		DisableKeepAlives: true,
	}}}
}

// Status asks how the agent is.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	out := new(Status)
	return out, c.do(ctx, http.MethodGet, PathStatus, out)
}

// Apps asks for the visible apps.
func (c *Client) Apps(ctx context.Context) (*Apps, error) {
	out := new(Apps)
	return out, c.do(ctx, http.MethodGet, PathApps, out)
}

// Why asks whether an app may be used now.
func (c *Client) Why(ctx context.Context, app string) (*wire.Denial, error) {
	out := new(wire.Denial)
	return out, c.do(ctx, http.MethodGet, PathWhy+"?app="+url.QueryEscape(app), out)
}

// Logout ends the session.
func (c *Client) Logout(ctx context.Context) (*Status, error) {
	out := new(Status)
	return out, c.do(ctx, http.MethodPost, PathLogout, out)
}

// Login logs the caller in: page is called with the address to open, then the
// call waits for the end. Ending ctx gives the login up. A refusal by the
// gateway is a *[RefusedError].
func (c *Client) Login(ctx context.Context, page func(LoginEvent) error) (*wire.Session, error) {
	res, err := c.send(ctx, http.MethodPost, PathLogin)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e LoginEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("reading the agent's answer: %w", err)
		}
		switch {
		case e.Error != nil && e.Refused:
			return nil, &RefusedError{e.Error}
		case e.Error != nil:
			return nil, e.Error
		case e.URL != "":
			if err := page(e); err != nil {
				return nil, err
			}
		default:
			return e.Session, nil
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, errors.New("the agent stopped before the login was done")
}

// RefusedError is a refusal, as opposed to a failure on the way.
type RefusedError struct{ Err *wire.Error }

// Error returns the refusal's sentence.
func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap returns the *[wire.Error].
func (e *RefusedError) Unwrap() error { return e.Err }

func (c *Client) send(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("asking the agent: %w", err)
	}
	res, err := c.http.Do(req)
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the made-up URL says nothing to anyone
	}
	if err != nil {
		return nil, fmt.Errorf("asking the agent: %w", err)
	}
	if res.StatusCode/100 == 2 {
		return res, nil
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("asking the agent: %w", err)
	}
	e := new(wire.Error)
	if json.Unmarshal(data, e) != nil || e.Code == "" {
		return nil, fmt.Errorf("asking the agent: it answered %s", res.Status)
	}
	if res.StatusCode == http.StatusForbidden {
		return nil, &RefusedError{e}
	}
	return nil, e
}

func (c *Client) do(ctx context.Context, method, path string, out any) error {
	res, err := c.send(ctx, method, path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(out); err != nil {
		return fmt.Errorf("reading the agent's answer: %w", err)
	}
	return nil
}
