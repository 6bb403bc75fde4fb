package proxy

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/portvakt/portvakt/policy"
)

// target is a request target that can be read in one way only. The path that
// policy sees and the path the app receives have the same segments, none of
// them empty but perhaps the last, joined by "/". Whoever decodes the second
// once has the first.
type target struct {
	path    string // decoded, but for a kept %2F; what policy sees
	escaped string // in its one spelling; what the app receives
	query   string // from "?" on, as it came; "" for none; policy never sees it
}

// kept is what an app takes besides what every parser reads alike.
type kept struct {
	slash  bool // %2F, which then stays so and is a part of its segment
	params bool // ";", which then is a part of its segment
}

func keptOf(app *policy.App) kept {
	return kept{slash: app.EncodedSlash == policy.URLKeep, params: app.PathParameters == policy.URLKeep}
}

// maxQueryParams bounds the parameters of a query. Parsers disagree about what
// follows their own bound, so nothing may.
const maxQueryParams = 1000

// canonical reads an origin-form request target (RFC 9112, 3.2.1). It refuses
// what two parsers could read differently instead of mending it: a mended path
// is one that the client did not ask for.
func canonical(raw string, keep kept) (target, error) {
	t := target{path: raw}
	if i := strings.IndexByte(raw, '?'); i >= 0 {
		t.path, t.query = raw[:i], raw[i:]
	}
	if !strings.HasPrefix(raw, "/") {
		return target{}, errors.New("the target does not begin with /")
	}
	if t.escaped = t.path; !asItIs(t.path, keep) {
		var err error
		if t.path, t.escaped, err = decodePath(t.path, keep); err != nil {
			return target{}, err
		}
		if err := checkCharacters(t.path); err != nil {
			return target{}, err
		}
	}
	if err := checkSegments(t.path); err != nil {
		return target{}, err
	}
	if err := checkQuery(t.query); err != nil {
		return target{}, err
	}
	if keep.slash {
		// What is encoded twice was refused, so that %2F can be nothing else here.
		t.path = strings.ReplaceAll(t.path, slashMark, "%2F")
	}
	return t, nil
}

// asItIs says that a path has nothing to decode and nothing to refuse but, maybe,
// a segment.
func asItIs(path string, keep kept) bool {
	for i := range len(path) {
		if c := path[i]; pathBytes[c]&bare == 0 || c == ';' && !keep.params {
			return false
		}
	}
	return true
}

// slashMark stands for a kept %2F while a path is checked. NUL itself is refused.
const slashMark = "\x00"

// decodePath returns a path decoded, and in its one spelling: what is unreserved
// stands for itself, and what else was encoded stays so, in capitals. An encoded
// reserved character is another one than the bare one (RFC 3986, 2.2 and
// 6.2.2.2), and some apps do tell %2B from +.
func decodePath(raw string, keep kept) (path, escaped string, err error) {
	var p, e strings.Builder
	p.Grow(len(raw))
	e.Grow(len(raw) + 8)
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		encoded := c == '%'
		if encoded {
			hi, lo := -1, -1
			if i+2 < len(raw) {
				hi, lo = unhex(raw[i+1]), unhex(raw[i+2])
			}
			if hi < 0 || lo < 0 {
				return "", "", errors.New("a percent sign without two hexadecimal digits in the path")
			}
			c = byte(hi<<4 | lo)
			i += 2
			if c == '/' && keep.slash {
				p.WriteString(slashMark)
				e.WriteString("%2F")
				continue
			}
			if c == '/' || c == '\\' {
				return "", "", fmt.Errorf("an encoded %q in the path", c)
			}
		} else if c >= utf8.RuneSelf || strings.IndexByte("#\\ \"<>", c) >= 0 {
			return "", "", fmt.Errorf("a raw %q in the path", c)
		}
		switch {
		case c < 0x20 || c == 0x7f:
			return "", "", errors.New("a control character in the path")
		case c == ';' && (encoded || !keep.params):
			return "", "", errors.New("a path parameter (;)")
		}
		p.WriteByte(c)
		if kind := pathBytes[c]; kind == unreserved || !encoded && kind&bare != 0 {
			e.WriteByte(c)
			continue
		}
		e.WriteByte('%') // also what no URI may hold, such as |
		e.WriteByte(upperHex[c>>4])
		e.WriteByte(upperHex[c&15])
	}
	return p.String(), e.String(), nil
}

