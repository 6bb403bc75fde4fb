package gateway

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/portvakt/portvakt/gateway/audit/export"
	"github.com/portvakt/portvakt/gateway/audit/sink"
)

var sinkName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$`)

func (c *Config) checkSinks(bad func(string, string, ...any)) {
	seen := map[string]bool{}
	for i, s := range c.Audit.Sinks {
		key := func(name string) string { return fmt.Sprintf("audit.sinks[%d].%s", i, name) }
		switch {
		case !sinkName.MatchString(s.Name):
			bad(key("name"), "expected a name of a-z, 0-9 and -, got %q", s.Name)
		case seen[s.Name]:
			bad(key("name"), "%q is another sink's name already", s.Name)
		}
		seen[s.Name] = true
		switch s.Type {
		case "file":
			if s.To == "" {
				bad(key("to"), "is required: the path of the file")
			}
		case "syslog":
			if host, port, err := net.SplitHostPort(s.To); err != nil || host == "" || port == "" {
				bad(key("to"), "expected HOST:PORT of a syslog server that speaks TLS, such as siem.example.com:6514, got %q", s.To)
			}
		case "otlp", "webhook":
			if u, err := url.Parse(s.To); err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
				bad(key("to"), "expected an https URL without a password in it (token_file is for that), got %q", s.To)
			}
		default:
			bad(key("type"), "expected one of %s, got %q", strings.Join(sink.Types, ", "), s.Type)
		}
		switch {
		case s.Type == "otlp" && s.Format != "":
			bad(key("format"), "otlp has a form of its own; leave it out")
		case s.Format != "" && !slices.Contains(export.Names, s.Format):
			bad(key("format"), "expected one of %s, got %q", strings.Join(export.Names, ", "), s.Format)
		}
		for name, path := range map[string]string{"ca_file": s.CAFile, "token_file": s.TokenFile} {
			if path == "" {
				continue
			}
			if _, err := os.Stat(path); err != nil {
				bad(key(name), "expected a file that can be read: %v", err)
			}
		}
	}
}

// node is this gateway's name in what leaves it.
func (c *Config) node() string {
	if u, err := url.Parse(c.Public.URL); err == nil {
		return u.Host
	}
	return c.Public.URL
}

// openSinks reads where each sink was.
func (g *gateway) openSinks() error {
	for _, s := range g.cfg.Audit.Sinks {
		format := s.Format
		if format == "" {
			format = "jsonl"
		}
		out, err := sink.New(sink.Config{
			Name: s.Name, Type: s.Type, Format: format, To: s.To, CAFile: s.CAFile, TokenFile: s.TokenFile,
			Decisions: export.Log{File: g.audit.Path(), Reveal: g.audit.Reveal}, Dir: filepath.Join(g.dirs.audit(), "sinks"), Node: g.cfg.node(), Record: g.audit.Append, Log: g.log,
		})
		if err != nil {
			return err
		}
		g.sinks = append(g.sinks, out)
	}
	return nil
}
