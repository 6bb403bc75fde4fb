package http1

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

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

// Next returns the next piece of the body, valid until the next call, and
// io.EOF after the last one. It calls wait, which may be nil, each time before
// it waits for the app: what was returned so far should be on its way by then.
func (c *Conn) Next(wait func() error) ([]byte, error) {
	if c.over {
		return nil, io.EOF
	}
	c.wait = wait
	switch c.framing.kind {
	case sized:
		return c.piece()
	case chunked:
		return c.nextOfChunks()
	}
	if c.r == c.w {
		switch err := c.refill(); {
		case errors.Is(err, errEnded):
			c.over = true
			return nil, io.EOF
		case err != nil:
			return nil, fmt.Errorf("reading the app's answer: %w", err)
		}
	}
	b := (*c.buf)[c.r:c.w]
	c.r = c.w
	return b, nil
}

// piece takes what is there of the bytes that are left.
func (c *Conn) piece() ([]byte, error) {
	if c.r == c.w {
		if err := c.refill(); err != nil {
			return nil, fmt.Errorf("reading the app's answer: %w", err)
		}
	}
	n := min(int64(c.w-c.r), c.left)
	b := (*c.buf)[c.r : c.r+int(n)]
	c.r += int(n)
	if c.left -= n; c.left == 0 {
		c.over = c.framing.kind == sized
		c.chunk = chunkEnd
	}
	return b, nil
}

// refill reads into an empty buffer, a large one where much is to come.
func (c *Conn) refill() error {
	c.r, c.w = 0, 0
	if len(*c.buf) == headBuffer && (c.framing.kind != sized || c.left > headBuffer) {
		small.Put(c.buf)
		c.buf = large.Get().(*[]byte)
	}
	return c.more()
}

func (c *Conn) more() error {
	if c.wait != nil {
		if err := c.wait(); err != nil {
			return err
		}
	}
	return c.fill()
}

var errChunk = errors.New("chunks that can be read in more than one way")

// nextOfChunks reads chunks without extensions (RFC 9112, 7.1), which nobody
// uses but to confuse.
func (c *Conn) nextOfChunks() ([]byte, error) {
	for {
		if c.chunk == chunkData {
			return c.piece()
		}
		limit := maxChunkLine
		if c.chunk == chunkTrailer {
			limit = maxTrailer
		}
		line, err := c.line(limit)
		if err != nil {
			return nil, fmt.Errorf("reading the app's answer: %w", err)
		}
		switch c.chunk {
		case chunkEnd:
			if len(line) != 0 {
				return nil, fmt.Errorf("reading the app's answer: %w", errChunk)
			}
			c.chunk = chunkSize
		case chunkSize:
			n, ok := hexadecimal(line)
			if !ok {
				return nil, fmt.Errorf("reading the app's answer: %w", errChunk)
			}
			c.left, c.chunk = n, chunkData
			if n == 0 {
				c.chunk, c.took, c.fields = chunkTrailer, 0, c.fields[:0]
			}
		case chunkTrailer:
			if len(line) == 0 {
				c.over = true
				return nil, io.EOF
			}
			if c.took += len(line); c.took > maxTrailer {
				return nil, errors.New("reading the app's answer: trailers that are too long")
			}
			if c.fields, err = parseFields(string(line)+"\r\n", c.fields); err != nil {
				return nil, fmt.Errorf("reading the app's answer: %w", err)
			}
		}
	}
}

// Trailer returns the trailer lines, once Next has returned io.EOF. They are
// valid until the connection is released.
func (c *Conn) Trailer() []Field {
	if c.framing.kind != chunked || !c.over {
		return nil
	}
	return c.fields
}

// line takes a line of at most limit bytes and returns it without CR LF.
func (c *Conn) line(limit int) ([]byte, error) {
	for {
		have := (*c.buf)[c.r:c.w]
		i := bytes.IndexByte(have, '\n')
		switch {
		case i > 0 && i < limit && have[i-1] == '\r':
			c.r += i + 1
			return have[:i-1], nil
		case i >= 0 || len(have) >= limit:
			return nil, errChunk
		}
		if err := c.more(); err != nil {
			return nil, err
		}
	}
}

func hexadecimal(line []byte) (n int64, ok bool) {
	if len(line) == 0 || len(line) > 15 {
		return 0, false
	}
	for _, d := range line {
		switch {
		case '0' <= d && d <= '9':
			d -= '0'
		case 'a' <= d && d <= 'f':
			d -= 'a' - 10
		case 'A' <= d && d <= 'F':
			d -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | int64(d)
	}
	return n, true
}
