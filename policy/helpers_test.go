package policy_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/portvakt/portvakt/policy"
)

// writeFiles lays files out in a fresh directory.
func writeFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t testing.TB, files map[string]string) *policy.Revision {
	t.Helper()
	r, err := policy.Load(writeFiles(t, files), policy.LoadOptions{CheckOwner: true})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func engine(t testing.TB, files map[string]string) *policy.Engine {
	t.Helper()
	// Generous, because other packages' tests share the machine.
	e := policy.NewEngine(policy.EngineOptions{Timeout: 10 * time.Second})
	e.Activate(load(t, files))
	return e
}

func readTxtar(t testing.TB, path string) (files map[string]string, comment string) {
	t.Helper()
	a, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for _, f := range a.Files {
		files[f.Name] = string(f.Data)
	}
	return files, string(a.Comment)
}

// stock evaluates as `opa eval -b bundle -i input data.portvakt.decision` does:
// from the bundle's bytes and the Input's JSON, with OPA's own capabilities.
func stock(t testing.TB, r *policy.Revision) func(in *policy.Input) any {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bundle.tar.gz")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.WriteBundle(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	q, err := rego.New(rego.Query("data.portvakt.decision"), rego.LoadBundle(path)).PrepareForEval(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return func(in *policy.Input) any {
		data, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		var input any
		if err := json.Unmarshal(data, &input); err != nil {
			t.Fatal(err)
		}
		rs, err := q.Eval(context.Background(), rego.EvalInput(input))
		if err != nil || len(rs) != 1 {
			return nil
		}
		return rs[0].Expressions[0].Value
	}
}

// sameAsStock fails when the Engine's Decision and stock OPA's differ.
func sameAsStock(t testing.TB, d policy.Decision, result any) {
	t.Helper()
	m, ok := result.(map[string]any)
	if !ok {
		if d.Reason != policy.ReasonPolicyError {
			t.Errorf("stock OPA has no result, the engine says %s", d.Reason)
		}
		return
	}
	if m["allow"] != d.Allow || m["reason"] != string(d.Reason) {
		t.Errorf("stock OPA says %v %v, the engine %v %v", m["allow"], m["reason"], d.Allow, d.Reason)
	}
	if rule, _ := m["rule"].(string); rule != d.Rule {
		t.Errorf("stock OPA's rule is %q, the engine's %q", rule, d.Rule)
	}
	fact, _ := m["fact"].(map[string]any)
	switch {
	case (fact == nil) != (d.Fact == nil):
		t.Errorf("stock OPA's fact is %v, the engine's %v", fact, d.Fact)
	case fact != nil && (fact["name"] != d.Fact.Name || fact["value"] != d.Fact.Value || fact["wanted"] != d.Fact.Wanted):
		t.Errorf("stock OPA's fact is %v, the engine's %v", fact, *d.Fact)
	}
	if message, there := m["message"]; there && message != d.Message {
		t.Errorf("stock OPA's message is %q, the engine's %q", message, d.Message)
	}
	if remedy, there := m["remedy"]; there && remedy != d.Remedy {
		t.Errorf("stock OPA's remedy is %q, the engine's %q", remedy, d.Remedy)
	}
}

// words splits a line at spaces; double quotes keep words together.
func words(line string) []string {
	var out []string
	var b strings.Builder
	quoted, word := false, false
	for _, r := range line {
		switch {
		case r == '"':
			quoted, word = !quoted, true
		case r == ' ' && !quoted:
			if word {
				out = append(out, b.String())
			}
			b.Reset()
			word = false
		default:
			b.WriteRune(r)
			word = true
		}
	}
	if word {
		out = append(out, b.String())
	}
	return out
}

// monday is 2026-03-02, a Monday, at 10:00 in Stockholm.
var monday = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)