// checkCharacters takes a decoded path.
func checkCharacters(path string) error {
	if !utf8.ValidString(path) {
		return errors.New("the path is not valid UTF-8")
	}
	for i, r := range path {
		if r != 0 && unicode.IsControl(r) || strings.ContainsRune(lookalikes, r) {
			return fmt.Errorf("the character %U in the path", r)
		}
		// A second decoding, which some apps do, must find nothing.
		if r == '%' && i+2 < len(path) && unhex(path[i+1]) >= 0 && unhex(path[i+2]) >= 0 {
			return errors.New("a path that is encoded twice")
		}
	}
	return nil
}

// checkSegments takes a decoded path.
func checkSegments(path string) error {
	if len(path) > 1 && path[1] == slashMark[0] {
		return errors.New("an encoded '/' that begins the path") // decoded, //HOST is another host
	}
	for segment, last := "", path[1:]; last != ""; {
		var more bool
		segment, last, more = strings.Cut(last, "/")
		name, _, params := strings.Cut(segment, ";")
		if name == "" && (more || params) {
			return errors.New("an empty path segment (//)")
		}
		// To an app that decodes a kept slash, what is around it are segments;
		// parameters are no part of a segment's name to others.
		for part := range strings.SplitSeq(segment, slashMark) {
			if part, _, _ = strings.Cut(part, ";"); part != "" && strings.TrimLeftFunc(part, dotOrSpace) == "" {
				return errors.New("a dot segment in the path")
			}
		}
	}
	return nil
}

// dotOrSpace is what dot segments are made of: "..." and ".. " are ones to some
// file systems, and every space is " " to apps that normalise Unicode.
func dotOrSpace(r rune) bool { return r == '.' || unicode.IsSpace(r) }

// lookalikes become one of / \ ; % or dots in apps that normalise Unicode (NFKC).
const lookalikes = "\u037e\ufe14\ufe19\ufe30\uff0f\uff3c\uff0e\uff1b\uff05\ufe68\ufe52\ufe54\ufe6a\u2024\u2025\u2026\u2100\u2101\u2105\u2106"

// checkQuery takes a query with its "?". Only the app reads it, whose data may
// be lines (%0D%0A) and of any character set; but many end it at a NUL.
func checkQuery(q string) error {
	params := 1
	for i := 1; i < len(q); i++ {
		switch c := q[i]; {
		case c == '&':
			params++
		case c == '%':
			if i+2 >= len(q) || unhex(q[i+1]) < 0 || unhex(q[i+2]) < 0 {
				return errors.New("a percent sign without two hexadecimal digits in the query")
			}
			if q[i+1] == '0' && q[i+2] == '0' {
				return errors.New("an encoded NUL in the query")
			}
			i += 2
		case c == ';':
			return errors.New("a semicolon in the query")
		case c <= 0x20 || c >= 0x7f || c == '#':
			return fmt.Errorf("a raw %q in the query", c)
		}
	}
	if params > maxQueryParams {
		return fmt.Errorf("%d query parameters; %d are allowed", params, maxQueryParams)
	}
	return nil
}

const upperHex = "0123456789ABCDEF"

// bare bytes may stand in a path as they are (RFC 3986, 3.3); those that are
// unreserved mean the same when they are encoded (2.3).
const (
	bare       = 1
	unreserved = 2 | bare
)

var pathBytes = func() (t [256]byte) {
	for c := range t {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~", byte(c)) >= 0:
			t[c] = unreserved
		case strings.IndexByte("/!$&'()*+,;=:@", byte(c)) >= 0:
			t[c] = bare
		}
	}
	return t
}()

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
