// Demo is a whole company on one machine: an identity provider with two
// people, four apps, the gateway, and two enrolled laptops, each a process of
// its own on loopback. It runs until Ctrl-C and leaves nothing behind. With
// --script it plays its story by itself and says whether it came true.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
)

func main() {
	// A second Ctrl-C changes nothing: ending takes a bounded time, and leaves
	// nothing behind only if it may finish.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.Is(err, errNotSo):
		os.Exit(1) // already said
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if play, ok := parts[args[0]]; ok {
			return play(ctx, args[1:], slog.New(slog.NewTextHandler(os.Stderr, nil)))
		}
	}
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.Usage = func() {
		fmt.Fprintln(fs.Output(), "usage: demo [--script [--json]]\n\nA whole company on loopback, until Ctrl-C. With --script it plays its story by itself\nand exits with 1 at the first step that is not so.")
		fs.PrintDefaults()
	}
	script := fs.Bool("script", false, "play the story and exit")
	asJSON := fs.Bool("json", false, "with --script: print one JSON object")
	bin := fs.String("bin", "", "directory of portvakt-gateway and portvakt-agent (default: that of this program)")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return flag.ErrHelp
	}
	if fs.NArg() > 0 || (*asJSON && !*script) {
		fs.Usage()
		return flag.ErrHelp
	}
	if runtime.GOOS != "linux" {
		return errors.New("the demo needs Linux: its laptops have a posture that is collected there only, and take loopback addresses that other systems lack")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if *bin == "" {
		*bin = filepath.Dir(self)
	}
	out := io.Writer(os.Stdout)
	if *script {
		return playScript(ctx, *bin, self, out, *asJSON)
	}
	return stayOpen(ctx, *bin, self, out)
}
