package policy_test

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/portvakt/portvakt/policy"
)

var update = flag.Bool("update", false, "write what is found into testdata instead of comparing")

// TestRefused loads every directory of testdata/refused; the file `want` holds
// what IT is told.
func TestRefused(t *testing.T) {
	paths, err := filepath.Glob("testdata/refused/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			files, _ := readTxtar(t, path)
			want := files["want"]
			delete(files, "want")
			dir := writeFiles(t, files)
			r, err := policy.Load(dir, policy.LoadOptions{})
			if err == nil {
				t.Fatalf("accepted as %s", r.ID())
			}
			var problems policy.Problems
			if !errors.As(err, &problems) {
				t.Fatalf("%T is no Problems: %v", err, err)
			}
			got := strings.ReplaceAll(fmt.Sprintln(err), dir, "apps")
			if *update {
				rewriteWant(t, path, got)
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func rewriteWant(t *testing.T, path, got string) {
	t.Helper()
	a, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range a.Files {
		if a.Files[i].Name == "want" {
			a.Files[i].Data = []byte(got)
		}
	}
	if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLoadFills(t *testing.T) {
	r := load(t, map[string]string{
		"z.yaml": "name: crm\nprotocol: http\nhosts: [crm.example.com]\nupstream: https://[2001:db8::1]:8443\nupstream_ca_file: /etc/ca.pem\n",
		"a.yml":  "name: desk\nprotocol: udp\nupstream: \"2001:db8::2\"\nports: [5060, 0x10]\nallow: [127.0.0.1/32]\n",
		"b.yaml": "name: db\nprotocol: tcp\nupstream: db.example.com:5432\nports: [15432]\naccess:\n- anyone: true\n  countries: [NO]\n",
	})
	apps := r.Apps()
	if len(apps) != 3 || apps[0].Name != "crm" || apps[1].Name != "db" || apps[2].Name != "desk" {
		t.Fatalf("apps: %+v", apps)
	}
	crm, db, desk := apps[0], apps[1], apps[2]
	if crm.Title != "crm" || crm.Visibility != policy.VisibilityExplain || desk.Visibility != policy.VisibilityHidden {
		t.Errorf("defaults: %+v %+v", crm, desk)
	}
	if diff := cmp.Diff([]uint16{443, 80}, crm.Ports); diff != "" {
		t.Error(diff)
	}
	if desk.DSCP != policy.DSCPAuto || crm.DSCP != "" || db.DSCP != "" {
		t.Errorf("dscp: %q %q %q", desk.DSCP, crm.DSCP, db.DSCP)
	}
	quiet := load(t, map[string]string{"a.yml": "name: desk\nprotocol: udp\nupstream: desk.example.com\nports: [5060]\ndscp: off\n"}).Apps()[0]
	if quiet.DSCP != policy.DSCPOff { // and not YAML 1.1's false
		t.Errorf("dscp: off is %q", quiet.DSCP)
	}
	if crm.Durability != policy.DurabilityKill || desk.Durability != policy.DurabilityKill {
		t.Errorf("durability: %q %q", crm.Durability, desk.Durability)
	}
	bank := load(t, map[string]string{"a.yml": "name: bank\nprotocol: tcp\nupstream: bank.example.com:1\nports: [1]\ndurability: strict\n"}).Apps()[0]
	if bank.Durability != policy.DurabilityStrict {
		t.Errorf("durability: strict is %q", bank.Durability)
	}
	if desk.Allow[0] != netip.MustParsePrefix("127.0.0.1/32") {
		t.Error(desk.Allow)
	}
	if db.Access[0].Countries[0] != "NO" { // Norway, not YAML 1.1's false
		t.Error(db.Access)
	}
	for _, c := range []struct {
		app  policy.App
		port uint16
		want string
	}{
		{crm, 443, "[2001:db8::1]:8443"},
		{desk, 5060, "[2001:db8::2]:5060"},
		{desk, 16, "[2001:db8::2]:16"},
		{db, 15432, "db.example.com:5432"},
		{policy.App{Protocol: "http", Upstream: "https://x.example.com"}, 80, "x.example.com:443"},
		{policy.App{Protocol: "http", Upstream: "http://[::1]"}, 443, "[::1]:80"},
		{policy.App{Protocol: "tcp", Upstream: "[::1]"}, 22, "[::1]:22"},
	} {
		if got := c.app.UpstreamFor(c.port); got != c.want {
			t.Errorf("%s port %d: dials %s, want %s", c.app.Upstream, c.port, got, c.want)
		}
	}
	if a, ok := r.App("db"); !ok || a.Name != "db" {
		t.Errorf("App(db) = %+v %v", a, ok)
	}
	if _, ok := r.App("d"); ok {
		t.Error("App(d) exists")
	}
}

// TestRevisionID: what matters to a decision changes the ID, nothing else does.
func TestRevisionID(t *testing.T) {
	const app = "name: crm\nprotocol: http\nhosts: [crm.example.com]\nupstream: http://10.0.0.5\naccess:\n- groups: [sales]\n"
	const module = "package portvakt.custom.x\n\ndeny contains {\"message\": \"m\"} if input.app.name == \"x\"\n"
	base := load(t, map[string]string{"a.yaml": app, "x.rego": module}).ID()
	if len(base) != len("sha256-")+32 {
		t.Errorf("ID %q", base)
	}
	same := map[string]map[string]string{
		"again":      {"a.yaml": app, "x.rego": module},
		"comment":    {"a.yaml": "# x\n" + app, "x.rego": module},
		"file name":  {"b.yml": app, "x.rego": module},
		"other file": {"a.yaml": app, "x.rego": module, "README.md": "x", "y_test.rego": "x"},
	}
	for name, files := range same {
		if id := load(t, files).ID(); id != base {
			t.Errorf("%s: the ID changed", name)
		}
	}
	seen := map[string]string{base: "base"}
	for name, files := range map[string]map[string]string{
		"group":     {"a.yaml": strings.Replace(app, "sales", "support", 1), "x.rego": module},
		"upstream":  {"a.yaml": strings.Replace(app, "10.0.0.5", "10.0.0.6", 1), "x.rego": module},
		"module":    {"a.yaml": app, "x.rego": module + "# x\n"},
		"no module": {"a.yaml": app},
		"no app":    {"x.rego": module},
		"nothing":   {},
	} {
		id := load(t, files).ID()
		if other, ok := seen[id]; ok {
			t.Errorf("%s has the ID of %s", name, other)
		}
		seen[id] = name
	}
}

// A claim that the gateway does not keep is absent for everyone.
func TestClaimsThatAreNotKept(t *testing.T) {
	module := func(absent, claim string) map[string]string {
		return map[string]string{"m.rego": "package portvakt.custom.m\n\nabsent := {" + absent + "}\n\ndeny contains {\"message\": \"no\"} if " + claim + " == \"temporary\"\n"}
	}
	for _, c := range []struct {
		absent, claim string
		kept          []string
		want          string
	}{
		{`"subject.claims.employment": "ignore"`, "input.subject.claims.employment", nil, "m.rego:5: input.subject.claims.employment: identity.keep_claims of gateway.yaml does not keep this claim, so a rule about it never refuses; write there: keep_claims: [employment]"},
		{`"subject.claims.employment": "deny"`, "input.subject.claims.employment", []string{"team"}, `so it is absent for everyone, which "deny" refuses; write there: keep_claims: [team, employment]`},
		{`"subject.claims.employment": "ignore"`, "input.subject.claims.employment", []string{"employment"}, ""},
		{`"subject.claims": "ignore"`, "input.subject.claims[_]", []string{"team"}, ""},
		{`"subject.email": "ignore"`, "input.subject.email", nil, ""},
	} {
		_, err := policy.Load(writeFiles(t, module(c.absent, c.claim)), policy.LoadOptions{CheckClaims: true, KeptClaims: c.kept})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %v kept: %v, want %q", c.claim, c.kept, err, c.want)
		}
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, target, path string) {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}
