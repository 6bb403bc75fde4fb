package story

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"

	"github.com/open-policy-agent/opa/v1/rego"

	"github.com/portvakt/portvakt/gateway/audit"
)

func decode(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("reading an answer (%.200q): %w", data, err)
	}
	return nil
}

// chapter is one thing that the audit log must tell, after what came before.
type chapter struct {
	name  string
	match func(*audit.Record) bool
}

func denied(app, reason string) func(*audit.Record) bool {
	return func(r *audit.Record) bool {
		return r.Kind == audit.KindDecision && r.App == app && r.Allow != nil && !*r.Allow && r.Reason == reason &&
			r.Decision != "" && r.Revision != "" && r.Message != ""
	}
}

func allowed(app, method string) func(*audit.Record) bool {
	return func(r *audit.Record) bool {
		return r.Kind == audit.KindDecision && r.App == app && r.Method == method && r.Allow != nil && *r.Allow
	}
}

func flowIs(kind audit.Kind, app string) func(*audit.Record) bool {
	return func(r *audit.Record) bool { return r.Kind == kind && r.App == app }
}

// webSocketAllowed is an HTTP request that was decided once, before the first
// message.
func webSocketAllowed(r *audit.Record) bool {
	return r.App == "crm" && r.Path == "/ws" && r.Allow != nil && *r.Allow &&
		(r.Kind == audit.KindFlowOpen || r.Kind == audit.KindDecision)
}

func kind(k audit.Kind) func(*audit.Record) bool {
	return func(r *audit.Record) bool { return r.Kind == k }
}

// chapters is the story as the log must tell it. Those of one group may come
// in any order among themselves: three flows are cut at the same time, and
// what takes away happens at once and is recorded as soon as it can be.
func (p *plot) chapters() [][]chapter {
	one := func(name string, match func(*audit.Record) bool) []chapter { return []chapter{{name, match}} }
	cuts := func(reason string, apps ...string) (out []chapter) {
		for _, a := range apps {
			out = append(out, chapter{"flow_cut " + a + " " + reason, func(r *audit.Record) bool {
				return r.Kind == audit.KindFlowCut && r.App == a && r.Reason == reason
			}})
		}
		return out
	}
	return [][]chapter{
		one("start", kind(audit.KindStart)),
		one("policy", kind(audit.KindPolicy)),
		one("invite by an administrator", func(r *audit.Record) bool {
			return r.Kind == audit.KindInvite && strings.HasPrefix(r.Actor, "os:")
		}),
		one("enroll", kind(audit.KindEnroll)),
		one("connect", kind(audit.KindConnect)),
		one("crm refused: login_required", denied("crm", "login_required")),
		one("login", func(r *audit.Record) bool { return r.Kind == audit.KindLogin && r.Subject == p.subject }),
		one("crm GET allowed", func(r *audit.Record) bool { return allowed("crm", http.MethodGet)(r) && r.Subject == p.subject }),
		one("crm POST refused: method_not_allowed", denied("crm", "method_not_allowed")),
		one("payments refused: group_not_allowed", denied("payments", "group_not_allowed")),
		{{"crm WebSocket allowed", webSocketAllowed}, {"flow_open desk", flowIs(audit.KindFlowOpen, "desk")}, {"flow_open voice", flowIs(audit.KindFlowOpen, "voice")}},
		append(cuts("posture_failed", "crm", "desk", "voice"), chapter{"posture", kind(audit.KindPosture)}),
		one("crm refused: posture_failed", denied("crm", "posture_failed")),
		one("posture", kind(audit.KindPosture)),
		one("crm GET allowed", allowed("crm", http.MethodGet)),
		append(cuts("location_not_allowed", "crm", "desk", "voice"),
			chapter{"location", kind(audit.KindLocation)}, chapter{"crm refused: location_not_allowed", denied("crm", "location_not_allowed")}),
		one("location", kind(audit.KindLocation)),
		one("crm GET allowed", allowed("crm", http.MethodGet)),
		one("policy", kind(audit.KindPolicy)),
		one("crm refused: policy_denied", denied("crm", "policy_denied")),
		one("policy", kind(audit.KindPolicy)),
		one("crm GET allowed", allowed("crm", http.MethodGet)),
		one("policy", kind(audit.KindPolicy)),
		one("crm refused: group_not_allowed", denied("crm", "group_not_allowed")),
		one("flow_open desk", flowIs(audit.KindFlowOpen, "desk")),
		append(cuts("device_revoked", "desk"), chapter{"revoke by an administrator", func(r *audit.Record) bool {
			return r.Kind == audit.KindRevoke && strings.HasPrefix(r.Actor, "os:")
		}}),
	}
}

