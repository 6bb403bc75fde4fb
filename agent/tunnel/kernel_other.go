//go:build !linux

package tunnel

import (
	"errors"

	"golang.zx2c4.com/wireguard/tun"
)

func openKernel(Config) (network, tun.Device, error) {
	return nil, nil, errors.New("an interface of the operating system is used on Linux only so far")
}
