package house_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/portvakt/portvakt"

// pkg is what `go list -json` says about a package.
type pkg struct {
	ImportPath string
	Imports    []string // direct
	Deps       []string // all
	Error      *struct{ Err string }
}

// room is the path of one of our packages below the module ("gateway/proxy"),
// or "" for any other package.
func room(importPath string) string {
	rest, ok := strings.CutPrefix(importPath, module+"/")
	if !ok {
		return ""
	}
	return rest
}

// below says whether a room is dir or lies in it.
func below(room, dir string) bool { return room == dir || strings.HasPrefix(room, dir+"/") }

func belowAny(room string, dirs ...string) bool {
	for _, d := range dirs {
		if below(room, d) {
			return true
		}
	}
	return false
}

// rules are checked for each of our packages: who is a room, what an import
// path it reaches directly (all is then false) or through others.
var rules = []struct {
	name   string
	direct bool
	broken func(who, what string) bool
}{
	{"agent never reaches gateway", false, func(who, what string) bool {
		return below(who, "agent") && below(room(what), "gateway")
	}},
	{"gateway never reaches agent", false, func(who, what string) bool {
		return below(who, "gateway") && below(room(what), "agent")
	}},
	{"policy, certs and internal/wire import nothing of ours", false, func(who, what string) bool {
		return belowAny(who, "policy", "certs", "internal/wire") && room(what) != "" && !sameTop(who, room(what))
	}},
	{"internal/wire imports only the standard library", true, func(who, what string) bool {
		return below(who, "internal/wire") && strings.Contains(strings.SplitN(what, "/", 2)[0], ".")
	}},
	{"gateway/* never reaches gateway", false, func(who, what string) bool {
		return strings.HasPrefix(who, "gateway/") && room(what) == "gateway"
	}},
	{"agent/* never reaches agent", false, func(who, what string) bool {
		return strings.HasPrefix(who, "agent/") && room(what) == "agent"
	}},
	{"nobody reaches cmd or deploy", false, func(who, what string) bool {
		return !below(who, "cmd") && belowAny(room(what), "cmd", "deploy")
	}},
	{"internal reaches only internal", false, func(who, what string) bool {
		return below(who, "internal") && room(what) != "" && !below(room(what), "internal")
	}},
	{"only policy imports OPA", true, func(who, what string) bool {
		return !below(who, "policy") && strings.HasPrefix(what, "github.com/open-policy-agent/")
	}},
	{"only the tunnels, the stacks and the transports import WireGuard and gVisor", true, func(who, what string) bool {
		return !belowAny(who, "agent/tunnel", "gateway/tunnel", "internal/overlay", "internal/hosttun", "internal/transport", "internal/tunread") &&
			(strings.HasPrefix(what, "golang.zx2c4.com/wireguard") || strings.HasPrefix(what, "gvisor.dev/"))
	}},
	{"only gateway/store imports SQLite", true, func(who, what string) bool {
		return !below(who, "gateway/store") && strings.HasPrefix(what, "modernc.org/")
	}},
	{"the agent holds no OPA and no SQLite", false, func(who, what string) bool {
		return belowAny(who, "agent", "cmd/portvakt-agent") &&
			(strings.HasPrefix(what, "github.com/open-policy-agent/") || strings.HasPrefix(what, "modernc.org/"))
	}},
	{"cmd/portvakt-agent never reaches gateway", false, func(who, what string) bool {
		return below(who, "cmd/portvakt-agent") && below(room(what), "gateway")
	}},
	{"cmd/portvakt-gateway never reaches agent", false, func(who, what string) bool {
		return below(who, "cmd/portvakt-gateway") && below(room(what), "agent")
	}},
}

// sameTop says whether two rooms belong to one part of the house.
func sameTop(a, b string) bool {
	for _, top := range []string{"policy", "certs", "internal/wire"} {
		if below(a, top) {
			return below(b, top)
		}
	}
	return false
}

