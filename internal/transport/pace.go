package transport

import (
	"runtime"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// underWay is how many packets, for each processor of two or more, WireGuard may have
	// between the inside and the socket: some batches for each stage.
	underWay = 128

	// paceSlice is for the few packets that WireGuard took and has no session
	// for, or no peer. What was read more than two slices ago is not under way,
	// whether it was sent or not, and neither is what a reader has waited for
	// that long: the encryption of all of it takes less.
	paceSlice = 5 * time.Millisecond
)

// Pace bounds what WireGuard holds between the inside and the socket. Its own
// queues would take gigabytes, 64 KiB a packet, and a sender on this machine
// fills them: what waits there has left TCP's hands, adds to every delay and
// falls out of the processor's caches between one stage and the next. Read
// waits until enough of what it handed out has been given to Send.
func Pace(inside tun.Device, outside conn.Bind) (tun.Device, conn.Bind) {
	p := &pace{limit: underWay * max(2, runtime.GOMAXPROCS(0)), free: make(chan struct{}, 1)}
	return &pacedDevice{inside, p}, &pacedBind{outside, p}
}

type pace struct {
	limit int
	free  chan struct{} // holds a token when a reader that waits may go on

	mu      sync.Mutex
	count   int // packets between Read and Send
	waiting bool

	since         time.Time // when the slice began
	recent, older int       // packets read in the slice and in the one before
}

// wait returns when there is room.
func (p *pace) wait() {
	p.mu.Lock()
	p.forget()
	if p.count < p.limit {
		p.mu.Unlock()
		return
	}
	p.waiting = true
	p.mu.Unlock()
	timer := time.NewTimer(paceSlice)
	defer timer.Stop()
	select {
	case <-p.free:
	case <-timer.C:
		p.mu.Lock()
		p.count, p.waiting = 0, false
		p.mu.Unlock()
	}
}

// forget lets go of what must have left long ago.
func (p *pace) forget() {
	now := time.Now()
	switch d := now.Sub(p.since); {
	case d < paceSlice:
		return
	case d < 2*paceSlice:
		p.older = p.recent
	default:
		p.older = 0
	}
	p.recent, p.since = 0, now
	p.count = min(p.count, p.older)
}

func (p *pace) took(n int) {
	p.mu.Lock()
	p.count += n
	p.recent += n
	p.mu.Unlock()
}

func (p *pace) sent(n int) {
	p.mu.Lock()
	p.count = max(0, p.count-n)
	// At half of it there is room for many at once.
	wake := p.waiting && p.count <= p.limit/2
	if wake {
		p.waiting = false
	}
	p.mu.Unlock()
	if wake {
		select {
		case p.free <- struct{}{}:
		default:
		}
	}
}

type pacedDevice struct {
	tun.Device
	pace *pace
}

// Read implements [tun.Device].
func (d *pacedDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.pace.wait()
	n, err := d.Device.Read(bufs, sizes, offset)
	d.pace.took(n)
	return n, err
}

type pacedBind struct {
	conn.Bind
	pace *pace
}

// Send implements [conn.Bind].
func (b *pacedBind) Send(datagrams [][]byte, ep conn.Endpoint) error {
	err := b.Bind.Send(datagrams, ep)
	n := 0
	for _, d := range datagrams {
		if len(d) > keepaliveSize && d[0] == device.MessageTransportType {
			n++
		}
	}
	if n > 0 {
		b.pace.sent(n)
	}
	return err
}
