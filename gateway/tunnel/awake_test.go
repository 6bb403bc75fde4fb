package tunnel

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"github.com/portvakt/portvakt/internal/transport"
)

// After a lapse nothing that carries data leaves, also what WireGuard had
// encrypted before it; the tunnel's own messages do.
func TestNothingLeavesAfterALapse(t *testing.T) {
	awake := true
	tun, err := New(Config{
		PrivateKey: [32]byte{1}, Listen: "127.0.0.1:0", Table: tableForTest(), Awake: func() bool { return awake },
		Addresses: [2]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	message := func(kind uint32, size int) []byte {
		b := make([]byte, size)
		binary.LittleEndian.PutUint32(b, kind)
		return b
	}
	var sent [][]byte
	in := newIngress(tun, &wire{out: func(b []byte, _ netip.AddrPort) { sent = append(sent, b) }})
	data, keepalive := message(device.MessageTransportType, 1000), message(device.MessageTransportType, device.MessageKeepaliveSize)
	cookie := message(device.MessageCookieReplyType, device.MessageCookieReplySize)
	for _, c := range []struct {
		awake bool
		bufs  [][]byte
		want  int
	}{
		{true, [][]byte{data, data, keepalive}, 3},
		{false, [][]byte{data}, 0},
		{false, [][]byte{data, keepalive, data}, 1},
		{false, [][]byte{cookie}, 1},
		{true, [][]byte{data}, 1},
	} {
		awake, sent = c.awake, nil
		if err := in.Send(c.bufs, &conn.StdNetEndpoint{AddrPort: netip.MustParseAddrPort("127.0.0.1:9")}); err != nil {
			t.Fatal(err)
		}
		if len(sent) != c.want {
			t.Errorf("awake %v, %d messages: %d were sent, want %d", c.awake, len(c.bufs), len(sent), c.want)
		}
		for _, b := range sent {
			if !c.awake && transport.CarriesPacket(b) {
				t.Error("data left after a lapse")
			}
		}
	}
}
