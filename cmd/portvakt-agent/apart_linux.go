package main

import (
	"os/exec"
	"syscall"
)

// apart starts cmd in a process group of its own, which the terminal's signals
// do not reach.
func apart(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }
