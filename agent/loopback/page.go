package loopback

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// A web page in the worker's browser can reach every loopback port, and the
// browser runs as the worker: a form posted to a TCP app's port would speak to
// the app in the worker's name, line by line, and the app would skip the HTTP
// around it. A WebSocket to the app's name does the same through the proxy, by
// CONNECT. Pages can only send HTTP, so what begins like it is looked at
// before any of it is passed on. Everything else passes as it comes.

const (
	// maxPageHead bounds what is held back to look at, in bytes.
	maxPageHead = 32 << 10
	// longMethod is from how many bytes on what may be a part of a method is
	// waited on with. A browser's first segment holds a shorter one whole, and a
	// program's word to be answered is shorter.
	longMethod = 1 << 10
)

var errPage = errors.New("a web page tried to speak to an app that is not for browsers")

// screen looks at the first bytes of a connection. It belongs to the goroutine
// that reads.
type screen struct {
	own  []string // what Host may say; nil: the proxy has checked the name
	held []byte   // read, looked at, not yet handed on
	over bool
}

func screenPort(local netip.AddrPort) *screen {
	return &screen{own: []string{local.String(), fmt.Sprintf("localhost:%d", local.Port())}}
}

// screenName is for a connection that asked for an app by name: nil for an app
// that is for browsers.
func screenName(t *target) *screen {
	if t.key.protocol != "tcp" {
		return nil
	}
	return &screen{}
}

// read is the connection's Read while the screen is up.
func (s *screen) read(in *bufio.Reader, b []byte) (int, error) {
	if !s.over {
		if err := s.look(in); err != nil {
			return 0, err
		}
	}
	if len(s.held) > 0 {
		n := copy(b, s.held)
		s.held = s.held[n:]
		return n, nil
	}
	return in.Read(b)
}

// look reads on for as long as this may be a page's request. A read that fails
// leaves what was held for the next.
func (s *screen) look(in *bufio.Reader) error {
	for {
		web, whole := likeHTTP(s.held)
		switch {
		case len(s.held) == 0: // nothing came yet
		case !web:
			s.over = true
			return nil
		case whole:
			if !s.fromHere() {
				return errPage
			}
			s.over = true
			return nil
		case len(s.held) > maxPageHead:
			return errPage
		}
		if _, err := in.Peek(1); err != nil {
			return err
		}
		part, _ := in.Peek(in.Buffered())
		s.held = append(s.held, part...)
		_, _ = in.Discard(len(part))
	}
}

// likeHTTP says whether data begins like an HTTP/1 request, as far as it goes,
// and whether its head is whole. A page may choose any token for a method, in
// any case, but not what the browser makes of the rest: a target without spaces
// and control characters, and the version. Whatever else a program says first
// differs at the latest at the end of its first line.
func likeHTTP(data []byte) (web, whole bool) {
	method := prefix(data, tokenByte)
	if method == len(data) {
		return method >= longMethod, false
	}
	if method == 0 || data[method] != ' ' {
		return false, false
	}
	rest := data[method+1:]
	target := prefix(rest, func(c byte) bool { return c > ' ' && c < 0x7f })
	if target == len(rest) {
		return true, false
	}
	if target == 0 || rest[target] != ' ' {
		return false, false
	}
	const http1 = "HTTP/1."
	if version := rest[target+1:]; len(version) < len(http1) {
		return strings.HasPrefix(http1, string(version)), false
	} else if !bytes.HasPrefix(version, []byte(http1)) {
		return false, false
	}
	return true, bytes.Contains(data, []byte("\r\n\r\n")) || bytes.Contains(data, []byte("\n\n"))
}

// prefix counts the bytes at the beginning of data that are in a set.
func prefix(data []byte, in func(byte) bool) int {
	if n := slices.IndexFunc(data, func(c byte) bool { return !in(c) }); n >= 0 {
		return n
	}
	return len(data)
}

// tokenByte is the tchar of RFC 9110 section 5.6.2.
func tokenByte(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// fromHere says whether a request was made by no page, or by one of this very
// port: to its own address (not a name that was rebound to it) and from no
// other origin.
func (s *screen) fromHere() bool {
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(s.held)))
	if err != nil {
		return false
	}
	if s.own != nil && !slices.Contains(s.own, strings.ToLower(r.Host)) {
		return false
	}
	if o := r.Header["Origin"]; len(o) > 1 || len(o) == 1 && o[0] != "http://"+strings.ToLower(r.Host) {
		return false
	}
	sites := r.Header["Sec-Fetch-Site"]
	return len(sites) == 0 || len(sites) == 1 && (sites[0] == "none" || sites[0] == "same-origin")
}
