package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/portvakt/portvakt/deploy/demo/idp"
	"github.com/portvakt/portvakt/deploy/demo/router"
	"github.com/portvakt/portvakt/deploy/idplogin"
)

// Laptop is one worker's laptop: an enrolled agent behind a home router of its
// own, with a posture root of its own, so that nothing here ever reads or
// touches the host's firewall.
type Laptop struct {
	Person idp.Person
	// State is the agent's state directory, Root its posture root.
	State, Root string
	// Proxy is the agent's loopback HTTP proxy.
	Proxy string
	// Home is the address the gateway sees until the router moves.
	Home   netip.Addr
	Router *router.Router

	name  string
	bin   string // portvakt-agent
	agent *Process
}

// Running is the agent's process.
func (l *Laptop) Running() *Process { return l.agent }

// FirewallFile is the file that the demo flips.
func (l *Laptop) FirewallFile() string { return filepath.Join(l.Root, "etc/ufw/ufw.conf") }

// Firewall turns the laptop's firewall on or off, in its posture root only.
func (l *Laptop) Firewall(on bool) error {
	word := "no"
	if on {
		word = "yes"
	}
	return replaceFile(l.FirewallFile(), "# the demo's laptop; not this machine's firewall\nENABLED="+word+"\nLOGLEVEL=low\n")
}

// NewLaptop is a laptop that no Stage starts, with everything of it below dir.
// bin holds portvakt-agent. It has no router and no fixed proxy address.
func NewLaptop(p idp.Person, bin, dir string) *Laptop {
	return &Laptop{
		Person: p, bin: filepath.Join(bin, "portvakt-agent"), name: filepath.Base(dir),
		State: filepath.Join(dir, "state"), Root: filepath.Join(dir, "root"),
	}
}

// Furnish makes the files below the posture root that a Linux laptop with ufw
// and an encrypted disk has.
func (l *Laptop) Furnish() error {
	for name, text := range map[string]string{
		"etc/ufw/user.rules":              "*filter\nCOMMIT\n",
		"etc/os-release":                  "NAME=\"Debian GNU/Linux\"\nID=debian\nVERSION_ID=\"12\"\n",
		"proc/self/mountinfo":             "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/mapper/root rw\n23 22 8:1 / /boot rw,relatime shared:2 - ext4 /dev/sda1 rw\n",
		"proc/mounts":                     "/dev/mapper/root / ext4 rw,relatime 0 0\n/dev/sda1 /boot ext4 rw,relatime 0 0\n",
		"proc/swaps":                      "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
		"sys/dev/block/254:0/dm/uuid":     "CRYPT-LUKS2-0123456789abcdef0123456789abcdef-root\n",
		"sys/dev/block/254:0/dm/name":     "root\n",
		"sys/dev/block/254:0/slaves/sda2": "",
		"sys/dev/block/8:1/partition":     "1\n",
	} {
		path := filepath.Join(l.Root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return l.Firewall(true)
}

// Agent runs one portvakt-agent command on this laptop and returns what it
// printed on standard output. A non-zero exit is a *[CommandError].
func (l *Laptop) Agent(ctx context.Context, args ...string) ([]byte, error) {
	return command(ctx, l.bin, append(args, "--state", l.State)...)
}

// exitDenied is how both binaries exit when the answer is no.
const exitDenied = 3

// AgentJSON runs a command with --json and decodes its answer into v, also one
// that says no.
func (l *Laptop) AgentJSON(ctx context.Context, v any, args ...string) error {
	out, err := l.Agent(ctx, append(args, "--json")...)
	if denied, ok := errors.AsType[*CommandError](err); ok && denied.Code == exitDenied {
		err = nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("reading what portvakt-agent %s printed (%.200q): %w", args[0], out, err)
	}
	return nil
}

// Login logs the laptop's person in the way they would: the agent prints the
// page's address, a browser opens it, the person types email and password, and
// the browser follows the redirect to the agent.
func (l *Laptop) Login(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.bin, "login", "--no-browser", "--state", l.State)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting portvakt-agent login: %w", err)
	}
	page, out := findURL(stdout)
	if page == "" {
		err := cmd.Wait()
		return fmt.Errorf("portvakt-agent login printed no address (%v): %s %s", err, out, stderr.String())
	}
	callback, err := idplogin.Login(ctx, page, l.Person.Email, l.Person.Password)
	if err == nil {
		err = visit(ctx, callback)
	}
	if err != nil {
		cancel()
		_ = cmd.Wait()
		return err
	}
	go discard(stdout)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("portvakt-agent login: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// CommandError is a command that did not exit with 0.
type CommandError struct {
	Command string
	Code    int // -1 when it was killed
	Stdout  string
	Stderr  string
}

// Error returns the command, its exit code and the last of what it said.
func (e *CommandError) Error() string {
	said := strings.TrimSpace(e.Stderr)
	if said == "" {
		said = strings.TrimSpace(e.Stdout)
	}
	return fmt.Sprintf("%s: exit code %d: %s", e.Command, e.Code, said)
}

func command(ctx context.Context, bin string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, bin, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return stdout.Bytes(), &CommandError{
			Command: filepath.Base(bin) + " " + args[0], Code: exit.ExitCode(), Stdout: stdout.String(), Stderr: stderr.String(),
		}
	}
	if err != nil {
		return nil, fmt.Errorf("running %s: %w", filepath.Base(bin), err)
	}
	return stdout.Bytes(), nil
}

// replaceFile writes a file in one step, as an editor does: a reader sees the
// old text or the new.
func replaceFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// waitFor calls ready every few milliseconds until it returns nil, and returns
// its last error when ctx ends or after the time limit.
func waitFor(ctx context.Context, limit time.Duration, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil || errors.Is(err, errFallen) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// listening returns nil when something accepts TCP connections at addr.
func listening(addr string) func(context.Context) error {
	return func(ctx context.Context) error {
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return c.Close()
	}
}
