package dns_test

import (
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/portvakt/portvakt/agent/dns"
)

// Whose network a service is in shows without the right to trace it: to an
// account with no privilege at all.
func TestSameNetwork(t *testing.T) {
	for name, c := range map[string]struct {
		flags uintptr
		want  bool
	}{"in ours": {0, true}, "in one of its own": {syscall.CLONE_NEWNET, false}} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command("sleep", "60")
			cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: c.flags}
			if err := cmd.Start(); err != nil {
				t.Skip("needs root: ", err)
			}
			defer func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			}()
			got := make(chan bool)
			go func() {
				runtime.LockOSThread() // the thread ends with the goroutine
				if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
					t.Error(e)
				}
				got <- dns.SameNetwork(cmd.Process.Pid)
			}()
			if same := <-got; same != c.want {
				t.Errorf("the same network: %t", same)
			}
		})
	}
	if dns.SameNetwork(1 << 30) {
		t.Error("a process that is not there is in our network")
	}
}
