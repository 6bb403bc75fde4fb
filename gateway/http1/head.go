package http1

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// Field is one header or trailer line, its name in canonical form.
type Field struct{ Name, Value string }

// Head is the head of an answer.
type Head struct {
	Status int
	// Fields are the header lines in their order, valid until the body is read.
	Fields []Field
	// Length of the body, -1 when it is not known before its end.
	Length int64
}

const (
	maxFields  = 512
	maxInterim = 8 // 1xx answers before the real one
)

// framing is how the end of an answer is found.
type framing struct {
	kind     kind
	length   int64
	reusable bool // another exchange may follow on the connection
}

type kind int

const (
	none kind = iota // there is no body
	sized
	chunked
	untilClose
)

// ReadHead reads the head of the answer to a request with that method. Interim
// answers (1xx, RFC 9110, 15.2) but 100 go to interim, whose error ends it.
func (c *Conn) ReadHead(method string, interim func(Head) error) (Head, error) {
	for range maxInterim + 1 {
		raw, err := c.rawHead()
		if err != nil {
			return Head{}, err
		}
		status, minor, fields, err := parseHead(raw, c.fields[:0])
		if err != nil {
			return Head{}, fmt.Errorf("reading the app's answer: %w", err)
		}
		c.fields = fields
		f, err := frame(method, status, minor, fields)
		if err != nil {
			return Head{}, fmt.Errorf("reading the app's answer: %w", err)
		}
		if status >= 200 {
			c.framing, c.left, c.chunk = f, f.length, chunkSize
			c.over = f.kind == none || f.kind == sized && f.length == 0
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

var errBareLF = errors.New("a line that does not end in CR LF")

// rawHead reads up to and with the empty line and returns what is before it.
// The bytes are valid until the next read.
func (c *Conn) rawHead() ([]byte, error) {
	seen := 0 // bytes behind c.r that hold whole lines
	for {
		have := (*c.buf)[c.r:c.w]
		for {
			i := bytes.IndexByte(have[seen:], '\n')
			if i < 0 {
				break
			}
			if i == 0 || have[seen+i-1] != '\r' {
				return nil, fmt.Errorf("reading the app's answer: %w", errBareLF)
			}
			end := seen + i + 1
			if i == 1 { // the empty line
				c.r += end
				c.took += end
				if c.took > c.pool.opt.HeadBytes {
					return nil, fmt.Errorf("reading the app's answer: a head of more than %d bytes", c.pool.opt.HeadBytes)
				}
				return have[:end-2], nil
			}
			seen = end
		}
		if c.took+len(have) > c.pool.opt.HeadBytes {
			return nil, fmt.Errorf("reading the app's answer: a head of more than %d bytes", c.pool.opt.HeadBytes)
		}
		if err := c.fill(); err != nil {
			return nil, fmt.Errorf("reading the app's answer: %w", err)
		}
	}
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

// parseFields reads lines of NAME: VALUE (RFC 9112, 5), each with its CR LF.
// There is no folding, no space before the colon and no control character.
func parseFields(text string, fields []Field) ([]Field, error) {
	for text != "" {
		line, rest, ok := strings.Cut(text, "\r\n")
		if !ok {
			return fields, errBareLF
		}
		text = rest
		name, value, ok := strings.Cut(line, ":")
		if !ok || !httpguts.ValidHeaderFieldName(name) {
			return fields, fmt.Errorf("a header line that is not NAME: VALUE: %.40q", line)
		}
		value = strings.Trim(value, " \t")
		if !httpguts.ValidHeaderFieldValue(value) {
			return fields, fmt.Errorf("a control character in %s", name)
		}
		if len(fields) == maxFields {
			return fields, fmt.Errorf("more than %d header lines", maxFields)
		}
		fields = append(fields, Field{textproto.CanonicalMIMEHeaderKey(name), value})
	}
	return fields, nil
}

// frame finds how long the body is (RFC 9112, 6.3), and refuses where the RFC
// lets a recipient choose.
func frame(method string, status, minor int, fields []Field) (framing, error) {
	f := framing{kind: untilClose, reusable: minor == 1}
	lengths, encodings := 0, 0
	for _, field := range fields {
		switch field.Name {
		case "Content-Length":
			n, ok := decimal(field.Value)
			if lengths++; !ok || lengths > 1 {
				return f, errors.New("a Content-Length that is not one plain number, once")
			}
			f.length = n
		case "Transfer-Encoding":
			if encodings++; encodings > 1 || !strings.EqualFold(field.Value, "chunked") {
				return f, errors.New("a Transfer-Encoding that is not chunked, once")
			}
		case "Connection":
			if httpguts.HeaderValuesContainsToken([]string{field.Value}, "close") {
				f.reusable = false
			}
		}
	}
	switch {
	case lengths > 0 && encodings > 0:
		return f, errors.New("both Content-Length and Transfer-Encoding")
	case encodings > 0 && minor == 0:
		return f, errors.New("a Transfer-Encoding in HTTP/1.0")
	case status == http.StatusSwitchingProtocols:
		return f, errors.New("the app switched protocols unasked")
	case (status < 200 || status == http.StatusNoContent) && (encodings > 0 || f.length > 0):
		return f, fmt.Errorf("a body in an answer with status %d", status)
	case method == http.MethodHead, status < 200, status == http.StatusNoContent, status == http.StatusNotModified:
		f.kind = none // the length, if any, is what GET would get
	case encodings > 0:
		f.kind = chunked
	case lengths > 0:
		f.kind = sized
	default:
		f.reusable = false
	}
	return f, nil
}

func decimal(s string) (n int64, ok bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
