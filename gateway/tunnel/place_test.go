package tunnel

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/transport"
)

// Where one device was by UDP may be where another one's WebSocket comes from
// by now: the one is not called over the other's.
func TestPlaceOfAnotherDevice(t *testing.T) {
	tun, err := New(Config{
		PrivateKey: [32]byte{1}, Listen: "127.0.0.1:0", Table: tableForTest(),
		Addresses: [2]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	tun.bind = newIngress(tun, tun.outside)
	if _, _, err := tun.bind.Open(0); err != nil {
		t.Fatal(err)
	}
	defer tun.bind.Close()
	from := make(chan netip.AddrPort, 1)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from <- netip.MustParseAddrPort(r.RemoteAddr)
		_ = tun.Accept(w, r, "b")
	}))
	defer s.Close()
	c, _, err := websocket.Dial(t.Context(), "ws"+strings.TrimPrefix(s.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	at := <-from
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(time.Millisecond) {
		if ep, err := tun.endpoint(place{at, "b"}); err != nil {
			t.Fatal(err)
		} else if e, ok := ep.(*transport.StreamEndpoint); ok && e.Device() == "b" {
			break
		}
		if time.Now().After(end) {
			t.Fatal("b's WebSocket is not found")
		}
	}
	if ep, err := tun.endpoint(place{at, ""}); err != nil || transport.Remote(ep) != at {
		t.Errorf("UDP: %v, %v", ep, err)
	} else if _, ok := ep.(*transport.StreamEndpoint); ok {
		t.Error("UDP: it is b's WebSocket")
	}
	if ep, err := tun.endpoint(place{at, "a"}); ep != nil || err != nil {
		t.Errorf("a WebSocket of a's that has ended: %v, %v", ep, err)
	}
	if ep, err := tun.endpoint(place{}); ep != nil || err != nil {
		t.Errorf("nowhere: %v, %v", ep, err)
	}
}

// readable is an inside with these packets.
type readable struct {
	tun.Device
	packets [][]byte
}

func (r readable) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i, p := range r.packets {
		sizes[i] = copy(bufs[i][offset:], p)
	}
	return len(r.packets), nil
}

// What waits for a device that sleeps is not handed to WireGuard, and so not
// counted as under way in it.
func TestHeldIsNotUnderWay(t *testing.T) {
	gw, err := New(Config{
		PrivateKey: [32]byte{1}, Listen: "127.0.0.1:0", Table: tableForTest(),
		Addresses: [2]netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00::1")},
	})
	if err != nil {
		t.Fatal(err)
	}
	asleep := &registration{}
	gw.known.byAddress[netip.MustParseAddr("100.64.0.2")] = asleep
	to := func(last, mark byte) []byte {
		p := make([]byte, 24)
		p[0], p[23] = 0x45, mark
		copy(p[16:], []byte{100, 64, 0, last})
		return p
	}
	e := &egress{Device: readable{packets: [][]byte{to(2, 1), to(9, 2), to(2, 3), to(8, 4)}}, t: gw}
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, 64)
	}
	n, err := e.Read(bufs, sizes, 16)
	if err != nil || n != 2 || sizes[0] != 24 || sizes[1] != 24 || bufs[0][16+23] != 2 || bufs[1][16+23] != 4 {
		t.Errorf("%d packets of %v bytes, %v", n, sizes, err)
	}
	if len(asleep.held) != 2 || asleep.held[0][23] != 1 || asleep.held[1][23] != 3 {
		t.Errorf("%d packets wait", len(asleep.held))
	}
}
