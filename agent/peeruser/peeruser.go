// Package peeruser names the operating system's user at the other end of a
// local connection. A listener on 127.0.0.1 is open to every account of the
// machine; what a person's login opened must not be.
//
// The answer comes from the kernel's socket tables (Linux: sock_diag(7), else
// /proc/net). Other systems have no lookup here: [Supported] is false, every
// call returns [ErrNotSupported], and a caller has to refuse. Of a Unix socket
// ([Unix]) macOS tells as well.
package peeruser

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// ErrNotFound says that no living socket of this machine fits the addresses:
// the other end is gone, was closed by its process, or is not on this machine.
var ErrNotFound = errors.New("no local socket has that address")

// ErrNotSupported says that this platform has no lookup.
var ErrNotSupported = errors.New("the owner of a loopback connection cannot be looked up on this platform")

// TCP returns the user id that owns the client's end of the TCP connection
// from client to server, both addresses of this machine's loopback. An error
// means that the owner is not known, never that there is none to fear.
func TCP(client, server netip.AddrPort) (uid uint32, err error) {
	client, server = unmap(client), unmap(server)
	if !client.Addr().IsLoopback() || !server.Addr().IsLoopback() {
		return 0, fmt.Errorf("looking up the owner of %s: not a loopback address", client)
	}
	return tcpOwner(client, server)
}

// Conn is [TCP] for an accepted connection.
func Conn(c net.Conn) (uid uint32, err error) {
	client, ok1 := c.RemoteAddr().(*net.TCPAddr)
	server, ok2 := c.LocalAddr().(*net.TCPAddr)
	if !ok1 || !ok2 {
		return 0, fmt.Errorf("looking up the owner of a %T: not a TCP connection", c)
	}
	return TCP(client.AddrPort(), server.AddrPort())
}

// UDP returns the users who may have sent a datagram from client, without
// repeats. A datagram does not name its socket, and a sender may choose its
// source address among the machine's own (IP_PKTINFO), so that every socket on
// the client's port is a suspect: a caller must allow all of them or none.
func UDP(client netip.AddrPort) (uids []uint32, err error) {
	client = unmap(client)
	if !client.Addr().IsLoopback() || client.Port() == 0 {
		return nil, fmt.Errorf("looking up the owner of %s: not a loopback address", client)
	}
	return udpOwners(client.Port())
}

// Unix returns the user of the process at the other end of a Unix socket, as the
// kernel recorded it: for a client that of who listens.
func Unix(c net.Conn) (uid uint32, err error) { return unixPeer(c) }

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}
