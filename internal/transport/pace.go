package transport

import (
	"runtime"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
)

const (
	// underWay is how many packets, for each processor of two or more, WireGuard may have
	// between the inside and the socket, each way: some batches for each stage.
	underWay = 128

	// outPatience is after how long without a packet that comes or leaves none of
	// those under way is waited for. Of the packets that WireGuard takes a few never
	// leave it: it has no session for them, or no peer.
	outPatience = 5 * time.Millisecond

	// inPatience is how long a session of which nothing comes out may take room. It
	// is short: what never comes out may be somebody else's rubbish.
	inPatience = 2 * time.Millisecond
)

// Pace bounds what WireGuard holds between the inside and the socket, each way.
// Its own queues would take gigabytes, 64 KiB a packet, and a sender on this
// machine fills them: what waits there has left TCP's hands, adds to every delay
// and falls out of the processor's caches between one stage and the next.
// Outwards, Read waits until enough of what it handed out has been given to
// Send. Inwards, receiving waits until enough of what it handed out has been
// given to Write, and what comes meanwhile waits in the kernel's socket. The
// Tally is of what comes in.
func Pace(inside tun.Device, outside conn.Bind) (tun.Device, conn.Bind, *Tally) {
	limit := underWay * max(2, runtime.GOMAXPROCS(0))
	out, in := newPace(limit, outPatience), newIntake(limit, inPatience)
	return &pacedDevice{inside, out, in}, &pacedBind{outside, out, in}, &in.tally
}

// pace counts the packets that are under way outwards.
type pace struct {
	limit    int
	patience time.Duration
	free     chan struct{} // holds a token when a reader that waits may go on

	mu      sync.Mutex
	count   int       // packets between one end and the other
	waiting int       // readers
	moved   time.Time // when packets came or left last
	leaving int       // batches that are on their way out
}

func newPace(limit int, patience time.Duration) *pace {
	return &pace{limit: limit, patience: patience, free: make(chan struct{}, 1)}
}

// wait returns when there is room.
func (p *pace) wait() {
	p.mu.Lock()
	again := p.forgetLocked()
	if p.count < p.limit {
		p.mu.Unlock()
		return
	}
	p.waiting++
	timer := time.NewTimer(again)
	defer timer.Stop()
	// Half of it has to be free, as when packets leave. What never will would else
	// let a few through each time, and nothing would ever be quiet for long enough
	// to find out.
	for p.count > p.limit/2 {
		p.mu.Unlock()
		select {
		case <-p.free:
			p.mu.Lock()
		case <-timer.C:
			p.mu.Lock()
			timer.Reset(p.forgetLocked())
		}
	}
	p.waiting--
	next := p.waiting > 0 && p.count <= p.limit/2
	p.mu.Unlock()
	if next {
		p.release()
	}
}

// forgetLocked gives up what is left when nothing came or left for as long as is
// patient, and nothing is leaving: it never will. It returns when to look again.
func (p *pace) forgetLocked() (again time.Duration) {
	rest := p.patience - time.Since(p.moved)
	switch {
	case rest > 0:
		return rest
	case p.leaving == 0:
		p.count = 0
	}
	return p.patience
}

// release lets one reader go on.
func (p *pace) release() {
	select {
	case p.free <- struct{}{}:
	default:
	}
}

// entered notes packets that WireGuard was given.
func (p *pace) entered(n int) {
	p.mu.Lock()
	p.count += n
	p.moved = time.Now()
	p.mu.Unlock()
}

// leaves notes that a batch is on its way out, of which left tells the end: on a
// busy machine it takes longer than anybody is patient, and all that while nothing
// else can leave behind it.
func (p *pace) leaves() {
	p.mu.Lock()
	p.leaving++
	p.mu.Unlock()
}

// left notes that a batch with n packets of the inside left WireGuard.
func (p *pace) left(n int) {
	p.mu.Lock()
	p.leaving--
	if n > 0 {
		p.moved = time.Now()
	}
	p.count = max(0, p.count-n)
	// At half of it there is room for many at once.
	wake := p.waiting > 0 && p.count <= p.limit/2
	p.mu.Unlock()
	if wake {
		p.release()
	}
}

type pacedDevice struct {
	tun.Device
	out *pace
	in  *intake
}

// Read implements [tun.Device].
func (d *pacedDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	d.out.wait()
	n, err := d.Device.Read(bufs, sizes, offset)
	d.out.entered(n)
	return n, err
}

// Write implements [tun.Device].
func (d *pacedDevice) Write(bufs [][]byte, offset int) (int, error) {
	var few [2]held
	out := d.in.leaves(few[:0], bufs)
	packets := len(bufs)
	n, err := d.Device.Write(bufs, offset)
	d.in.left(out, packets)
	return n, err
}

type pacedBind struct {
	conn.Bind
	out *pace
	in  *intake
}

// Open implements [conn.Bind].
func (b *pacedBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.Bind.Open(port)
	for i, fn := range fns {
		fns[i] = b.in.receive(fn)
	}
	return fns, port, err
}

// Send implements [conn.Bind].
func (b *pacedBind) Send(datagrams [][]byte, ep conn.Endpoint) error {
	b.out.leaves()
	err := b.Bind.Send(datagrams, ep)
	n := 0
	for _, d := range datagrams {
		if CarriesPacket(d) {
			n++
		}
	}
	b.out.left(n)
	return err
}
