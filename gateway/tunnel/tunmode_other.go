//go:build !linux

package tunnel

import (
	"fmt"
	"runtime"
)

func (*Tunnel) newTUN() (stack, error) {
	return nil, fmt.Errorf("tunnel mode %s needs Linux, this is %s; use %s", TUN, runtime.GOOS, Userspace)
}
