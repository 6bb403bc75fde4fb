// Package story plays the demo's story: what happens to a worker in an
// afternoon, step by step, through the agents' own loopback proxy and ports,
// and says at the first step that is not so what was expected and what came.
package story

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Step is one sentence of the story and how to see that it is true.
type Step struct {
	// Name is the sentence.
	Name string
	// Do makes it happen and returns what was seen, in a few words.
	Do func(context.Context) (detail string, err error)
}

// Result is how one Step went.
type Result struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	// MS is how long the step took, in milliseconds.
	MS     float64 `json:"ms"`
	Detail string  `json:"detail"`
}

// Report is how the story went. A story that stops early has no results for
// the rest.
type Report struct {
	Steps []Result `json:"steps"`
	OK    bool     `json:"ok"`
	MS    float64  `json:"ms"`
}

// NotSo is a step that came out otherwise.
type NotSo struct{ Want, Got string }

// Error returns both on two lines.
func (e *NotSo) Error() string { return fmt.Sprintf("expected %s\n     got %s", e.Want, e.Got) }

func notSo(want, format string, args ...any) error {
	return &NotSo{Want: want, Got: fmt.Sprintf(format, args...)}
}

// Play takes the steps in order, each within limit, and stops at the first
// that fails or when ctx ends. told is called after each.
func Play(ctx context.Context, steps []Step, limit time.Duration, told func(Result)) Report {
	rep := Report{Steps: []Result{}, OK: true}
	begin := time.Now()
	for _, s := range steps {
		start := time.Now()
		detail, err := within(ctx, limit, s.Do)
		r := Result{Name: s.Name, OK: err == nil, MS: milliseconds(time.Since(start)), Detail: detail}
		if err != nil {
			r.Detail = err.Error()
		}
		rep.Steps = append(rep.Steps, r)
		told(r)
		if err != nil {
			rep.OK = false
			break
		}
	}
	rep.MS = milliseconds(time.Since(begin))
	return rep
}

func within(ctx context.Context, limit time.Duration, do func(context.Context) (string, error)) (string, error) {
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	step, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the step took longer than %s", limit))
	defer cancel()
	detail, err := do(step)
	// A program that fell is a better answer than the request that failed for it.
	if err != nil && step.Err() != nil && !errors.Is(err, context.Cause(step)) {
		err = fmt.Errorf("%w (%w)", err, context.Cause(step))
	}
	return detail, err
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Microseconds()) / 1000
}
