package policy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/policy"
)

const crmApp = "name: crm\nprotocol: http\nhosts: [crm.example.com]\nupstream: http://10.0.0.5\naccess:\n- groups: [sales]\n"

func TestDecideWithoutPolicy(t *testing.T) {
	now := monday.Add(time.Minute)
	e := policy.NewEngine(policy.EngineOptions{Now: func() time.Time { return now }})
	d := e.Decide(context.Background(), baseInput())
	if d.Allow || d.Reason != policy.ReasonPolicyUnavailable || d.Revision != "" || d.App != "crm" || !d.Time.Equal(monday) {
		t.Errorf("%+v", d)
	}
	if e.Active() != nil {
		t.Error("a revision is active")
	}
	r := load(t, map[string]string{"crm.yaml": crmApp})
	e.Activate(r)
	d = e.Decide(context.Background(), baseInput())
	if !d.Allow || d.Revision != r.ID() || e.Active() != r {
		t.Errorf("%+v", d)
	}
	if !strings.HasPrefix(d.ID, "d-") || len(d.ID) != 34 {
		t.Errorf("ID %q", d.ID)
	}
	if again := e.Decide(context.Background(), baseInput()); again.ID == d.ID {
		t.Error("two decisions have one ID")
	}
	d = e.Decide(context.Background(), nil)
	if d.Allow || d.Reason != policy.ReasonPolicyError || !d.Time.Equal(now) {
		t.Errorf("no input: %+v", d)
	}
	e.Activate(nil)
	if d = e.Decide(context.Background(), baseInput()); d.Allow || d.Reason != policy.ReasonPolicyUnavailable {
		t.Errorf("policy taken away: %+v", d)
	}
}

// TestDecideZero: an input that lacks everything, or any one part, denies.
func TestDecideZero(t *testing.T) {
	e := engine(t, map[string]string{"crm.yaml": crmApp + "  posture: {disk_encryption: pass}\n  countries: [SE]\n"})
	if d := e.Decide(context.Background(), baseInput()); !d.Allow {
		t.Fatalf("the whole input: %+v", d)
	}
	for name, change := range map[string]func(*policy.Input){
		"everything": func(in *policy.Input) { *in = policy.Input{} },
		"time":       func(in *policy.Input) { in.Time = time.Time{} },
		"action":     func(in *policy.Input) { in.Action = "" },
		"app":        func(in *policy.Input) { in.App = policy.AppRef{} },
		"protocol":   func(in *policy.Input) { in.App.Protocol = "" },
		"subject":    func(in *policy.Input) { in.Subject = nil },
		"issuer":     func(in *policy.Input) { in.Subject.Issuer = "" },
		"sub":        func(in *policy.Input) { in.Subject.ID = "" },
		"groups":     func(in *policy.Input) { in.Subject.Groups = nil },
		"session":    func(in *policy.Input) { in.Session = nil },
		"session id": func(in *policy.Input) { in.Session.ID = "" },
		"expiry":     func(in *policy.Input) { in.Session.ExpiresAt = time.Time{} },
		"posture":    func(in *policy.Input) { in.Posture = policy.Posture{} },
		"report":     func(in *policy.Input) { in.Posture.ReceivedAt = nil },
		"signals":    func(in *policy.Input) { in.Posture.Signals = nil },
		"state":      func(in *policy.Input) { in.Posture.Signals["disk_encryption"] = policy.Signal{} },
		"location":   func(in *policy.Input) { in.Location = policy.Location{} },
		"request":    func(in *policy.Input) { in.Action = policy.ActionRequest },
		"flow":       func(in *policy.Input) { in.Action = policy.ActionFlow },
		"bad time":   func(in *policy.Input) { in.Time = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) },
	} {
		in := baseInput()
		change(in)
		if d := e.Decide(context.Background(), in); d.Allow || d.Message == "" || d.Fact == nil {
			t.Errorf("without %s: %+v", name, d)
		}
	}
}

