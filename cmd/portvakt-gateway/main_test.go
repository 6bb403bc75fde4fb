package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/portvakt/portvakt/gateway"
	"github.com/portvakt/portvakt/gateway/admin"
)

const app = `name: crm
title: Customers
protocol: http
hosts: [crm.example.com]
upstream: http://127.0.0.1:9
allow: [127.0.0.1/32]
access:
  - groups: [sales]
`

// configuration writes a gateway's files and returns the path of the main one.
func configuration(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pv") // t.TempDir can be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	apps := filepath.Join(dir, "apps")
	if err := os.Mkdir(apps, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(apps, "crm.yaml"), []byte(app), 0o600); err != nil {
		t.Fatal(err)
	}
	public, health := port(t, "tcp"), port(t, "tcp")
	text := fmt.Sprintf(`data_dir: data
public: {listen: "127.0.0.1:%d", url: "https://127.0.0.1:%[1]d"}
tunnel: {listen: "127.0.0.1:%d"}
health: {listen: "127.0.0.1:%d"}
identity: {issuer: "http://127.0.0.1:9", client_id: portvakt}
policy: {directory: apps}
`, public, port(t, "udp"), health)
	path := filepath.Join(dir, "gateway.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func port(t *testing.T, network string) int {
	t.Helper()
	if network == "udp" {
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().(*net.UDPAddr).Port
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// command runs one and wants its exit code and a piece of what it says.
func command(t *testing.T, code int, says string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if got := run(t.Context(), args, &out, &errs); got != code || !strings.Contains(out.String()+errs.String(), says) {
		t.Errorf("%s: exit code %d, want %d and %q\n%s%s", strings.Join(args, " "), got, code, says, out.String(), errs.String())
	}
	return out.String()
}

func TestCheckAndServeRefuseAndWriteNothing(t *testing.T) {
	path := configuration(t)
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	command(t, 0, "is fine; apps: 1, policy revision: sha256-", "check", "--config", path)
	for bad, want := range map[string]string{
		"tunel: {}\n":                       "gateway.yaml:7: tunel: unknown key; did you mean tunnel?",
		"location: {database: none.mmdb}\n": "gateway.yaml:7: location.database: expected a MaxMind database file",
	} {
		if err := os.WriteFile(path, append(good, bad...), 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, 2, want, "check", "--config", path)
		command(t, 2, want, "serve", "--config", path)
	}
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	crm := filepath.Join(filepath.Dir(path), "apps", "crm.yaml")
	if err := os.WriteFile(crm, []byte(strings.Replace(app, "access", "acess", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, 2, "crm.yaml:7: acess: unknown key", "check", "--config", path)
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 2 {
		t.Errorf("something was written: %v %v", entries, err)
	}
	command(t, 2, "no such file", "check", "--config", filepath.Join(filepath.Dir(path), "nowhere.yaml"))
}

// evidenceOf proves and verifies while the gateway signs.
func evidenceOf(t *testing.T, path string, c func(...string) []string) {
	t.Helper()
	dir := filepath.Dir(path)
	proof, key := filepath.Join(dir, "proof.json"), filepath.Join(dir, "data", "audit", "tree", "verifier.key")
	for range 1000 { // until the record is signed
		if code := run(t.Context(), c("audit", "prove", "1", "-o", proof), io.Discard, io.Discard); code == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	command(t, 0, "record 1 is in the log of ", "audit", "verify", "--proof", proof, "--key", key)
	command(t, 0, "the log holds", c("audit", "verify")...)
	command(t, 0, `"ok": true`, c("audit", "verify", "--json", "--checkpoint", filepath.Join(dir, "data", "audit", "tree", "checkpoint"))...)
	command(t, 2, "--proof needs --key", "audit", "verify", "--proof", proof)
	witnessed(t, c, filepath.Join(dir, "data", "audit", "tree"))
	command(t, 2, "verifier key", c("audit", "verify", "--key", "nonsense")...)
	command(t, 1, "no record has", c("audit", "prove", "d-nope")...)
	may := filepath.Join(dir, "may.csv")
	command(t, 0, "", c("audit", "export", "--format", "csv", "-o", may)...)
	if text, err := os.ReadFile(may); err != nil || !strings.HasPrefix(string(text), "node,seq,time,") || !strings.Contains(string(text), ",start,") {
		t.Errorf("%v: %s", err, text)
	}
	command(t, 0, "CEF:0|Portvakt|Gateway|1|start|", c("audit", "export", "--format", "cef")...)
	command(t, 0, `"class_uid":6002`, c("audit", "export", "--format", "ocsf")...)
	for tries := 0; ; tries++ { // who exports is recorded, a moment later
		var out bytes.Buffer
		if run(t.Context(), c("audit", "tail", "-n", "0"), &out, io.Discard); strings.Contains(out.String(), "audit log, exported as cef") {
			break
		}
		if tries == 500 {
			t.Errorf("the export is not recorded:\n%s", out.String())
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if out := command(t, 0, "", c("audit", "export", "--since", "2999-01-01T00:00:00Z")...); out != "" {
		t.Errorf("from the future: %s", out)
	}
	command(t, 2, `--format "xml": expected one of jsonl, ocsf, cef, csv`, c("audit", "export", "--format", "xml")...)
	command(t, 2, "--since", c("audit", "export", "--since", "yesterday")...)
	copied := filepath.Join(dir, "copy")
	if err := os.CopyFS(copied, os.DirFS(filepath.Join(dir, "data", "audit"))); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(copied, "audit.jsonl")
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, bytes.Replace(text, []byte(`"kind":"start"`), []byte(`"kind":"stop"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, 1, "record 1 is not the one that was signed", "audit", "verify", "--dir", copied)
}

// witnessed verifies with what a witness cosigned, here and elsewhere.
func witnessed(t *testing.T, c func(...string) []string, tree string) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	raw := append([]byte{4}, pub...)
	hash := sha256.Sum256(append([]byte("w.example.com\n"), raw...))
	key := fmt.Sprintf("w.example.com+%x+%s", hash[:4], base64.StdEncoding.EncodeToString(raw))
	checkpoint, err := os.ReadFile(filepath.Join(tree, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ := strings.Cut(string(checkpoint), "\n\n")
	sig := ed25519.Sign(priv, []byte("cosignature/v1\ntime 1800000000\n"+text+"\n"))
	sig = append(binary.BigEndian.AppendUint64(bytes.Clone(hash[:4]), 1800000000), sig...)
	kept := filepath.Join(t.TempDir(), "kept")
	command(t, 1, "no such file", c("audit", "verify", "--witness-key", key)...)
	if err := os.WriteFile(kept, checkpoint, 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, 1, "the witness's signature", c("audit", "verify", "--witness-key", key, "--cosigned", kept)...)
	whole := string(checkpoint) + "— w.example.com " + base64.StdEncoding.EncodeToString(sig) + "\n"
	for _, file := range []string{kept, filepath.Join(tree, "cosigned")} {
		if err := os.WriteFile(file, []byte(whole), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command(t, 0, "by the witness at 2027-01-15T08:00:00Z", c("audit", "verify", "--witness-key", key)...)
	command(t, 0, `"cosigned_at": "2027-01-15T08:00:00Z"`, c("audit", "verify", "--json", "--witness-key", key, "--cosigned", kept)...)
	command(t, 2, "--cosigned needs --witness-key", c("audit", "verify", "--cosigned", kept)...)
	command(t, 2, "--witness-key: ", c("audit", "verify", "--witness-key", "nonsense")...)
}

func TestCommandsOfARunningGateway(t *testing.T) {
	path := configuration(t)
	cfg, err := gateway.LoadConfig(path)
	if err != nil {
		t.Fatal(err)
	}
	c := func(args ...string) []string { return append(args, "--config", path) }
	command(t, 1, "no gateway is running here", c("devices", "list")...)

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- gateway.Run(ctx, cfg, slog.New(slog.DiscardHandler)) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for range 1000 {
		if _, err := os.Stat(cfg.SocketPath()); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}

	if code := command(t, 0, "portvakt-agent enroll "+cfg.Public.URL, c("invite", "--name", "anna-laptop", "--serial", "S1", "--expires", "4h")...); strings.Count(code, ".") != 2 || !strings.HasPrefix(code, "pv1.") {
		t.Errorf("the code: %q", code)
	}
	command(t, 2, "--expires 0s", c("invite", "--expires", "0s")...)
	command(t, 2, "at most 30 days", c("invite", "--expires", "721h")...)

	for _, list := range [][]string{{"devices", "list"}, {"sessions", "list"}, {"apps", "list"}} {
		var items struct {
			Items []json.RawMessage `json:"items"`
		}
		out := command(t, 0, "", c(append(list, "--json")...)...)
		if err := json.Unmarshal([]byte(out), &items); err != nil || items.Items == nil {
			t.Errorf("%v --json: %v\n%s", list, err, out)
		}
		command(t, 0, "", c(list...)...)
	}
	command(t, 0, "crm   http      100.96.0.", c("apps", "list")...)
	for _, what := range []string{"devices", "sessions"} {
		says := map[string]string{"devices": `no device is called "nobody"; see: portvakt-gateway devices list`, "sessions": `no session has the ID "nobody"; see: portvakt-gateway sessions list`}[what]
		command(t, 1, says, c(what, "show", "nobody")...)
		command(t, 1, says, c(what, "revoke", "nobody")...)
	}

	command(t, 3, "login_required", c("why", "--app", "crm", "--subject", "anna")...)
	command(t, 3, "group_not_allowed", c("why", "--app", "crm", "--subject", "anna", "--groups", "")...)
	out := command(t, 0, `"allow": true`, c("why", "--app", "crm", "--subject", "anna", "--groups", "a, sales", "--signal", "host_firewall=pass", "--from", "192.0.2.7", "--at", "2026-12-24T22:00:00+01:00", "--json")...)
	var because struct {
		Decision, Revision string
		Input              struct{ Time time.Time }
	}
	if err := json.Unmarshal([]byte(out), &because); err != nil || because.Decision == "" || because.Input.Time.Format(time.RFC3339) != "2026-12-24T21:00:00Z" {
		t.Errorf("why --json: %v\n%s", err, out)
	}
	command(t, 2, `--path "export": expected a path that begins with /`, c("why", "--app", "crm", "--subject", "anna", "--path", "export")...)
	command(t, 3, "\ndecision  d-", c("why", "--app", "crm", "--subject", "anna", "--groups", "", "--path", "/export")...)
	for line := range strings.Lines(command(t, 3, "remedy", c("why", "--app", "crm", "--subject", "anna", "--groups", "")...)) {
		if n := len([]rune(line)); n > 81 {
			t.Errorf("why: %d columns: %s", n, line)
		}
	}
	for _, bad := range [][]string{
		{"--at", "yesterday"}, {"--from", "here"}, {"--signal", "mood=pass"}, {"--signal", "host_firewall"},
	} {
		command(t, 2, strings.TrimSuffix(bad[1], "=pass"), c(append([]string{"why", "--app", "crm", "--subject", "anna"}, bad...)...)...)
	}
	command(t, 2, "--app and one of --subject and --device", c("why", "--app", "crm")...)

	tail := command(t, 0, `"kind":"invite"`, c("audit", "tail", "-n", "0")...)
	var first struct {
		Seq  int
		Kind string
	}
	if err := json.Unmarshal([]byte(strings.SplitN(tail, "\n", 2)[0]), &first); err != nil || first.Seq != 1 || first.Kind != "start" {
		t.Errorf("the first record: %+v %v", first, err)
	}
	command(t, 0, `"kind":"start"`, c("audit", "show", "1")...)
	command(t, 1, "no input", c("audit", "show", "1", "--input")...)
	command(t, 1, "d-nope", c("audit", "show", "d-nope")...)

	evidenceOf(t, path, c)

	lockdownsOf(t, c, cfg.Health.Listen)

	bundle := filepath.Join(filepath.Dir(path), "b.tar.gz")
	command(t, 0, because.Revision, c("policy", "build", "-o", bundle)...)
	if data, err := os.ReadFile(bundle); err != nil || !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		t.Errorf("the bundle: %v", err)
	}
	command(t, 1, "never active", c("policy", "build", "-o", bundle, "--revision", "sha256-other")...)
	command(t, 2, "-o FILE is needed", c("policy", "build")...)

	// An editor left the file broken: the gateway runs on, and so do these.
	if err := os.WriteFile(path, []byte("data_dir: data\ntunel: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	command(t, 0, "ID", c("devices", "list")...)
	command(t, 0, "ID", "devices", "list", "--socket", cfg.SocketPath())
}

// lockdownsOf puts one in force, looks at it and lifts it.
func lockdownsOf(t *testing.T, c func(...string) []string, health string) {
	t.Helper()
	out := command(t, 0, "is in force: app crm is locked down, open flows cut: 0", c("lockdown", "on", "--app", "crm", "--reason", "drill \x1b[31m")...)
	id := strings.Fields(out)[0]
	command(t, 3, "locked_down", c("why", "--app", "crm", "--subject", "anna", "--groups", "sales")...)
	command(t, 0, "drill ?[31m", c("lockdown", "list")...)
	command(t, 0, `"scope": "app"`, c("lockdown", "list", "--json")...)
	renamedUnder(t, c, id)
	command(t, 2, `no app "crn"`, c("lockdown", "on", "--app", "crn")...)
	command(t, 2, "A site is", c("lockdown", "on", "--site", "Malmo")...)
	command(t, 2, "Nobody called", c("lockdown", "on", "--subject", "anna")...)
	command(t, 1, `no device is called "nobody"`, c("lockdown", "on", "--device", "nobody")...)
	for _, bad := range [][]string{nil, {"--all", "--app", "crm"}, {"--app", ""}} {
		command(t, 2, "exactly one of", c(append([]string{"lockdown", "on"}, bad...)...)...)
	}
	command(t, 1, `no lockdown has the ID "lock-none"; see: portvakt-gateway lockdown list`, c("lockdown", "off", "lock-none", "--reason", "x")...)
	command(t, 1, `no act has the ID "act-none"; see: portvakt-gateway approvals list`, c("approvals", "approve", "act-none")...)
	command(t, 2, "--reason is needed: whoever approves reads it", c("lockdown", "off", id)...)
	act := strings.Fields(command(t, 0, "is pending until", c("lockdown", "off", id, "--reason", "drill is over")...))[0]
	command(t, 0, `"status": "pending"`, c("lockdown", "off", id, "--json", "--reason", "again")...)
	command(t, 0, "drill is over", c("approvals", "list")...)
	command(t, 1, "another administrator", c("approvals", "approve", act)...)
	command(t, 0, "is rejected", c("approvals", "reject", act)...)
	command(t, 1, "decided already", c("approvals", "reject", act)...)
	for says, bad := range map[string][]string{
		"portvakt-gateway: --reason is needed: why, for the record and everybody else\n": {"--minutes", "5"},
		"portvakt-gateway: --minutes 100: expected from 1 to 60\n":                       {"--reason", "x", "--minutes", "100"},
		"--reason is needed: why, for the record and everybody else; --minutes 0: ":      nil,
	} {
		command(t, 2, says, c(append([]string{"break-glass"}, bad...)...)...)
	}
	command(t, 0, " os:", c("approvals", "list")...)
	command(t, 0, " os:", c("lockdown", "list")...)
	command(t, 0, "may act alone until", c("break-glass", "--reason", "drill", "--minutes", "1")...)
	for path, want := range map[string][]string{
		"/healthz": {`"ok":true`, `"lockdowns":"1 in force`, `"break_glass":"1 running`},
		"/metrics": {"portvakt_lockdowns 1\n", "portvakt_break_glass 1\n"},
	} {
		resp, err := http.Get("http://" + health + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		for _, w := range want {
			if err != nil || !strings.Contains(string(body), w) {
				t.Errorf("%s lacks %s: %v\n%s", path, w, err, body)
			}
		}
	}
	for _, any := range [][]string{{"lockdown", "list"}, {"devices", "list"}, {"audit", "tail"}, {"apps", "list", "--json"}} {
		if out := command(t, 0, "Break-glass: os:", c(any...)...); strings.Contains(out, "Break-glass:") {
			t.Errorf("%v says it in its output, which programs read:\n%s", any, out)
		}
	}
	command(t, 0, "is done: lockdown off "+id, c("lockdown", "off", id, "--reason", "over")...)
	command(t, 0, `"break_glass": [`, c("lockdown", "list", "--json")...)
}

// renamedUnder gives the app another name while a lockdown of it is in force:
// check says that it holds all the same, and it does.
func renamedUnder(t *testing.T, c func(...string) []string, id string) {
	t.Helper()
	file := filepath.Join(filepath.Dir(c()[1]), "apps", "crm.yaml")
	name := func(now, next string) {
		t.Helper()
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, bytes.Replace(text, []byte("name: "+now+"\n"), []byte("name: "+next+"\n"), 1), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 { // until it is in force
			var out bytes.Buffer
			if run(t.Context(), c("apps", "list"), &out, io.Discard) == 0 && strings.Contains(out.String(), "\n"+next+" ") {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatalf("%s is not published", next)
	}
	if out := command(t, 0, "is fine", c("check")...); strings.Contains(out, "Note") {
		t.Errorf("as it is: %s", out)
	}
	name("crm", "crm2")
	command(t, 0, "Note: the lockdown "+id+" of app crm would hold for app crm2 too, which has its host crm.", c("check")...)
	command(t, 0, `"lockdown": "`+id+`"`, c("check", "--json")...)
	command(t, 0, "crm (also crm2)", c("lockdown", "list")...)
	command(t, 0, `"also": [`, c("lockdown", "list", "--json")...)
	command(t, 3, "locked_down", c("why", "--app", "crm2", "--subject", "anna", "--groups", "sales")...)
	name("crm2", "crm")
	if out := command(t, 0, id, c("lockdown", "list")...); strings.Contains(out, "also") {
		t.Errorf("named back: %s", out)
	}
}

func TestWrongUsage(t *testing.T) {
	for _, c := range []struct{ args, says string }{
		{"frobnicate", `unknown command "frobnicate"`},
		{"devices frobnicate", "See: portvakt-gateway devices --help"},
		{"devices show", "which ID or name? see: portvakt-gateway devices list"},
		{"approvals approve", "which ID? see: portvakt-gateway approvals list"},
		{"sessions revoke a b", "wanted one ID, got 2 arguments"},
		{"devices lsit", `"lsit" is not a command of devices; did you mean list?`},
		{"chekc", "check"},
		{"quarantine --device x", "lockdown"},
		{"quarantine", "lockdown"},
		{"audit tail --frob", "unknown flag: --frob"},
		{"audit tail -n x", "invalid argument"},
		{"serve extra", "See: portvakt-gateway serve --help"},
	} {
		command(t, 2, c.says, strings.Fields(c.args)...)
	}
	command(t, 0, "portvakt-gateway ", "version")
	command(t, 0, "portvakt-gateway ", "--version")
	command(t, 0, `"protocol": "v1"`, "version", "--json")
}

func TestEveryCommandExplainsItself(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" {
			return
		}
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		for line := range strings.Lines(command(t, 0, "Usage:\n  portvakt-gateway", args...)) {
			if len(line) > 81 && !strings.Contains(line, "portvakt-gateway ") { // what is to be copied stays whole
				t.Errorf("%s --help: %d columns: %s", c.CommandPath(), len(line), line)
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(new(bool)))
}

func TestTextOfOthersIsSafeToShow(t *testing.T) {
	var out bytes.Buffer
	err := table(&out, [][]string{{"NAME", "WHO"}, {"a\x1b[31mb\tc\n", "\u202eevil\u009b"}, {"x", ""}})
	if err != nil || out.String() != "NAME        WHO\na?[31mb?c?  ?evil?\nx           -\n" {
		t.Errorf("%q %v", out.String(), err)
	}
}

func TestFlowsAreReadable(t *testing.T) {
	until := time.Date(2026, 11, 23, 17, 15, 0, 0, time.Local)
	var out bytes.Buffer
	err := printFlows(&out, []admin.Flow{
		{ID: "f-1", App: "crm", Name: "Anna\x1b[2J", DeviceName: "anna-laptop", State: "open", OpenedAt: until.Add(-time.Hour)},
		{ID: "f-2", App: "voice", Name: "Ben Berg", DeviceName: "ben-laptop", State: "draining", OpenedAt: until.Add(-20 * time.Minute), DrainUntil: &until, Reason: "session_expired"},
	})
	want := "APP    WHO       DEVICE       SINCE             STATE                                  FLOW\n" +
		"crm    Anna?[2J  anna-laptop  2026-11-23 16:15  open                                   f-1\n" +
		"voice  Ben Berg  ben-laptop   2026-11-23 16:55  draining until 17:15: session expired  f-2\n"
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, out.String(), want)
	}
}
