//go:build !linux

package peeruser

import "net/netip"

// Supported says whether this platform has a lookup.
const Supported = false

func tcpOwner(_, _ netip.AddrPort) (uint32, error) { return 0, ErrNotSupported }

func udpOwners(uint16) ([]uint32, error) { return nil, ErrNotSupported }
