// Package http1 speaks HTTP/1.1 (RFC 9112) on the goroutine of the request: to
// apps ([Pool], [Conn]) and to devices ([Server]). Whoever holds a connection
// reads from it and writes to it, and no other goroutine stands between. Each
// message is read once, in one way only, and what two parsers could read
// differently is refused, so that the end of one is never in doubt. A
// connection to an app is used again only when it is not, and only for the login
// it was made for.
package http1

import (
	"errors"
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
	bounds bounds

	// While it waits, guarded by the pool.
	since        time.Time // when it began to
	newer, older *Conn     // of the pool
	above, below *Conn     // of the device
}

// Reused says that the connection carried an exchange before.
func (c *Conn) Reused() bool { return c.reused }

// Answered says that a byte of an answer has come.
func (c *Conn) Answered() bool { return c.got }

var errNoSocket = errors.New("a connection without a socket")

// ErrStale is why nothing was sent on a connection that had waited: the app
// said something unasked meanwhile, be it only that it closes, and an app that
// does is not listened to.
var ErrStale = errors.New("the app spoke unasked on a connection that waited")

// Send sends a request, or its beginning, and returns when its first byte was
// written. The app must take it within a time. Where it is the whole request,
// the app must also begin to answer within that time, and Send returns when it
// does; how else that ended, ReadHead says. An error other than [ErrStale] may
// mean that the app answered and went before it had read everything.
func (c *Conn) Send(b []byte, whole bool, within time.Duration) (time.Time, error) {
	due := time.Now().Add(within)
	if whole {
		c.SetReadDeadline(due)
	}
	begun, left, err := c.probe.send(c.nc, b, c.reused, whole)
	if errors.Is(err, errNoSocket) {
		if c.reused {
			return begun, ErrStale // for all one knows
		}
		begun, err = time.Now(), nil
	}
	if err == nil && len(left) > 0 {
		_, err = c.write(left, due)
	}
	return begun, err
}

// Write sends more of a request. How long the app may take is up to the
// connection that was dialled.
func (c *Conn) Write(b []byte) (int, error) { return c.nc.Write(b) }

func (c *Conn) write(b []byte, due time.Time) (int, error) {
	c.bounds.move(&c.bounds.write, due)
	n, err := c.nc.Write(b)
	c.bounds.move(&c.bounds.write, time.Time{})
	return n, err
}

// SetReadDeadline bounds the reads that follow; the zero time lifts the bound.
func (c *Conn) SetReadDeadline(t time.Time) { c.bounds.move(&c.bounds.read, t) }

// Abort ends the connection, so that nothing queued is sent any more and who
// waits for it does so no longer.
func (c *Conn) Abort() {
	if l, ok := c.nc.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	c.close()
}

// close ends the connection. Whoever uses it notices.
func (c *Conn) close() {
	c.bounds.end()
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
		c.close()
		return
	}
	c.pool.put(c)
}
