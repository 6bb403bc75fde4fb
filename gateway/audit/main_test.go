package audit_test

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/portvakt/portvakt/gateway/audit"
	"go.uber.org/goleak"
)

// The test binary runs itself as a child process for what needs one: being
// killed, and a limit on the size of files.
const childEnv = "PORTVAKT_AUDIT_CHILD"

func TestMain(m *testing.M) {
	switch role, dir, _ := strings.Cut(os.Getenv(childEnv), ":"); role {
	case "":
		goleak.VerifyTestMain(m)
	case "write":
		childWrite(dir)
	case "limit":
		if err := childLimit(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// childWrite appends from four goroutines until it is killed, and prints the
// number of every record that was acknowledged.
func childWrite(dir string) {
	l, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	acked := make(chan uint64, 1024)
	for range 4 {
		go func() {
			for {
				r := audit.Record{Kind: audit.KindDecision, Path: strings.Repeat("x", 700)}
				if err := l.Append(&r); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(1)
				}
				acked <- r.Seq
				l.Note(audit.Record{Kind: audit.KindFlowClose})
			}
		}()
	}
	for seq := range acked {
		fmt.Println(seq)
	}
}

// childLimit meets a real short write: the kernel's limit on the size of a
// file lets a part of a line through.
func childLimit(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	l, err := audit.Open(audit.Options{Dir: dir})
	if err != nil {
		return err
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 10_000, Max: old.Max}); err != nil {
		return err
	}
	rec := func() *audit.Record { return &audit.Record{Kind: audit.KindDecision, Path: strings.Repeat("y", 500)} }
	var want uint64
	for {
		r := rec()
		err := l.Append(r)
		if err != nil {
			if !errors.Is(err, syscall.EFBIG) {
				return fmt.Errorf("want EFBIG, got %w", err)
			}
			break
		}
		if want++; r.Seq != want || want > 1000 {
			return fmt.Errorf("record %d has number %d", want, r.Seq)
		}
	}
	if b, err := os.ReadFile(l.Path()); err != nil || len(b) == 0 || len(b) >= 10_000 || b[len(b)-1] != '\n' {
		return fmt.Errorf("after the short write the file has %d bytes, want whole lines below the limit: %w", len(b), err)
	}
	if l.Healthy() == nil {
		return errors.New("the log is healthy without space")
	}
	for range 5000 {
		l.Note(audit.Record{Kind: audit.KindFlowCut})
	}
	if err := l.Append(rec()); err == nil {
		return errors.New("appended without space")
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		return err
	}
	r := rec()
	if err := l.Append(r); err != nil {
		return fmt.Errorf("after space came back: %w", err)
	}
	// recovered, 4096 kept notes, lost, this one.
	if want += 1 + 4096 + 1 + 1; r.Seq != want || l.Lost() != 5000-4096 || l.Healthy() != nil {
		return fmt.Errorf("number %d, want %d; lost %d; health %w", r.Seq, want, l.Lost(), l.Healthy())
	}
	return l.Close()
}
