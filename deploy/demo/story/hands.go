package story

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"time"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/deploy/demo/stage"
	"github.com/portvakt/portvakt/internal/wire"
)

// hands are a worker's programs on one laptop: they know the agent's loopback
// proxy and trust the gateway's CA, as the browser does, and nothing else.
type hands struct {
	laptop *stage.Laptop
	http   *http.Client
}

func newHands(l *stage.Laptop, caFile string) (*hands, error) {
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("reading the gateway's CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", caFile)
	}
	proxy := &url.URL{Scheme: "http", Host: l.Proxy}
	return &hands{laptop: l, http: &http.Client{
		// A refusal is an answer; a redirect would hide it.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:           http.ProxyURL(proxy),
			TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13},
			// HTTP/1.1, so that "the same connection" is a plain statement and
			// a WebSocket can be opened with the same client.
			TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
		},
	}}, nil
}

func (h *hands) close() { h.http.CloseIdleConnections() }

// answer is what came back.
type answer struct {
	status int
	body   []byte
	denial wire.Denial // when the body was one
	conn   string      // the client's own end of the connection
	reused bool
}

func (a answer) String() string {
	if a.denial.Reason != "" {
		return fmt.Sprintf("%d %s: %s", a.status, a.denial.Reason, a.denial.Message)
	}
	return fmt.Sprintf("%d %.200q", a.status, a.body)
}

// do sends one request as a program that prefers JSON.
func (h *hands) do(ctx context.Context, method, u string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var a answer
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
		a.conn, a.reused = i.Conn.LocalAddr().String(), i.Reused
	}})
	req, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return a, err
	}
	req.Header.Set("Accept", "application/json")
	resp, err := h.http.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.status = resp.StatusCode
	if a.body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20)); err != nil {
		return a, err
	}
	if a.status == http.StatusForbidden {
		_ = json.Unmarshal(a.body, &a.denial) // otherwise the status alone speaks
	}
	return a, nil
}

// allowed sends a request that must be answered with 200.
func (h *hands) allowed(ctx context.Context, method, u string) (answer, error) {
	a, err := h.do(ctx, method, u)
	if err == nil && a.status != http.StatusOK {
		err = notSo(method+" "+u+" -> 200", "%s", a)
	}
	return a, err
}

// refused sends a request that must be refused for that reason.
func (h *hands) refused(ctx context.Context, method, u, reason string) (answer, error) {
	a, err := h.do(ctx, method, u)
	if err == nil && (a.status != http.StatusForbidden || a.denial.Reason != reason || a.denial.Message == "" || a.denial.Decision == "") {
		err = notSo(fmt.Sprintf("%s %s -> 403 %s with message and decision", method, u, reason), "%s", a)
	}
	return a, err
}

// until repeats a step that becomes true, and says how long it took.
func until(ctx context.Context, limit time.Duration, try func(context.Context) (answer, error)) (answer, time.Duration, error) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var last error
	for {
		a, err := try(ctx)
		if err == nil {
			return a, time.Since(start), nil
		}
		// The answer before the time ran out says more than that it did.
		if last == nil || !errors.Is(err, context.DeadlineExceeded) {
			last = err
		}
		select {
		case <-ctx.Done():
			return a, time.Since(start), fmt.Errorf("after %s: %w", limit, last)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// port returns the loopback port of an app with one port.
func (h *hands) port(ctx context.Context, app string) (string, error) {
	var apps localapi.Apps
	if err := h.laptop.AgentJSON(ctx, &apps, "apps"); err != nil {
		return "", err
	}
	var names []string
	for _, a := range apps.Items {
		names = append(names, a.Name)
		if a.Name == app && len(a.Local) == 1 {
			return a.Local[0].Local, nil
		}
	}
	return "", notSo("a loopback port for "+app, "apps %v", names)
}

func (h *hands) status(ctx context.Context) (localapi.Status, error) {
	var st localapi.Status
	err := h.laptop.AgentJSON(ctx, &st, "status")
	return st, err
}
