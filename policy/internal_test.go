package policy

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"

	"github.com/portvakt/portvakt/internal/wire"
)

// TestDecisionOf feeds what Rego must never answer: whatever is not exactly a
// decision denies.
func TestDecisionOf(t *testing.T) {
	const fact = `"fact":{"name":"n","value":"v","wanted":"w"}`
	good := map[string]Reason{
		`{"allow":true,"reason":"allowed","rule":"crm.access[0]"}`:                                   ReasonAllowed,
		`{"allow":false,"reason":"login_required"}`:                                                  ReasonLoginRequired,
		`{"allow":false,"reason":"posture_failed","rule":"crm.access[0]",` + fact + `}`:              ReasonPostureFailed,
		`{"allow":false,"reason":"policy_denied","message":"m","remedy":"r","rule":"custom.travel"}`: ReasonPolicyDenied,
		`{"allow":false,"reason":"policy_denied","fact":null}`:                                       ReasonPolicyDenied,
	}
	for raw, reason := range good {
		d := decisionOf(unmarshal(t, raw))
		if d.Reason != reason || d.Allow != (reason == ReasonAllowed) || d.Message == "" {
			t.Errorf("%s: %+v", raw, d)
		}
	}
	bad := []string{
		`null`, `true`, `false`, `1`, `"allowed"`, `[]`, `[true]`, `{}`,
		`[{"allow":true,"reason":"allowed","rule":"r"}]`,
		`{"allow":true}`,
		`{"reason":"allowed"}`,
		`{"rule":"r"}`,
		`{"allow":true,"reason":"allowed"}`,
		`{"allow":true,"reason":"allowed","rule":""}`,
		`{"allow":true,"reason":"allowed","rule":null}`,
		`{"allow":true,"reason":"allowed","rule":1}`,
		`{"allow":true,"reason":"allowed","rule":["r"]}`,
		`{"allow":"true","reason":"allowed","rule":"r"}`,
		`{"allow":1,"reason":"allowed","rule":"r"}`,
		`{"allow":null,"reason":"allowed","rule":"r"}`,
		`{"allow":[true],"reason":"allowed","rule":"r"}`,
		`{"allow":{},"reason":"allowed","rule":"r"}`,
		`{"Allow":true,"reason":"allowed","rule":"r"}`,
		`{"allow":true,"Reason":"allowed","rule":"r"}`,
		`{"allow":true,"reason":"Allowed","rule":"r"}`,
		`{"allow":true,"reason":"","rule":"r"}`,
		`{"allow":true,"reason":null,"rule":"r"}`,
		`{"allow":true,"reason":true,"rule":"r"}`,
		`{"allow":true,"reason":["allowed"],"rule":"r"}`,
		`{"allow":true,"reason":"group_not_allowed","rule":"r"}`,
		`{"allow":false,"reason":"allowed","rule":"r"}`,
		`{"allow":false,"reason":"allowed"}`,
		`{"allow":false,"reason":"because"}`,
		`{"allow":true,"reason":"because","rule":"r"}`,
		`{"allow":true,"reason":"allowed","rule":"r","extra":1}`,
		`{"allow":true,"reason":"allowed","rule":"r","step":7}`,
		`{"allow":true,"reason":"allowed","rule":"r","message":1}`,
		`{"allow":true,"reason":"allowed","rule":"r","remedy":[]}`,
		`{"allow":true,"reason":"allowed","rule":"r","fact":"f"}`,
		`{"allow":true,"reason":"allowed","rule":"r","fact":{}}`,
		`{"allow":true,"reason":"allowed","rule":"r","fact":{"name":"n"}}`,
		`{"allow":true,"reason":"allowed","rule":"r","fact":{"name":"n","value":1,"wanted":"w"}}`,
		`{"allow":true,"reason":"allowed","rule":"r","fact":{"name":"n","value":"v","wanted":"w","more":"m"}}`,
		`{"allow":true,"reason":"allowed","rule":"r","fact":[]}`,
		`{"allow":true,"reason":"allowed","rule":"r","fact":false}`,
	}
	if len(bad) < 40 {
		t.Fatalf("%d rows, want at least 40", len(bad))
	}
	for _, raw := range bad {
		d := decisionOf(unmarshal(t, raw))
		if d.Allow || d.Reason != ReasonPolicyError {
			t.Errorf("%s: allow %v reason %s, want a policy_error", raw, d.Allow, d.Reason)
		}
	}
	if d := decisionOf(nil); d.Allow || d.Reason != ReasonPolicyError {
		t.Errorf("nothing: %+v", d)
	}
}

