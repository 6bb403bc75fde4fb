package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/coder/websocket"
)

const (
	// chatterLimit is how many frames in one second may carry nothing: pings and
	// pongs beyond their need, and messages shorter than any of WireGuard's. They
	// cost the end that takes them more than who sends them.
	chatterLimit = 64
)

// Reasons for ending a Stream whose other end misuses it.
var (
	errChatter = errors.New("too many WebSocket frames that carry nothing")
	errSlow    = errors.New("a WebSocket message took too long to be whole")
)

// idly notes a frame that carries nothing, and reports whether there may be one.
func (s *Stream) idly(now time.Time) bool { return s.chatter.within(now, chatterLimit) }

// tempo counts what happens within a second.
type tempo struct {
	from time.Time
	n    int
}

// within counts one more and reports whether there are at most so many.
func (p *tempo) within(now time.Time, most int) bool {
	if now.Sub(p.from) >= time.Second {
		p.from, p.n = now, 0
	}
	p.n++
	return p.n <= most
}

// pinged decides about the answer to a ping: one a second is answered. Too many
// end the Stream.
func (s *Stream) pinged(now time.Time) (answer bool) {
	s.hear()
	s.ponged(now)
	return s.pings.within(now, 1)
}

// ponged notes a pong, or a ping.
func (s *Stream) ponged(now time.Time) {
	if !s.idly(now) {
		s.end(errChatter)
	}
}

// misused says whether reading ended with err because of what came, and not
// because the connection ended.
func misused(ctx context.Context, err error) bool {
	if cause := context.Cause(ctx); cause != nil {
		return errors.Is(cause, errChatter) || errors.Is(cause, errSlow)
	}
	var network net.Error
	var closed websocket.CloseError
	return !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) && !errors.As(err, &network) && !errors.As(err, &closed)
}
