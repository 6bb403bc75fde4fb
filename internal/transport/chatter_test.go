package transport

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/coder/websocket"
	"golang.zx2c4.com/wireguard/conn"
)

// rawSocket is a WebSocket whose frames the test makes itself. What comes back
// is read; the channel gets how many frames that were when it ends.
func rawSocket(t *testing.T, to string) (net.Conn, chan int) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprint(c, "GET /raw HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	r := bufio.NewReader(c)
	if res, err := http.ReadResponse(r, nil); err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatal(res, err)
	}
	pongs := make(chan int, 1)
	go func() {
		n := 0
		for {
			var head [2]byte
			if _, err := io.ReadFull(r, head[:]); err != nil {
				pongs <- n
				return
			}
			if _, err := r.Discard(int(head[1] & 0x7f)); err == nil && head[0] == 0x8a {
				n++
			}
		}
	}()
	return c, pongs
}

// Frames that carry nothing cost more to take than to send: their number is
// bounded, and whoever breaks the protocol is counted.
func TestWebSocketMisuse(t *testing.T) {
	mask := []byte{0, 0, 0, 0}
	frame := func(first byte, payload ...byte) []byte {
		return append(append([]byte{first, 0x80 | byte(len(payload))}, mask...), payload...)
	}
	for name, c := range map[string]struct {
		frame []byte
		times int
		ends  bool
	}{
		"as many pings as there may be": {frame(0x89), chatterLimit, false},
		"pings":                         {frame(0x89), chatterLimit + 1, true},
		"pongs":                         {frame(0x8a), chatterLimit + 1, true},
		"empty messages":                {frame(0x82), chatterLimit + 1, true},
		"short messages":                {frame(0x82, 4), chatterLimit + 1, true},
		"messages of no kind":           {frame(0x82, append([]byte{9}, make([]byte, 40)...)...), chatterLimit + 1, true},
		"keepalives":                    {frame(0x82, append([]byte{4}, make([]byte, 31)...)...), 10 * chatterLimit, false},
		"text":                          {frame(0x81, 'a'), 1, true},
		"reserved bits":                 {frame(0xc2, 'a'), 1, true},
		"unmasked":                      {[]byte{0x82, 1, 'a'}, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFront(t)
			conn, pongs := rawSocket(t, f.url)
			for range c.times {
				if _, err := conn.Write(c.frame); err != nil {
					break // it has ended
				}
			}
			if !c.ends {
				_, _ = conn.Write(frame(0x88, 3, 232)) // 1000: all is well
			}
			select {
			case n := <-pongs:
				if n > 2 { // of one second; a slow machine's may be two
					t.Errorf("%d pings were answered", n)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("the WebSocket goes on")
			}
			f.carrying.Wait()
			if got := f.StreamStats().Faulty; got != map[bool]uint64{true: 1}[c.ends] {
				t.Errorf("%d WebSockets were misused", got)
			}
		})
	}
}

// A message that never becomes whole ends the Stream, however it is cut up.
func TestWebSocketMessageTakesTooLong(t *testing.T) {
	ended := make(chan *Stream, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		s := newStream(context.Background(), c, netip.AddrPort{}, newProbeKey())
		s.whole = 50 * time.Millisecond
		_ = s.Run(func(context.Context, datagram) {})
		ended <- s
	}))
	defer srv.Close()
	c, _ := rawSocket(t, srv.URL)
	_, _ = c.Write([]byte{0x02, 0x80, 0, 0, 0, 0}) // a first frame, and no last one
	for end := time.After(20 * time.Second); ; {
		select {
		case s := <-ended:
			if !s.faulty.Load() {
				t.Error("it is not counted as misused")
			}
			return
		case <-end:
			t.Fatal("the Stream goes on")
		case <-time.After(10 * time.Millisecond):
			_, _ = c.Write([]byte{0x00, 0x80, 0, 0, 0, 0})
		}
	}
}

// Keepalives of no session are counted, and hold nothing up.
func TestKeepalivesOfNoSessionAreCounted(t *testing.T) {
	in := newIntake(256, time.Hour)
	keepalive := make([]byte, keepaliveSize)
	keepalive[0] = 4
	n := 0
	receive := in.receive(func(packets [][]byte, sizes []int, _ []conn.Endpoint) (int, error) {
		n++
		sizes[0], sizes[1] = copy(packets[0], keepalive), copy(packets[1], keepalive)
		return 2, nil
	})
	packets, sizes := [][]byte{make([]byte, 64), make([]byte, 64)}, make([]int, 2)
	for range 3 {
		if _, err := receive(packets, sizes, nil); err != nil {
			t.Fatal(err)
		}
		packets[1] = make([]byte, 64) // WireGuard took the second one
	}
	if noSession, barren := in.tally.Refused(); noSession != 2 || barren != 0 || in.count != 0 {
		t.Errorf("%d of no session, %d without a packet, %d under way", noSession, barren, in.count)
	}
}
