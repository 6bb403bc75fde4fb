// Package http1 speaks HTTP/1.1 (RFC 9112) on the goroutine of the request: to
// apps ([Pool], [Conn]) and to devices ([Server]). Whoever holds a connection
// reads from it and writes to it, and no other goroutine stands between. Each
// message is read once, in one way only, and what two parsers could read
// differently is refused, so that the end of one is never in doubt. A
// connection to an app is used again only when it is not, and only for the login
// it was made for.
package http1

import (
	"math"
	"net/netip"
	"time"
)

// Conn is a connection to an app. One goroutine at a time reads from it and one
// writes to it; [Conn.Abort] may be called by any.
type Conn struct {
	reader
	pool   *Pool
	holder Holder
	via    netip.AddrPort // the device's connection it served last
	reused bool
	asks   bool // the answer was 401: the next request may end a handshake
	probe  probe

	// While it waits, guarded by the pool.
	since        time.Time // when it began to
	newer, older *Conn     // of the pool
	above, below *Conn     // of the device
}

// Reused says that the connection carried an exchange before.
func (c *Conn) Reused() bool { return c.reused }

// Answered says that a byte of an answer has come.
func (c *Conn) Answered() bool { return c.got }

// Write sends bytes of a request.
func (c *Conn) Write(b []byte) (int, error) { return c.nc.Write(b) }

// SetReadDeadline bounds the reads that follow; the zero time lifts the bound.
func (c *Conn) SetReadDeadline(t time.Time) { _ = c.nc.SetReadDeadline(t) }

// SetWriteDeadline bounds the writes that follow.
func (c *Conn) SetWriteDeadline(t time.Time) { _ = c.nc.SetWriteDeadline(t) }

// Abort ends the connection, so that nothing queued is sent any more and who
// waits for it does so no longer.
func (c *Conn) Abort() {
	if l, ok := c.nc.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.nc.Close()
}

// Next returns the next piece of the body, valid until the next call, and
// io.EOF after the last one. It calls wait, which may be nil, each time before
// it waits for the app: what was returned so far should be on its way by then.
func (c *Conn) Next(wait func() error) ([]byte, error) {
	c.wait = wait
	b, err := c.next(math.MaxInt64)
	return b, answerFault(err)
}

// Buffered is how many bytes were read that nobody has taken: so many Next
// returns without waiting.
func (c *Conn) Buffered() int { return c.w - c.r }

// Trailer returns the trailer lines, once Next has returned io.EOF. They are
// valid until the connection is released.
func (c *Conn) Trailer() []Field { return c.trailer() }

// Release ends the exchange. The connection is used again if the answer was
// read to its end, leaves no doubt where that is, and sent says that the whole
// request was written.
func (c *Conn) Release(sent bool) {
	clean := sent && c.over && c.framing.reusable && c.r == c.w && !c.end
	c.free()
	c.forget()
	if !clean {
		_ = c.nc.Close()
		return
	}
	c.pool.put(c)
}
