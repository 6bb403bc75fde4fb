package tunnel

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

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
