package http1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Head is the head of an answer.
type Head struct {
	Status int
	// Fields are the header lines in their order, valid until the body is read.
	Fields []Field
	// Length of the body, -1 when it is not known before its end.
	Length int64
}

const maxInterim = 8 // 1xx answers before the real one

// ReadHead reads the head of the answer to a request with that method. Interim
// answers (1xx, RFC 9110, 15.2) but 100 go to interim, whose error ends it.
func (c *Conn) ReadHead(method string, interim func(Head) error) (Head, error) {
	for range maxInterim + 1 {
		raw, err := c.rawHead()
		if err != nil {
			return Head{}, answerFault(err)
		}
		status, minor, fields, err := parseHead(raw, c.fields[:0])
		if err != nil {
			return Head{}, answerFault(err)
		}
		c.fields = fields
		f, err := frame(method, status, minor, fields)
		if err != nil {
			return Head{}, answerFault(err)
		}
		if status >= 200 {
			c.expect(f)
			c.asks = status == http.StatusUnauthorized
			h := Head{Status: status, Fields: fields, Length: f.length}
			if f.kind == chunked || f.kind == untilClose {
				h.Length = -1
			}
			return h, nil
		}
		if status != http.StatusContinue {
			if err := interim(Head{Status: status, Fields: fields}); err != nil {
				return Head{}, err
			}
		}
	}
	return Head{}, fmt.Errorf("reading the app's answer: more than %d interim ones before it", maxInterim)
}

// answerFault says what was being done when reading failed. The end of a body is
// no failure.
func answerFault(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return fmt.Errorf("reading the app's answer: %w", err)
}

// parseHead reads a status line and header lines, each with its CR LF.
func parseHead(raw []byte, fields []Field) (status, minor int, _ []Field, err error) {
	text := string(raw)
	line, rest, ok := strings.Cut(text, "\r\n")
	if !ok || len(line) < len("HTTP/1.1 200") || line[:7] != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' {
		return 0, 0, fields, fmt.Errorf("a status line that is not HTTP/1.1: %.40q", line)
	}
	minor = int(line[7] - '0')
	for _, d := range []byte(line[9:12]) {
		if d < '0' || d > '9' {
			return 0, 0, fields, fmt.Errorf("a status that is no number: %.40q", line)
		}
		status = status*10 + int(d-'0')
	}
	if status < 100 || len(line) > 12 && (line[12] != ' ' || !httpguts.ValidHeaderFieldValue(line[13:])) {
		return 0, 0, fields, fmt.Errorf("a status line that is not HTTP/1.1: %.40q", line)
	}
	fields, err = parseFields(rest, fields)
	return status, minor, fields, err
}

// frame finds how long the body is (RFC 9112, 6.3), and refuses where the RFC
// lets a recipient choose.
func frame(method string, status, minor int, fields []Field) (framing, error) {
	f, err := said(fields, minor)
	switch {
	case err != nil:
		return f, err
	case status == http.StatusSwitchingProtocols:
		return f, errors.New("the app switched protocols unasked")
	case (status < 200 || status == http.StatusNoContent) && (f.kind == chunked || f.length > 0):
		return f, fmt.Errorf("a body in an answer with status %d", status)
	case method == http.MethodHead, status < 200, status == http.StatusNoContent, status == http.StatusNotModified:
		f.kind = none // the length, if any, is what GET would get
	case f.kind == untilClose:
		f.reusable = false
	}
	return f, nil
}
