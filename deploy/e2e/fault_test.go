package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portvakt/portvakt/gateway/audit"
)

const ledgerHost = "ledger.demo.example"

// ledger is an app that notes what reaches it.
type ledger struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]int // by path
}

// newLedger adds the app, with these further lines of its file, and waits until
// Anna may use it.
func (c *company) newLedger(more string) *ledger {
	c.t.Helper()
	l := &ledger{seen: map[string]int{}}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		l.mu.Lock()
		l.seen[r.URL.Path]++
		l.mu.Unlock()
		fmt.Fprintln(w, "noted")
	}))
	c.t.Cleanup(l.Close)
	u, err := url.Parse(l.URL)
	c.must(err)
	c.must(c.WritePolicy("ledger.yaml", fmt.Sprintf(
		"name: ledger\nprotocol: http\nhosts: [%s]\nupstream: http://%s\nallow: [127.0.0.1/32]\naccess:\n  - anyone: true\n%s", ledgerHost, u.Host, more)))
	return l
}

func (l *ledger) count(path string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen[path]
}

// ask sends one request to the ledger; the word is the Reason of a refusal.
func (c *company) ask(method, path string) (int, string) {
	req, err := http.NewRequestWithContext(c.t.Context(), method, "https://"+ledgerHost+path, nil)
	if err != nil {
		c.t.Error(err)
		return 0, ""
	}
	req.Header.Set("Accept", "application/json")
	resp, err := c.browser.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	var denial struct{ Reason string }
	_ = json.NewDecoder(resp.Body).Decode(&denial) // the ledger's own answer has no reason
	return resp.StatusCode, denial.Reason
}

// untilNoted waits until the ledger answers Anna.
func (c *company) untilNoted() {
	c.t.Helper()
	c.eventually(func() string {
		if status, why := c.ask(http.MethodGet, "/ready"); status != http.StatusOK {
			return fmt.Sprintf("the ledger is not reached: %d %s", status, why)
		}
		return ""
	})
}

// eventually waits until what is wrong is empty.
func (c *company) eventually(wrong func() string) {
	c.t.Helper()
	var last string
	for deadline := time.Now().Add(40 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if last = wrong(); last == "" {
			return
		}
	}
	c.t.Fatal(last)
}

// line is an open connection to the desk or an app like it.
type line struct {
	net.Conn
	lines *bufio.Scanner
}

func (c *company) open(app string) *line {
	c.t.Helper()
	conn, err := net.Dial("tcp", c.local(c.t.Context(), app))
	c.must(err)
	c.t.Cleanup(func() { _ = conn.Close() })
	l := &line{conn, bufio.NewScanner(conn)}
	c.must(conn.SetDeadline(time.Now().Add(5 * time.Second)))
	if !l.lines.Scan() { // the greeting
		c.t.Fatalf("%s does not greet: %v", app, l.lines.Err())
	}
	return l
}

// dead says whether the connection is over; it waits for that.
func (l *line) dead() bool {
	_ = l.SetDeadline(time.Now().Add(5 * time.Second))
	for l.lines.Scan() {
		continue
	}
	return !errors.Is(l.lines.Err(), os.ErrDeadlineExceeded)
}

// spoil makes system calls of the gateway on one file fail, as strace says
// them, until the function it returns is called or the gateway ends.
func (c *company) spoil(file, inject string) (mend func()) {
	c.t.Helper()
	p, err := c.Program("gateway")
	c.must(err)
	call, _, _ := strings.Cut(inject, ":")
	cmd := exec.Command("strace", "-f", "-p", strconv.Itoa(p.PID()), "-P", file, "-e", "trace="+call, "-e", "inject="+inject, "-o", os.DevNull)
	said, err := cmd.StderrPipe()
	c.must(err)
	c.must(cmd.Start())
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), "attached") {
		c.t.Log(lines.Text())
	}
	drained := make(chan struct{})
	go func() { defer close(drained); _, _ = io.Copy(io.Discard, said) }()
	mended := sync.OnceFunc(func() {
		_ = cmd.Process.Signal(os.Interrupt) // it lets go of the gateway
		<-drained
		_ = cmd.Wait()
	})
	c.t.Cleanup(mended)
	return mended
}

