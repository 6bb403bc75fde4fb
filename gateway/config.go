package gateway

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/portvakt/portvakt/policy"
)

// Config is gateway.yaml. deploy/config/gateway.yaml shows every key with its
// default and a sentence; a test keeps the two equal. Relative paths are
// relative to the file.
type Config struct {
	// DataDir holds the store, the keys, the audit log and the admin socket.
	DataDir  string         `yaml:"data_dir"`
	Public   PublicConfig   `yaml:"public"`
	TLS      TLSConfig      `yaml:"tls"`
	Tunnel   TunnelConfig   `yaml:"tunnel"`
	Health   HealthConfig   `yaml:"health"`
	Identity IdentityConfig `yaml:"identity"`
	Session  SessionConfig  `yaml:"session"`
	Posture  PostureConfig  `yaml:"posture"`
	Location LocationConfig `yaml:"location"`
	Policy   PolicyConfig   `yaml:"policy"`
	Proxy    ProxyConfig    `yaml:"proxy"`
	Media    MediaConfig    `yaml:"media"`
	Audit    AuditConfig    `yaml:"audit"`
	Admin    AdminConfig    `yaml:"admin"`
	Log      LogConfig      `yaml:"log"`
}

// PublicConfig is the public TLS port.
type PublicConfig struct {
	Listen string `yaml:"listen"` // host:port, default ":443"
	// URL is how agents, apps and the identity provider reach this gateway; it
	// is the issuer of assertions.
	URL      string         `yaml:"url"`
	Timeouts PublicTimeouts `yaml:"timeouts"`
}

// TLSConfig says where the public port's certificate comes from. Agents are
// always answered with one of the internal CA.
type TLSConfig struct {
	Mode     string     `yaml:"mode"` // internal (default), files or acme
	CertFile string     `yaml:"cert_file"`
	KeyFile  string     `yaml:"key_file"`
	ACME     ACMEConfig `yaml:"acme"`
}

// ACMEConfig is for mode acme; the challenge is TLS-ALPN-01 on the public port.
type ACMEConfig struct {
	Email     string `yaml:"email"`
	Directory string `yaml:"directory"` // default: Let's Encrypt
	CAFile    string `yaml:"ca_file"`   // roots to trust for the directory itself
}

// TunnelConfig is the WireGuard side.
type TunnelConfig struct {
	Listen string `yaml:"listen"` // host:port, UDP, default ":51820"
	// Endpoints are what agents are told to send to; default: the port of
	// Listen at the host of public.url.
	Endpoints []string `yaml:"endpoints"`
	Mode      string   `yaml:"mode"` // userspace (default) or tun
	IPv4      string   `yaml:"ipv4"` // pool, default 100.96.0.0/16
	IPv6      string   `yaml:"ipv6"` // pool, default fd70:7674:766b::/64
	MTU       int      `yaml:"mtu"`  // of the inside, default 1280
	// UDPGSO hands the kernel runs of datagrams as one: auto (default) or off.
	UDPGSO string `yaml:"udp_gso"`
}

// HealthConfig is the loopback listener of /healthz, /readyz and /metrics.
type HealthConfig struct {
	Listen string `yaml:"listen"` // default 127.0.0.1:9100
}

// IdentityConfig is the OIDC provider.
type IdentityConfig struct {
	Issuer           string   `yaml:"issuer"`
	ClientID         string   `yaml:"client_id"`
	ClientSecretFile string   `yaml:"client_secret_file"` // none: public client
	Scopes           []string `yaml:"scopes"`
	GroupsClaim      string   `yaml:"groups_claim"`
	NameClaim        string   `yaml:"name_claim"`
	KeepClaims       []string `yaml:"keep_claims"`
	Algorithms       []string `yaml:"algorithms"`
	RedirectPorts    []uint16 `yaml:"redirect_ports"`
	CAFile           string   `yaml:"ca_file"`
}

// SessionConfig bounds logins and what devices have open.
type SessionConfig struct {
	Lifetime    Duration `yaml:"lifetime"`     // default 12h
	DeviceFlows int      `yaml:"device_flows"` // open Flows of one device, default 2,048
}

// PostureConfig bounds posture reports.
type PostureConfig struct {
	MaxAge Duration `yaml:"max_age"` // default 90s
}

// LocationConfig names the GeoIP file.
type LocationConfig struct {
	Database string `yaml:"database"` // MaxMind DB; none: every country is unknown
}

// PolicyConfig says where apps and their policy come from.
type PolicyConfig struct {
	Source    string `yaml:"source"` // directory
	Directory string `yaml:"directory"`
}

