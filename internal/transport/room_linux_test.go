package transport

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
)

// TestTooLittleRoomIsSaid: a gateway says once at its start that its sockets hold
// less than they asked for, and says nothing when they have it.
func TestTooLittleRoomIsSaid(t *testing.T) {
	for _, c := range []struct {
		ask  int
		said int
	}{
		{1 << 30, 1}, // which the kernel gives nobody
		{4096, 0},
	} {
		var log bytes.Buffer
		g := NewGateway(UDPOptions{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Log: slog.New(slog.NewTextHandler(&log, nil))})
		g.buffer = c.ask
		for range 2 {
			if _, _, err := g.Open(0); err != nil {
				t.Fatal(err)
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.Count(log.String(), fmt.Sprintf("wanted=%d", c.ask)); got != c.said || c.said > 0 && !strings.Contains(log.String(), "net.core.rmem_max") {
			t.Errorf("sockets that asked for %d bytes: said %d times, want %d: %s", c.ask, got, c.said, &log)
		}
	}
}

// TestShippedRoom: what deploy/systemd has the kernel allow is what is asked for.
func TestShippedRoom(t *testing.T) {
	b, err := os.ReadFile("../../deploy/systemd/sysctl.d/50-portvakt.conf")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"net.core.rmem_max", "net.core.wmem_max"} {
		if want := fmt.Sprintf("\n%s = %d\n", key, socketBuffer); !strings.Contains(string(b), want) {
			t.Errorf("%q is not in the file:\n%s", want, b)
		}
	}
}