func root(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("go env GOMOD: %v", err)
	}
	return filepath.Dir(strings.TrimSpace(string(out)))
}

func list(t *testing.T, goos string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Deps,Error", "./...")
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0", "GOFLAGS=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	return all
}

func TestDirectionsOfImports(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		t.Run(goos, func(t *testing.T) {
			t.Parallel()
			seen := map[string]bool{}
			for _, p := range list(t, goos) {
				who := room(p.ImportPath)
				seen[who] = true
				for _, r := range rules {
					reached := p.Deps
					if r.direct {
						reached = p.Imports
					}
					for _, what := range reached {
						if r.broken(who, what) {
							t.Errorf("%s: %s reaches %s", r.name, who, what)
						}
					}
				}
			}
			// A rule about a room that is not there would hold for nothing.
			for _, must := range []string{
				"agent", "agent/tunnel", "gateway", "gateway/tunnel", "gateway/store", "policy", "certs",
				"internal/wire", "internal/overlay", "cmd/portvakt-agent", "cmd/portvakt-gateway",
			} {
				if !seen[must] {
					t.Errorf("there is no package %s; the rules above name it", must)
				}
			}
		})
	}
}

// Each rule must be able to fail.
func TestRulesCatch(t *testing.T) {
	for rule, bad := range map[string][2]string{
		"agent never reaches gateway":                                                 {"agent/enroll", module + "/gateway/store"},
		"gateway never reaches agent":                                                 {"gateway/proxy", module + "/agent"},
		"policy, certs and internal/wire import nothing of ours":                      {"certs", module + "/internal/wire"},
		"internal/wire imports only the standard library":                             {"internal/wire", "golang.org/x/sys/unix"},
		"gateway/* never reaches gateway":                                             {"gateway/admin", module + "/gateway"},
		"agent/* never reaches agent":                                                 {"agent/login", module + "/agent"},
		"nobody reaches cmd or deploy":                                                {"gateway", module + "/deploy/demo"},
		"internal reaches only internal":                                              {"internal/overlay", module + "/policy"},
		"only policy imports OPA":                                                     {"gateway/session", "github.com/open-policy-agent/opa/v1/rego"},
		"only the tunnels, the stacks and the transports import WireGuard and gVisor": {"gateway/segment", "gvisor.dev/gvisor/pkg/tcpip"},
		"only gateway/store imports SQLite":                                           {"gateway/audit", "modernc.org/sqlite"},
		"the agent holds no OPA and no SQLite":                                        {"cmd/portvakt-agent", "modernc.org/sqlite"},
		"cmd/portvakt-agent never reaches gateway":                                    {"cmd/portvakt-agent", module + "/gateway/audit"},
		"cmd/portvakt-gateway never reaches agent":                                    {"cmd/portvakt-gateway", module + "/agent/state"},
	} {
		found := false
		for _, r := range rules {
			if r.name == rule {
				found = true
				if !r.broken(bad[0], bad[1]) {
					t.Errorf("%q does not catch %s reaching %s", rule, bad[0], bad[1])
				}
			}
		}
		if !found {
			t.Errorf("there is no rule %q", rule)
		}
	}
	if len(rules) != 14 {
		t.Errorf("%d rules, but this test breaks 14", len(rules))
	}
}

// Sizes that keep a room livable. They are advice: the test says who grew and
// fails only past twice the size. Because it reads every file, go test runs this
// package anew when any of them changed; what `go list` reads it cannot see.
func TestSizes(t *testing.T) {
	const lines = 500
	err := filepath.WalkDir(root(t), func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "build") {
			return filepath.SkipDir
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		limit := lines
		if strings.HasSuffix(path, "/main.go") && strings.Contains(path, "/cmd/") {
			limit = 150
		}
		switch n := bytes.Count(b, []byte("\n")); {
		case n > 2*limit:
			t.Errorf("%s has %d lines; about %d are meant", path, n, limit)
		case n > limit:
			t.Logf("%s has %d lines; about %d are meant", path, n, limit)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