func unmarshal(t *testing.T, raw string) any {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(raw), &v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return v
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"":                        "",
		"plain text":              "plain text",
		"a\nb\tc\x00d\u0085e":     "a b c d e",
		"bad\xffbyte":             "bad\uFFFDbyte",
		strings.Repeat("å", 300):  strings.Repeat("å", 300),
		strings.Repeat("å", 301):  strings.Repeat("å", 299) + "…",
		strings.Repeat("\n", 400): strings.Repeat(" ", 299) + "…",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestReasonsComplete reads decision.go: every constant has an entry in the
// table and the other way round.
func TestReasonsComplete(t *testing.T) {
	src, err := os.ReadFile("decision.go")
	if err != nil {
		t.Fatal(err)
	}
	constants := map[Reason]bool{}
	for line := range strings.Lines(string(src)) {
		f := strings.Fields(line)
		if len(f) == 4 && strings.HasPrefix(f[0], "Reason") && f[1] == "Reason" && f[2] == "=" {
			constants[Reason(strings.Trim(f[3], `"`))] = true
		}
	}
	if len(constants) < 20 {
		t.Fatalf("found %d constants", len(constants))
	}
	for r := range constants {
		e, ok := Reasons[r]
		if !ok || len(e) != len(Languages) {
			t.Errorf("reason %s has %d languages of %d", r, len(e), len(Languages))
		}
		for _, l := range Languages {
			text := e[l]
			if text.Message == "" || (text.Remedy == "") != (r == ReasonAllowed) {
				t.Errorf("reason %s in %s: %+v", r, l, text)
			}
			// What is typed is the same in every language.
			for _, typed := range []string{"portvakt-agent login", "portvakt-agent apps", "`allow`"} {
				if strings.Contains(text.Remedy, typed) != strings.Contains(e["en"].Remedy, typed) {
					t.Errorf("reason %s in %s: %q differs from English in %q", r, l, text.Remedy, typed)
				}
			}
		}
	}
	for r := range Reasons {
		if !constants[r] {
			t.Errorf("the table has %s, which is no constant", r)
		}
	}
}

func TestSignalsAreTheProtocols(t *testing.T) {
	if diff := cmp.Diff(wire.Signals, Signals); diff != "" {
		t.Error(diff)
	}
	if gatewayHost != wire.InternalName {
		t.Errorf("gatewayHost is %s, the protocol's %s", gatewayHost, wire.InternalName)
	}
}

// TestInputFactsMirrorInput keeps the checker of custom modules in step with
// the Input: a fact it does not know could not be used, an optional one it
// takes for certain could be forgotten.
func TestInputFactsMirrorInput(t *testing.T) {
	// Optional in JSON, but their presence follows from the action, from the
	// login, or both; DESIGN exempts them.
	exempt := []string{"subject", "session", "request", "flow", "request.upgrade", "posture.signals.*.value"}
	var walk func(typ reflect.Type, f facts, path string)
	walk = func(typ reflect.Type, f facts, path string) {
		seen := facets{}
		for i := range typ.NumField() {
			field := typ.Field(i)
			tag, opts, _ := strings.Cut(field.Tag.Get("json"), ",")
			at := join(path, tag)
			child, ok := f.members[tag]
			if !ok {
				t.Errorf("inputFacts lacks %s", at)
				continue
			}
			seen[tag] = child
			optional := opts == "omitempty" || at == "posture.signals"
			if optional != child.optional && !slices.Contains(exempt, at) {
				t.Errorf("%s: optional is %v in the Input, %v in inputFacts", at, optional, child.optional)
			}
			elem := field.Type
			if elem.Kind() == reflect.Pointer {
				elem = elem.Elem()
			}
			if elem.Kind() == reflect.Struct && elem != reflect.TypeFor[time.Time]() {
				walk(elem, child, at)
			}
		}
		for name := range f.members {
			if _, ok := seen[name]; !ok {
				t.Errorf("inputFacts has %s, the Input has not", join(path, name))
			}
		}
	}
	walk(reflect.TypeFor[Input](), inputFacts, "")
}

// TestCapabilities pins what policy may call: a new OPA changes nothing by
// itself, and nothing is in that OPA marks nondeterministic.
func TestCapabilities(t *testing.T) {
	caps := Capabilities()
	names := map[string]bool{}
	for _, b := range caps.Builtins {
		names[b.Name] = true
		if b.Nondeterministic {
			t.Errorf("%s is nondeterministic", b.Name)
		}
	}
	for _, want := range strings.Fields(pureBuiltins) {
		if !names[want] {
			t.Errorf("%s is allowed, but this OPA has no such pure built-in", want)
		}
	}
	if caps.AllowNet == nil || len(caps.AllowNet) != 0 {
		t.Errorf("allow_net is %v, want an empty list (nil would be everything)", caps.AllowNet)
	}
	calls := map[string]string{
		"http.send":          `http.send({"method": "get", "url": "http://127.0.0.1/"})`,
		"net.lookup_ip_addr": `net.lookup_ip_addr("example.com")`,
		"net.cidr_expand":    `net.cidr_expand("10.0.0.0/8")`,
		"opa.runtime":        `opa.runtime()`,
		"time.now_ns":        `time.now_ns()`,
		"rand.intn":          `rand.intn("a", 10)`,
		"uuid.rfc4122":       `uuid.rfc4122("a")`,
		"trace":              `trace("a")`,
		"crypto.x509.parse_and_verify_certificates":              `crypto.x509.parse_and_verify_certificates("a")`,
		"crypto.x509.parse_and_verify_certificates_with_options": `crypto.x509.parse_and_verify_certificates_with_options("a", {})`,
		"io.jwt.decode_verify":                                   `io.jwt.decode_verify("a", {})`,
		"io.jwt.encode_sign":                                     `io.jwt.encode_sign({}, {}, {})`,
		"io.jwt.encode_sign_raw":                                 `io.jwt.encode_sign_raw("", "", "")`,
		"json.match_schema":                                      `json.match_schema({}, {})`,
		"json.verify_schema":                                     `json.verify_schema({})`,
		"rego.parse_module":                                      `rego.parse_module("a", "package a")`,
		"providers.aws.sign_req":                                 `providers.aws.sign_req({}, {}, 1)`,
	}
	for _, b := range ast.CapabilitiesForThisVersion().Builtins {
		if _, ok := calls[b.Name]; b.Nondeterministic && !ok {
			t.Errorf("%s is nondeterministic and not in this test", b.Name)
		}
	}
	for name, call := range calls {
		src := "package portvakt.custom.x\n\ndeny contains {\"message\": \"m\"} if " + call + "\n"
		_, err := build([]sourceFile{{name: "x.rego", path: "x.rego", data: []byte(src)}}, LoadOptions{})
		if err == nil || !strings.Contains(err.Error(), "x.rego:3") || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, want a problem in line 3 that names it", call, err)
		}
	}
	src := "package portvakt.custom.x\n\ndeny contains {\"message\": \"m\"} if upper(\"a\") == \"B\"\n"
	if _, err := build([]sourceFile{{name: "x.rego", path: "x.rego", data: []byte(src)}}, LoadOptions{}); err != nil {
		t.Errorf("a pure built-in is refused: %v", err)
	}
}

