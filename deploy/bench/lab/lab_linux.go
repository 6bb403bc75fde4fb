// Package lab makes the network of the benchmark: network namespaces in a row,
// client - gateway - app, joined by veth pairs, and the processes in them. A
// second and a third client have cables of their own to the gateway. Nothing of it is left after Close, nor after the next New when this
// process was killed.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Where everything is. 198.18.0.0/15 is for benchmarks (RFC 2544).
var (
	Client     = netip.MustParseAddr("198.18.0.2") // the laptop's
	Gateway    = netip.MustParseAddr("198.18.0.1") // the company's, as that laptop sees it
	Client2    = netip.MustParseAddr("198.18.1.2") // the second laptop's
	Gateway2   = netip.MustParseAddr("198.18.1.1") // the company's, as that one sees it
	Client3    = netip.MustParseAddr("198.18.2.2") // the third laptop's
	Gateway3   = netip.MustParseAddr("198.18.2.1") // the company's, as that one sees it
	GatewayLAN = netip.MustParseAddr("198.19.0.1") // the company's, as apps see it
	App        = netip.MustParseAddr("198.19.0.2")
	// AppStock is the app again, for who goes through the stock tunnel: the
	// client's routes tell them apart by it.
	AppStock = netip.MustParseAddr("198.19.1.2")
)

// A Place is one of the namespaces.
type Place string

// The places, in the order in which a packet passes them.
const (
	AtClient  Place = "cl"
	AtClient2 Place = "c2"
	AtClient3 Place = "c3"
	AtGateway Place = "gw"
	AtApp     Place = "ap"
)

var places = []Place{AtClient, AtClient2, AtClient3, AtGateway, AtApp}

const (
	dirPrefix = "portvakt-bench-"
	nsPrefix  = "pvb"
	lockFile  = "lock"
	// nameDir is where `ip netns exec` finds files to show instead of /etc's.
	nameDir = "/etc/netns"
	// sockets is where wireguard-go listens for its configuration.
	sockets = "/var/run/wireguard"
	// grace is how long a process may take to end by itself: above what a
	// gateway drains for, which a voice flow, having no end, uses up.
	grace = 10 * time.Second
)

// Lab is the network with what runs in it.
type Lab struct {
	// Dir holds the files of this run.
	Dir string

	id   string
	lock *os.File

	mu       sync.Mutex
	children []*Child       // in the order of their start; guarded by mu
	yielding map[Place]bool // guarded by mu
}

// New builds the network. It first removes what killed runs left behind.
func New(ctx context.Context) (_ *Lab, err error) {
	if err := removeLeftovers(ctx); err != nil {
		return nil, err
	}
	l := &Lab{id: strconv.FormatInt(int64(os.Getpid()), 36)}
	l.Dir = filepath.Join(os.TempDir(), dirPrefix+l.id)
	if l.lock, err = makeDir(l.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	for _, p := range places {
		// The namespace's own resolver files: nothing in it reads or writes
		// the machine's.
		dir := filepath.Join(nameDir, l.name(p))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making %s: %w", dir, err)
		}
		for name, text := range map[string]string{"hosts": "127.0.0.1 localhost\n", "resolv.conf": "# nobody answers here\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				return nil, fmt.Errorf("writing %s of a namespace: %w", name, err)
			}
		}
		if err := run(ctx, "ip", "netns", "add", l.name(p)); err != nil {
			return nil, err
		}
	}
	for _, c := range []struct {
		name     string
		from, to Place
	}{{"wan", AtClient, AtGateway}, {"wan2", AtClient2, AtGateway}, {"wan3", AtClient3, AtGateway}, {"lan", AtGateway, AtApp}} {
		if err := run(ctx, "ip", "link", "add", c.name, "netns", l.name(c.from), "type", "veth", "peer", "name", c.name, "netns", l.name(c.to)); err != nil {
			return nil, err
		}
	}
	for p, lines := range map[Place][]string{
		AtClient: {
			"addr add " + Client.String() + "/24 dev wan", "link set wan up",
			"route add " + App.String() + "/32 via " + Gateway.String(),
		},
		AtClient2: {
			"addr add " + Client2.String() + "/24 dev wan2", "link set wan2 up",
			"route add " + Gateway.String() + "/32 via " + Gateway2.String(),
		},
		AtClient3: {
			"addr add " + Client3.String() + "/24 dev wan3", "link set wan3 up",
			"route add " + Gateway.String() + "/32 via " + Gateway3.String(),
		},
		AtGateway: {
			"addr add " + Gateway.String() + "/24 dev wan", "link set wan up",
			"addr add " + Gateway2.String() + "/24 dev wan2", "link set wan2 up",
			"addr add " + Gateway3.String() + "/24 dev wan3", "link set wan3 up",
			"addr add " + GatewayLAN.String() + "/24 dev lan", "link set lan up",
			"route add " + AppStock.String() + "/32 via " + App.String(),
		},
		AtApp: {
			"addr add " + App.String() + "/24 dev lan", "addr add " + AppStock.String() + "/32 dev lan", "link set lan up",
			"route add default via " + GatewayLAN.String(),
		},
	} {
		if err := l.IP(ctx, p, append([]string{"link set lo up"}, lines...)...); err != nil {
			return nil, err
		}
		// Thousands of short connections a second from one address must not
		// run out of ports; the same for everyone.
		err := run(ctx, "ip", "netns", "exec", l.name(p), "sh", "-c",
			`cd /proc/sys/net/ipv4 && echo 1 > ip_forward && echo 1 > tcp_tw_reuse && echo "16384 65535" > ip_local_port_range`)
		if err != nil {
			return nil, err
		}
	}
	return l, nil
}

