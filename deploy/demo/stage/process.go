package stage

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// grace is how long a process may take to end by itself before it is killed.
const grace = 10 * time.Second // above what a gateway drains for

// Process is one running program of the demo, in a process group of its own so
// that a Ctrl-C in the terminal reaches only the demo, which then ends them in
// order.
type Process struct {
	Name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended
	err  error         // set before done is closed

	expected bool // guarded by the Stage's mu: its ending is nobody's fault
}

// startProcess starts argv with its output going to the file log. ended is
// called once, from a goroutine of its own, when the process has ended; that
// goroutine lasts exactly as long as the process.
func startProcess(name, log string, argv []string, ended func(*Process)) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer f.Close()
	p := &Process{Name: name, log: log, done: make(chan struct{}), cmd: exec.Command(argv[0], argv[1:]...)}
	p.cmd.Stdout, p.cmd.Stderr = f, f
	p.cmd.SysProcAttr = processAttributes()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
		ended(p)
	}()
	return p, nil
}

// PID is the process's number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Alive says whether the process still runs.
func (p *Process) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop asks the process to end, waits, and kills it when it does not.
func (p *Process) stop() error {
	if !p.Alive() {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		return nil
	case <-time.After(grace):
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	return fmt.Errorf("%s did not end within %s and was killed", p.Name, grace)
}

// Tail returns the last n lines that the process wrote.
func (p *Process) Tail(n int) string {
	f, err := os.Open(p.log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if end, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, end-(64<<10)), io.SeekStart)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// died describes a process that ended by itself.
func (p *Process) died() error {
	why := "exit status 0"
	if p.err != nil {
		why = p.err.Error()
	}
	text := fmt.Sprintf("%s ended by itself (%s)", p.Name, why)
	if t := p.Tail(12); t != "" {
		text += "; its last lines:\n" + t
	}
	return errors.New(text)
}