// TestValue compares the hand-built value of an Input with its JSON form.
func TestValue(t *testing.T) {
	at := time.Date(2026, 3, 2, 9, 0, 0, 123456789, time.FixedZone("", 3600))
	inputs := []Input{
		{},
		{Time: at, Action: ActionFlow, Flow: &Flow{Port: 65535}, Subject: &Subject{}},
		{
			Time: at, Action: ActionRequest, App: AppRef{Name: "<crm>&\u2028", Protocol: "http"},
			Device:   Device{ID: "bad\xff\xfebytes", Serial: "S", EnrolledAt: at},
			Subject:  &Subject{Issuer: "i", ID: "s", Name: "n", Email: "e", Groups: []string{"b", "a", "a"}, Claims: map[string]any{"n": 1.5, "big": 1e30, "l": []any{nil, true, "x", map[string]any{"y": 7}}}},
			Session:  &Session{ID: "x", StartedAt: at, ExpiresAt: at.UTC()},
			Posture:  Posture{ReceivedAt: &at, Signals: map[string]Signal{"a": {State: "pass"}, "b": {State: "fail", Value: "v"}}},
			Location: Location{Address: "2001:db8::1", Country: "SE"},
			Request:  &Request{Method: "GET", Host: "h", Path: "/\x00\"", Upgrade: "websocket"},
		},
		{Posture: Posture{Signals: map[string]Signal{"a\xff": {State: "pass"}, "a\uFFFD": {State: "fail"}}}},
	}
	for i, in := range inputs {
		got, err := in.value()
		if err != nil {
			t.Fatal(err)
		}
		want, err := in.valueByJSON()
		if err != nil {
			t.Fatal(err)
		}
		if got.Compare(want) != 0 {
			t.Errorf("input %d:\n got %v\nwant %v", i, got, want)
		}
	}
	for _, in := range []Input{
		{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Subject: &Subject{Claims: map[string]any{"f": func() {}}}},
	} {
		if v, err := in.value(); err == nil {
			t.Errorf("an input without JSON form has a value: %v", v)
		}
	}
}