// refused asks for something and sees it refused because it cannot be recorded.
func (c *company) refused(l *ledger, path string) {
	c.t.Helper()
	if status, why := c.ask(http.MethodPost, path); status != http.StatusServiceUnavailable || why != "audit_unavailable" || l.count(path) != 0 {
		c.t.Errorf("without a record: %d %q, the app saw it %d times", status, why, l.count(path))
	}
}

// cutAnyway sees that what takes away goes on, and that it is recorded when the
// log can be written again.
func (c *company) cutAnyway(mend func()) {
	c.t.Helper()
	ctx := c.t.Context()
	desk := c.desk
	if out, err := c.Gateway(ctx, "lockdown", "on", "--app", "desk", "--reason", "a full disk is no shelter"); err != nil && !strings.Contains(err.Error()+string(out), "in force") {
		c.t.Errorf("lockdown: %v %s", err, out)
	}
	if !desk.dead() {
		c.t.Error("the lockdown cut nothing")
	}
	mend()
	c.untilNoted()
	c.eventually(func() string {
		kinds := map[audit.Kind]int{}
		records, err := c.Audit(ctx)
		c.must(err)
		for i, r := range records {
			if r.Seq != uint64(i+1) {
				return fmt.Sprintf("record %d has number %d", i+1, r.Seq)
			}
			kinds[r.Kind]++
		}
		if kinds[audit.KindRecovered] == 0 || kinds[audit.KindFlowCut] == 0 || kinds[audit.KindLockdown] == 0 || kinds[audit.KindLost] != 0 {
			return fmt.Sprintf("the log has %v", kinds)
		}
		return ""
	})
}

func (c *company) auditFile() string { return filepath.Join(c.Dir, "data", "audit", "audit.jsonl") }

// newFaulty is a company with a ledger that Anna uses and an open line to the
// desk.
func newFaulty(t *testing.T) (*company, *ledger) {
	t.Helper()
	need(t, "strace")
	c := newCompany(t)
	c.must(c.Anna.Login(t.Context()))
	l := c.newLedger("durability: strict\n")
	c.untilNoted()
	return c, l
}

// TestWritesFail: the kernel refuses to write the log.
func TestWritesFail(t *testing.T) {
	c, l := newFaulty(t)
	c.desk = c.open("desk")
	mend := c.spoil(c.auditFile(), "write:error=EIO")
	c.refused(l, "/unwritten")
	c.cutAnyway(mend)
}

// TestSyncFails: a strict app's request waits for a sync that fails. It does
// not happen, the gateway says why and ends; started again, it goes on.
func TestSyncFails(t *testing.T) {
	c, l := newFaulty(t)
	gateway, err := c.Program("gateway")
	c.must(err)
	c.spoil(c.auditFile(), "fsync:error=EIO")
	if status, why := c.ask(http.MethodPost, "/unsynced"); status == http.StatusOK || l.count("/unsynced") != 0 {
		t.Errorf("a record that is not on the disk: %d %s, the app saw it %d times", status, why, l.count("/unsynced"))
	}
	c.eventually(func() string {
		if gateway.Alive() {
			return "the gateway goes on"
		}
		return ""
	})
	if said := gateway.Tail(3); !strings.Contains(said, "portvakt-gateway: syncing the audit log: sync "+c.auditFile()+": input/output error; ") {
		t.Errorf("it said %s", said)
	}
	c.must(c.Again("gateway"))
	c.untilNoted()
}

