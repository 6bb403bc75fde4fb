package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/portvakt/portvakt/deploy/demo/stage"
	"github.com/portvakt/portvakt/deploy/demo/story"
)

// stepLimit bounds one step of the story.
const stepLimit = 20 * time.Second

// errNotSo says that the story failed and that this has been printed.
var errNotSo = errors.New("the story did not come true")

// playScript sets the stage, plays the story and takes the stage down.
func playScript(ctx context.Context, bin, self string, out io.Writer, asJSON bool) error {
	begin := time.Now()
	words := out
	if asJSON {
		words = io.Discard
	}
	s, err := stage.Up(ctx, stage.Config{Bin: bin, Self: self, Progress: words})
	opening := story.Result{
		Name: "the company starts; two laptops are enrolled and connected",
		OK:   err == nil, MS: float64(time.Since(begin).Microseconds()) / 1000,
	}
	if err != nil {
		opening.Detail = err.Error()
		if asJSON {
			err = errors.Join(err, json.NewEncoder(out).Encode(story.Report{Steps: []story.Result{opening}, MS: opening.MS}))
		}
		return err
	}
	fmt.Fprintf(words, "ready after %.0f ms\n\n", opening.MS)
	rep, err := play(ctx, s, words)
	if err != nil {
		return errors.Join(err, s.Down())
	}
	rep.Steps = slices.Insert(rep.Steps, 0, opening)
	rep.MS += opening.MS
	if !rep.OK {
		fmt.Fprintf(words, "\n%s\n", s.Logs(12))
	}
	if err := s.Down(); err != nil {
		return fmt.Errorf("taking the demo down: %w", err)
	}
	if asJSON {
		if err := json.NewEncoder(out).Encode(rep); err != nil {
			return err
		}
	}
	if !rep.OK {
		return errNotSo
	}
	fmt.Fprintf(words, "\nall %d steps are so; %.1f s in all, nothing left behind\n", len(rep.Steps)-1, time.Since(begin).Seconds())
	return nil
}

// play plays the story until its end, until ctx ends or until a program falls.
func play(ctx context.Context, s *stage.Stage, words io.Writer) (story.Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case err := <-s.Fallen():
			cancel(err)
		case <-done:
		}
	}()
	steps, end, err := story.Steps(s)
	if err != nil {
		return story.Report{}, err
	}
	defer end()
	n := 0
	return story.Play(ctx, steps, stepLimit, func(r story.Result) {
		n++
		word := "ok"
		if !r.OK {
			word = "NOT SO"
		}
		fmt.Fprintf(words, "%2d  %-6s %7.0f ms  %s\n", n, word, r.MS, r.Name)
		if r.Detail != "" {
			fmt.Fprintf(words, "                       %s\n", strings.ReplaceAll(r.Detail, "\n", "\n                       "))
		}
	}), nil
}