// AuditConfig says where the decision log goes besides its own file.
type AuditConfig struct {
	Retention RetentionConfig `yaml:"retention"`
	Sinks     []SinkConfig    `yaml:"sinks"`
	Witness   WitnessConfig   `yaml:"witness"`
}

// AdminConfig says where administrators reach the gateway.
type AdminConfig struct {
	// Socket is a path; default: data_dir/admin.sock, with a group
	// /run/portvakt/admin.sock.
	Socket string `yaml:"socket"`
	Group  string `yaml:"group"` // its members may use the socket too; default: none
}

// SinkConfig is one receiver of the decision log; see package sink.
type SinkConfig struct {
	Name      string `yaml:"name"`
	Type      string `yaml:"type"`   // file, syslog, otlp or webhook
	Format    string `yaml:"format"` // jsonl (default), ocsf, cef or csv; otlp has its own
	To        string `yaml:"to"`     // a path, HOST:PORT or an https URL
	CAFile    string `yaml:"ca_file"`
	TokenFile string `yaml:"token_file"`
}

// LogConfig is the operational log on standard error; the decision log is
// elsewhere and always on.
type LogConfig struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // text (default) or json
}

// Duration is a time.Duration written as in "12h" or "90s".
type Duration time.Duration

// UnmarshalYAML reads "12h", "30m", "90s". What is no such thing becomes
// negative.
func (d *Duration) UnmarshalYAML(b []byte) error {
	var s string
	err := yaml.Unmarshal(b, &s)
	v, perr := time.ParseDuration(s)
	if err != nil || perr != nil || v <= 0 {
		v = -1 // problems says where; an error from here would not know
	}
	*d = Duration(v)
	return nil
}

// Days is a time.Duration written as in "90d".
type Days time.Duration

// UnmarshalYAML reads "90d". What is no such thing becomes negative.
func (d *Days) UnmarshalYAML(b []byte) error {
	var s string
	err := yaml.Unmarshal(b, &s)
	digits, ok := strings.CutSuffix(s, "d")
	n, nerr := strconv.ParseUint(digits, 10, 16)
	*d = Days(time.Duration(n) * 24 * time.Hour)
	if err != nil || nerr != nil || !ok || n == 0 {
		*d = -1 // problems says where; an error from here would not know
	}
	return nil
}

// LoadConfig reads and checks a configuration without opening or writing
// anything else. Its errors name file, line, key and what was expected.
func LoadConfig(path string) (*Config, error) {
	// Who writes it decides who gets in, as with the policy's files.
	data, err := policy.ReadTrusted(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	cfg := &Config{}
	if err := yaml.UnmarshalWithOptions(data, cfg, yaml.Strict()); err != nil {
		return nil, yamlError(path, data, err)
	}
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, yamlError(path, data, err)
	}
	cfg.defaults()
	cfg.absolute(path)
	var all []error
	for _, p := range cfg.problems() {
		all = append(all, fmt.Errorf("%s:%d: %s: %s", path, lineOf(file, p.key), p.key, p.text))
	}
	return cfg, errors.Join(all...)
}