// TestDiskFull: everything the gateway keeps is on a disk that is full, and
// then on one that cannot be written at all.
func TestDiskFull(t *testing.T) {
	c, l := newFaulty(t)
	data := filepath.Join(c.Dir, "data")
	ended, err := c.Stop("gateway")
	c.must(err)
	<-ended
	kept := data + ".kept"
	c.must(os.Rename(data, kept))
	c.must(os.Mkdir(data, 0o700))
	c.must(syscall.Mount("tmpfs", data, "tmpfs", 0, "size=64m,mode=0700"))
	t.Cleanup(func() { _ = syscall.Unmount(data, syscall.MNT_DETACH) })
	run(t, "cp", "-a", kept+"/.", data)
	c.must(c.Again("gateway"))
	c.untilNoted()
	c.desk = c.open("desk")
	ballast := filepath.Join(data, "ballast")
	f, err := os.Create(ballast)
	c.must(err)
	for chunk := bytes.Repeat([]byte("x"), 64<<10); err == nil; { // to the last byte
		if _, err = f.Write(chunk); err != nil && len(chunk) > 1 {
			chunk, err = chunk[:len(chunk)/2], nil
		}
	}
	if cerr := f.Close(); !errors.Is(err, syscall.ENOSPC) || cerr != nil {
		t.Fatal(err, cerr)
	}
	for i := range 5 { // what was in the file's last page may take one or two
		if status, _ := c.ask(http.MethodGet, fmt.Sprintf("/fill/%d", i)); status == http.StatusServiceUnavailable {
			break
		}
	}
	c.refused(l, "/no-space")
	c.cutAnyway(func() { c.must(os.Remove(ballast)) })

	if ended, err = c.Stop("gateway"); err == nil {
		<-ended
	}
	c.must(syscall.Mount("tmpfs", data, "tmpfs", syscall.MS_REMOUNT|syscall.MS_RDONLY, "size=64m,mode=0700"))
	out, err := c.Gateway(t.Context(), "serve")
	if said := fmt.Sprint(string(out), err); err == nil || !strings.Contains(said, "read-only file system") || !strings.Contains(said, data) {
		t.Errorf("on a disk that cannot be written: %s", said)
	}
	c.must(syscall.Mount("tmpfs", data, "tmpfs", syscall.MS_REMOUNT, "size=64m,mode=0700"))
	c.must(c.Again("gateway"))
	c.untilNoted()
}

// TestStopped stops the gateway's process for longer than a lease while what it
// had decided on comes to an end: not a byte of what waited passes when it
// wakes. What still holds goes on.
func TestStopped(t *testing.T) {
	need(t)
	c := newCompany(t)
	c.must(c.Anna.Login(t.Context()))
	got := make(chan string, 16)
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	c.must(err)
	t.Cleanup(func() { _ = echo.Close() })
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.WriteString(conn, "hello\n")
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					got <- lines.Text()
				}
			}()
		}
	}()
	app := func(name, hours string) {
		c.must(c.WritePolicy(name+".yaml", fmt.Sprintf(
			"name: %s\nprotocol: tcp\nupstream: %s\nports: [7001]\nallow: [127.0.0.1/32]\naccess:\n  - anyone: true\n%s", name, echo.Addr(), hours)))
	}
	edge := time.Now().UTC().Truncate(time.Minute).Add(time.Minute)
	if time.Until(edge) < 12*time.Second {
		edge = edge.Add(time.Minute)
	}
	app("always", "")
	app("shift", fmt.Sprintf("    hours: {from: %q, to: %q, zone: UTC}\n", edge.Add(-time.Hour).Format("15:04"), edge.Format("15:04")))
	c.eventually(func() string {
		out, err := c.Anna.Agent(t.Context(), "apps", "--json")
		if err != nil || !strings.Contains(string(out), `"shift"`) || !strings.Contains(string(out), `"always"`) {
			return fmt.Sprintf("the apps: %s %v", out, err)
		}
		return ""
	})
	always, shift := c.open("always"), c.open("shift")
	gateway, err := c.Program("gateway")
	c.must(err)
	time.Sleep(time.Until(edge.Add(-3 * time.Second)))
	c.must(syscall.Kill(gateway.PID(), syscall.SIGSTOP))
	for name, l := range map[string]*line{"always": always, "shift": shift} {
		c.must(l.SetDeadline(time.Now().Add(time.Minute)))
		_, err := fmt.Fprintln(l, name)
		c.must(err)
	}
	time.Sleep(33 * time.Second)
	c.must(syscall.Kill(gateway.PID(), syscall.SIGCONT))
	if !shift.dead() {
		t.Error("the shift is over and its connection goes on")
	}
	select {
	case name := <-got:
		if name != "always" {
			t.Errorf("what waited passed: %s", name)
		}
	case <-time.After(20 * time.Second):
		// A laptop that heard nothing for ten seconds may have begun anew before
		// the gateway came to what it had sent: then that connection is over.
		if !always.dead() {
			t.Error("what still holds did not go on")
			break
		}
		_, err := fmt.Fprintln(c.open("always"), "always")
		c.must(err)
		select {
		case name := <-got:
			if name != "always" {
				t.Errorf("what waited passed: %s", name)
			}
		case <-time.After(20 * time.Second):
			t.Error("nothing passes any more")
		}
	}
	select {
	case name := <-got:
		t.Errorf("what waited passed: %s", name)
	case <-time.After(time.Second):
	}
}