// IP runs commands of ip(8) in a place.
func (l *Lab) IP(ctx context.Context, at Place, lines ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-n", l.name(at), "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip in %s: %w: %s", at, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Names makes a place know host names, one line of /etc/hosts each.
func (l *Lab) Names(at Place, lines ...string) error {
	path := filepath.Join(nameDir, l.name(at), "hosts")
	text := "127.0.0.1 localhost\n" + strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("naming hosts: %w", err)
	}
	return nil
}

// Interface is a name for a tunnel interface that no other run takes:
// wireguard-go's sockets are named by them, on the whole machine.
func (l *Lab) Interface(short string) string { return nsPrefix + l.id + short }

func (l *Lab) name(p Place) string { return nsPrefix + l.id + "-" + string(p) }

// Yield makes everything that is started in a place from now on give way to all
// other places at once: it stands for a machine that has processors of its own.
func (l *Lab) Yield(at Place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.yielding == nil {
		l.yielding = map[Place]bool{}
	}
	l.yielding[at] = true
}

// inside is how a program is started in a place. It replaces ip and chrt: the
// process is the program's own. However nice a program is, another that wakes may
// have to wait for it; beside an idle one never (sched(7)).
func (l *Lab) inside(at Place, argv []string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	to := []string{"netns", "exec", l.name(at)}
	if l.yielding[at] {
		to = append(to, "chrt", "--idle", "0")
	}
	return append(to, argv...)
}

// Command is a command in a place; its timeout is the context's. It is killed
// with everything it started in its process group when the context ends.
func (l *Lab) Command(ctx context.Context, at Place, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", l.inside(at, argv)...)
	cmd.SysProcAttr = attributes()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	return cmd
}

// Close ends every process in the reverse order of its start and removes the
// network and the directory. It may be called more than once.
func (l *Lab) Close() error {
	l.mu.Lock()
	children := l.children
	l.children = nil
	l.mu.Unlock()
	var all []error
	for i := len(children) - 1; i >= 0; i-- {
		all = append(all, children[i].Stop())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	all = append(all, sweep(ctx, l.id))
	if l.lock != nil {
		all = append(all, l.lock.Close())
		l.lock = nil
	}
	return errors.Join(all...)
}

func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// makeDir makes a run's directory and holds its lock. The name appears with the
// lock taken: another run that starts at the same time must not take it for a
// leftover.
func makeDir(dir string) (*os.File, error) {
	fresh, err := os.MkdirTemp(filepath.Dir(dir), ".portvakt-bench-")
	if err != nil {
		return nil, fmt.Errorf("making the benchmark's directory: %w", err)
	}
	lock, err := lockDir(fresh)
	if err == nil {
		err = errors.Join(os.Chmod(fresh, 0o755), os.Rename(fresh, dir)) // 0755: nginx's workers read in it
	}
	if err != nil {
		return nil, fmt.Errorf("making the benchmark's directory: %w", errors.Join(err, os.RemoveAll(fresh)))
	}
	return lock, nil
}

// lockDir takes the lock that says that the run of a directory is alive.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	return f, nil
}

// removeLeftovers removes what runs left behind whose process is gone: their
// lock is free.
func removeLeftovers(ctx context.Context) error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		lock, err := lockDir(dir)
		if errors.Is(err, unix.EWOULDBLOCK) {
			continue
		}
		if err != nil {
			return err
		}
		err = sweep(ctx, strings.TrimPrefix(filepath.Base(dir), dirPrefix))
		lock.Close()
		if err != nil {
			return fmt.Errorf("removing what an earlier run left: %w", err)
		}
	}
	return nil
}

// sweep removes everything that bears a run's name: the processes in its
// namespaces, the namespaces, their files, its directory.
func sweep(ctx context.Context, id string) error {
	var all []error
	for _, p := range places {
		name := nsPrefix + id + "-" + string(p)
		if _, err := os.Stat(filepath.Join("/run/netns", name)); err == nil {
			all = append(all, empty(ctx, name), run(ctx, "ip", "netns", "del", name))
		}
		all = append(all, os.RemoveAll(filepath.Join(nameDir, name)))
	}
	_ = os.Remove(nameDir) // which we may have made; it fails while others use it
	socks, err := filepath.Glob(filepath.Join(sockets, nsPrefix+id+"?.sock"))
	all = append(all, err)
	for _, s := range socks {
		all = append(all, os.Remove(s))
	}
	return errors.Join(append(all, os.RemoveAll(filepath.Join(os.TempDir(), dirPrefix+id)))...)
}

// empty kills what runs in one of our namespaces.
func empty(ctx context.Context, name string) error {
	for deadline := time.Now().Add(grace); ; time.Sleep(20 * time.Millisecond) {
		out, err := exec.CommandContext(ctx, "ip", "netns", "pids", name).Output()
		if err != nil {
			return fmt.Errorf("listing the processes in %s: %w", name, err)
		}
		pids := strings.Fields(string(out))
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v in %s do not end", pids, name)
		}
		for _, p := range pids {
			if pid, err := strconv.Atoi(p); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
