package http1

import (
	"bytes"
	"errors"
	"io"
	"math"
	"net"
	"sync"
)

const (
	headBuffer = 24 << 10 // a message of 16 KiB with its head is one read(2)
	bodyBuffer = 64 << 10
)

var (
	small = sync.Pool{New: func() any { b := make([]byte, headBuffer); return &b }}
	large = sync.Pool{New: func() any { b := make([]byte, bodyBuffer); return &b }}
)

// reader takes messages from a connection, one after the other, in one way
// only. Both ends use it. One goroutine at a time does.
type reader struct {
	nc    net.Conn
	limit int // bytes of a head

	buf  *[]byte // of a sync.Pool, nil while nothing is expected
	r, w int     // what is read and not taken: (*buf)[r:w]
	took int     // bytes of heads so far, of trailers afterwards
	got  bool    // a byte of the message was read
	end  bool    // the other end closed its direction

	framing framing
	left    int64 // of a body with a length, or of a chunk
	chunk   chunkState
	over    bool // the message was read to its end
	fields  []Field
	wait    func() error // called before waiting for more of a body
}

type chunkState int

const (
	chunkSize chunkState = iota
	chunkData
	chunkEnd
	chunkTrailer
)

const (
	maxChunkLine = 18 // sixteen digits and CR LF
	maxTrailer   = 16 << 10
)

// begin makes ready for a message.
func (r *reader) begin() {
	if r.buf == nil {
		r.buf, r.r, r.w = small.Get().(*[]byte), 0, 0
	}
	r.took, r.got, r.over = 0, r.r < r.w, false
}

// expect tells how long the body is that comes now.
func (r *reader) expect(f framing) {
	r.framing, r.left, r.chunk = f, f.length, chunkSize
	r.over = f.kind == none || f.kind == sized && f.length == 0
}

// free gives the buffer back. What is in it is lost.
func (r *reader) free() {
	if r.buf == nil {
		return
	}
	switch len(*r.buf) {
	case headBuffer:
		small.Put(r.buf)
	case bodyBuffer:
		large.Put(r.buf)
	}
	r.buf, r.r, r.w = nil, 0, 0
}

// mostFields is how much room for fields is kept for the next message.
const mostFields = 64

// forget lets go of the strings that a message was made of.
func (r *reader) forget() {
	clear(r.fields[:cap(r.fields)])
	r.fields, r.wait = r.fields[:0], nil
	if cap(r.fields) > mostFields {
		r.fields = nil
	}
}

var errEnded = errors.New("the connection ended within a message")

// fill reads more. Nothing that is there moves unless there is no room.
func (r *reader) fill() error {
	b := *r.buf
	if r.w == len(b) && r.r > 0 {
		r.w = copy(b, b[r.r:r.w])
		r.r = 0
	}
	if r.w == len(b) {
		if len(b) >= r.limit {
			return tooLarge("a head of more than %d bytes", r.limit)
		}
		grown := make([]byte, 2*len(b))
		n := copy(grown, b)
		r.free()
		r.buf, r.w, b = &grown, n, grown
	}
	n, err := r.nc.Read(b[r.w:])
	r.w += n
	if n > 0 {
		r.got = true
		return nil
	}
	return r.ended(err)
}

func (r *reader) ended(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		r.end = true
		return errEnded
	case err == nil:
		return io.ErrNoProgress
	}
	return err
}