var kills = flag.Int("kills", 4, "how often TestKillUnderLoad kills the gateway")

// TestKillUnderLoad kills the gateway again and again while requests are on
// their way: whatever the app saw has its record, once.
func TestKillUnderLoad(t *testing.T) {
	c := newCompany(t)
	c.must(c.Anna.Login(t.Context()))
	l := c.newLedger("")
	c.untilNoted()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var load sync.WaitGroup
	for worker := range 16 {
		load.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				method := []string{http.MethodGet, http.MethodPost}[i%2]
				if status, _ := c.ask(method, fmt.Sprintf("/load/%d/%d", worker, i)); status != http.StatusOK {
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	for i := range *kills {
		time.Sleep(time.Duration(100+37*(i%10)) * time.Millisecond) // under load, at another moment each time
		c.must(c.Kill("gateway"))
		c.must(c.Again("gateway"))
		c.untilNoted()
	}
	stop()
	load.Wait()
	c.untilNoted()
	// A Flow whose facts move while it is decided, as when a device reports just
	// then, is decided again: its records are of one request.
	flows, numbers, opened, again := map[string]map[string]bool{}, uint64(0), map[string]bool{}, 0
	export := filepath.Join(t.TempDir(), audit.FileName) // the log itself shows no paths
	_, err := c.Gateway(t.Context(), "audit", "export", "--format", "jsonl", "-o", export)
	c.must(err)
	err = audit.Scan(export, func(_ []byte, r *audit.Record) bool {
		if numbers++; r.Seq != numbers {
			t.Fatalf("record %d has number %d", numbers, r.Seq)
		}
		if r.Kind == audit.KindDecision && r.App == "ledger" && r.Allow != nil && *r.Allow {
			if flows[r.Path] == nil {
				flows[r.Path] = map[string]bool{}
			}
			if flows[r.Path][r.Flow] {
				again++
			}
			flows[r.Path][r.Flow] = true
			if opened[r.Decision] {
				t.Errorf("decision %s is there twice", r.Decision)
			}
			opened[r.Decision] = true
		}
		return true
	})
	c.must(err)
	var total int
	for path, n := range l.seen {
		if path == "/ready" {
			continue
		}
		total++
		if n != 1 || len(flows[path]) != 1 {
			t.Errorf("%s: the app saw it %d times, the log has records of %d Flows", path, n, len(flows[path]))
		}
	}
	if total < 20**kills {
		t.Errorf("only %d requests came through", total)
	}
	t.Logf("%d kills, %d requests seen by the app, each with its record; decided again: %d", *kills, total, again)
	if out, err := c.Gateway(t.Context(), "audit", "verify"); err != nil {
		t.Errorf("verify: %v %s", err, out)
	}
}
