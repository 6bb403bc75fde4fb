package tunnel

import (
	"errors"
	"os"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/portvakt/portvakt/internal/tunread"
	"github.com/portvakt/portvakt/internal/voice"
)

const (
	// vnetHead is what stands before a packet that is written, in bytes (struct
	// virtio_net_hdr): nothing but zeros when the packet is whole.
	vnetHead = 10
	// speech is the largest packet of a call, in bytes: what the gateway takes for
	// one, and its headers. A call's datagrams are not joined: of each flow there
	// is one at a time.
	speech = voice.Longest + 40 + 8
)

// batched is the interface, read by more than a packet at a time, and written
// past what joins packets where there is nothing to join.
type batched struct {
	tun.Device
	reader *tunread.Reader
	raw    syscall.RawConn

	mu     sync.Mutex // guards what follows
	calls  [][]byte   // of the Write under way, and the rest of it
	others [][]byte
	offset int
	err    error
	write  func(fd uintptr) // writeCalls, kept so that writing allocates nothing
}

func newBatched(dev tun.Device) (*batched, error) {
	reader, err := tunread.New(dev.File())
	if err != nil {
		return nil, err
	}
	raw, err := dev.File().SyscallConn()
	if err != nil {
		return nil, err
	}
	b := &batched{Device: dev, reader: reader, raw: raw}
	b.write = b.writeCalls
	return b, nil
}

// Read implements [tun.Device].
func (b *batched) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	return b.reader.Read(bufs, sizes, offset)
}

// Write implements [tun.Device]. The order of a flow's packets stays.
func (b *batched) Write(bufs [][]byte, offset int) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls, b.others, b.offset, b.err = b.calls[:0], b.others[:0], offset, nil
	for _, buf := range bufs {
		switch p := buf[offset:]; {
		case !isUDP(p):
			b.others = append(b.others, buf)
		case len(p) > speech: // a download's: to be joined, with the small ones of its flow where they are
			return b.Device.Write(bufs, offset)
		default:
			b.calls = append(b.calls, buf)
		}
	}
	if len(b.calls) > 0 {
		if err := b.raw.Control(b.write); err != nil {
			return 0, os.ErrClosed
		}
	}
	if len(b.others) > 0 && !errors.Is(b.err, os.ErrClosed) {
		_, err := b.Device.Write(b.others, offset)
		b.err = errors.Join(b.err, err)
	}
	return len(bufs), b.err
}

// writeCalls does not tell the runtime of its system calls: none waits, and there
// is one a datagram.
func (b *batched) writeCalls(fd uintptr) {
	for _, buf := range b.calls {
		p := buf[b.offset-vnetHead:]
		clear(p[:vnetHead])
		_, _, errno := unix.RawSyscall(unix.SYS_WRITE, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch errno {
		case 0:
		case unix.EBADFD: // the interface is gone
			b.err = os.ErrClosed
			return
		default:
			b.err = os.NewSyscallError("write", errno)
		}
	}
}

// isUDP says whether a packet is a datagram without extension headers.
func isUDP(p []byte) bool {
	return len(p) >= 20 && p[0]>>4 == 4 && p[9] == unix.IPPROTO_UDP || len(p) >= 40 && p[0]>>4 == 6 && p[6] == unix.IPPROTO_UDP
}
