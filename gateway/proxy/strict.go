package proxy

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"

	"golang.org/x/net/http/httpguts"
)

// strict stands between a device's connection and net/http's HTTP/1 server and
// lets through only messages whose extent every parser agrees on (RFC 9112,
// sections 2.2, 5.2, 6 and 7). net/http mends some of them in silence, which a
// handler can no longer see. In place of a head that is refused, the server
// gets a request that only the handler of this package can recognise, so that
// the refusal is answered and recorded like any other.
type strict struct {
	net.Conn
	br *bufio.Reader

	// The fields below belong to the goroutine in Read; net/http has one at a
	// time.
	state  strictState
	left   int64  // bytes of a body with a length, or of a chunk
	line   []byte // the part of a chunk's or trailer's line seen so far
	out    []byte // of a head, checked and not yet handed over
	head   []byte // being collected
	broken error

	// raw is set by the handler when the connection leaves HTTP.
	raw atomic.Bool
	// limit bounds a head, in bytes. It is above net/http's own, which answers
	// 431 and closes: what is larger need not be read here.
	limit int
	// marker is the target of the substitute request; fault why. Both are set
	// before the substitute can be read.
	marker string
	fault  atomic.Pointer[string]
}

type strictState int

const (
	inHead strictState = iota
	inBody
	inChunkSize
	inChunk
	inChunkEnd
	inTrailer
	passing // net/http will end the connection by itself
	spent   // the substitute was handed over
)

const (
	maxChunkLine = 20
	maxTrailer   = 16 << 10
)

func newStrict(c net.Conn, headerBytes int) *strict {
	return &strict{Conn: c, br: bufio.NewReaderSize(c, 8<<10), limit: headerBytes + 8<<10, marker: "/" + rand.Text()}
}

// NetConn returns the connection underneath.
func (s *strict) NetConn() net.Conn { return s.Conn }

// malformed returns why the request with that target stands for one that was
// refused.
func (s *strict) malformed(uri string) (string, bool) {
	if f := s.fault.Load(); f != nil && uri == s.marker {
		return *f, true
	}
	return "", false
}

// Read implements io.Reader.
func (s *strict) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if len(s.out) > 0 {
			n := copy(p, s.out)
			s.out = s.out[n:]
			return n, nil
		}
		if s.broken != nil {
			return 0, s.broken
		}
		if s.raw.Load() || s.state == passing {
			if len(s.head) > 0 {
				s.out, s.head = s.head, nil
				continue
			}
			return s.br.Read(p)
		}
		if s.state == spent {
			return 0, io.EOF
		}
		if s.state == inHead {
			if err := s.readHead(); err != nil {
				return 0, err
			}
			continue
		}
		return s.readBody(p)
	}
}

// readHead collects one line of the head, or hands the whole one over.
func (s *strict) readHead() error {
	part, err := s.br.ReadSlice('\n')
	s.head = append(s.head, part...)
	if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
		return err // what came so far stays for after a read deadline
	}
	if len(s.head) > s.limit {
		s.state = passing
		return nil
	}
	first := len(part) == len(s.head)
	if !bytes.HasSuffix(s.head, []byte("\r\n\r\n")) && !(first && bytes.Equal(part, []byte("\r\n"))) && !bareLF(s.head) {
		return nil
	}
	length, chunked, why := checkHead(s.head)
	if why != "" {
		s.fault.Store(&why)
		s.out = []byte("GET " + s.marker + " HTTP/1.1\r\nHost: invalid\r\nConnection: close\r\n\r\n")
		s.head, s.state = nil, spent
		return nil
	}
	s.out, s.head = s.head, s.head[:0] // not written to before all of out is handed over
	if cap(s.head) > 8<<10 {
		s.head = nil
	}
	switch {
	case chunked:
		s.state = inChunkSize
	case length > 0:
		s.state, s.left = inBody, length
	}
	return nil
}

func bareLF(head []byte) bool {
	return len(head) > 0 && head[len(head)-1] == '\n' && (len(head) < 2 || head[len(head)-2] != '\r')
}

// checkHead reads the framing of a request and says what is wrong with it.
func checkHead(head []byte) (length int64, chunked bool, why string) {
	lines := 0
	for rest := head; ; lines++ {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			break
		}
		if i == 0 || rest[i-1] != '\r' {
			return 0, false, "a line that does not end in CR LF"
		}
		rest = rest[i+1:]
	}
	if bytes.Count(head, []byte{'\r'}) != lines {
		return 0, false, "a line that does not end in CR LF"
	}
	line, rest, _ := bytes.Cut(bytes.TrimSuffix(head, []byte("\r\n\r\n")), []byte("\r\n"))
	http10, authority, why := checkRequestLine(line)
	if why != "" {
		return 0, false, why
	}
	var lengths, encodings, hosts int
	for more := len(rest) > 0; more; {
		line, rest, more = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte{':'})
		if !ok || !isToken(name) {
			return 0, false, "a header line that is not NAME: VALUE"
		}
		value = bytes.Trim(value, " \t")
		for _, c := range value {
			if c < 0x20 && c != '\t' || c == 0x7f {
				return 0, false, "a control character in a header"
			}
		}
		switch {
		case foldsTo(name, "host"):
			hosts++
			host := string(value)
			if !httpguts.ValidHostHeader(host) {
				return 0, false, "a Host that is no host"
			}
			// RFC 9112, 3.2: the two are the same. net/http takes the target's and
			// drops the other unseen.
			if authority != "" && !strings.EqualFold(plainHost(authority), plainHost(host)) {
				return 0, false, twoHosts
			}
		case foldsTo(name, "content-length"):
			lengths++
			if length, ok = decimal(string(value)); !ok {
				return 0, false, "a Content-Length that is not one plain number"
			}
		case foldsTo(name, "transfer-encoding"):
			encodings++
			if chunked = foldsTo(value, "chunked"); !chunked {
				return 0, false, "a Transfer-Encoding that is not chunked"
			}
		}
	}
	switch {
	case hosts != 1:
		why = "not exactly one Host"
	case lengths > 1 || encodings > 1:
		why = "more than one length"
	case lengths > 0 && encodings > 0:
		why = "both Content-Length and Transfer-Encoding"
	case encodings > 0 && http10:
		why = "Transfer-Encoding in HTTP/1.0"
	}
	return length, chunked, why
}

