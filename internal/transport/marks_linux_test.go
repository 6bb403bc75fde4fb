package transport

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"
)

// tunBuffer is a datagram as WireGuard sends it: a slice of its own buffer.
func tunBuffer(size int, class byte) []byte {
	buf := new([device.MaxMessageSize]byte)[:]
	Mark(buf, class)
	return buf[:size]
}

func TestMarks(t *testing.T) {
	for name, c := range map[string]struct {
		datagram []byte
		want     byte
	}{
		"voice":                 {tunBuffer(200, ClassVoice), ClassVoice},
		"other":                 {tunBuffer(200, ClassNone), ClassNone},
		"keepalive":             {tunBuffer(32, ClassVoice), ClassNone},
		"handshake":             {bytes.Repeat([]byte{ClassVoice}, 148), ClassNone},
		"full to the last byte": {bytes.Repeat([]byte{ClassVoice}, device.MaxMessageSize), ClassNone},
		"nothing":               {nil, ClassNone},
	} {
		if got := marked(c.datagram); got != c.want {
			t.Errorf("%s: class %d, want %d", name, got, c.want)
		}
	}
	Mark(make([]byte, 100), ClassVoice) // somebody else's buffer is left alone
}

// A receiver sees expedited forwarding on marked datagrams and on no other,
// with ECN's bits clear, in the order they were sent.
func TestMarkedDatagramsCarryTheirClass(t *testing.T) {
	for family, a := range loopbacks {
		t.Run(family, func(t *testing.T) {
			to, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
			if err != nil {
				t.Fatal(err)
			}
			defer to.Close()
			raw, err := to.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			_ = raw.Control(func(fd uintptr) {
				if a.Is4() {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_RECVTOS, 1)
				} else {
					err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1)
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			from := openUDP(t, NewUDP(UDPOptions{Sticky: true}))
			var all [][]byte
			var classes []byte
			for i := range 60 {
				class := byte(i / 7 % 2)
				d := tunBuffer(200, class)
				d[0] = byte(i)
				all, classes = append(all, d), append(classes, class)
			}
			ep, _ := from.ParseEndpoint(to.LocalAddr().String())
			if err := from.Send(all, ep); err != nil {
				t.Fatal(err)
			}
			_ = to.SetReadDeadline(time.Now().Add(3 * time.Second))
			buf, oob := make([]byte, 1000), make([]byte, 1000)
			for i, class := range classes {
				n, on, _, _, err := to.ReadMsgUDPAddrPort(buf, oob)
				if err != nil || n != 200 || buf[0] != byte(i) {
					t.Fatalf("datagram %d: %d bytes, number %d, %v", i, n, buf[0], err)
				}
				if got := tosOf(t, oob[:on]); got != class*46<<2 {
					t.Errorf("datagram %d of class %d has TOS %#x", i, class, got)
				}
			}
		})
	}
}

func tosOf(t *testing.T, oob []byte) byte {
	t.Helper()
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range ms {
		if (m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TOS) || (m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_TCLASS) {
			return m.Data[0]
		}
	}
	t.Fatal("no TOS came with the datagram")
	panic("unreachable")
}
