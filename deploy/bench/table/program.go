package table

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"syscall"
)

// Exit codes of [Main]: a floor is missed or the run failed; this machine, or
// this command line, cannot run it.
const (
	exitMissed = 1
	exitUsage  = 2
)

var (
	// ErrUsage is wrapped by what says why nothing was measured.
	ErrUsage = errors.New("usage")

	errMissed = errors.New("a floor is missed")
)

// Main is a benchmark's main: it runs the command line until it is done or the
// process is told to end, and exits unless every floor is met. Ending takes a
// bounded time and leaves nothing behind only if it may finish: a second Ctrl-C
// changes nothing.
func Main(name string, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil || errors.Is(err, flag.ErrHelp):
		return
	case errors.Is(err, errMissed): // the table has said it
		os.Exit(exitMissed)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
	if errors.Is(err, ErrUsage) {
		os.Exit(exitUsage)
	}
	os.Exit(exitMissed)
}

// Output is how a benchmark was asked to print its rows.
type Output struct{ json, markdown bool }

// Define defines the flags by which it is asked.
func (o *Output) Define(fs *flag.FlagSet) {
	fs.BoolVar(&o.json, "json", false, "print one JSON object")
	fs.BoolVar(&o.markdown, "markdown", false, "print the section of docs/benchmarks.md")
}

// Both says that it was asked for two at once.
func (o Output) Both() bool { return o.json && o.markdown }

// Print prints the rows, and returns an error if a floor is missed.
func (o Output) Print(w io.Writer, m Machine, rows []Row) error {
	show := Text
	switch {
	case o.json:
		show = JSON
	case o.markdown:
		show = Markdown
	}
	if err := show(w, m, rows); err != nil {
		return err
	}
	if !AllMet(rows) {
		return errMissed
	}
	return nil
}

// Only defines the flag that says which rows to measure, by their names.
func Only(fs *flag.FlagSet) func(row string) bool {
	only := regexp.MustCompile("")
	fs.Func("only", "measure only the rows whose names match this regular expression", func(s string) (err error) {
		only, err = regexp.Compile("(?i)" + s)
		return err
	})
	return func(row string) bool { return only.MatchString(row) }
}

// Parse parses a command line; what is wrong with it is an [ErrUsage].
func Parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil && !errors.Is(err, flag.ErrHelp) {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	} else if err != nil {
		return err
	}
	return nil
}