// rawHead reads up to and with the empty line and returns what is before it.
// The bytes are valid until the next read.
func (r *reader) rawHead() ([]byte, error) {
	seen := 0 // bytes behind r.r that hold whole lines
	for {
		have := (*r.buf)[r.r:r.w]
		for {
			i := bytes.IndexByte(have[seen:], '\n')
			if i < 0 {
				break
			}
			if i == 0 || have[seen+i-1] != '\r' {
				return nil, malformed(whyLine, string(have[seen:seen+i]))
			}
			end := seen + i + 1
			if i == 1 { // the empty line
				r.r += end
				if r.took += end; r.took > r.limit {
					return nil, tooLarge("a head of more than %d bytes", r.limit)
				}
				return have[:end-2], nil
			}
			seen = end
		}
		if r.took+len(have) > r.limit {
			return nil, tooLarge("a head of more than %d bytes", r.limit)
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// read reads what there is of the body, straight into p where nothing is
// buffered.
func (r *reader) read(p []byte) (int, error) {
	if r.r < r.w || r.over || r.framing.kind == chunked && r.chunk != chunkData {
		if r.buf == nil && !r.over {
			r.begin()
		}
		b, err := r.next(int64(len(p)))
		return copy(p, b), err
	}
	n, err := r.nc.Read(p[:min(int64(len(p)), r.left)])
	if n > 0 {
		r.taken(int64(n))
		return n, nil
	}
	return 0, r.ended(err)
}

// next returns the next piece of the body, of at most limit bytes and valid
// until the next call, and io.EOF after the last one.
func (r *reader) next(limit int64) ([]byte, error) {
	if r.over {
		return nil, io.EOF
	}
	switch r.framing.kind {
	case sized:
		return r.piece(limit)
	case chunked:
		return r.nextOfChunks(limit)
	}
	r.left = math.MaxInt64
	b, err := r.piece(limit)
	if errors.Is(err, errEnded) {
		r.over = true
		return nil, io.EOF
	}
	return b, err
}

// piece takes what is there of the bytes that are left.
func (r *reader) piece(limit int64) ([]byte, error) {
	if r.r == r.w {
		if err := r.refill(); err != nil {
			return nil, err
		}
	}
	n := min(int64(r.w-r.r), r.left, limit)
	b := (*r.buf)[r.r : r.r+int(n)]
	r.r += int(n)
	r.taken(n)
	return b, nil
}

func (r *reader) taken(n int64) {
	if r.left -= n; r.left == 0 {
		r.over = r.framing.kind == sized
		r.chunk = chunkEnd
	}
}

// refill reads into an empty buffer, a large one where much is to come.
func (r *reader) refill() error {
	r.r, r.w = 0, 0
	if len(*r.buf) == headBuffer && (r.framing.kind != sized || r.left > headBuffer) {
		small.Put(r.buf)
		r.buf = large.Get().(*[]byte)
	}
	return r.more()
}

func (r *reader) more() error {
	if r.wait != nil {
		if err := r.wait(); err != nil {
			return err
		}
	}
	return r.fill()
}

// nextOfChunks reads chunks without extensions (RFC 9112, 7.1), which nobody
// uses but to confuse.
func (r *reader) nextOfChunks(limit int64) ([]byte, error) {
	for {
		if r.chunk == chunkData {
			return r.piece(limit)
		}
		most := maxChunkLine
		if r.chunk == chunkTrailer {
			most = maxTrailer
		}
		line, err := r.line(most)
		if err != nil {
			return nil, err
		}
		switch r.chunk {
		case chunkEnd:
			if len(line) != 0 {
				return nil, errChunk
			}
			r.chunk = chunkSize
		case chunkSize:
			n, ok := hexadecimal(line)
			if !ok {
				return nil, errChunk
			}
			r.left, r.chunk = n, chunkData
			if n == 0 {
				r.chunk, r.took, r.fields = chunkTrailer, 0, r.fields[:0]
			}
		case chunkTrailer:
			if len(line) == 0 {
				r.over = true
				return nil, io.EOF
			}
			if r.took += len(line); r.took > maxTrailer {
				return nil, errors.New("trailers that are too long")
			}
			if r.fields, err = parseFields(string(line)+"\r\n", r.fields); err != nil {
				return nil, err
			}
		}
	}
}

// trailer returns the lines that trailed a body of chunks, once it is over.
func (r *reader) trailer() []Field {
	if r.framing.kind != chunked || !r.over {
		return nil
	}
	return r.fields
}

// line takes a line of at most limit bytes and returns it without CR LF.
func (r *reader) line(limit int) ([]byte, error) {
	for {
		have := (*r.buf)[r.r:r.w]
		i := bytes.IndexByte(have, '\n')
		switch {
		case i > 0 && i < limit && have[i-1] == '\r':
			r.r += i + 1
			return have[:i-1], nil
		case i >= 0 || len(have) >= limit:
			return nil, errChunk
		}
		if err := r.more(); err != nil {
			return nil, err
		}
	}
}
