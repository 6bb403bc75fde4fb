// Package http1 speaks HTTP/1.1 (RFC 9112) to apps, on the goroutine of the
// request: a connection is written to and read from by whoever holds it, and no
// other goroutine stands between. It reads what an app answers in one way only
// and refuses what two parsers could read differently, so that the end of one
// answer is never in doubt; a connection is used again only when it is not, and
// only for the login it was made for.
package http1

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	headBuffer = 24 << 10 // an answer of 16 KiB with its head is one read(2)
	bodyBuffer = 64 << 10
)

var (
	small = sync.Pool{New: func() any { b := make([]byte, headBuffer); return &b }}
	large = sync.Pool{New: func() any { b := make([]byte, bodyBuffer); return &b }}
)

// Conn is a connection to an app. One goroutine at a time reads from it and one
// writes to it; [Conn.Abort] may be called by any.
type Conn struct {
	nc     net.Conn
	pool   *Pool
	holder Holder
	via    netip.AddrPort // the device's connection it served last
	reused bool

	// While it waits, guarded by the pool.
	since        time.Time // when it began to
	newer, older *Conn     // of the pool
	above, below *Conn     // of the device

	buf  *[]byte // of a sync.Pool, nil while the connection waits
	r, w int     // what is read and not taken: (*buf)[r:w]
	took int     // bytes of heads so far
	got  bool    // a byte of an answer was read
	end  bool    // the app closed its direction

	framing framing
	left    int64 // of a body with a length, or of a chunk
	chunk   chunkState
	over    bool // the answer was read to its end
	asks    bool // the answer was 401: the next request may end a handshake
	fields  []Field
	wait    func() error // of Next
}

func (c *Conn) begin() {
	c.buf, c.r, c.w = small.Get().(*[]byte), 0, 0
	c.took, c.got, c.over = 0, false, false
}

// Reused says that the connection carried an exchange before.
func (c *Conn) Reused() bool { return c.reused }

// Answered says that a byte of an answer has come.
func (c *Conn) Answered() bool { return c.got }

// Write sends bytes of a request.
func (c *Conn) Write(b []byte) (int, error) { return c.nc.Write(b) }

// SetReadDeadline bounds the reads that follow; the zero time lifts the bound.
func (c *Conn) SetReadDeadline(t time.Time) { _ = c.nc.SetReadDeadline(t) }

// Abort ends the connection, so that nothing queued is sent any more and who
// waits for it does so no longer.
func (c *Conn) Abort() {
	if l, ok := c.nc.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.nc.Close()
}

// Release ends the exchange. The connection is used again if the answer was
// read to its end, leaves no doubt where that is, and sent says that the whole
// request was written.
func (c *Conn) Release(sent bool) {
	clean := sent && c.over && c.framing.reusable && c.r == c.w && !c.end
	c.free()
	c.wait = nil
	clear(c.fields[:cap(c.fields)])
	c.fields = c.fields[:0]
	if !clean {
		_ = c.nc.Close()
		return
	}
	c.pool.put(c)
}

func (c *Conn) free() {
	if c.buf == nil {
		return
	}
	if len(*c.buf) == headBuffer {
		small.Put(c.buf)
	} else if len(*c.buf) == bodyBuffer {
		large.Put(c.buf)
	}
	c.buf = nil
}

var errEnded = errors.New("the app closed the connection within its answer")

// fill reads more. Nothing that is there moves unless there is no room.
func (c *Conn) fill() error {
	b := *c.buf
	if c.w == len(b) && c.r > 0 {
		c.w = copy(b, b[c.r:c.w])
		c.r = 0
	}
	if c.w == len(b) {
		if len(b) >= c.pool.opt.HeadBytes {
			return fmt.Errorf("a head of more than %d bytes", c.pool.opt.HeadBytes)
		}
		grown := make([]byte, 2*len(b))
		c.w = copy(grown, b[:c.w])
		c.free()
		c.buf, b = &grown, grown
	}
	n, err := c.nc.Read(b[c.w:])
	c.w += n
	if n > 0 {
		c.got = true
		return nil
	}
	if errors.Is(err, io.EOF) {
		c.end = true
		return errEnded
	}
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}
