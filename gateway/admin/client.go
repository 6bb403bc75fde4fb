package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"syscall"

	"github.com/portvakt/portvakt/internal/wire"
)

// Client speaks to a [Server] over its socket.
type Client struct {
	// Announce is told, once, of the break-glass times that run: nobody who
	// administers should miss that another acts alone. May be nil.
	Announce func([]BreakGlass)

	socket string
	http   http.Client
}

// NewClient returns a Client. It opens nothing.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	return c
}

// Invite makes an enrolment code.
func (c *Client) Invite(ctx context.Context, req Invite) (out Invited, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/invites", req, &out)
}

// Devices lists the enrolled devices.
func (c *Client) Devices(ctx context.Context) (out Items[Device], err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/devices", nil, &out)
}

// Device returns one device.
func (c *Client) Device(ctx context.Context, id string) (out Device, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/devices/"+url.PathEscape(id), nil, &out)
}

// RevokeDevice cuts a device off for good.
func (c *Client) RevokeDevice(ctx context.Context, id string, req Revoke) (out Device, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/devices/"+url.PathEscape(id)+"/revoke", req, &out)
}

// Sessions lists the sessions in force, or all that are stored.
func (c *Client) Sessions(ctx context.Context, all bool) (out Items[Session], err error) {
	path := "/v1/sessions"
	if all {
		path += "?all=1"
	}
	return out, c.call(ctx, http.MethodGet, path, nil, &out)
}

// Session returns one session.
func (c *Client) Session(ctx context.Context, id string) (out Session, err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/sessions/"+url.PathEscape(id), nil, &out)
}

// RevokeSession ends one session.
func (c *Client) RevokeSession(ctx context.Context, id string, req Revoke) (out Session, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/sessions/"+url.PathEscape(id)+"/revoke", req, &out)
}

// Apps lists the apps of the active revision.
func (c *Client) Apps(ctx context.Context) (out Items[App], err error) {
	return out, c.call(ctx, http.MethodGet, "/v1/apps", nil, &out)
}

// FlowFilter selects open flows; the zero value all of them.
type FlowFilter struct {
	Device, App string // by ID or name
	Draining    bool
}

// Flows lists what is open.
func (c *Client) Flows(ctx context.Context, f FlowFilter) (out Items[Flow], err error) {
	q := url.Values{}
	for key, v := range map[string]string{"device": f.Device, "app": f.App} {
		if v != "" {
			q.Set(key, v)
		}
	}
	if f.Draining {
		q.Set("draining", "1")
	}
	return out, c.call(ctx, http.MethodGet, "/v1/flows?"+q.Encode(), nil, &out)
}

// Why asks what policy says.
func (c *Client) Why(ctx context.Context, req Why) (out Because, err error) {
	return out, c.call(ctx, http.MethodPost, "/v1/why", req, &out)
}

// AuditTail copies records, one JSON line each, to w.
func (c *Client) AuditTail(ctx context.Context, w io.Writer, n int, follow, denied bool) error {
	q := url.Values{"n": {strconv.Itoa(n)}}
	if follow {
		q.Set("follow", "1")
	}
	if denied {
		q.Set("denied", "1")
	}
	return c.stream(ctx, "/v1/audit?"+q.Encode(), w)
}

// AuditShow copies one record, or its Input, to w.
func (c *Client) AuditShow(ctx context.Context, w io.Writer, id string, input bool) error {
	path := "/v1/audit/" + url.PathEscape(id)
	if input {
		path += "?input=1"
	}
	return c.stream(ctx, path, w)
}

// Export copies the records of a time, in one of the forms of package export,
// to w. Empty times are open ends.
func (c *Client) Export(ctx context.Context, w io.Writer, format, since, until string) error {
	return c.stream(ctx, "/v1/export?"+url.Values{"format": {format}, "since": {since}, "until": {until}}.Encode(), w)
}

// Bundle copies the OPA bundle of a revision, "" meaning the active one, to w
// and returns which revision it is.
func (c *Client) Bundle(ctx context.Context, w io.Writer, revision string) (string, error) {
	resp, err := c.do(ctx, http.MethodGet, "/v1/policy/bundle?revision="+url.QueryEscape(revision), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return "", fmt.Errorf("reading the gateway's answer: %w", err)
	}
	return resp.Header.Get(revisionHeader), nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encoding the call: %w", err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.do(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	return nil
}

func (c *Client) stream(ctx context.Context, path string, w io.Writer) error {
	resp, err := c.do(ctx, http.MethodGet, path, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil && ctx.Err() == nil {
		return fmt.Errorf("reading the gateway's answer: %w", err)
	}
	return nil
}

func (c *Client) do(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://gateway"+path, body)
	if err != nil {
		return nil, fmt.Errorf("making the call: %w", err)
	}
	resp, err := c.http.Do(req)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%s may only be used by the gateway's own user, root and the members of admin.group", c.socket)
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("no gateway is running here (nobody answers at %s); start it with: portvakt-gateway serve", c.socket)
	case err != nil:
		return nil, fmt.Errorf("calling the gateway: %w", err)
	}
	if running, err := announced(resp.Header); err != nil {
		resp.Body.Close()
		return nil, fmt.Errorf("reading who may act alone: %w", err)
	} else if len(running) > 0 && c.Announce != nil {
		c.Announce(running)
		c.Announce = nil
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var we wire.Error
	if err := json.NewDecoder(io.LimitReader(resp.Body, wire.MaxBody)).Decode(&we); err != nil {
		return nil, fmt.Errorf("the gateway answered %s", resp.Status)
	}
	return nil, &we
}
