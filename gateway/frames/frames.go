// Package frames follows WebSocket messages (RFC 6455, section 5) through a
// relay: it reads the headers of frames as their bytes go by, keeps none of
// them, and says where what must not pass begins.
package frames

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Errors of [Reader.Read]. What follows them on the connection cannot be trusted.
var (
	// ErrTooLarge is about a message that is larger than is let through.
	ErrTooLarge = errors.New("a message that is too large")
	// ErrMalformed is about bytes that are no frames, or not in this direction.
	ErrMalformed = errors.New("malformed frames")
)

// Opcodes (RFC 6455, 5.2).
const (
	continuation = 0x0
	text         = 0x1
	binaryData   = 0x2
	closing      = 0x8
	ping         = 0x9
	pong         = 0xA
)

// Close codes (RFC 6455, 7.4.1).
const (
	CloseGoingAway = 1001
	CloseProtocol  = 1002
	CloseTooBig    = 1009
)

const maxControl = 125 // bytes of a control frame's payload

// Reader follows one direction of one connection.
type Reader struct {
	masked  bool // frames of clients are, and frames of servers are not
	deflate bool // RSV1 means a compressed message (RFC 7692)
	limit   uint64

	head     [14]byte // of the frame that begins, as far as it is there
	n        int
	left     uint64 // of the payload
	message  uint64 // payload of the message so far
	inside   bool   // a message has begun and not ended
	finished bool   // a close frame has begun: nothing but its rest may come
	whole    bool   // an error came with the first byte of its frame
	err      error
}

// NewReader follows the frames of a client or a server, whose messages have a
// payload of at most limit bytes as they are on the wire. deflate says that
// permessage-deflate was agreed on.
func NewReader(client, deflate bool, limit int64) *Reader {
	return &Reader{masked: client, deflate: deflate, limit: uint64(limit)}
}

// Between says that the bytes so far end with a whole frame: another one may be
// put in here.
func (r *Reader) Between() bool { return r.n == 0 && r.left == 0 && !r.finished && r.err == nil }

// Whole says that what passed before an error ended with a whole frame: a close
// frame may follow it.
func (r *Reader) Whole() bool { return r.whole || r.Between() }

// Read takes the next bytes of the connection. On an error, the first n of them
// are in order and end with a whole frame, unless the frame that is not had begun
// before b.
func (r *Reader) Read(b []byte) (n int, err error) {
	for n < len(b) && r.err == nil {
		if r.left > 0 {
			take := min(r.left, uint64(len(b)-n))
			r.left -= take
			n += int(take)
			continue
		}
		begin, whole := n, r.n == 0
		for n < len(b) {
			r.head[r.n] = b[n]
			r.n++
			n++
			switch {
			case r.n >= 2 && r.n == r.headLen():
				r.err = r.frame()
			case r.n == 2: // refused before more of it is waited for
				r.err = r.check()
			}
			if r.err != nil {
				r.whole = whole && !r.finished
				return begin, r.err
			}
			if r.n == 0 {
				break
			}
		}
	}
	return n, r.err
}

// headLen is the length of the frame's header, of which two bytes are there.
func (r *Reader) headLen() int {
	n := 2
	switch r.head[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if r.head[1]&0x80 != 0 {
		n += 4
	}
	return n
}

func malformed(what string) error { return fmt.Errorf("%w: %s", ErrMalformed, what) }

// check looks at the first two bytes of a header.
func (r *Reader) check() error {
	final, reserved, op := r.head[0]&0x80 != 0, r.head[0]&0x70, r.head[0]&0x0f
	if r.finished {
		return malformed("a frame behind a close frame")
	}
	if masked := r.head[1]&0x80 != 0; masked != r.masked {
		return malformed("a mask where none belongs, or none where one does")
	}
	switch op {
	case continuation:
		if !r.inside {
			return malformed("a continuation of nothing")
		}
	case text, binaryData:
		if r.inside {
			return malformed("a message within a message")
		}
		if r.deflate {
			reserved &^= 0x40
		}
	case closing, ping, pong:
		if !final || r.head[1]&0x7f > maxControl || op == closing && r.head[1]&0x7f == 1 {
			return malformed("a control frame in pieces, or of a length that none has")
		}
	default:
		return malformed("an opcode that does not exist")
	}
	if reserved != 0 {
		return malformed("a reserved bit that was not agreed on")
	}
	return nil
}

// frame takes a whole header.
func (r *Reader) frame() error {
	if err := r.check(); err != nil {
		return err
	}
	length := uint64(r.head[1] & 0x7f)
	switch length {
	case 126:
		if length = uint64(binary.BigEndian.Uint16(r.head[2:])); length < 126 {
			return malformed("a length that is not the shortest")
		}
	case 127:
		if length = binary.BigEndian.Uint64(r.head[2:]); length < 1<<16 || length >= 1<<63 {
			return malformed("a length that is not the shortest, or none")
		}
	}
	op := r.head[0] & 0x0f
	if op < closing {
		if op != continuation {
			r.message = 0
		}
		if length > r.limit || r.message > r.limit-length {
			return fmt.Errorf("%w: over %d bytes", ErrTooLarge, r.limit)
		}
		r.message += length
		r.inside = r.head[0]&0x80 == 0
	}
	r.finished = op == closing
	r.n, r.left = 0, length
	return nil
}

// Ping is a server's ping without a payload.
func Ping() []byte { return []byte{0x80 | ping, 0} }

// Close is a server's close frame.
func Close(code uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{0x80 | closing, 2}, code)
}
