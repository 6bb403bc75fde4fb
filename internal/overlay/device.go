package overlay

import (
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/portvakt/portvakt/internal/transport"
)

// device is the tunnel's side of the link. WireGuard reads it from one
// goroutine and writes it from one for each peer.
type device struct {
	stack     *Stack
	link      *link
	events    chan tun.Event
	close     sync.Once
	refused   atomic.Uint64
	malformed atomic.Uint64

	notForStack atomic.Uint64 // of refused

	// The reader's.
	cut    cutter
	voiced bool // a packet of the voice class was read before

	// inbound is read-locked while packets enter the stack; stopInbound takes
	// it whole, after which none is inside and none gets in.
	inbound sync.RWMutex
	stopped bool
}

var _ tun.Device = (*device)(nil)

func newDevice(s *Stack) *device {
	// No EventUp: whoever makes the WireGuard device brings it up when its
	// keys are set.
	return &device{stack: s, link: s.link, events: make(chan tun.Event)}
}

// File implements [tun.Device]; there is none.
func (*device) File() *os.File { return nil }

// Read implements [tun.Device]. A segment that fills more buffers than there
// are goes on in the next Read.
func (d *device) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n := 0
	for n < len(bufs) {
		if d.cut.packet == nil {
			injected, p, err := d.link.pop(n == 0)
			switch {
			case err != nil && n == 0:
				return 0, err
			case injected != nil:
				sizes[n] = copy(bufs[n][offset:], injected)
				d.mark(bufs[n], injected)
				n++
				continue
			case p == nil:
				return n, nil
			}
			d.cut.start(p)
		}
		if sizes[n] = d.cut.next(bufs[n][offset:]); sizes[n] > 0 {
			d.mark(bufs[n], bufs[n][offset:][:sizes[n]])
			n++
		}
	}
	return n, nil
}

// mark notes the class of packet, which is in buf, by [transport.Mark]. The
// buffers come back: once there was voice in one, each has to be marked. Until
// then their ends, a page of memory each, are left alone.
func (d *device) mark(buf, packet []byte) {
	class := transport.ClassOf(packet)
	if class == transport.ClassVoice {
		d.voiced = true
	}
	if d.voiced {
		transport.Mark(buf, class)
	}
}

// Write implements [tun.Device]. A packet that is no IP or that the filter
// refuses is no error.
func (d *device) Write(bufs [][]byte, offset int) (int, error) {
	d.inbound.RLock()
	defer d.inbound.RUnlock()
	if d.stopped {
		return 0, os.ErrClosed
	}
	a := arrivalsPool.Get().(*arrivals)
	for _, b := range bufs {
		if p := b[offset:]; d.admits(p, a) && !a.add(p) {
			d.malformed.Add(1)
		}
	}
	if len(a.taken) > 0 {
		if take := d.stack.opts.Taken; take != nil {
			take(a.taken)
		}
		clear(a.taken) // the buffers are WireGuard's
		a.taken = a.taken[:0]
	}
	a.deliver(d.link)
	arrivalsPool.Put(a)
	return len(bufs), nil
}

// admits reports whether the stack may see packet, or puts it with what is taken.
func (d *device) admits(packet []byte, a *arrivals) bool {
	if len(packet) == 0 {
		d.malformed.Add(1)
		return false
	}
	if f := d.stack.opts.Filter; f != nil {
		action, reply := f(packet)
		if reply != nil {
			d.link.inject(reply)
		}
		switch action {
		case Pass:
		case Taken:
			a.taken = append(a.taken, packet)
			return false
		default:
			d.refused.Add(1)
			return false
		}
	}
	if d.stack.opts.Gateway && !d.forGateway(packet) {
		d.refused.Add(1)
		d.notForStack.Add(1)
		return false
	}
	reply, refused := d.stack.turnAway(packet)
	if reply != nil {
		d.link.inject(reply)
	}
	return !refused
}