// baseInput is a sales worker at home in Sweden with a sound laptop who asks
// whether the CRM can be reached.
func baseInput() *policy.Input {
	at := monday.Add(-10 * time.Second)
	return &policy.Input{
		Time:   monday,
		Action: policy.ActionReach,
		App:    policy.AppRef{Name: "crm", Protocol: "http"},
		Device: policy.Device{ID: "dev-1", Name: "laptop-7", Serial: "PF3X", OS: "linux", KeyTier: "software", EnrolledAt: monday.AddDate(0, -1, 0)},
		Subject: &policy.Subject{
			Issuer: "https://login.example.com", ID: "00u1", Name: "Alma Berg", Email: "alma@example.com",
			Groups: []string{"sales"}, AuthenticatedAt: monday.Add(-time.Hour),
		},
		Session: &policy.Session{ID: "ses-1", OSUser: "1000:alma", StartedAt: monday.Add(-time.Hour), ExpiresAt: monday.Add(9 * time.Hour)},
		Posture: policy.Posture{ReceivedAt: &at, Signals: map[string]policy.Signal{
			"disk_encryption": {State: "pass", Value: "luks"},
			"host_firewall":   {State: "pass", Value: "ufw: on"},
			"screen_lock":     {State: "unknown", Value: "not_supported"},
		}},
		Location: policy.Location{Address: "192.0.2.7", Country: "SE"},
	}
}

// change applies one "key=value" of a case to an input.
func change(t testing.TB, in *policy.Input, word string) {
	t.Helper()
	key, value, ok := strings.Cut(word, "=")
	if !ok {
		t.Fatalf("case word %q is no key=value", word)
	}
	request := func() *policy.Request {
		if in.Request == nil {
			in.Action = policy.ActionRequest
			in.Request = &policy.Request{Method: "GET", Host: in.App.Name + ".example.com", Path: "/"}
		}
		return in.Request
	}
	if signal, ok := strings.CutPrefix(key, "signal."); ok {
		state, seen, _ := strings.Cut(value, ":")
		in.Posture.Signals[signal] = policy.Signal{State: state, Value: strings.TrimSpace(seen)}
		if state == "none" {
			delete(in.Posture.Signals, signal)
		}
		return
	}
	if claim, ok := strings.CutPrefix(key, "claim."); ok {
		if in.Subject.Claims == nil {
			in.Subject.Claims = map[string]any{}
		}
		in.Subject.Claims[claim] = value
		return
	}
	switch key {
	case "app":
		in.App.Name = value
	case "protocol":
		in.App.Protocol = value
	case "action":
		in.Action = policy.Action(value)
	case "time":
		at, err := time.Parse(time.RFC3339, value)
		if err != nil {
			t.Fatal(err)
		}
		in.Time = at
		in.Session.ExpiresAt = at.Add(8 * time.Hour)
	case "groups":
		in.Subject.Groups = nil
		if value != "" {
			in.Subject.Groups = strings.Split(value, ",")
		}
	case "subject":
		in.Subject.ID = value
		if value == "none" {
			in.Subject, in.Session = nil, nil
		}
	case "email":
		in.Subject.Email = value
	case "session":
		if value == "none" {
			in.Session = nil
			return
		}
		in.Session.ExpiresAt = in.Time
		if value == "ends_soon" {
			in.Session.ExpiresAt = in.Time.Add(time.Nanosecond)
		}
	case "report":
		in.Posture = policy.Posture{}
	case "country":
		in.Location.Country = value
	case "address":
		in.Location.Address = value
	case "serial":
		in.Device.Serial = value
	case "os":
		in.Device.OS = value
	case "method":
		request().Method = value
	case "path":
		request().Path = value
	case "upgrade":
		request().Upgrade = value
	case "port":
		port, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			t.Fatal(err)
		}
		in.Action, in.Flow = policy.ActionFlow, &policy.Flow{Port: uint16(port)}
	default:
		t.Fatalf("case word %q is not known", word)
	}
}