func TestDecideTimeout(t *testing.T) {
	var log bytes.Buffer
	e := policy.NewEngine(policy.EngineOptions{Log: slog.New(slog.NewTextHandler(&log, nil))})
	e.Activate(load(t, map[string]string{"crm.yaml": crmApp, "slow.rego": `package portvakt.custom.slow

deny contains {"message": "found"} if {
	some i in numbers.range(1, 100000)
	some j in numbers.range(1, 100000)
	i * j == -1
}
`}))
	began := time.Now()
	d := e.Decide(context.Background(), baseInput())
	if d.Allow || d.Reason != policy.ReasonPolicyError || d.Fact.Name != "evaluation" || d.Fact.Value != "timeout" || d.Fact.Wanted != "an answer within 50ms" {
		t.Errorf("%+v %+v", d, d.Fact)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if !strings.Contains(log.String(), d.ID) || !strings.Contains(log.String(), "reason=policy_error") {
		t.Errorf("log: %s", log.String())
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(5*time.Millisecond, cancel)
	if d := e.Decide(ctx, baseInput()); d.Allow || d.Fact.Value != "cancelled" {
		t.Errorf("cancelled meanwhile: %+v", d.Fact)
	}
	if d := e.Decide(ctx, baseInput()); d.Allow || d.Fact.Value != "cancelled" {
		t.Errorf("cancelled before: %+v", d.Fact)
	}
}

// TestBuiltinErrorDenies: a built-in that fails must not make a denial vanish,
// as it does in OPA unless asked otherwise.
func TestBuiltinErrorDenies(t *testing.T) {
	e := engine(t, map[string]string{"crm.yaml": crmApp, "x.rego": `package portvakt.custom.x

deny contains {"message": "no"} if {
	time.parse_rfc3339_ns(input.device.name) > 0
}
`})
	d := e.Decide(context.Background(), baseInput())
	if d.Allow || d.Reason != policy.ReasonPolicyError || d.Fact.Name != "evaluation" || !strings.Contains(d.Fact.Value, "time.parse_rfc3339_ns") {
		t.Errorf("%+v %+v", d, d.Fact)
	}
}

// TestLongTexts: what devices and requests say does not blow a Decision up.
func TestLongTexts(t *testing.T) {
	e := engine(t, map[string]string{"crm.yaml": crmApp + "  paths: [/x]\n"})
	in := baseInput()
	change(t, in, "path=/"+strings.Repeat("å\n", 1000))
	d := e.Decide(context.Background(), in)
	if d.Reason != policy.ReasonPathNotAllowed || len([]rune(d.Fact.Value)) != 300 || strings.Contains(d.Fact.Value, "\n") {
		t.Errorf("%+v %q", d, d.Fact.Value)
	}
}

// TestActivateWhileDeciding: every Decision is of one Revision as a whole.
func TestActivateWhileDeciding(t *testing.T) {
	open := load(t, map[string]string{"crm.yaml": crmApp})
	shut := load(t, map[string]string{"crm.yaml": strings.Replace(crmApp, "sales", "support", 1)})
	e := policy.NewEngine(policy.EngineOptions{Timeout: 10 * time.Second})
	e.Activate(open)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if d := e.Decide(context.Background(), baseInput()); d.Allow != (d.Revision == open.ID()) {
					t.Errorf("allow %v by %s: %+v", d.Allow, d.Revision, d.Fact)
				}
			}
		})
	}
	for i := range 200 {
		e.Activate([]*policy.Revision{open, shut}[i%2])
	}
	wg.Wait()
}