// forGateway keeps from a stack that answers for every address what such a
// stack must not act on: UDP, which is not its own, ICMP but for echo requests to
// its own addresses and news of a smaller path, SYN with FIN, fragments, and IPv6 extension
// headers, behind which ICMP could hide. It holds with any filter and without one.
func (d *device) forGateway(packet []byte) bool {
	var proto tcpip.TransportProtocolNumber
	var l4 []byte
	switch {
	case len(packet) >= header.IPv4MinimumSize && packet[0]>>4 == 4:
		if h := header.IPv4(packet); h.More() || h.FragmentOffset() != 0 {
			return false
		}
		proto, l4 = header.IPv4(packet).TransportProtocol(), packet[min(int(packet[0]&0x0f)*4, len(packet)):]
	case len(packet) >= header.IPv6MinimumSize && packet[0]>>4 == 6:
		proto, l4 = header.IPv6(packet).TransportProtocol(), packet[header.IPv6MinimumSize:]
	default:
		return false
	}
	switch {
	case proto == header.TCPProtocolNumber: // what begins a connection and ends it at once is nobody's
		return len(l4) < header.TCPMinimumSize || !begins(l4) || header.TCP(l4).Flags()&header.TCPFlagFin == 0
	case len(l4) < header.ICMPv4MinimumSize:
		return false
	case packet[0]>>4 == 4 && proto == header.ICMPv4ProtocolNumber:
		dst := netip.AddrFrom4([4]byte(packet[16:]))
		return l4[0] == byte(header.ICMPv4Echo) && slices.Contains(d.stack.opts.Addresses, dst) ||
			l4[0] == byte(header.ICMPv4DstUnreachable) && l4[1] == byte(header.ICMPv4FragmentationNeeded) && header.ICMPv4(l4).MTU() >= leastPath4
	case packet[0]>>4 == 6 && proto == header.ICMPv6ProtocolNumber:
		dst := netip.AddrFrom16([16]byte(packet[24:]))
		return l4[0] == byte(header.ICMPv6EchoRequest) && slices.Contains(d.stack.opts.Addresses, dst) ||
			l4[0] == byte(header.ICMPv6PacketTooBig) && l4[1] == 0 && header.ICMPv6(l4).MTU() >= header.IPv6MinimumMTU
	}
	return false
}

// leastPath4 is the least MTU of a path that a gateway's stack believes in over
// IPv4; IPv6 has one of its own. Of some that are less it makes segments of a
// single byte.
const leastPath4 = 576

// MTU implements [tun.Device].
func (d *device) MTU() (int, error) { return int(d.link.MTU()), nil }

// Name implements [tun.Device].
func (*device) Name() (string, error) { return "portvakt", nil }

// Events implements [tun.Device].
func (d *device) Events() <-chan tun.Event { return d.events }

// BatchSize implements [tun.Device]. It is what the socket's side uses on the
// same system, and a segment of 64 KiB with the tunnel's usual MTU; more would
// only take memory, 64 KiB a packet.
func (*device) BatchSize() int {
	if runtime.GOOS == "linux" {
		return 64
	}
	return 1
}

// Close implements [tun.Device].
func (d *device) Close() error {
	d.close.Do(func() {
		d.stopInbound()
		d.link.shut()
		close(d.events)
	})
	return nil
}

func (d *device) stopInbound() {
	d.inbound.Lock()
	defer d.inbound.Unlock()
	d.stopped = true
}

// encryptTime is what encrypting and sending the last packets may take at the
// end; see drain.
const encryptTime = 10 * time.Millisecond

// drain waits until the queue is empty, at most for limit, and a moment for what
// was taken from it last: WireGuard encrypts on other goroutines and drops what
// they still have when its device is closed.
func (d *device) drain(limit time.Duration) {
	for end := time.Now().Add(limit); d.link.waiting() > 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(encryptTime)
}
