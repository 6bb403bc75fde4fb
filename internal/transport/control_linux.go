package transport

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sizes of control messages in bytes, padding included.
var (
	spaceInt      = unix.CmsgSpace(4)
	spaceUint16   = unix.CmsgSpace(2)
	spacePktinfo4 = unix.CmsgSpace(unix.SizeofInet4Pktinfo)
	spacePktinfo6 = unix.CmsgSpace(unix.SizeofInet6Pktinfo)
)

// controlSize has room for what is received: the own address, the segment size, drops
// and as much again of what somebody else may have turned on; and for what is
// sent: own address, class and segment size.
const controlSize = 128

// received is what the kernel says beside a datagram.
type received struct {
	segment int      // length of the datagrams that were joined; 0 if it is one
	local   [16]byte // the address it was sent to, 4 bytes of it for IPv4
	sticky  bool     // local is there
	dropped uint32   // what the kernel has dropped of this socket's, counted round
}

// parseControl reads all control messages. What it does not know or what is cut
// off it passes over.
func parseControl(b []byte) (r received) {
	for len(b) >= unix.SizeofCmsghdr {
		var h unix.Cmsghdr
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&h)), unix.SizeofCmsghdr), b)
		if uint64(h.Len) < unix.SizeofCmsghdr || uint64(h.Len) > uint64(len(b)) {
			return r
		}
		data := b[unix.SizeofCmsghdr:h.Len]
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			// An int from the kernel; upstream reads its first two bytes.
			if n := int32(binary.NativeEndian.Uint32(data)); n > 0 {
				r.segment = int(n)
			}
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			r.dropped = binary.NativeEndian.Uint32(data)
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// ipi_spec_dst: the local address, also for a broadcast. RFC 3542
			// has no counterpart of it for IPv6.
			copy(r.local[:4], data[4:8])
			r.sticky = true
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			copy(r.local[:], data[:16])
			r.sticky = true
		}
		b = b[min(len(b), (int(h.Len)+align-1)&^(align-1)):]
	}
	return r
}

// align is how control messages are aligned on Linux.
const align = int(unsafe.Sizeof(uintptr(0)))

// put writes a control message's header at b's length and returns b with it,
// zeroed, and the place of the data. There must be room.
func put(b []byte, level, kind int32, size, space int) (longer, data []byte) {
	n := len(b)
	b = b[:n+space]
	clear(b[n:])
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[n]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	return b, b[n+unix.CmsgLen(0):]
}

// putSource makes a datagram leave from an address. The interface stays the
// routes' choice.
func putSource(b []byte, a netip.Addr) []byte {
	var data []byte
	if a.Is4() {
		b, data = put(b, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo, spacePktinfo4)
		ip := a.As4()
		copy(data[4:8], ip[:])
		return b
	}
	b, data = put(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo, spacePktinfo6)
	ip := a.As16()
	copy(data, ip[:])
	return b
}

// putClass sets the TOS or traffic class byte.
func putClass(b []byte, v6 bool, value byte) []byte {
	level, kind := int32(unix.IPPROTO_IP), int32(unix.IP_TOS)
	if v6 {
		level, kind = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
	}
	b, data := put(b, level, kind, 4, spaceInt)
	binary.NativeEndian.PutUint32(data, uint32(value))
	return b
}

// putSegment makes the kernel cut what is sent into datagrams of a size.
func putSegment(b []byte, size int) []byte {
	b, data := put(b, unix.SOL_UDP, unix.UDP_SEGMENT, 2, spaceUint16)
	binary.NativeEndian.PutUint16(data, uint16(size))
	return b
}
