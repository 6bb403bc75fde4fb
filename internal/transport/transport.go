// Package transport is what carries WireGuard's datagrams between a laptop and a
// gateway, below an unmodified WireGuard at both ends:
//
//	UDP        a conn.Bind: recvmmsg and sendmmsg, GSO and GRO (Linux; upstream's elsewhere)
//	Stream     a WebSocket's datagrams: a bounded ring, the oldest dropped
//	Inbox      where all Streams' datagrams wait for WireGuard
//	Gateway    a conn.Bind: UDP, a Stream for each device that has one, and the
//	           answers to those who ask by UDP whether it works again (probes)
//	Pace       bounds what WireGuard holds between the inside and the socket, and
//	           counts what it refuses (Tally)
//	Mark       takes a packet's class past the encryption
//
// It knows no keys and trusts nobody: who may open a Stream is the caller's
// business, and whose a datagram is WireGuard's.
package transport

import (
	"encoding/binary"
	"log/slog"
	"net/netip"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
)

// socketBuffer is what the sockets ask for, in bytes, as upstream's do.
const socketBuffer = 7 << 20

// UDPOptions of a UDP.
type UDPOptions struct {
	// Listen is the address and port. An unspecified or invalid address is
	// every address of both families; port 0 is any free one.
	Listen netip.AddrPort
	// Sticky makes an answer leave from the address the question came to. It
	// is for a machine with several addresses that others call, and of no use
	// to one that calls: there the routes decide, also after a change.
	Sticky bool
	// GSOOff never hands the kernel several datagrams as one to cut up. Some
	// kernels and drivers cut wrongly; Open notices it only of the kernel.
	GSOOff bool
	// Log is optional.
	Log *slog.Logger
}

// Stats of a UDP, over all its sockets and openings.
type Stats struct {
	Sent, Received uint64 // datagrams
	// Lost is what was dropped here: datagrams whose control messages were cut
	// off, so that nobody knows how many they are, and too large ones.
	Lost uint64
	// Empty datagrams were dropped here too.
	Empty uint64
	// Overflowed is how many the kernel dropped because nobody took them in
	// time, as far as datagrams that came after them told.
	Overflowed uint64
	// GSO is whether runs of datagrams are sent as one.
	GSO bool
}

// Remote is the outer address and port of the other end.
func Remote(ep conn.Endpoint) netip.AddrPort {
	if e, ok := ep.(interface{ AddrPort() netip.AddrPort }); ok {
		return e.AddrPort()
	}
	ap, err := netip.ParseAddrPort(ep.DstToString())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Classes of a packet, as its inner DSCP tells them.
const (
	ClassNone  byte = 0
	ClassVoice byte = 1 // expedited forwarding, RFC 3246
)

// dscpEF is expedited forwarding as a whole TOS or traffic class byte.
const dscpEF = 46 << 2

// ClassOf is how an IP packet wants to travel: by its own DSCP (RFC 2474).
func ClassOf(packet []byte) byte {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4 && packet[1]&0xfc == dscpEF,
		len(packet) >= 40 && packet[0]>>4 == 6 && (packet[0]<<4|packet[1]>>4)&0xfc == dscpEF:
		return ClassVoice
	}
	return ClassNone
}

// Kind is a datagram's WireGuard message type, 0 for what is none that WireGuard
// has. It says nothing about the length but that it is a message's at least.
func Kind(datagram []byte) uint32 {
	if len(datagram) < device.MinMessageSize {
		return 0
	}
	if k := binary.LittleEndian.Uint32(datagram); k <= device.MessageTransportType {
		return k
	}
	return 0
}

// CarriesPacket says whether a datagram is a transport message that is longer
// than a keepalive.
func CarriesPacket(datagram []byte) bool {
	return len(datagram) > keepaliveSize && Kind(datagram) == device.MessageTransportType
}

// messageHeader and keepaliveSize are WireGuard's: a transport message is a
// header, the packet and a tag of 16 bytes.
const (
	messageHeader = device.MessageTransportHeaderSize
	keepaliveSize = device.MessageKeepaliveSize
)

// Mark notes the class of the packet a tun.Device put into buf, one of the
// buffers its Read was given. WireGuard hands Read its whole message buffer and
// Bind.Send a slice of the same one, whose last byte no packet reaches: there
// the class travels past the encryption.
func Mark(buf []byte, class byte) {
	if len(buf) == device.MaxMessageSize {
		buf[len(buf)-1] = class
	}
}

// marked is the class that Mark noted of the packet in a datagram for
// Bind.Send. What does not come out of a tun.Device has none.
func marked(datagram []byte) byte {
	if cap(datagram) != device.MaxMessageSize || len(datagram) == cap(datagram) || len(datagram) <= keepaliveSize {
		return ClassNone
	}
	return datagram[:cap(datagram)][cap(datagram)-1]
}
