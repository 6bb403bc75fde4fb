package http1

import (
	"errors"
	"fmt"
	"net/http"
	"net/textproto"
	"strings"
)

// Malformed is why a message is refused: two readers could read it differently,
// or it is too large. None of the other end's words are in Why.
type Malformed struct {
	Why    string
	Status int    // of the answer, where it is a request: 400, 421 or 431
	near   string // where in the message
}

// Error implements error; for logs.
func (m *Malformed) Error() string {
	if m.near == "" {
		return m.Why
	}
	return fmt.Sprintf("%s: %.40q", m.Why, m.near)
}

func malformed(why, near string) *Malformed {
	return &Malformed{Why: why, Status: http.StatusBadRequest, near: near}
}

func tooLarge(format string, args ...any) *Malformed {
	return &Malformed{Why: fmt.Sprintf(format, args...), Status: http.StatusRequestHeaderFieldsTooLarge}
}

const (
	whyLine    = "a line that does not end in CR LF"
	whyField   = "a header line that is not NAME: VALUE"
	whyControl = "a control character in a header"
	whyLength  = "a Content-Length that is not one plain number"
	whyCoding  = "a Transfer-Encoding that is not chunked"
)

var errChunk = errors.New("chunks that can be read in more than one way")

// Field is one header or trailer line, its name in canonical form.
type Field struct{ Name, Value string }

// maxFields are the lines of a head, and of what trails a body.
const maxFields = 512

// parseFields reads lines of NAME: VALUE (RFC 9112, 5), each with its CR LF.
// There is no folding, no space before the colon and no control character.
func parseFields(text string, fields []Field) ([]Field, error) {
	for text != "" {
		i := strings.IndexByte(text, '\n')
		if i < 1 || text[i-1] != '\r' {
			return fields, malformed(whyLine, text)
		}
		line := text[:i-1]
		text = text[i+1:]
		colon := strings.IndexByte(line, ':')
		if colon < 0 {
			return fields, malformed(lineFault(line), line)
		}
		name, ok := canonicalName(line[:colon])
		if !ok {
			return fields, malformed(lineFault(line), line)
		}
		value := trim(line[colon+1:])
		for j := range len(value) {
			if c := value[j]; c < 0x20 && c != '\t' || c == 0x7f {
				if c == '\r' {
					return fields, malformed(whyLine, line)
				}
				return fields, malformed(whyControl, name)
			}
		}
		if len(fields) == maxFields {
			return fields, tooLarge("more than %d header lines", maxFields)
		}
		fields = append(fields, Field{name, value})
	}
	return fields, nil
}

// lineFault says what is wrong with a line that has no name.
func lineFault(line string) string {
	if strings.IndexByte(line, '\r') >= 0 {
		return whyLine
	}
	return whyField
}

func trim(s string) string {
	for s != "" && (s[0] == ' ' || s[0] == '\t') {
		s = s[1:]
	}
	for s != "" && (s[len(s)-1] == ' ' || s[len(s)-1] == '\t') {
		s = s[:len(s)-1]
	}
	return s
}

// tokenBytes are those of a token (RFC 9110, 5.6.2).
var tokenBytes = func() (t [256]bool) {
	for c := byte(0x21); c < 0x7f; c++ {
		t[c] = strings.IndexByte("\"(),/:;<=>?@[\\]{}", c) < 0
	}
	return t
}()

func isToken(s string) bool {
	for i := range len(s) {
		if !tokenBytes[s[i]] {
			return false
		}
	}
	return s != ""
}

// canonicalName checks a name and writes it as package net/textproto does.
func canonicalName(name string) (string, bool) {
	canonical, first := true, true
	for i := range len(name) {
		c := name[i]
		if !tokenBytes[c] {
			return "", false
		}
		if first && 'a' <= c && c <= 'z' || !first && 'A' <= c && c <= 'Z' {
			canonical = false
		}
		first = c == '-'
	}
	if !canonical {
		name = textproto.CanonicalMIMEHeaderKey(name)
	}
	return name, name != ""
}

// kind is how the end of a body is found.
type kind int

const (
	none kind = iota // there is no body
	sized
	chunked
	untilClose
)

// framing is how the end of a message is found.
type framing struct {
	kind     kind
	length   int64
	reusable bool // another exchange may follow on the connection
}

// said is what the fields of a message say about its length, untilClose for
// nothing. It refuses where RFC 9112, 6.3 lets a recipient choose.
func said(fields []Field, minor int) (framing, error) {
	f := framing{kind: untilClose, reusable: minor == 1}
	lengths, encodings := 0, 0
	for i := range fields {
		value := fields[i].Value
		switch fields[i].Name {
		case "Content-Length":
			n, ok := decimal(value)
			if lengths++; !ok {
				return f, malformed(whyLength, value)
			}
			f.kind, f.length = sized, n
		case "Transfer-Encoding":
			if encodings++; !strings.EqualFold(value, "chunked") {
				return f, malformed(whyCoding, value)
			}
			f.kind = chunked
		case "Connection":
			if listed(value, "close") {
				f.reusable = false
			}
		}
	}
	switch {
	case lengths > 1 || encodings > 1:
		return f, malformed("more than one length", "")
	case lengths > 0 && encodings > 0:
		return f, malformed("both Content-Length and Transfer-Encoding", "")
	case encodings > 0 && minor == 0:
		return f, malformed("Transfer-Encoding in HTTP/1.0", "")
	}
	return f, nil
}

func hasToken(values []string, token string) bool {
	for _, v := range values {
		if listed(v, token) {
			return true
		}
	}
	return false
}

// listed says whether a comma-separated list holds a token, whatever its case.
func listed(list, token string) bool {
	for {
		one, rest, more := strings.Cut(list, ",")
		if strings.EqualFold(trim(one), token) {
			return true
		}
		if !more {
			return false
		}
		list = rest
	}
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
