package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// wire is a packet socket on one interface.
type wire struct {
	fd int
	to unix.SockaddrLinklayer
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// openSender sends IPv4 packets into a TUN interface.
func openSender(dev *net.Interface) (*wire, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	return &wire{fd, unix.SockaddrLinklayer{Ifindex: dev.Index, Protocol: htons(unix.ETH_P_IP)}}, nil
}

// send sends a packet. One for which there is no room is lost.
func (w *wire) send(b []byte) error {
	err := unix.Sendto(w.fd, b, unix.MSG_DONTWAIT, &w.to)
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) {
		return nil
	}
	return err
}

// Close closes the socket.
func (w *wire) Close() { _ = unix.Close(w.fd) }

// recorded is how many of the agent's own datagrams are repeated.
const recorded = 500

// record makes the agent send something and keeps the frames in which it does,
// with a socket to send them again.
func record(ctx context.Context, voice netip.AddrPort) ([][]byte, *wire, error) {
	cable, err := net.InterfaceByName("wan3")
	if err != nil {
		return nil, nil, fmt.Errorf("finding the cable: %w", err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		return nil, nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	w := &wire{fd, unix.SockaddrLinklayer{Ifindex: cable.Index, Protocol: htons(unix.ETH_P_ALL)}}
	frames, err := w.record(ctx, voice)
	if err == nil { // what is sent is not to be heard as well
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: 0, Protocol: 0})
	}
	if err != nil {
		w.Close()
		return nil, nil, err
	}
	return frames, w, nil
}

func (w *wire) record(ctx context.Context, voice netip.AddrPort) ([][]byte, error) {
	if err := unix.Bind(w.fd, &w.to); err != nil {
		return nil, err
	}
	if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 1000}); err != nil {
		return nil, err
	}
	c, err := net.Dial("udp4", voice.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var frames [][]byte
	buf := make([]byte, 70_000)
	for end := time.Now().Add(10 * time.Second); len(frames) < recorded; {
		if ctx.Err() != nil || time.Now().After(end) {
			return nil, fmt.Errorf("only %d of the agent's own datagrams were seen", len(frames))
		}
		if _, err := c.Write(make([]byte, 200)); err != nil {
			return nil, err
		}
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if ok && ll.Pkttype == unix.PACKET_OUTGOING && transport(buf[:n]) {
			frames = append(frames, append([]byte(nil), buf[:n]...))
		}
	}
	return frames, nil
}

// transport says whether a frame holds one WireGuard transport message.
func transport(f []byte) bool {
	return len(f) >= outerHead+32 && len(f) <= 1514 && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IP &&
		f[14] == 0x45 && f[23] == protoUDP && f[outerHead] == 4
}
