package stage

import "syscall"

// processAttributes also ends the process when the demo is killed without a
// chance to clean up.
func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}