// TestMatchPathIsRegos holds MatchPath and what Rego compares with together.
func TestMatchPathIsRegos(t *testing.T) {
	patterns := []string{"/", "/**", "/*", "/x", "/x/", "/x/*", "/x/**", "/x/*/y", "/*/**", "/x/*/**", "/a.b", "/*/a+b/*"}
	paths := []string{"/", "//", "/x", "/x/", "/x/y", "/x/y/", "/x//y", "/x/1/y", "/x/1/y/", "/axb", "/a.b", "/1/a+b/2", "/1/aab/2", "/x\n/y", "/x/\n", "", "x"}
	for _, pattern := range patterns {
		if wanted := checkPattern(pattern); wanted != "" {
			t.Fatalf("%s: %s", pattern, wanted)
		}
		m := matcher([]string{pattern})
		if n := len(m.Exact) + len(m.Prefixes) + len(m.Patterns); n != 1 {
			t.Fatalf("%s became %d conditions", pattern, n)
		}
		for _, path := range paths {
			got := slices.Contains(m.Exact, path) || slices.ContainsFunc(m.Prefixes, func(p string) bool { return strings.HasPrefix(path, p) }) ||
				slices.ContainsFunc(m.Patterns, func(p string) bool { return regexpMatch(t, p, path) })
			if want := MatchPath(pattern, path); got != want {
				t.Errorf("pattern %s, path %q: Rego %v, MatchPath %v", pattern, path, got, want)
			}
		}
	}
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"/x", "/x", true},
		{"/x", "/x/", false},
		{"/x/*", "/x/", false},
		{"/x/*", "/x/1", true},
		{"/x/*", "/x/1/2", false},
		{"/x/**", "/x", false},
		{"/x/**", "/x/", true},
		{"/x/**", "/x/1/2", true},
		{"/**", "/", true},
		{"/**", "/a/b", true},
	} {
		if got := MatchPath(c.pattern, c.path); got != c.want {
			t.Errorf("MatchPath(%s, %s) = %v", c.pattern, c.path, got)
		}
	}
}

