package policy

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/open-policy-agent/opa/v1/ast"
	"github.com/open-policy-agent/opa/v1/metrics"
	"github.com/open-policy-agent/opa/v1/rego"
	"github.com/open-policy-agent/opa/v1/topdown"
)

// DefaultTimeout bounds one evaluation, of which a Decision makes two at most.
// Shipped policy takes a fraction of a millisecond; only a runaway custom module
// gets near it.
const DefaultTimeout = 50 * time.Millisecond

// maxText bounds every text of a Decision, in characters.
const maxText = 300

// EngineOptions configure an Engine; the zero value is usable.
type EngineOptions struct {
	Now     func() time.Time // nil: time.Now
	Timeout time.Duration    // of one evaluation; 0: DefaultTimeout
	Log     *slog.Logger     // nil: nothing is logged
}

// Engine decides by the active Revision. All methods may be called at once.
type Engine struct {
	opt    EngineOptions
	active atomic.Pointer[Revision]
}

// NewEngine returns an Engine without a Revision: it denies everything with
// policy_unavailable until Activate.
func NewEngine(opt EngineOptions) *Engine {
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Timeout <= 0 {
		opt.Timeout = DefaultTimeout
	}
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	return &Engine{opt: opt}
}

// Activate makes r the Revision of every Decision that begins from now on. A
// nil r takes policy away: everything is denied.
func (e *Engine) Activate(r *Revision) { e.active.Store(r) }

// Active returns the Revision in force, nil if there is none.
func (e *Engine) Active() *Revision { return e.active.Load() }

// Decide answers in. It has no error: whatever goes wrong is a denial. The
// Decision is a function of the Input and the Revision but for its ID.
func (e *Engine) Decide(ctx context.Context, in *Input) Decision {
	r := e.active.Load()
	return e.finish(r, in, e.decide(ctx, r, in))
}

// finish gives a Decision what only it has.
func (e *Engine) finish(r *Revision, in *Input, d Decision) Decision {
	d.ID = newID()
	if r != nil {
		d.Revision = r.id
	}
	if in != nil {
		d.App, d.Time = in.App.Name, in.Time
	}
	if d.Time.IsZero() {
		d.Time = e.opt.Now().UTC()
	}
	if d.Reason == ReasonPolicyError {
		e.opt.Log.Warn("policy could not decide", "decision", d.ID, "app", d.App, "reason", string(d.Reason), "err", d.Fact.Value)
	}
	return d
}

func (e *Engine) decide(ctx context.Context, r *Revision, in *Input) (d Decision) {
	if r == nil {
		return NewDecision(ReasonPolicyUnavailable, nil)
	}
	if in == nil {
		return policyError("input", "none", "an input")
	}
	// A panic in an evaluation must not take every other worker's calls down.
	defer func() {
		if p := recover(); p != nil {
			d = policyError("evaluation", fmt.Sprintf("panic: %v", p), "a result")
		}
	}()
	input, err := in.value()
	if err != nil {
		return policyError("input", err.Error(), "an input that JSON can hold")
	}
	if ctx.Err() != nil {
		return policyError("evaluation", "cancelled", "an answer")
	}
	results, err := e.eval(ctx, r, input)
	if topdown.IsCancel(err) && ctx.Err() == nil {
		// A runaway module fails a second time; a machine that was busy for a
		// moment does not, and nobody's call is cut for it.
		results, err = e.eval(ctx, r, input)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return policyError("evaluation", "cancelled", "an answer")
	case topdown.IsCancel(err):
		return policyError("evaluation", "timeout", "an answer within "+e.opt.Timeout.String())
	case err != nil:
		return policyError("evaluation", err.Error(), "a result")
	case len(results) != 1 || len(results[0].Expressions) != 1:
		return policyError("evaluation", "undefined", "a result")
	}
	return decisionOf(results[0].Expressions[0].Value)
}

// eval evaluates once, for Timeout at most.
func (e *Engine) eval(ctx context.Context, r *Revision, input ast.Value) (rego.ResultSet, error) {
	// A timer and a hook on ctx cost less than a context and a goroutine for
	// every Decision.
	cancel := topdown.NewCancel()
	timer := time.AfterFunc(e.opt.Timeout, cancel.Cancel)
	defer timer.Stop()
	defer context.AfterFunc(ctx, cancel.Cancel)()
	return r.query.Eval(ctx, rego.EvalParsedInput(input), rego.EvalExternalCancel(cancel), rego.EvalMetrics(metrics.NoOp()))
}

// decisionOf turns what Rego answered into a Decision. Only a result of exactly
// the right shape allows.
func decisionOf(result any) Decision {
	m, ok := result.(map[string]any)
	if !ok {
		return badResult("no object")
	}
	for key := range m {
		switch key {
		case "allow", "reason", "rule", "fact", "message", "remedy":
		default:
			return badResult("unknown key " + key)
		}
	}
	allow, allowOK := m["allow"].(bool)
	code, codeOK := m["reason"].(string)
	rule, ruleOK := text(m, "rule")
	message, messageOK := text(m, "message")
	remedy, remedyOK := text(m, "remedy")
	fact, factOK := factOf(m["fact"])
	entry, known := Reasons[Reason(code)]
	switch {
	case !allowOK:
		return badResult("allow is no boolean")
	case !codeOK || !known:
		return badResult("reason is none of the table")
	case allow != (Reason(code) == ReasonAllowed):
		return badResult("allow and reason contradict each other")
	case allow && rule == "":
		return badResult("it allows without a rule")
	case !ruleOK || !messageOK || !remedyOK || !factOK:
		return badResult("a text is no text")
	}
	said := entry[Languages[0]]
	d := Decision{Allow: allow, Reason: Reason(code), Rule: clean(rule), Fact: fact, Message: said.Message, Remedy: said.Remedy}
	if message != "" && d.Reason == ReasonPolicyDenied {
		d.Message = clean(message)
	}
	if remedy != "" && d.Reason == ReasonPolicyDenied {
		d.Remedy = clean(remedy)
	}
	return d
}

// text returns a text that may be absent; ok is false if it is something else.
func text(m map[string]any, key string) (s string, ok bool) {
	v, there := m[key]
	if !there {
		return "", true
	}
	s, ok = v.(string)
	return s, ok
}

func factOf(v any) (f *Fact, ok bool) {
	if v == nil {
		return nil, true
	}
	m, ok := v.(map[string]any)
	if !ok || len(m) != 3 {
		return nil, false
	}
	name, nameOK := m["name"].(string)
	value, valueOK := m["value"].(string)
	wanted, wantedOK := m["wanted"].(string)
	if !nameOK || !valueOK || !wantedOK {
		return nil, false
	}
	return &Fact{Name: clean(name), Value: clean(value), Wanted: clean(wanted)}, true
}

func policyError(name, value, wanted string) Decision {
	return NewDecision(ReasonPolicyError, &Fact{Name: name, Value: clean(value), Wanted: wanted})
}

func badResult(what string) Decision {
	return policyError("result", clean(what), "a decision of the shipped shape")
}

// clean makes a text one line of bounded length: it goes to pages and logs,
// and parts of it come from requests and devices.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) <= maxText {
		return s
	}
	runes := []rune(s)
	if len(runes) <= maxText {
		return s
	}
	return string(runes[:maxText-1]) + "…"
}

// newID returns 128 random bits behind "d-".
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, see crypto/rand
	return "d-" + hex.EncodeToString(b[:])
}
