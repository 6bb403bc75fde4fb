package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Child is a process that lasts as long as the lab.
type Child struct {
	Name string
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

// Start starts a program in a place. Its output goes to a file; when out is not
// nil, standard output goes there instead.
func (l *Lab) Start(at Place, name string, out *os.File, argv ...string) (*Child, error) {
	c := &Child{Name: name, log: filepath.Join(l.Dir, name+".log"), done: make(chan struct{})}
	f, err := os.Create(c.log)
	if err != nil {
		return nil, fmt.Errorf("opening the log of %s: %w", name, err)
	}
	defer f.Close()
	c.cmd = exec.Command("ip", l.inside(at, argv)...)
	c.cmd.SysProcAttr = attributes()
	c.cmd.Stdout, c.cmd.Stderr, c.cmd.Dir = f, f, l.Dir
	if out != nil {
		c.cmd.Stdout = out
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.done)
	}()
	l.children = append(l.children, c)
	return c, nil
}

// Fallen returns an error when a program ended that should still run.
func (l *Lab) Fallen() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.children {
		select {
		case <-c.done:
			return fmt.Errorf("%s ended by itself (%v); its last lines:\n%s", c.Name, c.err, c.Tail(12))
		default:
		}
	}
	return nil
}

// Logs returns the last n lines of every program.
func (l *Lab) Logs(n int) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, c := range l.children {
		if t := c.Tail(n); t != "" {
			fmt.Fprintf(&b, "--- %s\n%s\n", c.Name, t)
		}
	}
	return b.String()
}

// Wait calls ready until it returns nil, a program has fallen, or the limit.
func (l *Lab) Wait(ctx context.Context, limit time.Duration, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		if fell := l.Fallen(); fell != nil {
			return fmt.Errorf("waiting for %s: %w", what, fell)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// PID is the program's.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Signal sends the program a signal.
func (c *Child) Signal(s os.Signal) error { return c.cmd.Process.Signal(s) }

// Stop asks the process to end, waits, and kills it and its group when it does
// not.
func (c *Child) Stop() error {
	select {
	case <-c.done:
		return nil
	default:
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
		return nil
	case <-time.After(grace):
	}
	_ = syscall.Kill(-c.PID(), syscall.SIGKILL)
	<-c.done
	return fmt.Errorf("%s did not end within %s and was killed", c.Name, grace)
}

// Tail returns the last n lines that the process wrote.
func (c *Child) Tail(n int) string {
	b, err := os.ReadFile(c.log)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// clockTicks is USER_HZ, which is 100 on every Linux that Go runs on.
const clockTicks = 100

// CPU is the time the process has spent on a processor so far, its own and the
// kernel's for it.
func (c *Child) CPU() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.PID()))
	if err != nil {
		return 0, fmt.Errorf("reading the CPU time of %s: %w", c.Name, err)
	}
	return parseCPU(string(b))
}

// parseCPU reads utime and stime, fields 14 and 15 of proc_pid_stat(5). The
// second field, the program's name, may hold spaces and parentheses.
func parseCPU(stat string) (time.Duration, error) {
	f := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if len(f) < 13 {
		return 0, errors.New("reading CPU time: the kernel's line is too short")
	}
	user, err := strconv.ParseInt(f[11], 10, 64)
	sys, err2 := strconv.ParseInt(f[12], 10, 64)
	if err := errors.Join(err, err2); err != nil {
		return 0, fmt.Errorf("reading CPU time: %w", err)
	}
	return time.Duration(user+sys) * time.Second / clockTicks, nil
}

// ResetPeak makes Peak count from now.
func (c *Child) ResetPeak() error {
	// 5: the peak of the resident set, proc_pid_clear_refs(5).
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", c.PID()), []byte("5"), 0)
}

// Peak is the largest resident set since ResetPeak, in bytes.
func (c *Child) Peak() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.PID()))
	if err != nil {
		return 0, fmt.Errorf("reading the memory of %s: %w", c.Name, err)
	}
	return parsePeak(string(b))
}

func parsePeak(status string) (int64, error) {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("reading memory: the kernel names no VmHWM")
}

// Traffic is what was sent into a cable, in Ethernet frames. What the kernel
// cuts up on the far side only counts as one.
type Traffic struct{ Bytes, Frames int64 }

// Sent is what left a process's place so far, by the cable's name.
func (c *Child) Sent() (map[string]Traffic, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", c.PID()))
	if err != nil {
		return nil, fmt.Errorf("reading the counters around %s: %w", c.Name, err)
	}
	return parseDev(string(b))
}

// parseDev reads proc_pid_net(5)'s dev: two lines of headings, then a line each.
func parseDev(dev string) (map[string]Traffic, error) {
	out := map[string]Traffic{}
	for line := range strings.Lines(dev) {
		name, numbers, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		f := strings.Fields(numbers)
		if len(f) < 16 {
			return nil, errors.New("reading the counters of interfaces: the kernel's line is too short")
		}
		bytes, err := strconv.ParseInt(f[8], 10, 64)
		frames, err2 := strconv.ParseInt(f[9], 10, 64)
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("reading the counters of interfaces: %w", err)
		}
		out[strings.TrimSpace(name)] = Traffic{bytes, frames}
	}
	return out, nil
}
