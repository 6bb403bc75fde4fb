package localapi

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

func peerUID(c net.Conn) (uint32, error) {
	var cred *unix.Xucred
	err := onSocket(c, func(fd int) (err error) {
		cred, err = unix.GetsockoptXucred(fd, unix.SOL_LOCAL, unix.LOCAL_PEERCRED)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("naming the caller: %w", err)
	}
	return cred.Uid, nil
}
