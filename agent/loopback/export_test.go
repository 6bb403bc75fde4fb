package loopback

import (
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/portvakt/portvakt/internal/wire"
)

// SetBounds shortens the waits for one test.
func SetBounds(t *testing.T, header, half, udp, recheck time.Duration) {
	h, f, u, r := headerTimeout, halfOpenLimit, udpIdle, udpRecheck
	headerTimeout, halfOpenLimit, udpIdle, udpRecheck = header, half, udp, recheck
	t.Cleanup(func() { headerTimeout, halfOpenLimit, udpIdle, udpRecheck = h, f, u, r })
}

// PAC writes the file for some apps.
func PAC(apps []wire.App, proxy netip.AddrPort) string { return pac(table(apps), proxy) }

// Find looks a host up as a request does.
func Find(apps []wire.App, host string, port uint16) (app string, known bool) {
	t, known := table(apps).find(host, port)
	if t == nil {
		return "", known
	}
	return t.key.app, known
}

func table(apps []wire.App) *routes {
	s := New(Config{})
	next := newRoutes()
	for _, a := range apps {
		r, keys := routeFor(a)
		for _, k := range keys {
			next.add(r, &target{key: k, addr: r.addrs[0]}, s.log)
		}
	}
	return next
}

// ReadSOCKS and SplitAuthority are the parsers.
func ReadSOCKS(rw io.ReadWriter) (string, uint16, error) {
	req, err := readSOCKS(rw)
	return req.host, req.port, err
}

// ReadDatagram and AppendDatagram are the parser and the writer of what
// relays carry.
func ReadDatagram(b []byte) (host string, port uint16, payload []byte, ok bool) {
	return readDatagram(b)
}

// AppendDatagram writes the head of a datagram.
func AppendDatagram(b []byte, from netip.AddrPort) []byte { return appendHead(b, from) }

// SetRelayIdle shortens the wait for one test.
func SetRelayIdle(t *testing.T, d time.Duration) {
	was := relayIdle
	relayIdle = d
	t.Cleanup(func() { relayIdle = was })
}

// SplitAuthority is splitAuthority.
func SplitAuthority(s string, byDefault uint16) (string, uint16, error) {
	return splitAuthority(s, byDefault)
}

// NormalHost is normalHost.
func NormalHost(s string) (string, bool) { return normalHost(s) }

// Languages is languages.
var Languages = languages
