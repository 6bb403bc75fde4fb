package peeruser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Supported says whether this platform has a lookup.
const Supported = true

// socket is one row of the kernel's tables.
type socket struct {
	local, remote netip.AddrPort
	uid           uint32
	inode         uint32
}

// tcpOwner asks the kernel for exactly this connection and, where sock_diag is
// not to be had (a seccomp filter, a kernel without the module), reads
// /proc/net.
func tcpOwner(client, server netip.AddrPort) (uint32, error) {
	socks, err := diagTCP(client, server)
	if err != nil {
		if socks, err = procSockets("tcp"); err != nil {
			return 0, err
		}
	}
	for _, s := range socks {
		// A socket without an inode was closed by its process (or is in
		// TIME_WAIT); the kernel then reports user 0 whoever made it.
		if s.local == client && s.remote == server && s.inode != 0 {
			return s.uid, nil
		}
	}
	return 0, fmt.Errorf("looking up the owner of %s: %w", client, ErrNotFound)
}

func udpOwners(port uint16) ([]uint32, error) {
	socks, err := diagUDP(port)
	if err != nil {
		if socks, err = procSockets("udp"); err != nil {
			return nil, err
		}
	}
	var uids []uint32
	for _, s := range socks {
		if s.local.Port() == port && s.inode != 0 && !slices.Contains(uids, s.uid) {
			uids = append(uids, s.uid)
		}
	}
	if len(uids) == 0 {
		return nil, fmt.Errorf("looking up the owner of UDP port %d: %w", port, ErrNotFound)
	}
	slices.Sort(uids)
	return uids, nil
}

// Layouts of linux/inet_diag.h: struct inet_diag_req_v2 and inet_diag_msg.
const (
	diagRequestLen = 8 + diagIDLen
	diagIDLen      = 48
	diagMessageLen = 4 + diagIDLen + 20
	netlinkHeader  = unix.SizeofNlMsghdr
	maxDiagAnswers = 4096
)

// diagTCP looks one connection up. The kernel answers an address pair it does
// not know with a listener on the port, so the caller compares the addresses.
// An AF_INET lookup also finds an IPv6 socket with mapped addresses.
func diagTCP(client, server netip.AddrPort) ([]socket, error) {
	family := byte(unix.AF_INET)
	if client.Addr().Is6() {
		family = unix.AF_INET6
	}
	socks, err := diag(family, unix.IPPROTO_TCP, 0, client, server)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	return socks, err
}

// diagUDP lists the sockets on a port, of both families: a dual-stack socket
// sends to 127.0.0.1 as well.
func diagUDP(port uint16) ([]socket, error) {
	var all []socket
	for family, host := range map[byte]netip.Addr{unix.AF_INET: netip.IPv4Unspecified(), unix.AF_INET6: netip.IPv6Unspecified()} {
		socks, err := diag(family, unix.IPPROTO_UDP, unix.NLM_F_DUMP, netip.AddrPortFrom(host, port), netip.AddrPortFrom(host, 0))
		if err != nil {
			return nil, err
		}
		all = append(all, socks...)
	}
	return all, nil
}

func diag(family, protocol byte, flags uint16, src, dst netip.AddrPort) ([]socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("opening sock_diag: %w", err)
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(500 * time.Millisecond))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return nil, fmt.Errorf("opening sock_diag: %w", err)
	}
	if err := unix.Sendto(fd, diagRequest(family, protocol, flags, src, dst), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("asking sock_diag: %w", err)
	}
	var socks []socket
	buf := make([]byte, 32<<10)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading sock_diag: %w", err)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not from the kernel
		}
		more, done, err := parseDiag(buf[:n])
		if err != nil {
			return nil, err
		}
		socks = append(socks, more...)
		if done || flags&unix.NLM_F_DUMP == 0 {
			return socks, nil
		}
		if len(socks) > maxDiagAnswers {
			return nil, errors.New("reading sock_diag: too many sockets")
		}
	}
}

func diagRequest(family, protocol byte, flags uint16, src, dst netip.AddrPort) []byte {
	b := make([]byte, netlinkHeader+diagRequestLen)
	ne := binary.NativeEndian
	ne.PutUint32(b[0:], uint32(len(b)))
	ne.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	ne.PutUint16(b[6:], unix.NLM_F_REQUEST|flags)
	r := b[netlinkHeader:]
	r[0], r[1] = family, protocol
	ne.PutUint32(r[4:], 0xffffffff) // every state
	id := r[8:]
	binary.BigEndian.PutUint16(id[0:], src.Port())
	binary.BigEndian.PutUint16(id[2:], dst.Port())
	copy(id[4:20], src.Addr().AsSlice())
	copy(id[20:36], dst.Addr().AsSlice())
	ne.PutUint32(id[40:], 0xffffffff) // no cookie
	ne.PutUint32(id[44:], 0xffffffff)
	return b
}

// parseDiag reads one datagram of netlink messages.
func parseDiag(b []byte) (socks []socket, done bool, err error) {
	ne := binary.NativeEndian
	for len(b) >= netlinkHeader {
		size := int(ne.Uint32(b))
		if size < netlinkHeader || size > len(b) {
			return nil, false, errors.New("reading sock_diag: truncated message")
		}
		body := b[netlinkHeader:size]
		switch ne.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return socks, true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return nil, false, errors.New("reading sock_diag: truncated error")
			}
			return nil, false, fmt.Errorf("reading sock_diag: %w", unix.Errno(-int32(ne.Uint32(body))))
		case unix.SOCK_DIAG_BY_FAMILY:
			s, ok := parseDiagMessage(body)
			if !ok {
				return nil, false, errors.New("reading sock_diag: truncated socket")
			}
			socks = append(socks, s)
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return socks, false, nil
}

func parseDiagMessage(b []byte) (socket, bool) {
	if len(b) < diagMessageLen {
		return socket{}, false
	}
	id := b[4:]
	tail := id[diagIDLen:]
	addr := func(raw []byte, port uint16) netip.AddrPort {
		if b[0] == unix.AF_INET {
			raw = raw[:4]
		}
		a, _ := netip.AddrFromSlice(raw)
		return netip.AddrPortFrom(a.Unmap(), port)
	}
	return socket{
		local:  addr(id[4:20], binary.BigEndian.Uint16(id[0:])),
		remote: addr(id[20:36], binary.BigEndian.Uint16(id[2:])),
		uid:    binary.NativeEndian.Uint32(tail[12:]),
		inode:  binary.NativeEndian.Uint32(tail[16:]),
	}, true
}
