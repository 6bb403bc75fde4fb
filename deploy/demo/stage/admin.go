package stage

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"

	"github.com/portvakt/portvakt/agent/localapi"
	"github.com/portvakt/portvakt/gateway/audit"
)

var (
	codePattern = regexp.MustCompile(`pv1\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+`)
	urlPattern  = regexp.MustCompile(`https?://[^\s"<>]+`)
)

// Gateway runs one portvakt-gateway command against the demo's gateway and
// returns what it printed. A non-zero exit is a *[CommandError].
func (s *Stage) Gateway(ctx context.Context, args ...string) ([]byte, error) {
	return command(ctx, filepath.Join(s.cfg.Bin, "portvakt-gateway"), append(args, "--config", s.GatewayConfig)...)
}

// GatewayCommand is how a person runs such a command from a shell.
func (s *Stage) GatewayCommand(args string) string {
	return fmt.Sprintf("%s %s --config %s", filepath.Join(s.cfg.Bin, "portvakt-gateway"), args, s.GatewayConfig)
}

// Invite makes an enrolment code.
func (s *Stage) Invite(ctx context.Context, name string) (string, error) {
	out, err := s.Gateway(ctx, "invite", "--name", name)
	if err != nil {
		return "", err
	}
	code := codePattern.Find(out)
	if code == nil {
		return "", fmt.Errorf("portvakt-gateway invite printed no code: %.200q", out)
	}
	return string(code), nil
}

// Audit returns the whole decision log.
func (s *Stage) Audit(ctx context.Context) ([]audit.Record, error) {
	out, err := s.Gateway(ctx, "audit", "tail", "-n", "0", "--json")
	if err != nil {
		return nil, err
	}
	var all []audit.Record
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var r audit.Record
		if err := d.Decode(&r); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading record %d of the audit log: %w", len(all)+1, err)
		}
		all = append(all, r)
	}
}

// connected returns nil once the laptop's agent is connected and has told the
// gateway its posture.
func (l *Laptop) connected(ctx context.Context) error {
	var st localapi.Status
	if err := l.AgentJSON(ctx, &st, "status"); err != nil {
		return err
	}
	if st.State != localapi.StateConnected || st.PostureSentAt == nil || st.Location.Country == "" {
		return fmt.Errorf("the agent's state is %s", st.State)
	}
	return nil
}

// findURL reads lines until one holds a URL, and returns it and what was read.
func findURL(r io.Reader) (string, string) {
	var seen bytes.Buffer
	for lines := bufio.NewScanner(r); lines.Scan(); {
		seen.WriteString(lines.Text() + "\n")
		if u := urlPattern.FindString(lines.Text()); u != "" {
			return u, seen.String()
		}
	}
	return "", seen.String()
}

func discard(r io.Reader) { _, _ = io.Copy(io.Discard, r) }

// visit opens a URL and requires that it is answered with a page.
func visit(ctx context.Context, u string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("returning to the agent: %w", err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("returning to the agent: %s: %.300s", resp.Status, body)
	}
	return nil
}