// checkRequestLine returns the authority of the target, if it has one.
func checkRequestLine(line []byte) (http10 bool, authority, why string) {
	method, rest, ok := bytes.Cut(line, []byte{' '})
	target, version, ok2 := bytes.Cut(rest, []byte{' '})
	http10 = string(version) == "HTTP/1.0"
	if !ok || !ok2 || !isToken(method) || string(version) != "HTTP/1.1" && !http10 {
		return false, "", "a request line that is not METHOD TARGET HTTP/1.1"
	}
	// net/http would answer these by itself, and nobody would know.
	if plainTarget(target) {
		return http10, "", ""
	}
	u, err := url.ParseRequestURI(string(target))
	switch {
	case err == nil:
		authority = u.Host
	case string(method) != http.MethodConnect:
		return false, "", "a target that is no URI"
	}
	return http10, authority, ""
}

// plainTarget says that a target is a path, and one that every parser takes.
func plainTarget(target []byte) bool {
	if len(target) == 0 || target[0] != '/' {
		return false
	}
	for _, c := range target {
		if c <= 0x20 || c >= 0x7f || c == '%' {
			return false
		}
	}
	return true
}

// foldsTo says whether b is the lower-case ASCII word, whatever its case.
func foldsTo(b []byte, word string) bool {
	if len(b) != len(word) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != word[i] {
			return false
		}
	}
	return true
}

// twoHosts is the one fault of framing that is about the host, and answered as
// such.
const twoHosts = "a Host that is not the target's"

// plainHost takes the port off that goes without saying on our listeners.
func plainHost(s string) string {
	return strings.TrimSuffix(strings.TrimSuffix(s, ":443"), ":80")
}

// tokenBytes are those of a token (RFC 9110, 5.6.2).
var tokenBytes = func() (t [256]bool) {
	for c := byte(0x21); c < 0x7f; c++ {
		t[c] = strings.IndexByte("\"(),/:;<=>?@[\\]{}", c) < 0
	}
	return t
}()

func isToken(b []byte) bool {
	for _, c := range b {
		if !tokenBytes[c] {
			return false
		}
	}
	return len(b) > 0
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

// readBody hands over what is there of a body, never past its end.
func (s *strict) readBody(p []byte) (int, error) {
	if s.state == inBody || s.state == inChunk {
		n, err := s.br.Read(p[:min(int64(len(p)), s.left)])
		s.took(int64(n))
		return n, err
	}
	if _, err := s.br.Peek(1); err != nil {
		return 0, err
	}
	buf, _ := s.br.Peek(min(s.br.Buffered(), len(p)))
	n := 0
	for n < len(buf) && s.state != inHead && s.broken == nil {
		if s.state == inChunk {
			k := min(int64(len(buf)-n), s.left)
			n += int(k)
			s.took(k)
			continue
		}
		s.broken = s.chunkByte(buf[n])
		n++
	}
	if s.broken != nil {
		return 0, s.broken
	}
	copy(p, buf[:n])
	_, _ = s.br.Discard(n)
	return n, nil
}

func (s *strict) took(n int64) {
	if s.left -= n; s.left > 0 {
		return
	}
	if s.state == inBody {
		s.state = inHead
	} else {
		s.state = inChunkEnd
	}
}

var errChunk = errors.New("the body's chunks can be read in more than one way")

// chunkByte follows the lines between chunks (RFC 9112, 7.1), without
// extensions, which nobody uses but to confuse.
func (s *strict) chunkByte(c byte) error {
	s.line = append(s.line, c)
	limit := maxChunkLine
	if s.state == inTrailer {
		limit = maxTrailer
	}
	if len(s.line) > limit {
		return errChunk
	}
	if c != '\n' {
		return nil
	}
	line, ok := bytes.CutSuffix(s.line, []byte("\r\n"))
	if !ok || bytes.IndexByte(line, '\r') >= 0 {
		return errChunk
	}
	s.line = s.line[:0]
	switch s.state {
	case inChunkEnd:
		if len(line) != 0 {
			return errChunk
		}
		s.state = inChunkSize
	case inChunkSize:
		if len(line) == 0 || len(line) > 15 {
			return errChunk
		}
		s.left = 0
		for _, d := range line {
			v := unhex(d)
			if v < 0 {
				return errChunk
			}
			s.left = s.left<<4 | int64(v)
		}
		s.state = inChunk
		if s.left == 0 {
			s.state = inTrailer
		}
	case inTrailer:
		if len(line) == 0 {
			s.state = inHead
		} else if name, _, ok := bytes.Cut(line, []byte{':'}); !ok || !isToken(name) {
			return errChunk
		}
	}
	return nil
}
