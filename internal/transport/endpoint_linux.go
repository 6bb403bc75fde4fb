package transport

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

// UDPEndpoint is another end's address, and the own address it sent to. It does
// not change, so that one may serve all datagrams of a source.
type UDPEndpoint struct {
	remote netip.AddrPort
	local  netip.Addr // not valid: the routes decide
	// forget is set when the local address turned out not to be usable.
	forget atomic.Bool
	// name is remote as the kernel reads it; nameLen is its length in bytes.
	name    unix.RawSockaddrInet6
	nameLen uint32
}

var _ conn.Endpoint = (*UDPEndpoint)(nil)

func newUDPEndpoint(remote netip.AddrPort, local netip.Addr) *UDPEndpoint {
	e := &UDPEndpoint{remote: netip.AddrPortFrom(remote.Addr().Unmap(), remote.Port()), local: local}
	a := e.remote.Addr()
	if a.Is4() {
		sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&e.name))
		sa.Family = unix.AF_INET
		sa.Addr = a.As4()
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], e.remote.Port())
		e.nameLen = unix.SizeofSockaddrInet4
		return e
	}
	e.name.Family = unix.AF_INET6
	e.name.Addr = a.As16()
	// A zone here is always a number: the receiver made it of one.
	if id, err := strconv.ParseUint(a.Zone(), 10, 32); err == nil {
		e.name.Scope_id = uint32(id)
	}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&e.name.Port))[:], e.remote.Port())
	e.nameLen = unix.SizeofSockaddrInet6
	return e
}

// AddrPort is the other end's address.
func (e *UDPEndpoint) AddrPort() netip.AddrPort { return e.remote }

// source is the address to send from, not valid if the routes decide.
func (e *UDPEndpoint) source() netip.Addr {
	if e.forget.Load() {
		return netip.Addr{}
	}
	return e.local
}

// ClearSrc implements [conn.Endpoint].
func (e *UDPEndpoint) ClearSrc() { e.forget.Store(true) }

// SrcToString implements [conn.Endpoint].
func (e *UDPEndpoint) SrcToString() string { return e.source().String() }

// DstToString implements [conn.Endpoint].
func (e *UDPEndpoint) DstToString() string { return e.remote.String() }

// DstToBytes implements [conn.Endpoint].
func (e *UDPEndpoint) DstToBytes() []byte {
	b, _ := e.remote.MarshalBinary() // never fails
	return b
}

// DstIP implements [conn.Endpoint].
func (e *UDPEndpoint) DstIP() netip.Addr { return e.remote.Addr() }

// SrcIP implements [conn.Endpoint].
func (e *UDPEndpoint) SrcIP() netip.Addr { return e.source() }

// generation is how many sources a cache remembers at least and, times two, at
// most: 3 MiB when strangers send from as many addresses as they like.
const generation = 16384

// source is what a datagram's header says of where it came from.
type source struct {
	remote, local [16]byte // 4 bytes of them for IPv4
	scope         uint32
	port          uint16
	sticky        bool
}

// endpoints gives every source its endpoint. One goroutine uses it. It forgets
// by generations: what was not seen while as many others came is gone.
type endpoints struct {
	v6           bool
	last         source
	lastEndpoint *UDPEndpoint
	young, old   map[source]*UDPEndpoint
}

func newEndpoints(v6 bool) *endpoints {
	return &endpoints{v6: v6, young: make(map[source]*UDPEndpoint), old: make(map[source]*UDPEndpoint)}
}

func (c *endpoints) get(s source) *UDPEndpoint {
	if c.lastEndpoint != nil && s == c.last {
		return c.lastEndpoint
	}
	e := c.young[s]
	if e == nil {
		if e = c.old[s]; e == nil {
			e = c.endpoint(s)
		}
		if len(c.young) >= generation {
			c.young, c.old = c.old, c.young
			clear(c.young)
		}
		c.young[s] = e
	}
	c.last, c.lastEndpoint = s, e
	return e
}

func (c *endpoints) endpoint(s source) *UDPEndpoint {
	var local netip.Addr
	if !c.v6 {
		if s.sticky {
			local = netip.AddrFrom4([4]byte(s.local[:4]))
		}
		return newUDPEndpoint(netip.AddrPortFrom(netip.AddrFrom4([4]byte(s.remote[:4])), s.port), local)
	}
	if s.sticky {
		local = netip.AddrFrom16(s.local)
	}
	remote := netip.AddrFrom16(s.remote)
	if s.scope != 0 && remote.IsLinkLocalUnicast() {
		remote = remote.WithZone(strconv.FormatUint(uint64(s.scope), 10))
	}
	return newUDPEndpoint(netip.AddrPortFrom(remote, s.port), local)
}
