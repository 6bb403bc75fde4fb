package story

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/portvakt/portvakt/gateway/audit"
)

func TestPlayStopsAtTheFirstStepThatIsNotSo(t *testing.T) {
	ran := 0
	good := func(context.Context) (string, error) { ran++; return "seen", nil }
	bad := func(context.Context) (string, error) { ran++; return "", notSo("blue", "%s", "green") }
	for _, tc := range []struct {
		name  string
		steps []Step
		ok    bool
		ran   int
	}{
		{"all so", []Step{{"a", good}, {"b", good}}, true, 2},
		{"second not so", []Step{{"a", good}, {"b", bad}, {"c", good}}, false, 2},
		{"none", nil, true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ran = 0
			var told []Result
			rep := Play(t.Context(), tc.steps, time.Second, func(r Result) { told = append(told, r) })
			if rep.OK != tc.ok || ran != tc.ran || len(rep.Steps) != tc.ran {
				t.Errorf("ok %t, ran %d of %d, want %t, %d", rep.OK, ran, len(rep.Steps), tc.ok, tc.ran)
			}
			if diff := cmp.Diff(rep.Steps, append([]Result{}, told...)); diff != "" {
				t.Errorf("told otherwise: %s", diff)
			}
			if !tc.ok {
				if last := rep.Steps[len(rep.Steps)-1]; !strings.Contains(last.Detail, "expected blue") || !strings.Contains(last.Detail, "got green") {
					t.Errorf("the last step says %q", last.Detail)
				}
			}
		})
	}
}

func TestPlaySaysWhyAStepEnded(t *testing.T) {
	hang := []Step{{"hang", func(ctx context.Context) (string, error) { <-ctx.Done(); return "", ctx.Err() }}}
	rep := Play(t.Context(), hang, 20*time.Millisecond, func(Result) {})
	if rep.OK || !strings.Contains(rep.Steps[0].Detail, "longer than 20ms") {
		t.Errorf("a step past its limit: %+v", rep)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(errors.New("the gateway ended by itself")) })
	rep = Play(ctx, hang, time.Minute, func(Result) {})
	if rep.OK || !strings.Contains(rep.Steps[0].Detail, "the gateway ended by itself") {
		t.Errorf("a program that fell: %+v", rep)
	}
}

func TestFollow(t *testing.T) {
	is := func(k audit.Kind) chapter { return chapter{string(k), kind(k)} }
	rec := func(kinds ...audit.Kind) (out []*audit.Record) {
		for i, k := range kinds {
			out = append(out, &audit.Record{Seq: uint64(i) + 1, Kind: k})
		}
		return out
	}
	want := [][]chapter{{is("start")}, {is("login")}, {is("flow_cut"), is("flow_open")}, {is("revoke")}}
	for _, tc := range []struct {
		name    string
		records []*audit.Record
		says    string
	}{
		{"in order", rec("start", "login", "flow_open", "flow_cut", "revoke"), ""},
		{"a group in the other order, others between", rec("start", "policy", "login", "flow_cut", "policy", "flow_open", "revoke", "stop"), ""},
		{"one missing", rec("start", "login", "flow_open", "revoke"), `"flow_cut"`},
		{"too early", rec("login", "start", "flow_open", "flow_cut", "revoke"), `"login"`},
		{"empty", nil, `"start"`},
		{"one of two alike", rec("start", "login", "flow_open", "flow_open", "revoke"), `"flow_cut"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n, err := follow(tc.records, want)
			switch {
			case tc.says == "" && (err != nil || n != 5):
				t.Errorf("%d, %v", n, err)
			case tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)):
				t.Errorf("%v, want an error about %s", err, tc.says)
			}
		})
	}
}
