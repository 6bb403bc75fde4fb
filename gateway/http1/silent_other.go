//go:build !unix

package http1

import "net"

type probe struct{}

// silent cannot be told here: no connection is used twice.
func (*probe) silent(net.Conn) bool { return false }