// FuzzParseApp looks for a file that makes the loader panic, take long, or
// accept an app that cannot be compiled.
func FuzzParseApp(f *testing.F) {
	f.Add([]byte("name: crm\nprotocol: http\nhosts: [crm.example.com]\nupstream: http://10.0.0.5\naccess:\n- groups: [sales]\n  paths: [/**]\n"))
	f.Add([]byte("name: desk\nprotocol: tcp\nupstream: '[::1]:22'\nports: [22]\nallow: ['::1/128']\n"))
	f.Add([]byte("name: &a x\nprotocol: *a\n<<: {}\n"))
	f.Add([]byte("a: [[[[[[{{{{"))
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 1<<14 {
			return
		}
		began := time.Now()
		app, _, problems := parseApp("app.yaml", src)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		if len(problems) > 0 {
			for _, p := range problems {
				if p.Text == "" || p.File != "app.yaml" || strings.Contains(p.Error(), "\n") {
					t.Errorf("problem %+v", p)
				}
			}
			return
		}
		again, err := json.Marshal(app)
		if err != nil {
			t.Fatal(err)
		}
		if app.Name == "" || app.Upstream == "" || strings.Contains(string(again), "null,") && app.Access == nil {
			t.Errorf("accepted %s", again)
		}
		if app.UpstreamFor(app.Ports[0]) == "" {
			t.Errorf("no upstream address: %s", again)
		}
		if _, err := json.Marshal(catalogue([]App{app})); err != nil {
			t.Error(err)
		}
	})
}

func ExampleProblem() {
	fmt.Println(Problem{File: "apps/crm.yaml", Line: 7, Key: "access[0].hours.zone", Text: `wanted an IANA time zone, found "CET+1"`})
	// Output: apps/crm.yaml:7: access[0].hours.zone: wanted an IANA time zone, found "CET+1"
}

func regexpMatch(t *testing.T, pattern, s string) bool {
	t.Helper()
	ok, err := regexp.MatchString(pattern, s)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

func TestLanguage(t *testing.T) {
	for accept, want := range map[string]string{
		"": "en", "sv": "sv", "sv-FI, en;q=0.5": "sv", "fi-FI;q=0.3, nl-BE;q=0.9": "nl", "no": "nb", "nn-NO": "nb", "nb-NO,nb;q=0.9,en;q=0.5": "nb",
		"da-DK": "da", "de": "en", "de, sv;q=0.1": "sv", "*": "en", "en-US,en;q=0.9,sv;q=0.8": "en",
		"\x00, ;;;": "en", strings.Repeat("sv,", 1000): "en",
	} {
		if got := Language(accept); got != want {
			t.Errorf("Language(%.40q) = %s, want %s", accept, got, want)
		}
	}
}

func TestDecisionIn(t *testing.T) {
	d := NewDecision(ReasonOutsideHours, &Fact{Name: "time", Value: "03:00"})
	if sv := d.In("sv"); sv.Message != Reasons[d.Reason]["sv"].Message || sv.Remedy != Reasons[d.Reason]["sv"].Remedy || sv.Fact != d.Fact {
		t.Errorf("in Swedish: %+v", sv)
	}
	if diff := cmp.Diff(d, d.In("tlh")); diff != "" {
		t.Error(diff)
	}
	own := NewDecision(ReasonPolicyDenied, nil)
	own.Message = "Travel is not announced."
	if sv := own.In("sv"); sv.Message != own.Message || sv.Remedy != Reasons[own.Reason]["sv"].Remedy {
		t.Errorf("a custom module's text: %+v", sv)
	}
}