// audit reads the log as an administrator does and looks for every chapter.
func (p *plot) audit(ctx context.Context) (string, error) {
	all, err := p.stage.Audit(ctx)
	if err != nil {
		return "", err
	}
	for i, r := range all {
		if r.Seq != uint64(i)+1 {
			return "", notSo(fmt.Sprintf("record %d to have that number", i+1), "%d", r.Seq)
		}
	}
	told, err := follow(p.mine(all), p.chapters())
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%d records without a gap; %d of them are this story", len(all), told), nil
}

// mine leaves out what is about another device than Anna's.
func (p *plot) mine(all []audit.Record) []*audit.Record {
	var out []*audit.Record
	for i := range all {
		if d := all[i].Device; d == "" || d == p.device {
			out = append(out, &all[i])
		}
	}
	return out
}

// follow finds the chapters in order and returns how many there were.
func follow(records []*audit.Record, chapters [][]chapter) (int, error) {
	next, told, before := 0, 0, "the beginning"
	for _, group := range chapters {
		open := append([]chapter(nil), group...)
		for len(open) > 0 {
			if next == len(records) {
				return 0, notSo(fmt.Sprintf("%q in the audit log after %s", open[0].name, before), "records %s", outline(records))
			}
			r := records[next]
			next++
			for i, c := range open {
				if c.match(r) {
					before = fmt.Sprintf("%q (record %d)", c.name, r.Seq)
					open = append(open[:i], open[i+1:]...)
					told++
					break
				}
			}
		}
	}
	return told, nil
}

// outline is a log in one line, runs of the same thing told once.
func outline(records []*audit.Record) string {
	var out []string
	last := ""
	for _, r := range records {
		s := strings.Join(strings.Fields(fmt.Sprintf("%s %s %s %s", r.Kind, r.App, r.Method, r.Reason)), " ")
		if s != last {
			out = append(out, fmt.Sprintf("%d:%s", r.Seq, s))
		}
		last = s
	}
	return strings.Join(out, ", ")
}

// reproduce takes one decision that allowed and one that refused, of different
// revisions, and asks stock OPA the same questions with the built bundles.
func (p *plot) reproduce(ctx context.Context) (string, error) {
	all, err := p.stage.Audit(ctx)
	if err != nil {
		return "", err
	}
	var yes, no *audit.Record
	for _, r := range p.mine(all) {
		if yes == nil && allowed("crm", http.MethodGet)(r) {
			yes = r
		}
		if denied("crm", "group_not_allowed")(r) {
			no = r
		}
	}
	var said []string
	for _, rec := range []*audit.Record{yes, no} {
		if rec == nil {
			return "", notSo("an allowed and a refused decision to reproduce", "%s", outline(p.mine(all)))
		}
		in, err := p.stage.Gateway(ctx, "audit", "show", rec.Decision, "--input")
		if err != nil {
			return "", err
		}
		bundle := filepath.Join(p.stage.Dir, "b.tar.gz")
		if _, err := p.stage.Gateway(ctx, "policy", "build", "--revision", rec.Revision, "-o", bundle); err != nil {
			return "", err
		}
		var input any
		if err := decode(in, &input); err != nil {
			return "", err
		}
		got, err := evaluate(ctx, bundle, input)
		if err != nil {
			return "", err
		}
		if want := (verdict{*rec.Allow, rec.Reason}); got != want {
			return "", notSo(fmt.Sprintf("%+v from the bundle, as recorded", want), "%+v", got)
		}
		said = append(said, fmt.Sprintf("%s again: allow %t, %s", rec.Decision, got.Allow, got.Reason))
	}
	return strings.Join(said, "; "), nil
}

// verdict is what a reproduced decision must share with the recorded one.
type verdict struct {
	Allow  bool   `json:"allow"`
	Reason string `json:"reason"`
}

// evaluate is `opa eval -b BUNDLE -i INPUT data.portvakt.decision`.
func evaluate(ctx context.Context, bundle string, input any) (verdict, error) {
	rs, err := rego.New(rego.Query("data.portvakt.decision"), rego.LoadBundle(bundle), rego.Input(input)).Eval(ctx)
	if err != nil {
		return verdict{}, fmt.Errorf("evaluating the bundle: %w", err)
	}
	if len(rs) != 1 || len(rs[0].Expressions) != 1 {
		return verdict{}, notSo("one decision from the bundle", "%d results", len(rs))
	}
	text, err := json.Marshal(rs[0].Expressions[0].Value)
	if err != nil {
		return verdict{}, err
	}
	var v verdict
	return v, decode(text, &v)
}
