package policy

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/open-policy-agent/opa/v1/ast"
)

const rememberedApps = `
name: crm
protocol: http
hosts: [crm.example.com]
upstream: http://10.0.0.5
websocket: true
access:
  - groups: [sales]
    methods: [GET, HEAD]
    paths: [/, /customers/*, /static/**, /v1/*/notes]
  - groups: [sales, support]
    posture: {disk_encryption: pass}
    countries: [SE]
    hours: {days: [mon, tue, wed, thu, fri], from: 08:00, to: 17:30, zone: Europe/Stockholm}
    methods: [GET, POST]
  - groups: [support]
    hours: {days: [sun], from: 22:00, to: 06:15, zone: Asia/Kathmandu}
    paths: [/night/**]
`

const rememberedTCP = `
name: desk
protocol: tcp
ports: [3389, 22]
upstream: 10.0.0.6
access:
  - anyone: true
    hours: {days: [mon, tue, sat], from: 07:00, to: 19:00, zone: America/New_York}
`

var rememberedModules = map[string]string{
	"none": "",
	"facts": `package portvakt.custom.facts
absent := {"location.country": "ignore", "subject.claims.level": "ignore"}
deny contains {"message": "no"} if { input.location.country == "SE"; input.subject.claims.level == "low" }
deny contains {"message": "method"} if { input.request.method == "DELETE" }
`,
	"path": `package portvakt.custom.path
deny contains {"message": "odd"} if { count(input.request.path) % 2 == 1 }
`,
	"request": `package portvakt.custom.request
deny contains {"message": "some"} if { some v in input.request; endswith(v, "7") }
`,
	"host": `package portvakt.custom.host
named := h if h := input.request.host
deny contains {"message": "host"} if { named == "other.example.com" }
`,
	"time": `package portvakt.custom.time
deny contains {"message": "second"} if { time.clock([time.parse_rfc3339_ns(input.time), "UTC"])[2] == 30 }
`,
}

