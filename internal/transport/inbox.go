package transport

import (
	"context"
	"net"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
)

// inboxLength is how many datagrams of all Streams wait for WireGuard. Then the
// Streams wait, in turn, and behind them TCP.
const inboxLength = 512

// Inbox is where the datagrams of Streams wait for WireGuard.
type Inbox struct {
	queue chan arrival

	mu   sync.Mutex
	done chan struct{} // guarded by mu; closed by Close, nil before Open
}

type arrival struct {
	datagram
	from conn.Endpoint
}

// NewInbox makes a closed Inbox.
func NewInbox() *Inbox { return &Inbox{queue: make(chan arrival, inboxLength)} }

// Open returns the Inbox's [conn.ReceiveFunc], which ends with Close.
func (b *Inbox) Open() conn.ReceiveFunc {
	b.mu.Lock()
	defer b.mu.Unlock()
	done := make(chan struct{})
	b.done = done
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		var a arrival
		select {
		case <-done:
			return 0, net.ErrClosed
		case a = <-b.queue:
		}
		for n := 0; ; {
			sizes[n] = copy(packets[n], a.bytes())
			eps[n] = a.from
			a.free()
			if n++; n == len(packets) {
				return n, nil
			}
			select {
			case a = <-b.queue:
			default:
				return n, nil
			}
		}
	}
}

// Close ends the receiver that Open returned. Closing twice is no error.
func (b *Inbox) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.done != nil {
		close(b.done)
		b.done = nil
	}
}

// put gives a datagram to WireGuard, or drops it when ctx ends first.
func (b *Inbox) put(ctx context.Context, d datagram, from conn.Endpoint) {
	select {
	case b.queue <- arrival{d, from}:
	case <-ctx.Done():
		d.free()
	}
}

// Carry runs a Stream whose datagrams come in here, as from from, and shows
// each one to seen first.
func (b *Inbox) Carry(s *Stream, from conn.Endpoint, seen func(datagram []byte)) error {
	return s.Run(func(ctx context.Context, d datagram) {
		seen(d.bytes())
		b.put(ctx, d, from)
	})
}
