package table

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

var version = regexp.MustCompile(`\d+(\.\d+)+`)

// Here says on what everything runs: this machine and how busy it is, with more
// said about the run, and the versions of the kernel and of tools, each by the
// command that prints it.
func Here(ctx context.Context, more string, tools map[string][]string) (Machine, error) {
	m := Machine{Versions: map[string]string{}}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, err
	}
	m.Versions["linux"] = unix.ByteSliceToString(u.Release[:])
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return m, err
	}
	cpu := runtime.GOARCH
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	m.Machine = fmt.Sprintf("%d x %s, %d GiB, load %.1f before; %s", runtime.NumCPU(), cpu, s.Totalram*uint64(s.Unit)>>30, float64(s.Loads[0])/(1<<16), more)
	for name, argv := range tools {
		out, _ := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput() // wrk -v exits with 1
		if v := version.FindString(string(out)); v != "" {
			m.Versions[name] = v
		}
	}
	return m, nil
}
