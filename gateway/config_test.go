package gateway_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/portvakt/portvakt/certs"
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
	idp := func(line string) string {
		return strings.Replace(good, "client_id: portvakt\n", "client_id: portvakt\n  "+line+"\n", 1)
	}
	for name, c := range map[string]struct{ text, want string }{
		"unknown key":         {add("tunel:\n  listen: x\n"), `gateway.yaml:9: tunel: unknown key; did you mean tunnel?; the keys here are data_dir, public, tls, tunnel, `},
		"sink of no type":     {add("audit:\n  sinks:\n    - name: a\n      to: /x\n"), `audit.sinks[0].type: expected one of file, syslog, otlp, webhook, got ""`},
		"witness in clear":    {add("audit:\n  witness: {url: 'http://w.example.com', key: x}\n"), `audit.witness.url: expected an https URL`},
		"witness, no key":     {add("audit:\n  witness: {url: 'https://w.example.com'}\n"), `audit.witness.key: reading the witness's key: it must look like NAME+HASH+KEY`},
		"witness, bad key":    {add("audit:\n  witness: {url: 'https://w.example.com', key: w+00000000+BAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8g}\n"), `audit.witness.key: reading the witness's key: its hash`},
		"witness, no CA":      {add("audit:\n  witness: {url: 'https://w.example.com', ca_file: none.pem}\n"), `audit.witness.ca_file: expected a file that can be read`},
		"sinks of one name":   {add("audit:\n  sinks:\n    - {name: a, type: file, to: /x}\n    - {name: a, type: file, to: /y}\n"), `audit.sinks[1].name: "a" is another sink's name already`},
		"sink in the clear":   {add("audit:\n  sinks:\n    - {name: a, type: webhook, to: 'http://x/'}\n"), `audit.sinks[0].to: expected an https URL`},
		"syslog without port": {add("audit:\n  sinks:\n    - {name: a, type: syslog, to: siem}\n"), `audit.sinks[0].to: expected HOST:PORT`},
		"unknown nested key":  {add("tunnel:\n  lisen: x\n"), `gateway.yaml:10: tunnel.lisen: unknown key; did you mean listen?; the keys here are listen, endpoints, mode, `},
		"unknown in a list":   {add("audit:\n  sinks:\n    - {name: a, typ: file}\n"), `gateway.yaml:11: audit.sinks[0].typ: unknown key; did you mean type?; the keys here are name, type, format, `},
		"nothing like it":     {add("frobnicate: 1\n"), `gateway.yaml:9: frobnicate: unknown key; the keys here are`},
		"not this file":       {"\x7fELF and " + strings.Repeat("so on ", 20), `gateway.yaml:1: the file: expected keys of its own, got "\x7fELF and so on so on so on so on so on s"...`},
		"data in the kernel":  {strings.Replace(good, "$DIR/data", "/proc/x", 1), "gateway.yaml:1: data_dir: expected a directory that only the gateway's user may read; /proc holds the kernel's files"},
		"data below a file":   {strings.Replace(good, "$DIR/data", "$DIR/gateway.yaml/x", 1), "gateway.yaml:1: data_dir: expected a directory that only the gateway's user may read; "},
		"data open to others": {strings.Replace(good, "$DIR/data", "/etc", 1), "gateway.yaml:1: data_dir: /etc is open to others (mode 0755); run: chmod 700 /etc"},
		"wrong type":          {add("tunnel:\n  mtu: many\n"), `gateway.yaml:10: tunnel.mtu: expected a whole number, got "many"`},
		"list for a value":    {add("tunnel:\n  endpoints: a:1\n"), `gateway.yaml:10: tunnel.endpoints: expected a list, got "a:1"`},
		"value for keys":      {add("tunnel: 7\n"), `gateway.yaml:9: tunnel: expected keys of its own, got "7"`},
		"bad endpoint":        {add("tunnel:\n  endpoints: [\"a:70000\"]\n"), `gateway.yaml:10: tunnel.endpoints[0]: expected HOST:PORT`},
		"large port":          {idp("redirect_ports: [70000]"), `gateway.yaml:7: identity.redirect_ports[0]: expected a number from 0 to 65535, got "70000"`},
		"admin group":         {add("admin: {group: no-such-group}\n"), `gateway.yaml:9: admin.group: expected a group of this machine`},
		"admin group in data": {add("admin: {group: root, socket: $DIR/data/x.sock}\n"), "gateway.yaml:9: admin.socket: with admin.group the socket needs a directory of its own"},
		"zero port":           {idp("redirect_ports: [0]"), "gateway.yaml:7: identity.redirect_ports: 0 is no redirect port"},
		"algorithm none":      {idp("algorithms: [none]"), `gateway.yaml:7: identity.algorithms: algorithm "none" is not one of RS256`},
		"roots are garbage":   {idp("ca_file: gateway.yaml"), "gateway.yaml:7: identity.ca_file: "},
		"open secret":         {idp("client_secret_file: /etc/passwd"), "gateway.yaml:7: identity.client_secret_file: reading the client secret: everyone may read /etc/passwd"},
		"garbage geoip file":  {add("location:\n  database: gateway.yaml\n"), "gateway.yaml:10: location.database: opening location database"},
		"garbage certificate": {add("tls:\n  mode: files\n  cert_file: gateway.yaml\n  key_file: gateway.yaml\n"), "gateway.yaml:11: tls.cert_file: reading certificate"},
		"acme for no public":  {strings.Replace(add("tls:\n  mode: acme\n"), "gateway.example.com", "localhost", 1), `gateway.yaml:10: tls.mode: host "localhost" is not a public name`},
		"acme roots":          {add("tls:\n  mode: acme\n  acme:\n    ca_file: gateway.yaml\n"), "gateway.yaml:12: tls.acme.ca_file: "},
		"policy is a file":    {strings.Replace(good, "directory: $DIR", "directory: gateway.yaml", 1), "gateway.yaml:8: policy.directory: expected a directory"},
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
		"bad duration":        {add("session:\n  lifetime: 12 hours\n"), "gateway.yaml:10: session.lifetime: expected a duration such as 12h"},
		"record retention":    {add("audit:\n  retention: {records: 1y}\n"), "audit.retention.records: expected a number of days such as 400d"},
		"personal beyond it":  {add("audit:\n  retention: {records: 30d, personal: 90d}\n"), "audit.retention.personal: expected no more than"},
		"bad wait for sinks":  {add("audit:\n  retention: {wait_for_sinks: 12h}\n"), "audit.retention.wait_for_sinks: expected a number of days such as 30d"},
		"field retention":     {add("audit:\n  retention:\n    fields: {address: 14}\n"), "gateway.yaml:11: audit.retention.fields.address: expected a number of days such as 14d"},
		"field beyond it":     {add("audit:\n  retention:\n    personal: 90d\n    fields:\n      request: 91d\n"), "gateway.yaml:13: audit.retention.fields.request: expected no more than audit.retention.personal"},
		"field beyond all":    {add("audit:\n  retention: {records: 30d, fields: {device: 31d}}\n"), "audit.retention.fields.device: expected no more than audit.retention.records"},
		"facts hold others":   {add("audit:\n  retention: {fields: {facts: 30d, address: 14d}}\n"), "audit.retention.fields.facts: expected no more than audit.retention.fields.address: what"},
		"no such field":       {add("audit:\n  retention:\n    fields:\n      adress: 14d\n"), "gateway.yaml:12: audit.retention.fields.adress: unknown key; did you mean address?; the keys here are address, device, facts, person, request"},
		"bad retention":       {add("audit:\n  retention: {personal: 90}\n"), "audit.retention.personal: expected a number of days such as 90d"},
		"long session":        {add("session:\n  lifetime: 48h\n"), "session.lifetime: at most 24h"},
		"short posture":       {add("posture:\n  max_age: 5s\n"), "posture.max_age: expected between 45s and 10m"},
		"timeout of nothing":  {add("proxy:\n  timeouts: {dial: 1ms}\n"), "gateway.yaml:10: proxy.timeouts.dial: expected a duration between 1s and 1h"},
		"timeout":             {add("proxy:\n  timeouts: {idle: soon}\n"), "gateway.yaml:10: proxy.timeouts.idle: expected a duration"},
		"limit":               {add("proxy:\n  limits: {websocket_message_bytes: -1}\n"), "gateway.yaml:10: proxy.limits.websocket_message_bytes: expected between 125 and 1099511627776, got -1"},
		"app left alone":      {add("proxy:\n  timeouts: {leave_alone: 0s}\n"), "gateway.yaml:10: proxy.timeouts.leave_alone: expected a duration between 1s and 1h"},
		"failed dials":        {add("proxy:\n  limits: {failed_dials: -1}\n"), "gateway.yaml:10: proxy.limits.failed_dials: expected between 1 and 1024, got -1"},
		"media timeout":       {add("media:\n  timeouts: {idle: 2h}\n"), "gateway.yaml:10: media.timeouts.idle: expected a duration between 1s and 1h"},
		"media limit":         {add("media:\n  limits: {device_ports: 70000}\n"), "gateway.yaml:10: media.limits.device_ports: expected between 1 and 65536, got 70000"},
		"public timeout":      {strings.Replace(good, "public:\n", "public:\n  timeouts: {read: 1ms}\n", 1), "public.timeouts.read: expected a duration between 1s and 1h"},
		"flows of a device":   {add("session:\n  device_flows: -5\n"), "gateway.yaml:10: session.device_flows: expected between 1 and 1048576, got -5"},
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

// An app's CA that cannot be read is said by check, not found out by a worker.
func TestCheckLooksAtTheAppsFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	app := func(file string) error {
		t.Helper()
		text := "name: crm\ntitle: CRM\nprotocol: http\nhosts: [crm.example.com]\nupstream: https://crm.internal\nupstream_ca_file: " + file + "\naccess:\n  - groups: [sales]\n"
		if err := os.WriteFile(filepath.Join(dir, "crm.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := gateway.LoadPolicy(&gateway.Config{Policy: gateway.PolicyConfig{Directory: dir}})
		return err
	}
	empty, other := filepath.Join(dir, "empty.pem"), t.TempDir()
	if err := os.WriteFile(empty, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{filepath.Join(other, "nowhere.pem"): "no such file", empty: "holds no certificate"} {
		if err := app(file); err == nil || !strings.Contains(err.Error(), "crm.yaml:6: upstream_ca_file: wanted a PEM file the gateway can read: ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
	ca, err := certs.OpenCA(certs.CAConfig{Dir: filepath.Join(other, "ca")})
	if err != nil {
		t.Fatal(err)
	}
	good := filepath.Join(other, "good.pem")
	if err := os.WriteFile(good, ca.RootPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := app(good); err != nil {
		t.Error(err)
	}

	pub, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, pub, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(other, "client.pem"), filepath.Join(other, "client.key")
	for file, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shown := func(cert string) error {
		return app(good + "\nupstream_cert_file: " + cert + "\nupstream_key_file: " + key)
	}
	if err := shown(cert); err != nil {
		t.Error(err)
	}
	if err := shown(good); err == nil || !strings.Contains(err.Error(), "crm.yaml:7: upstream_cert_file: wanted a certificate and its key") {
		t.Errorf("another's certificate: %v", err)
	}
	if err := os.Chmod(key, 0o604); err != nil {
		t.Fatal(err)
	}
	if err := shown(cert); err == nil || !strings.Contains(err.Error(), "everyone may read") {
		t.Errorf("a key that is no secret: %v", err)
	}
}

// An address that every request would be refused at is said by check.
func TestCheckLooksAtTheAppsAddresses(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ lines, want string }{
		{"protocol: http\nhosts: [a.example.com]\nupstream: http://127.0.0.1\n", "a.yaml:4: upstream: 127.0.0.1 is an address no app may be on unless it says so; add allow: [127.0.0.1/32]"},
		{"protocol: tcp\nports: [1]\nupstream: '[::1]:1'\n", `a.yaml:4: upstream: ::1 is an address no app may be on unless it says so; add allow: ["::1/128"]`},
		{"protocol: udp\nports: [1, 2]\nupstream: 100.96.0.7\n", "add allow: [100.96.0.7/32]"},
		{"protocol: tcp\nports: [1]\nupstream: 0.0.0.0\nallow: [0.0.0.0/0]\n", "0.0.0.0 is an address no app can be on"},
		{"protocol: http\nhosts: [a.example.com]\nupstream: http://127.0.0.1:80\nallow: [127.0.0.0/8]\n", ""},
		{"protocol: http\nhosts: [a.example.com]\nupstream: http://10.0.0.1\n", ""},
		{"protocol: http\nhosts: [a.example.com]\nupstream: http://localhost\n", ""}, // a name's address may change
	} {
		if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte("name: a\n"+c.lines+"access: [{anyone: true}]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := gateway.LoadPolicy(&gateway.Config{Policy: gateway.PolicyConfig{Directory: dir}, Tunnel: gateway.TunnelConfig{IPv4: "100.96.0.0/16"}})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.lines, err, c.want)
		}
	}
}

// Who may write gateway.yaml decides who gets in, as with the app files.
func TestConfigThatOthersMayWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(good, "$DIR", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o664); err != nil {
		t.Fatal(err)
	}
	if _, err := gateway.LoadConfig(path); err == nil || !strings.Contains(err.Error(), "gateway.yaml: wanted a mode that only the owner may write, found 0664; run: chmod go-w ") {
		t.Error(err)
	}
}

// A rule about a claim that no login brings would never refuse anybody.
func TestCheckKnowsWhichClaimsAreKept(t *testing.T) {
	cfg := &gateway.Config{Policy: gateway.PolicyConfig{Directory: examples(t)}, Identity: gateway.IdentityConfig{KeepClaims: []string{"team"}}}
	if _, err := gateway.LoadPolicy(cfg); err == nil || !strings.Contains(err.Error(), "temporary_staff.rego:18: input.subject.claims.employment: identity.keep_claims of gateway.yaml does not keep this claim, so a rule about it never refuses; write there: keep_claims: [team, employment]") {
		t.Error(err)
	}
	cfg.Identity.KeepClaims = []string{"employment"}
	if _, err := gateway.LoadPolicy(cfg); err != nil {
		t.Error(err)
	}
}

// examples is a copy of the example apps, with the modes a machine would have.
func examples(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "apps")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("../deploy/config/apps/*")
	if err != nil || len(paths) == 0 {
		t.Fatal(paths, err)
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(p)), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The shipped example shows every key, commented out or not, and every key it
// shows exists.
func TestShippedExampleShowsEveryKey(t *testing.T) {
	data, err := os.ReadFile("../deploy/config/gateway.yaml")
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^[ #-]*([a-z_0-9]+):`).FindAllStringSubmatch(string(data), -1) {
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
			typ := f.Type
			if typ.Kind() == reflect.Slice {
				typ = typ.Elem()
			}
			if typ.Kind() == reflect.Struct {
				walk(typ)
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
	cfg, err := gateway.LoadConfig(path)
	if err != nil {
		t.Fatalf("the shipped example does not load: %v", err)
	}
	// So does a copy of the example apps beside it.
	cfg.Policy.Directory = examples(t)
	if _, err := gateway.LoadPolicy(cfg); err != nil {
		t.Errorf("the shipped example apps do not load: %v", err)
	}
}

// A mistake in a running gateway's file must not stand between an administrator
// and its socket.
func TestSocketIsFoundInASpoiltFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway.yaml")
	for text, want := range map[string]string{
		"data_dir: data\ntunel: {}\nlocation: {database: gone.mmdb}\n": filepath.Join(dir, "data", "admin.sock"),
		"data_dir: /var/lib/portvakt\n":                                "/var/lib/portvakt/admin.sock",
		"data_dir: data\nadmin: {group: gone}\n":                       "/run/portvakt/admin.sock",
		"data_dir: data\nadmin: {socket: run/a.sock, group: gone}\n":   filepath.Join(dir, "run", "a.sock"),
		"log: {level: info}\n":                                         "",
		"data_dir: [\n":                                                "",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := gateway.FindSocket(path)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
