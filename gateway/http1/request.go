package http1

import (
	"context"
	"net/http"
	"net/textproto"
	"net/url"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// request is what a connection's requests are read into, one after the other:
// the maps and slices are used again, so nothing of them outlives the handler.
type request struct {
	http   *http.Request
	url    url.URL
	header http.Header
	values []string
	coding [1]string
}

func newRequest(ctx context.Context, remote string) request {
	r := (&http.Request{RemoteAddr: remote}).WithContext(ctx)
	return request{http: r, header: make(http.Header, 16)}
}

// empty makes it a request of which nothing is known.
func (q *request) empty() {
	clear(q.header)
	clear(q.values)
	q.url = url.URL{}
	r := q.http
	r.Method, r.URL, r.RequestURI, r.Host = http.MethodGet, &q.url, "", ""
	r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.1", 1, 1
	r.Header, r.Trailer, r.TransferEncoding = q.header, nil, nil
	r.Body, r.ContentLength, r.Close = http.NoBody, 0, false
	r.Form, r.PostForm, r.MultipartForm, r.GetBody, r.Response, r.Pattern = nil, nil, nil, nil, nil, ""
}

// forget is empty for a request that nobody reads any more, and lets go of what
// a large one needed.
func (q *request) forget() {
	if len(q.header) > mostFields {
		q.header = make(http.Header, 16)
	}
	if cap(q.values) > mostFields {
		q.values = nil
	}
	q.empty()
}

// parse reads the head of a request, each line with its CR LF. It refuses what
// leaves in doubt where the message ends or whom it is for (RFC 9112, 2.2, 3.2
// and 6). Fields are those of the head, in a slice to be used again.
func (q *request) parse(raw []byte, fields []Field) ([]Field, framing, error) {
	q.empty()
	text := string(raw)
	line, rest, ok := strings.Cut(text, "\r\n")
	if !ok {
		return fields, framing{}, malformed(whyRequest, text)
	}
	method, target, minor, err := requestLine(line)
	if err != nil {
		return fields, framing{}, err
	}
	authority, err := q.readTarget(method, target)
	if err != nil {
		return fields, framing{}, err
	}
	if fields, err = parseFields(rest, fields); err != nil {
		return fields, framing{}, err
	}
	f, err := said(fields, minor)
	if err != nil {
		return fields, f, err
	}
	host, err := readHost(fields, authority)
	if err != nil {
		return fields, f, err
	}
	if f.kind == untilClose { // RFC 9112, 6.3: a request without a length has no body
		f.kind = none
	}
	r := q.http
	r.Method, r.RequestURI, r.Host = method, target, host
	if r.Close = !f.reusable; minor == 0 {
		r.Proto, r.ProtoMinor = "HTTP/1.0", 0
	}
	if r.ContentLength = f.length; f.kind == chunked {
		r.ContentLength, q.coding[0] = -1, "chunked"
		r.TransferEncoding = q.coding[:]
	}
	return fields, f, q.fill(fields, f)
}

// fill makes the header, without what the fields of http.Request say.
func (q *request) fill(fields []Field, f framing) error {
	if cap(q.values) < len(fields) {
		q.values = make([]string, max(16, len(fields)))
	}
	q.values = q.values[:cap(q.values)]
	for i := range fields {
		name, value := fields[i].Name, fields[i].Value
		switch name {
		case "Host", "Transfer-Encoding":
			continue
		case "Trailer":
			if f.kind == chunked {
				if err := q.announce(value); err != nil {
					return err
				}
				continue
			}
		}
		if old, there := q.header[name]; there {
			q.header[name] = append(old, value)
			continue
		}
		q.values[i] = value
		q.header[name] = q.values[i : i+1 : i+1]
	}
	return nil
}

// announce notes the names of trailers to come (RFC 9110, 6.6.2).
func (q *request) announce(list string) error {
	for name := range strings.SplitSeq(list, ",") {
		if name = trim(name); name == "" {
			continue
		}
		name = textproto.CanonicalMIMEHeaderKey(name)
		if name == "Transfer-Encoding" || name == "Trailer" || name == "Content-Length" {
			return malformed("a Trailer that names the length of the message", name)
		}
		if q.http.Trailer == nil {
			q.http.Trailer = http.Header{}
		}
		q.http.Trailer[name] = nil
	}
	return nil
}

const whyRequest = "a request line that is not METHOD TARGET HTTP/1.1"

func requestLine(line string) (method, target string, minor int, err error) {
	method, rest, ok := strings.Cut(line, " ")
	target, version, ok2 := strings.Cut(rest, " ")
	switch {
	case strings.IndexByte(line, '\r') >= 0:
		return "", "", 0, malformed(whyLine, line)
	case version == "HTTP/1.1":
		minor = 1
	case version != "HTTP/1.0":
		ok = false
	}
	if !ok || !ok2 || !isToken(method) {
		return "", "", 0, malformed(whyRequest, line)
	}
	return method, target, minor, nil
}

// readTarget returns the authority of the target, if it has one.
func (q *request) readTarget(method, target string) (authority string, err error) {
	if plainTarget(target) {
		q.url.Path, q.url.RawQuery, _ = strings.Cut(target, "?")
		return "", nil
	}
	u, err := url.ParseRequestURI(target)
	switch {
	case err == nil:
		q.url = *u
		return u.Host, nil
	case method != http.MethodConnect:
		return "", malformed("a target that is no URI", target)
	}
	q.url.Host = target // RFC 9112, 3.2.3
	return "", nil
}

// plainTarget says that a target is a path, and one that every parser takes.
func plainTarget(target string) bool {
	if target == "" || target[0] != '/' {
		return false
	}
	for i := range len(target) {
		if c := target[i]; c <= 0x20 || c >= 0x7f || c == '%' {
			return false
		}
	}
	return true
}

// readHost returns whom the request is for. The target's authority counts, and
// must be the same as Host (RFC 9112, 3.2).
func readHost(fields []Field, authority string) (host string, err error) {
	hosts := 0
	for i := range fields {
		if fields[i].Name != "Host" {
			continue
		}
		hosts++
		if host = fields[i].Value; !httpguts.ValidHostHeader(host) {
			return "", malformed("a Host that is no host", host)
		}
		if authority != "" && !strings.EqualFold(plainHost(authority), plainHost(host)) {
			return "", &Malformed{Why: "a Host that is not the target's", Status: http.StatusMisdirectedRequest, near: host}
		}
	}
	if hosts != 1 {
		return "", malformed("not exactly one Host", "")
	}
	if authority != "" {
		host = authority
	}
	return host, nil
}

// plainHost takes the port off that goes without saying.
func plainHost(s string) string {
	return strings.TrimSuffix(strings.TrimSuffix(s, ":443"), ":80")
}