// lineOf finds the line of a key, or of the nearest parent that is there.
func lineOf(file *ast.File, key string) int {
	for key != "" {
		if p, err := yaml.PathString("$." + key); err == nil {
			if n, err := p.FilterFile(file); err == nil && n != nil && n.GetToken() != nil {
				return n.GetToken().Position.Line
			}
		}
		i := strings.LastIndexByte(key, '.')
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return 1
}

func (c *Config) defaults() {
	set := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	set(&c.Public.Listen, ":443")
	set(&c.TLS.Mode, "internal")
	set(&c.Tunnel.Listen, ":51820")
	set(&c.Tunnel.Mode, "userspace")
	set(&c.Tunnel.IPv4, "100.96.0.0/16")
	set(&c.Tunnel.IPv6, "fd70:7674:766b::/64")
	if c.Tunnel.MTU == 0 {
		c.Tunnel.MTU = 1280
	}
	set(&c.Tunnel.UDPGSO, "auto")
	set(&c.Health.Listen, "127.0.0.1:9100")
	set(&c.Policy.Source, "directory")
	set(&c.Log.Level, "info")
	set(&c.Log.Format, "text")
	if c.Session.Lifetime == 0 {
		c.Session.Lifetime = Duration(12 * time.Hour)
	}
	if c.Posture.MaxAge == 0 {
		c.Posture.MaxAge = Duration(90 * time.Second)
	}
	if len(c.Tunnel.Endpoints) == 0 {
		if _, port, err := net.SplitHostPort(c.Tunnel.Listen); err == nil {
			c.Tunnel.Endpoints = []string{":" + port}
		}
	}
}

// absolute resolves paths that are relative to the configuration file.
func (c *Config) absolute(file string) {
	dir := filepath.Dir(file)
	for _, p := range []*string{
		&c.DataDir, &c.TLS.CertFile, &c.TLS.KeyFile, &c.TLS.ACME.CAFile, &c.Identity.ClientSecretFile,
		&c.Identity.CAFile, &c.Location.Database, &c.Policy.Directory, &c.Admin.Socket, &c.Audit.Witness.CAFile,
	} {
		absoluteTo(dir, p)
	}
	for i := range c.Audit.Sinks {
		s := &c.Audit.Sinks[i]
		absoluteTo(dir, &s.CAFile)
		absoluteTo(dir, &s.TokenFile)
		if s.Type == "file" {
			absoluteTo(dir, &s.To)
		}
	}
}

func absoluteTo(dir string, p *string) {
	if *p != "" && !filepath.IsAbs(*p) {
		*p = filepath.Join(dir, *p)
	}
}

// problem is one key with a bad value.
type problem struct{ key, text string }

func (c *Config) problems() []problem {
	var out []problem
	bad := func(key, format string, args ...any) {
		out = append(out, problem{key, fmt.Sprintf(format, args...)})
	}
	if c.DataDir == "" {
		bad("data_dir", "is required: a directory that only the gateway's user may read")
	} else if text := unfit(c.DataDir); text != "" {
		bad("data_dir", "%s", text)
	}
	u, err := url.Parse(c.Public.URL)
	if c.Public.URL == "" || err != nil || u.Scheme != "https" || u.Hostname() == "" || (u.Path != "" && u.Path != "/") || u.RawQuery != "" {
		bad("public.url", "expected https://HOST or https://HOST:PORT as agents reach it, got %q", c.Public.URL)
	}
	listen := func(key, v string) {
		host, port, err := net.SplitHostPort(v)
		if _, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil {
			bad(key, "expected HOST:PORT or :PORT, got %q", v)
			return
		}
		if key == "health.listen" {
			if a, err := netip.ParseAddr(host); err != nil || !a.IsLoopback() {
				bad(key, "expected a loopback address such as 127.0.0.1:9100, got %q; health and metrics are not for the network", v)
			}
		}
	}
	listen("public.listen", c.Public.Listen)
	listen("tunnel.listen", c.Tunnel.Listen)
	listen("health.listen", c.Health.Listen)
	for i, e := range c.Tunnel.Endpoints {
		_, port, err := net.SplitHostPort(e)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 {
			bad(fmt.Sprintf("tunnel.endpoints[%d]", i), "expected HOST:PORT or :PORT, got %q", e)
		}
	}
	c.checkPools(bad)
	c.checkTLS(bad)
	c.checkSinks(bad)
	c.checkWitness(bad)
	c.checkIdentity(bad)
	c.checkChoices(bad)
	c.checkDurations(bad)
	c.checkRetention(bad)
	checkLimits(bad, "session.", []limit{{"device_flows", int64(c.Session.DeviceFlows), 1, 1 << 20}})
	c.Public.Timeouts.check(bad)
	c.Proxy.check(bad)
	c.Media.check(bad)
	c.checkFiles(bad)
	c.checkAdmin(bad)
	if len(out) == 0 {
		c.checkRooms(bad)
	}
	return out
}

func (c *Config) checkIdentity(bad func(key, format string, args ...any)) {
	iss, err := url.Parse(c.Identity.Issuer)
	if c.Identity.Issuer == "" || err != nil || (iss.Scheme != "https" && (iss.Scheme != "http" || !loopbackHost(iss.Hostname()))) {
		bad("identity.issuer", "expected the https URL of the OIDC provider (http only on loopback), got %q", c.Identity.Issuer)
	}
	if c.Identity.ClientID == "" {
		bad("identity.client_id", "is required: the client ID the OIDC provider gave")
	}
}

func (c *Config) checkChoices(bad func(key, format string, args ...any)) {
	if c.Policy.Source != "directory" {
		bad("policy.source", "expected directory, got %q", c.Policy.Source)
	}
	if c.Policy.Directory == "" {
		bad("policy.directory", "is required: the directory of the app files")
	}
	oneOf := func(key, v string, allowed ...string) {
		for _, a := range allowed {
			if v == a {
				return
			}
		}
		bad(key, "expected one of %s, got %q", strings.Join(allowed, ", "), v)
	}
	oneOf("tunnel.udp_gso", c.Tunnel.UDPGSO, "auto", "off")
	oneOf("tunnel.mode", c.Tunnel.Mode, "userspace", "tun")
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "text", "json")
}