func TestInputJSON(t *testing.T) {
	got, err := json.Marshal(policy.Input{Subject: &policy.Subject{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"groups":[]`, `"signals":{}`} {
		if !bytes.Contains(got, []byte(want)) {
			t.Errorf("%s lacks %s", got, want)
		}
	}
	in := baseInput()
	in.Subject.Claims = map[string]any{"a": "b"}
	change(t, in, "path=/")
	data, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	back := &policy.Input{}
	if err := json.Unmarshal(data, back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(in, back); diff != "" {
		t.Error(diff)
	}
}

// TestBundle puts generated inputs to the Engine and to stock OPA with the
// bundle; both must give the same.
func TestBundle(t *testing.T) {
	files, _ := readTxtar(t, "testdata/decide/access.txtar")
	delete(files, "cases")
	custom, _ := readTxtar(t, "testdata/decide/custom.txtar")
	for _, name := range []string{"travel.rego", "firewall.rego", "change_freeze.rego"} {
		files[name] = custom[name]
	}
	e := engine(t, files)
	reference := stock(t, e.Active())
	rnd := rand.New(rand.NewPCG(1, 2))
	pick := func(words ...string) string { return words[rnd.IntN(len(words))] }
	reasons := map[policy.Reason]int{}
	for i := range 600 {
		in := baseInput()
		var changes []string
		app := pick("app=crm", "app=crm", "app=crm", "app=desk protocol=tcp", "app=quiet", "app=nobody protocol=tcp", "app=night protocol=udp", "app=x")
		changes = append(changes, strings.Fields(app)...)
		if strings.Contains(app, "protocol") {
			changes = append(changes, pick("action=reach", "port=5000", "port=4000"))
		} else {
			changes = append(changes, pick("action=reach", "method=GET", "method=POST", "method=DELETE"))
			if strings.HasPrefix(changes[len(changes)-1], "method") {
				changes = append(changes, "path="+pick("/", "/customers/1", "/edit/1", "/static/", "/v1/x/notes/y", "/"+strings.Repeat("a", rnd.IntN(3))))
			}
		}
		changes = append(changes,
			pick("groups=sales", "groups=sales", "groups=sales,admins", "groups=support", "groups="),
			pick("country=SE", "country=SE", "country=NO", "country=RU", "country="),
			pick("serial=x", "report=none", "signal.host_firewall=fail:ufw: off", "signal.disk_encryption=unknown", "signal.anti_malware=fail"),
			pick("serial=x", "serial=x", "claim.employment=temporary"),
			"time="+monday.Add(time.Duration(rnd.IntN(14*24*60))*time.Minute).Format(time.RFC3339),
			pick("serial=x", "serial=x", "serial=x", "serial=x", "session=expired", "session=none"),
		)
		if rnd.IntN(2) == 0 {
			changes = append(changes, "time="+monday.Format(time.RFC3339))
		}
		for _, c := range changes {
			if in.Session == nil && strings.HasPrefix(c, "time=") {
				continue
			}
			change(t, in, c)
		}
		d := e.Decide(context.Background(), in)
		reasons[d.Reason]++
		sameAsStock(t, d, reference(in))
		if t.Failed() {
			t.Fatalf("input %d: %v", i, changes)
		}
	}
	// Coverage of the generator, not of the policy.
	if len(reasons) < 12 || reasons[policy.ReasonAllowed] < 30 {
		t.Errorf("the inputs reach only %v", reasons)
	}
}

func TestBundleBytes(t *testing.T) {
	files := map[string]string{"crm.yaml": crmApp, "x.rego": "package portvakt.custom.x\n\ndeny contains {\"message\": \"m\"} if false\n", "x_test.rego": "package x\n"}
	var one, two bytes.Buffer
	r := load(t, files)
	for _, w := range []io.Writer{&one, &two} {
		if err := r.WriteBundle(w); err != nil {
			t.Fatal(err)
		}
	}
	var again bytes.Buffer
	if err := load(t, files).WriteBundle(&again); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.Bytes(), two.Bytes()) || !bytes.Equal(one.Bytes(), again.Bytes()) {
		t.Error("the same revision gives different bytes")
	}
	want := []string{".manifest", "data.json", "portvakt/access.rego", "portvakt/custom.rego", "portvakt/custom/x.rego", "portvakt/decision.rego"}
	if diff := cmp.Diff(want, tarNames(t, &one)); diff != "" {
		t.Error(diff)
	}
	if err := r.WriteBundle(failingWriter{}); err == nil {
		t.Error("a failing writer is not noticed")
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, fmt.Errorf("disk full") }