func rememberedEngine(t testing.TB, module string) *Engine {
	t.Helper()
	files := []sourceFile{
		{name: "crm.yaml", path: "crm.yaml", data: []byte(rememberedApps)},
		{name: "desk.yaml", path: "desk.yaml", data: []byte(rememberedTCP)},
	}
	if module != "" {
		files = append(files, sourceFile{name: "m.rego", path: "m.rego", data: []byte(module)})
	}
	r, err := build(files, LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := NewEngine(EngineOptions{Timeout: 10 * time.Second})
	e.Activate(r)
	return e
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func randomFacts(r *rand.Rand, at time.Time) Input {
	in := Input{
		Device:   Device{ID: "dev-1", Name: "laptop <7>", OS: "linux", KeyTier: "software", EnrolledAt: at.AddDate(0, -1, 0)},
		Posture:  Posture{Signals: map[string]Signal{"disk_encryption": {State: pick(r, "pass", "pass", "pass", "pass", "fail", "unknown")}}},
		Location: Location{Address: "192.0.2.7", Country: pick(r, "SE", "SE", "SE", "DE", "")},
	}
	if r.IntN(8) > 0 {
		received := at.Add(-10 * time.Second)
		in.Posture.ReceivedAt = &received
	}
	if r.IntN(8) > 0 {
		in.Subject = &Subject{Issuer: "https://i", ID: "s", Groups: pick(r, []string{"sales"}, []string{"support"}, []string{"sales", "support"}, []string{"sales", "support"}, nil)}
		if r.IntN(3) == 0 {
			in.Subject.Claims = map[string]any{"level": pick(r, "low", "high")}
		}
		in.Session = &Session{ID: "ses", OSUser: "1000:a", StartedAt: at, ExpiresAt: at.Add(pick(r, time.Second, time.Minute, 8*time.Hour, 80*time.Hour, 80*time.Hour))}
	} else {
		in.Ended = pick(r, "", "session_expired", "session_revoked")
	}
	return in
}

func randomQuestion(r *rand.Rand, at time.Time) Question {
	q := Question{
		Time:   at.Add(pick(r, 0, time.Nanosecond, time.Second, 30*time.Second, 59*time.Second, time.Minute, time.Hour, 7*time.Hour, -time.Second)),
		Action: pick(r, ActionRequest, ActionRequest, ActionRequest, ActionFlow, ActionReach, "odd"),
		App:    AppRef{Name: pick(r, "crm", "crm", "crm", "crm", "crm", "desk", "none"), Protocol: pick(r, "http", "http", "http", "http", "tcp")},
	}
	if q.Action == ActionRequest || r.IntN(20) == 0 {
		q.Request = &Request{
			Method: pick(r, "GET", "GET", "GET", "POST", "DELETE", "HEAD"), Host: pick(r, "crm.example.com", "other.example.com"),
			Path: pick(r, "/", "/customers/1", "/customers/17", "/customers/1/x", "/static/a/b", "/static", "/v1/7/notes",
				"/v1//notes", "/night/x", "/v1/a\nb/notes", "/customers/\xff", "/customers/å", "x", ""),
			Upgrade: pick(r, "", "", "", "websocket"),
		}
	}
	if q.Action == ActionFlow {
		q.App = pick(r, AppRef{"desk", "tcp"}, q.App)
		q.Flow = &Flow{Port: pick[uint16](r, 3389, 22, 80)}
	}
	return q
}

// TestAnswerIsDecide compares remembered answers with full evaluations, over
// the edges of hours, sessions and years and every kind of custom module.
func TestAnswerIsDecide(t *testing.T) {
	edges := []string{
		"2026-03-02T06:59:59.999999999Z", "2026-03-02T16:29:30Z", "2026-03-29T00:59:59Z", "2026-10-25T00:59:30Z",
		"2026-03-08T06:59:59Z", "2026-03-07T18:14:59Z", "1899-12-31T23:59:59Z", "2199-12-31T23:59:30Z", "2026-03-02T12:00:00Z",
	}
	for name, module := range rememberedModules {
		t.Run(name, func(t *testing.T) {
			// Not in parallel: two of OPA's compilers at once race for its own types.
			e := rememberedEngine(t, module)
			r := rand.New(rand.NewPCG(1, uint64(len(name))))
			allowed, remembered := 0, 0
			for range 25 {
				text := pick(r, edges...)
				at, err := time.Parse(time.RFC3339Nano, text)
				if err != nil {
					t.Fatal(err)
				}
				f := NewFacts(randomFacts(r, at.UTC()))
				for range 40 {
					q := randomQuestion(r, at.UTC())
					before := len(f.granted)
					early, allows := r.IntN(2) == 0, false
					if early {
						allows = e.Allows(t.Context(), f, q)
					}
					got, want := e.Answer(t.Context(), f, q), e.Decide(t.Context(), f.Input(q))
					if !early {
						allows = e.Allows(t.Context(), f, q)
					}
					if allows != want.Allow {
						t.Fatalf("Allows says %v to %+v on %+v, Decide %v", allows, q, f.in, want.Reason)
					}
					if got.ID == "" || got.ID == want.ID {
						t.Fatal("no ID of its own")
					}
					got.ID = want.ID
					if diff := cmp.Diff(want, got); diff != "" {
						t.Fatalf("%+v on %+v: %s", q, f.in, diff)
					}
					if want.Allow {
						allowed++
						if len(f.granted) == before && before > 0 {
							remembered++
						}
					}
				}
			}
			if alike := len(e.Active().shared.answers); (alike > 0) != (name == "none") {
				t.Errorf("%d answers are shared", alike)
			}
			if allowed < 50 || name == "time" && remembered > 0 || name == "none" && remembered < 20 {
				t.Errorf("%d allowed, %d of them remembered: the comparison means little", allowed, remembered)
			}
		})
	}
}

// TestAnswerForgets: nothing granted outlives the Revision, and what is
// remembered is bounded.
func TestAnswerForgets(t *testing.T) {
	at := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	r := rand.New(rand.NewPCG(1, 1))
	in := randomFacts(r, at)
	in.Subject = &Subject{Issuer: "i", ID: "s", Groups: []string{"sales"}}
	in.Session = &Session{ID: "x", ExpiresAt: at.Add(time.Hour)}
	f := NewFacts(in)
	e := rememberedEngine(t, rememberedModules["path"])
	q := Question{Time: at, Action: ActionRequest, App: AppRef{"crm", "http"}}
	for i := range 3 * maxGranted {
		q.Request = &Request{Method: "GET", Host: "h", Path: fmt.Sprintf("/customers/%04d1", i)}
		if d := e.Answer(t.Context(), f, q); !d.Allow {
			t.Fatal(d)
		}
	}
	if n := len(f.granted); n == 0 || n > maxGranted {
		t.Errorf("%d grants remembered", n)
	}
	e.Activate(nil)
	if d := e.Answer(t.Context(), f, q); d.Reason != ReasonPolicyUnavailable {
		t.Errorf("without policy: %v", d)
	}
	e.Activate(rememberedEngine(t, rememberedModules["request"]).Active())
	q.Request.Path = "/customers/7"
	if d := e.Answer(t.Context(), f, q); d.Reason != ReasonPolicyDenied || d.Revision != e.Active().ID() {
		t.Errorf("after another revision: %v", d)
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	q.Request.Method = "HEAD"
	e.Activate(rememberedEngine(t, "").Active())
	if d := e.Answer(gone, f, q); d.Allow {
		t.Error("a cancelled evaluation granted")
	}
	if d := e.Answer(t.Context(), f, q); !d.Allow {
		t.Errorf("a cancelled evaluation was remembered: %v", d)
	}
}

// TestShippedModulesReferences holds what remembering says about the shipped
// modules and what they refer to together. Whoever adds a line here extends
// remembering first.
func TestShippedModulesReferences(t *testing.T) {
	modules, err := shippedModules()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]string{}
	for name, m := range modules {
		for _, rule := range m.Rules {
			ast.WalkRefs(rule, func(ref ast.Ref) bool {
				if ref[0].Equal(ast.InputRootDocument) && len(ref) > 1 {
					switch s := ref.String(); {
					case s == "input.time", strings.HasPrefix(s, "input.request"):
						at := filepath.Base(name) + " " + rule.Head.Name.String()
						if !slices.Contains(got[s], at) {
							got[s] = append(got[s], at)
						}
					case !strings.HasPrefix(s, "input."):
						t.Errorf("%s refers to %s", name, s)
					}
				}
				if s := ref.String(); s == "input" {
					t.Errorf("%s: %s refers to the whole input", name, rule.Head.Name)
				}
				return false
			})
		}
	}
	for _, rules := range got {
		slices.Sort(rules)
	}
	want := map[string][]string{
		// Denials apart, which are never remembered, the time is read by now.
		"input.time":            {"decision.rego decision", "decision.rego now"},
		"input.request.method":  {"access.rego method_allowed", "access.rego method_fact", "decision.rego well_asked"},
		"input.request.path":    {"access.rego path_allowed", "access.rego path_fact", "decision.rego well_asked"},
		"input.request.upgrade": {"access.rego method_fact", "access.rego upgrade_allowed"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	readers := map[string][]string{}
	for name, m := range modules {
		for _, rule := range m.Rules {
			ast.WalkVars(rule, func(v ast.Var) bool {
				if v == "now" && rule.Head.Name != "now" {
					at := filepath.Base(name) + " " + rule.Head.Name.String()
					if !slices.Contains(readers["now"], at) {
						readers["now"] = append(readers["now"], at)
					}
				}
				return false
			})
		}
	}
	slices.Sort(readers["now"])
	if diff := cmp.Diff([]string{"access.rego minute", "access.rego weekday", "decision.rego decision", "decision.rego in_force"}, readers["now"]); diff != "" {
		t.Error(diff)
	}
}

func TestAppendInput(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	at := time.Date(2026, 3, 2, 9, 0, 0, 123, time.UTC)
	for range 2000 {
		f, q := NewFacts(randomFacts(r, at)), randomQuestion(r, at)
		if q.Request != nil && r.IntN(2) == 0 {
			q.Request.Path += pick(r, "<", "\u2028", `"\`, "\x00", "\x7f", "&", "漢")
		}
		want, err := json.Marshal(f.Input(q))
		if err != nil {
			t.Fatal(err)
		}
		got, err := f.AppendInput([]byte("x"), q)
		if err != nil || string(got) != "x"+string(want) {
			t.Fatalf("%v\n got %s\nwant x%s", err, got, want)
		}
	}
	for _, f := range []*Facts{
		NewFacts(Input{Subject: &Subject{Claims: map[string]any{"f": func() {}}}}),
		NewFacts(Input{}),
	} {
		q := Question{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}
		if b, err := f.AppendInput(nil, q); err == nil {
			t.Errorf("an input without JSON form: %s", b)
		}
		if d := rememberedEngine(t, "").Answer(t.Context(), f, q); d.Reason != ReasonPolicyError {
			t.Errorf("it was decided: %v", d)
		}
	}
}

func BenchmarkAnswer(b *testing.B) {
	at := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	in := Input{
		Subject: &Subject{Issuer: "i", ID: "s", Groups: []string{"sales"}}, Session: &Session{ID: "x", ExpiresAt: at.Add(time.Hour)},
		Device: Device{EnrolledAt: at},
	}
	e, f := rememberedEngine(b, ""), NewFacts(in)
	q := Question{Time: at, Action: ActionRequest, App: AppRef{"crm", "http"}, Request: &Request{Method: "GET", Host: "crm.example.com", Path: "/customers/7"}}
	b.ReportAllocs()
	for b.Loop() {
		if d := e.Answer(context.Background(), f, q); !d.Allow {
			b.Fatal(d)
		}
	}
}

// TestSharedClass: what the shipped modules read of the facts is in the class
// by which answers are shared, or compared beside it.
func TestSharedClass(t *testing.T) {
	modules, err := shippedModules()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range modules {
		for _, rule := range m.Rules {
			ast.WalkRefs(rule, func(ref ast.Ref) bool {
				if !ref[0].Equal(ast.InputRootDocument) || len(ref) < 2 {
					return false
				}
				s := ref.String()
				for _, asked := range []string{"input.app", "input.action", "input.request", "input.flow", "input.time"} {
					if strings.HasPrefix(s, asked) {
						return false
					}
				}
				if !slices.Contains(got, s) {
					got = append(got, s)
				}
				return false
			})
		}
	}
	slices.Sort(got)
	want := []string{
		"input.device.serial", // of what only custom modules ask, as location.address, claims, email and name
		"input.ended",         // the reason of a denial alone
		"input.location.address",
		"input.location.country",
		"input.posture.received_at",
		"input.posture.signals",
		"input.posture.signals[name]",
		"input.posture.signals[name].state",
		"input.posture.signals[name].value", // the fact of a denial alone
		"input.posture.signals[substring(path, 16, -1)].state",
		"input.session.expires_at", // compared by remembering.key
		"input.session.id",         // whether there is one
		"input.subject.claims",
		"input.subject.claims[substring(path, 15, -1)]",
		"input.subject.email",
		"input.subject.groups",
		"input.subject.issuer", // beside the class, where a rule names people
		"input.subject.name",
		"input.subject.sub",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("look whether policy.shared must know of it: %s", diff)
	}
}

// TestSharedIsNobodyElses: who differs in anything that counts shares no answer.
func TestSharedIsNobodyElses(t *testing.T) {
	r, err := build([]sourceFile{{name: "desk.yaml", path: "desk.yaml", data: []byte(`
name: desk
protocol: tcp
ports: [22]
upstream: 10.0.0.6
access:
  - groups: [sales]
    posture: {host_firewall: pass}
    countries: [SE]
  - subjects: ["https://i#boss"]
`)}}, LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	e := NewEngine(EngineOptions{Timeout: 10 * time.Second})
	e.Activate(r)
	at := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	facts := func(change func(*Input)) *Facts {
		received := at
		in := Input{
			Device:  Device{ID: "dev-1"},
			Subject: &Subject{Issuer: "https://i", ID: "s", Groups: []string{"sales"}}, Session: &Session{ID: "ses", ExpiresAt: at.Add(time.Hour)},
			Posture: Posture{ReceivedAt: &received, Signals: map[string]Signal{"host_firewall": {State: "pass"}}}, Location: Location{Country: "SE"},
		}
		change(&in)
		return NewFacts(in)
	}
	q := Question{Time: at, Action: ActionFlow, App: AppRef{"desk", "tcp"}, Flow: &Flow{Port: 22}}
	for range 2 { // and again, when all is remembered
		for name, c := range map[string]struct {
			change func(*Input)
			want   Reason
		}{
			"alike":               {func(in *Input) { in.Device.ID = "dev-2"; in.Subject.ID = "t" }, ReasonAllowed},
			"other groups":        {func(in *Input) { in.Subject.Groups = []string{"sal", "es"} }, ReasonGroupNotAllowed},
			"a group that is two": {func(in *Input) { in.Subject.Groups = []string{`sales""other`} }, ReasonGroupNotAllowed},
			"no groups":           {func(in *Input) { in.Subject.Groups = nil }, ReasonGroupNotAllowed},
			"the boss":            {func(in *Input) { in.Subject.Groups, in.Subject.ID = nil, "boss" }, ReasonAllowed},
			"another's boss":      {func(in *Input) { in.Subject.Groups, in.Subject.Issuer, in.Subject.ID = nil, "https://i#", "boss" }, ReasonGroupNotAllowed},
			"firewall fails":      {func(in *Input) { in.Posture.Signals["host_firewall"] = Signal{State: "fail"} }, ReasonPostureFailed},
			"another signal":      {func(in *Input) { in.Posture.Signals = map[string]Signal{"screen_lock": {State: "pass"}} }, ReasonPostureUnknown},
			"no report":           {func(in *Input) { in.Posture.ReceivedAt = nil }, ReasonPostureStale},
			"elsewhere":           {func(in *Input) { in.Location.Country = "DE" }, ReasonLocationNotAllowed},
			"nobody knows":        {func(in *Input) { in.Location.Country = "" }, ReasonLocationUnknown},
			"nobody":              {func(in *Input) { in.Subject, in.Session = nil, nil }, ReasonLoginRequired},
			"expired":             {func(in *Input) { in.Session.ExpiresAt = at }, ReasonSessionExpired},
		} {
			f := facts(c.change)
			if allows := e.Allows(t.Context(), f, q); allows != (c.want == ReasonAllowed) {
				t.Errorf("%s: Allows says %v", name, allows)
			}
			if d := e.Answer(t.Context(), f, q); d.Reason != c.want {
				t.Errorf("%s: %s, want %s", name, d.Reason, c.want)
			}
		}
	}
}