func (c *Config) checkDurations(bad func(key, format string, args ...any)) {
	const durations = "expected a duration such as 12h, 30m or 90s"
	if l := time.Duration(c.Session.Lifetime); l < 0 {
		bad("session.lifetime", durations)
	} else if l > 24*time.Hour {
		bad("session.lifetime", "at most 24h (a login is for a shift), got %s", l)
	}
	if a := time.Duration(c.Posture.MaxAge); a < 0 {
		bad("posture.max_age", durations)
	} else if a < 45*time.Second || a > 10*time.Minute {
		bad("posture.max_age", "expected between 45s and 10m (agents report every 30 s), got %s", a)
	}
}

func (c *Config) checkFiles(bad func(key, format string, args ...any)) {
	files := []struct{ key, path, what string }{
		{"identity.client_secret_file", c.Identity.ClientSecretFile, "a file with the client secret"},
		{"identity.ca_file", c.Identity.CAFile, "a PEM file"},
		{"location.database", c.Location.Database, "a MaxMind database file (.mmdb)"},
		{"tls.acme.ca_file", c.TLS.ACME.CAFile, "a PEM file"},
		{"policy.directory", c.Policy.Directory, "a directory of app files"},
	}
	if c.TLS.Mode == "files" {
		files = append(files, struct{ key, path, what string }{"tls.cert_file", c.TLS.CertFile, "a PEM file"},
			struct{ key, path, what string }{"tls.key_file", c.TLS.KeyFile, "a PEM file"})
	}
	for _, f := range files {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			bad(f.key, "expected %s: %v", f.what, err)
		}
	}
}

func (c *Config) checkAdmin(bad func(key, format string, args ...any)) {
	if c.Admin.Group != "" {
		if _, err := user.LookupGroup(c.Admin.Group); err != nil {
			bad("admin.group", "expected a group of this machine, made with groupadd: %v", err)
		}
		if filepath.Dir(c.SocketPath()) == c.DataDir {
			bad("admin.socket", "with admin.group the socket needs a directory of its own, such as /run/portvakt/admin.sock")
		}
	}
}

func (c *Config) checkPools(bad func(string, string, ...any)) {
	v4, err := netip.ParsePrefix(c.Tunnel.IPv4)
	if err != nil || !v4.Addr().Is4() || v4.Bits() < 10 || v4.Bits() > 24 || v4 != v4.Masked() {
		bad("tunnel.ipv4", "expected an IPv4 prefix between /10 and /24 such as 100.96.0.0/16, got %q", c.Tunnel.IPv4)
	}
	v6, err := netip.ParsePrefix(c.Tunnel.IPv6)
	if err != nil || !v6.Addr().Is6() || v6.Bits() > 96 || v6 != v6.Masked() {
		bad("tunnel.ipv6", "expected an IPv6 prefix of /96 or wider such as fd70:7674:766b::/64, got %q", c.Tunnel.IPv6)
	}
	if c.Tunnel.MTU < 1280 || c.Tunnel.MTU > 1420 {
		bad("tunnel.mtu", "expected between 1280 and 1420, got %d", c.Tunnel.MTU)
	}
}

func (c *Config) checkTLS(bad func(string, string, ...any)) {
	switch c.TLS.Mode {
	case "internal":
	case "files":
		if c.TLS.CertFile == "" {
			bad("tls.cert_file", "is required with tls.mode files")
		}
		if c.TLS.KeyFile == "" {
			bad("tls.key_file", "is required with tls.mode files")
		}
	case "acme":
		if u, err := url.Parse(c.Public.URL); err == nil {
			if _, err := netip.ParseAddr(u.Hostname()); err == nil {
				bad("tls.mode", "acme needs a host name in public.url, not an address")
			}
		}
		if d := c.TLS.ACME.Directory; d != "" && !strings.HasPrefix(d, "https://") {
			bad("tls.acme.directory", "expected an https URL, got %q", d)
		}
	default:
		bad("tls.mode", "expected internal, files or acme, got %q", c.TLS.Mode)
	}
}

func loopbackHost(h string) bool {
	a, err := netip.ParseAddr(h)
	return h == "localhost" || (err == nil && a.IsLoopback())
}

// SocketPath is where admin commands reach a gateway of this configuration.
func (c *Config) SocketPath() string {
	switch {
	case c.Admin.Socket != "":
		return c.Admin.Socket
	case c.Admin.Group != "":
		return "/run/portvakt/admin.sock"
	}
	return filepath.Join(c.DataDir, "admin.sock")
}
