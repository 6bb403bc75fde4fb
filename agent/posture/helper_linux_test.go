package posture_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/portvakt/portvakt/agent/posture"
	"github.com/portvakt/portvakt/internal/wire"
)

const nobody = 65534

// TestMain is also a process of another user: one that asks a helper, and one
// that listens in a helper's place.
func TestMain(m *testing.M) {
	switch mode, socket, _ := strings.Cut(os.Getenv("POSTURE_OTHER"), " "); mode {
	case "ask":
		signals, err := posture.AskHelper(context.Background(), socket, false)
		fmt.Println(len(signals), err == nil)
		os.Exit(0)
	case "raw":
		c, err := net.Dial("unix", socket)
		if err != nil {
			fmt.Println("dial refused")
			os.Exit(0)
		}
		io.WriteString(c, "portvakt posture 1\n")
		b, _ := io.ReadAll(c)
		fmt.Println(len(b), "bytes")
		os.Exit(0)
	case "listen":
		l, err := net.Listen("unix", socket)
		fmt.Println(err == nil)
		if err == nil {
			c, _ := l.Accept()
			io.WriteString(c, `{"signals":[{"name":"host_firewall","state":"pass","value":"forged","age_seconds":0}]}`)
			c.Close()
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// as starts the other process and returns its first line.
func as(t *testing.T, uid uint32, mode, socket string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{"POSTURE_OTHER=" + mode + " " + socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, _ := bufio.NewReader(out).ReadString('\n')
	return strings.TrimSpace(line)
}

// startHelper runs one for a tree and returns its socket, which others can
// reach the directory of.
func startHelper(t *testing.T, root string, allow int) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pv")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o755)
	socket := filepath.Join(dir, "s")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- posture.RunHelper(ctx, posture.HelperConfig{Socket: socket, Root: root, AllowUID: allow})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("RunHelper: %v", err)
		}
		if _, err := os.Lstat(socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left behind: %v", err)
		}
		os.RemoveAll(dir)
	})
	for deadline := time.Now().Add(3 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		// Owner and mode come after the bind.
		if info, err := os.Lstat(socket); err == nil && info.Mode().Perm() == 0o600 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the helper does not listen")
		}
	}
	time.Sleep(10 * time.Millisecond)
	return socket
}

// The helper's word replaces the agent's own: they are shown different trees.
func TestCollectorTakesTheHelpersWord(t *testing.T) {
	bad, _ := unpack(t, "plain-ufw-off")
	good, _ := unpack(t, "luks-ufw-on")
	socket := startHelper(t, bad, os.Geteuid())
	got := posture.New(posture.Config{Root: good, HelperSocket: socket}).Collect(context.Background())
	if says(got[0]) != "fail / is not encrypted (sda2)" || says(got[1]) != "fail ufw: off" {
		t.Errorf("got %s and %s", says(got[0]), says(got[1]))
	}
	got = posture.New(posture.Config{Root: good, HelperSocket: socket + "none"}).Collect(context.Background())
	if says(got[1]) != "pass ufw: on" {
		t.Errorf("without the helper: %s", says(got[1]))
	}
}

func TestHelperRefusesStrangers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a second user is impersonated")
	}
	root, _ := unpack(t, "luks-ufw-on")
	socket := startHelper(t, root, 65533)
	if got := as(t, nobody, "raw", socket); got != "dial refused" {
		t.Errorf("a stranger reached the socket: %s", got)
	}
	os.Chmod(socket, 0o666) // and where the mode does not help, the kernel's word does
	if got := as(t, nobody, "raw", socket); got != "0 bytes" {
		t.Errorf("a stranger was answered: %s", got)
	}
	if got := as(t, 65533, "raw", socket); got == "0 bytes" || got == "dial refused" {
		t.Errorf("the agent's user was not answered: %s", got)
	}
	if got := as(t, 65533, "ask", socket); got != "2 true" {
		t.Errorf("the agent's user got %s", got)
	}
}

func TestImpostorIsNotBelieved(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a second user is impersonated")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && len(d) > 1; d = filepath.Dir(d) {
		os.Chmod(d, 0o777)
	}
	socket := filepath.Join(dir, "s")
	if got := as(t, nobody, "listen", socket); got != "true" {
		t.Fatal("the impostor does not listen")
	}
	if signals, err := posture.AskHelper(context.Background(), socket, true); err == nil || !strings.Contains(err.Error(), "user 65534") {
		t.Errorf("got %v, %v", signals, err)
	}
}

func TestHelperBadRequests(t *testing.T) {
	root, _ := unpack(t, "luks-ufw-on")
	socket := startHelper(t, root, os.Geteuid())
	for _, req := range []string{"", "x", "portvakt posture 2\n", strings.Repeat("x", 1<<16)} {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(3 * time.Second))
		io.WriteString(c, req)
		c.(*net.UnixConn).CloseWrite()
		if b, _ := io.ReadAll(c); len(b) != 0 {
			t.Errorf("%.20q was answered: %s", req, b)
		}
		c.Close()
	}
	if signals, err := posture.AskHelper(context.Background(), socket, false); err != nil || len(signals) != 2 {
		t.Errorf("afterwards: %v, %v", signals, err)
	}
	err := posture.RunHelper(context.Background(), posture.HelperConfig{Socket: socket, Root: root, AllowUID: os.Geteuid()})
	if err == nil || !strings.Contains(err.Error(), "another helper") {
		t.Errorf("a second helper: %v", err)
	}
}

func TestHelperStart(t *testing.T) {
	root, _ := unpack(t, "luks-ufw-on")
	wide := t.TempDir()
	os.Chmod(wide, 0o777)
	if err := posture.RunHelper(context.Background(), posture.HelperConfig{Socket: wide + "/s", Root: root}); err == nil {
		t.Error("a directory that everyone may write to was accepted")
	}
	if os.Geteuid() != 0 {
		if err := posture.RunHelper(context.Background(), posture.HelperConfig{Socket: t.TempDir() + "/s"}); err == nil {
			t.Error("it starts for / without root")
		}
	}
}

func TestParseAnswer(t *testing.T) {
	for in, ok := range map[string]bool{
		`{"signals":[]}`: true,
		`{"signals":[{"name":"host_firewall","state":"fail","value":"a\nb","age_seconds":0}]}`:          true,
		`{"signals":[{"name":"host_firewall","state":"PASS"}]}`:                                         false,
		`{"signals":[{"name":"screen_lock","state":"pass"}]}`:                                           false, // no collector, so nobody may claim it
		`{"signals":[{"name":"host_firewall","state":"pass"},{"name":"host_firewall","state":"fail"}]}`: false,
		`{"signals":[],"x":1}`: false, `{}{}`: false, ``: false,
	} {
		got, err := posture.ParseAnswer([]byte(in))
		if (err == nil) != ok {
			t.Errorf("%s: %v, %v", in, got, err)
		}
		for _, s := range got {
			if s != (wire.Signal{Name: "host_firewall", State: "fail", Value: "a b"}) {
				t.Errorf("got %+v", s)
			}
		}
	}
}
