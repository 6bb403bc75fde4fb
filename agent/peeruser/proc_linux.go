package peeruser

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// procSockets reads /proc/net/tcp and tcp6 (or udp and udp6) of this process's
// network namespace.
func procSockets(network string) ([]socket, error) {
	var all []socket
	for _, name := range []string{network, network + "6"} {
		f, err := os.Open("/proc/self/net/" + name)
		if os.IsNotExist(err) && name != network {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("reading the socket table: %w", err)
		}
		socks, err := parseProc(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("reading the socket table %s: %w", name, err)
		}
		all = append(all, socks...)
	}
	return all, nil
}

// parseProc reads the format of proc_pid_net(5). A row it cannot read is an
// error: what is not understood must not make an owner look alone.
func parseProc(r io.Reader) ([]socket, error) {
	var socks []socket
	lines := bufio.NewScanner(r)
	for first := true; lines.Scan(); first = false {
		if first {
			continue
		}
		f := strings.Fields(lines.Text())
		if len(f) < 10 {
			return nil, fmt.Errorf("a row has %d columns", len(f))
		}
		var s socket
		var err error
		if s.local, err = parseProcAddr(f[1]); err != nil {
			return nil, err
		}
		if s.remote, err = parseProcAddr(f[2]); err != nil {
			return nil, err
		}
		uid, err := strconv.ParseUint(f[7], 10, 32)
		if err != nil {
			return nil, fmt.Errorf("reading a user id: %w", err)
		}
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reading an inode: %w", err)
		}
		s.uid = uint32(uid)
		if inode != 0 {
			s.inode = max(1, uint32(inode)) // only zero or not matters
		}
		socks = append(socks, s)
	}
	return socks, lines.Err()
}

// parseProcAddr reads "0100007F:1F90": 32-bit words in the machine's byte
// order, the port as a number.
func parseProcAddr(s string) (netip.AddrPort, error) {
	host, port, ok := strings.Cut(s, ":")
	raw, err := hex.DecodeString(host)
	if !ok || err != nil || (len(raw) != 4 && len(raw) != 16) {
		return netip.AddrPort{}, fmt.Errorf("reading address %q", s)
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("reading address %q", s)
	}
	a, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), nil
}
