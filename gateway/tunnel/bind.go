package tunnel

import (
	"net/netip"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/portvakt/portvakt/internal/transport"
)

// bind is the device's way to the network. It shows the source of every
// datagram to seen, on the receiving goroutine.
type bind struct {
	conn.Bind
	port atomic.Uint32
	seen func(src netip.AddrPort)
}

// Open implements [conn.Bind].
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	b.port.Store(uint32(port))
	for i, fn := range fns {
		fns[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := fn(packets, sizes, eps)
			var last conn.Endpoint
			for j := range n {
				// Neighbours often have one source, and then one endpoint.
				if eps[j] != last && sizes[j] > 0 {
					last = eps[j]
					b.seen(transport.Remote(last))
				}
			}
			return n, err
		}
	}
	return fns, port, nil
}
