package gateway_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/portvakt/portvakt/gateway"
)

// good is the shortest configuration; $DIR is a directory that exists.
const good = `data_dir: $DIR/data
public:
  url: https://gateway.example.com
identity:
  issuer: https://login.example.com
  client_id: portvakt
policy:
  directory: $DIR
`

func load(t *testing.T, text string) (*gateway.Config, error) {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "$DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := gateway.LoadConfig(path)
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("loading wrote something: %v", entries)
	}
	return cfg, err
}

func TestShortestConfigIsComplete(t *testing.T) {
	cfg, err := load(t, good)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Public.Listen != ":443" || cfg.Tunnel.Listen != ":51820" || cfg.Tunnel.Endpoints[0] != ":51820" || cfg.TLS.Mode != "internal" || cfg.Health.Listen != "127.0.0.1:9100" {
		t.Errorf("defaults are missing: %+v", cfg)
	}
}

func TestBadConfigSaysWhereAndWhat(t *testing.T) {
	add := func(lines string) string { return good + lines }
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":         {add("tunel:\n  listen: x\n"), `gateway.yaml:9: unknown field "tunel"`},
		"unknown nested key":  {add("tunnel:\n  lisen: x\n"), `gateway.yaml:10: unknown field "lisen"`},
		"wrong type":          {add("tunnel:\n  mtu: many\n"), `gateway.yaml:10: `},
		"not yaml":            {"data_dir: [", "gateway.yaml:1"},
		"empty":               {"", "data_dir: is required"},
		"bad url":             {strings.Replace(good, "https://gateway", "http://gateway", 1), "gateway.yaml:3: public.url: expected https://"},
		"url with a path":     {strings.Replace(good, "gateway.example.com", "gateway.example.com/x", 1), "public.url: expected https://"},
		"bad listen":          {add("tunnel:\n  listen: 51820\n"), "gateway.yaml:10: tunnel.listen: expected HOST:PORT or :PORT"},
		"public health":       {add("health:\n  listen: 0.0.0.0:9100\n"), "gateway.yaml:10: health.listen: expected a loopback address"},
		"bad pool":            {add("tunnel:\n  ipv4: 10.0.0.1/16\n"), "gateway.yaml:10: tunnel.ipv4: expected an IPv4 prefix"},
		"bad pool 6":          {add("tunnel:\n  ipv6: 10.0.0.0/16\n"), "gateway.yaml:10: tunnel.ipv6: expected an IPv6 prefix"},
		"bad mtu":             {add("tunnel:\n  mtu: 9000\n"), "gateway.yaml:10: tunnel.mtu: expected between 1280 and 1420"},
		"bad tls mode":        {add("tls:\n  mode: none\n"), "gateway.yaml:10: tls.mode: expected internal, files or acme"},
		"files without files": {add("tls:\n  mode: files\n"), "tls.cert_file: is required"},
		"missing geoip file":  {add("location:\n  database: nowhere.mmdb\n"), "gateway.yaml:10: location.database: expected a MaxMind database file"},
		"missing policy":      {strings.Replace(good, "directory: $DIR", "directory: $DIR/nowhere", 1), "gateway.yaml:8: policy.directory: expected a directory of app files"},
		"policy source":       {strings.Replace(good, "directory: $DIR", "directory: $DIR\n  source: git", 1), "policy.source: expected directory"},
		"plain issuer":        {strings.Replace(good, "https://login", "http://login", 1), "gateway.yaml:5: identity.issuer: expected the https URL"},
		"no client":           {strings.Replace(good, "client_id: portvakt", "client_id: ''", 1), "identity.client_id: is required"},
		"bad duration":        {add("session:\n  lifetime: 12 hours\n"), "is not a duration such as 12h"},
		"long session":        {add("session:\n  lifetime: 48h\n"), "session.lifetime: at most 24h"},
		"short posture":       {add("posture:\n  max_age: 5s\n"), "posture.max_age: expected between 45s and 10m"},
		"log level":           {add("log:\n  level: loud\n"), "gateway.yaml:10: log.level: expected one of debug, info, warn, error"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := load(t, c.text)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

// The shipped example shows every key, commented out or not, and every key it
// shows exists.
func TestShippedExampleShowsEveryKey(t *testing.T) {
	data, err := os.ReadFile("../deploy/config/gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^[ #]*([a-z_0-9]+):`).FindAllStringSubmatch(string(data), -1) {
		shown[m[1]] = true
	}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			key := f.Tag.Get("yaml")
			if !shown[key] {
				t.Errorf("deploy/config/gateway.yaml does not show %s (%s)", key, f.Name)
			}
			if f.Type.Kind() == reflect.Struct {
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeFor[gateway.Config]())

	// As it stands it loads but for the one path that is another machine's.
	path := filepath.Join(t.TempDir(), "gateway.yaml")
	text := strings.Replace(string(data), "directory: /etc/portvakt/apps", "directory: "+t.TempDir(), 1)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := gateway.LoadConfig(path); err != nil {
		t.Errorf("the shipped example does not load: %v", err)
	}
}
