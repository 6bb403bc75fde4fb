package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/portvakt/portvakt/certs"
	"github.com/portvakt/portvakt/gateway/identity"
	"github.com/portvakt/portvakt/gateway/location"
	"github.com/portvakt/portvakt/internal/wire"
	"github.com/portvakt/portvakt/policy"
)

// checkRooms asks the rooms about values and files that only they can judge, by
// making them: that reads files, opens no port and writes nothing. Each is asked
// about one key at a time, so that the answer can name it.
func (c *Config) checkRooms(bad func(key, format string, args ...any)) {
	ask := func(key string, cfg identity.Config) {
		if cfg.Issuer == "" {
			cfg.Issuer = "https://issuer.example"
		}
		cfg.ClientID = "any"
		if _, err := identity.New(cfg); err != nil {
			bad(key, "%s", strings.TrimPrefix(err.Error(), "identity provider: "))
		}
	}
	ask("identity.issuer", identity.Config{Issuer: c.Identity.Issuer})
	ask("identity.client_secret_file", identity.Config{ClientSecretFile: c.Identity.ClientSecretFile})
	ask("identity.algorithms", identity.Config{Algorithms: c.Identity.Algorithms})
	ask("identity.redirect_ports", identity.Config{RedirectPorts: c.Identity.RedirectPorts})
	ask("identity.ca_file", identity.Config{CAFile: c.Identity.CAFile})
	if _, err := location.Open(location.Config{Path: c.Location.Database}); err != nil {
		bad("location.database", "%v", err)
	}
	if st, err := os.Stat(c.Policy.Directory); err == nil && !st.IsDir() {
		bad("policy.directory", "expected a directory of app files, got the file %s", c.Policy.Directory)
	}
	key := map[string]string{certs.ModeFiles: "tls.cert_file", certs.ModeACME: "tls.mode"}[c.TLS.Mode]
	if key == "" {
		key = "public.url"
	} else if c.TLS.Mode == certs.ModeACME && c.TLS.ACME.CAFile != "" {
		key = "tls.acme.ca_file"
	}
	if err := certs.CheckPublic(c.publicCertificates()); err != nil {
		bad(key, "%s", strings.TrimPrefix(err.Error(), "preparing public certificates: "))
	}
}

// publicCertificates is what the configuration says about the public port's
// certificate; the CA and the log are added where they exist.
func (c *Config) publicCertificates() certs.PublicConfig {
	host := ""
	if u, err := url.Parse(c.Public.URL); err == nil {
		host = u.Hostname()
	}
	return certs.PublicConfig{
		Mode: c.TLS.Mode, InternalName: wire.InternalName, Hosts: []string{host},
		CertFile: c.TLS.CertFile, KeyFile: c.TLS.KeyFile,
		ACME: certs.ACMEConfig{
			Email: c.TLS.ACME.Email, Directory: c.TLS.ACME.Directory, CAFile: c.TLS.ACME.CAFile,
			Storage: dirs{c.DataDir}.acme(), ListenAddr: c.Public.Listen,
		},
	}
}

func (c *Config) identityProvider(log *slog.Logger) identity.Config {
	i := &c.Identity
	return identity.Config{
		Issuer: i.Issuer, ClientID: i.ClientID, ClientSecretFile: i.ClientSecretFile,
		Scopes: i.Scopes, GroupsClaim: i.GroupsClaim, NameClaim: i.NameClaim,
		KeepClaims: i.KeepClaims, Algorithms: i.Algorithms, RedirectPorts: i.RedirectPorts,
		CAFile: i.CAFile, Log: log,
	}
}

// yamlError says in the words of the file what the decoder says in Go's.
func yamlError(path string, data []byte, err error) error {
	var ye yaml.Error
	if !errors.As(err, &ye) || ye.GetToken() == nil || ye.GetToken().Position == nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	text := ye.GetMessage()
	var (
		typ     *yaml.TypeError
		over    *yaml.OverflowError
		node    *yaml.UnexpectedNodeTypeError
		unknown *yaml.UnknownFieldError
		want    string
	)
	switch {
	case errors.As(err, &typ):
		want = wanted(typ.DstType)
	case errors.As(err, &over):
		want = wanted(over.DstType)
	case errors.As(err, &node):
		want = map[ast.NodeType]string{ast.SequenceType: "a list", ast.MappingType: "keys of its own"}[node.Expected]
	case errors.As(err, &unknown):
		key := keyAt(data, ye.GetToken())
		known := keysBeside(key)
		text = fmt.Sprintf("%s: unknown key%s; the keys here are %s", key, policy.DidYouMean(ye.GetToken().Value, known...), strings.Join(known, ", "))
	}
	if want != "" {
		text = fmt.Sprintf("%s: expected %s, got %s", keyAt(data, ye.GetToken()), want, short(ye.GetToken().Value))
	}
	return fmt.Errorf("%s:%d: %s", path, ye.GetToken().Position.Line, text)
}

// short quotes the beginning of a value: a file that is no YAML is one value.
func short(v string) string {
	const most = 40
	if r := []rune(v); len(r) > most {
		return strconv.Quote(string(r[:most])) + "..."
	}
	return strconv.Quote(v)
}

// keysBeside are the keys that are known where a key is.
func keysBeside(key string) []string {
	typ := reflect.TypeFor[Config]()
	parts := strings.Split(key, ".")
	for _, part := range parts[:len(parts)-1] {
		name, _, _ := strings.Cut(part, "[")
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Tag.Get("yaml") != name {
				continue
			}
			if typ = f.Type; typ.Kind() == reflect.Slice {
				typ = typ.Elem()
			}
			break
		}
	}
	var keys []string
	for i := range typ.NumField() {
		keys = append(keys, typ.Field(i).Tag.Get("yaml"))
	}
	return keys
}

func wanted(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Uint16:
		return "a number from 0 to 65535"
	case reflect.Int:
		return "a whole number"
	case reflect.Slice:
		return "a list"
	case reflect.Struct:
		return "keys of its own"
	}
	return "text"
}

// keyAt finds the key whose value begins with a token.
func keyAt(data []byte, tok *token.Token) string {
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return "the value"
	}
	f := &finder{at: *tok.Position}
	for _, doc := range file.Docs {
		ast.Walk(f, doc)
	}
	switch f.path {
	case "":
		return "the value"
	case "$":
		return "the file"
	}
	return strings.TrimPrefix(f.path, "$.")
}

type finder struct {
	at   token.Position
	path string
}

// Visit implements [ast.Visitor].
func (f *finder) Visit(n ast.Node) ast.Visitor {
	if t := n.GetToken(); f.path == "" && t != nil && t.Position != nil && t.Position.Line == f.at.Line && t.Position.Column == f.at.Column {
		f.path = n.GetPath()
	}
	return f
}

// FindSocket returns the admin socket of the gateway that runs with a
// configuration file. It asks no more of the file than that it says where: a
// mistake in another key must not stand between an administrator and revoke.
func FindSocket(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("reading the configuration: %w; name it with --config, or the socket with --socket", err)
	}
	var cfg Config
	var where struct {
		DataDir string      `yaml:"data_dir"`
		Admin   AdminConfig `yaml:"admin"`
	}
	if err := yaml.Unmarshal(data, &where); err != nil {
		return "", yamlError(path, data, err)
	}
	if where.DataDir == "" {
		return "", fmt.Errorf("%s:1: data_dir: is required: a directory that only the gateway's user may read", path)
	}
	cfg.DataDir, cfg.Admin = where.DataDir, where.Admin
	cfg.absolute(path)
	return cfg.SocketPath(), nil
}
