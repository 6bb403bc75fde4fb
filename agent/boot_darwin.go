package agent

import (
	"strconv"

	"golang.org/x/sys/unix"
)

func bootID() (string, error) {
	tv, err := unix.SysctlTimeval("kern.boottime")
	if err != nil {
		return "", err
	}
	return "boot-" + strconv.FormatInt(tv.Sec, 10), nil
}
