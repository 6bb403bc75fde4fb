package transport

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// testPatience bounds the self-test, which takes well below a millisecond.
const testPatience = 300 * time.Millisecond

// testGSO sends a run of datagrams with a short one at its end to this machine
// itself and compares what arrives: some kernels cut wrongly. It returns nil if
// it all arrives, and also if there is no loopback to try it on.
func testGSO() error {
	loopback := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0"))
	to, err := net.ListenUDP("udp4", loopback)
	if err != nil {
		return nil
	}
	defer func() { _ = to.Close() }()
	from, err := net.ListenUDP("udp4", loopback)
	if err != nil {
		return nil
	}
	defer func() { _ = from.Close() }()

	const size, whole = 1000, 4
	data := make([]byte, size*whole+1)
	for i := range data {
		data[i] = byte(i*7 + i/size)
	}
	dst := to.LocalAddr().(*net.UDPAddr).AddrPort()
	if _, _, err := from.WriteMsgUDPAddrPort(data, putSegment(make([]byte, 0, controlSize), size), dst); err != nil {
		if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EPERM) {
			return nil
		}
		return fmt.Errorf("testing UDP segmentation: %w", err)
	}
	_ = to.SetReadDeadline(time.Now().Add(testPatience))
	buf := make([]byte, 2*size)
	for rest := data; len(rest) > 0; {
		n, src, err := to.ReadFromUDPAddrPort(buf)
		if err != nil {
			return fmt.Errorf("testing UDP segmentation: %d of %d bytes are missing: %w", len(rest), len(data), err)
		}
		if src != from.LocalAddr().(*net.UDPAddr).AddrPort() {
			continue
		}
		want := rest[:min(size, len(rest))]
		if !bytes.Equal(buf[:n], want) {
			return fmt.Errorf("testing UDP segmentation: the kernel changed the datagram at byte %d", len(data)-len(rest))
		}
		rest = rest[len(want):]
	}
	return nil
}
