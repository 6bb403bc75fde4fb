package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/portvakt/portvakt/gateway/refusal"
	"github.com/portvakt/portvakt/policy"
)

// request is one HTTP request that can be read in one way only, made before
// any decision. The decision is taken on it, the upstream request built from
// it, and its hash is in the decision's record.
type request struct {
	app     string
	method  string
	host    string // one of the app's names, lower case
	target  target
	upgrade string // "websocket" or ""
}

// canonicalForm names the bytes that are hashed, so that others can follow.
const canonicalForm = "portvakt-request-2"

// appendCanonical appends the one byte form of the request, from which
// docs/audit.md lets others compute its hash. No part of it can hold a newline.
func (r request) appendCanonical(dst []byte) []byte {
	scheme := "https"
	if r.upgrade != "" {
		scheme = "wss" // RFC 6455, section 3
	}
	for _, part := range [...]string{canonicalForm, "\n", r.app, "\n", r.method, "\n", scheme, "://", r.host, ":443", r.target.escaped, r.target.query, "\n"} {
		dst = append(dst, part...)
	}
	return dst
}

// hash is the SHA-256 of the canonical form, in hex; empty for what could not
// be read in one way only.
func (r request) hash() string {
	if r.target.escaped == "" {
		return ""
	}
	var room [512]byte
	sum := sha256.Sum256(r.appendCanonical(room[:0]))
	var text [2 * sha256.Size]byte
	hex.Encode(text[:], sum[:])
	return string(text[:])
}

func (r request) policy() *policy.Request {
	return &policy.Request{Method: r.method, Host: r.host, Path: r.target.path, Upgrade: r.upgrade}
}

// rejection is why a request was refused before policy was asked.
type rejection struct {
	status   int
	decision policy.Decision
	// close says that what follows on the connection cannot be trusted.
	close bool
}

func badRequest(status int, name, value, wanted string) *rejection {
	return &rejection{
		status:   status,
		decision: policy.NewDecision(policy.ReasonBadRequest, &policy.Fact{Name: name, Value: printable(value), Wanted: wanted}),
		close:    true,
	}
}

// methods an app may be asked with. CONNECT would make a tunnel of the
// exchange, TRACE would show the app's view of the request to a page.
var methods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

// examine reads a request strictly, and what the handshake before it asked for.
// It returns what it could read even when it refuses, for the record.
func examine(r *http.Request, name string, app *policy.App) (request, *rejection) {
	req := request{app: app.Name, method: printable(r.Method), host: printable(r.Host), target: target{path: printable(r.RequestURI)}}
	method := slices.Index(methods, r.Method)
	if method < 0 {
		return req, badRequest(http.StatusMethodNotAllowed, "method", r.Method, strings.Join(methods, ", "))
	}
	req.method = methods[method] // that of r holds all it came with in memory, and grants are kept by method
	if !r.ProtoAtLeast(1, 1) {
		// HTTP/1.0 with Transfer-Encoding is read differently by nearly everyone.
		return req, badRequest(http.StatusBadRequest, "protocol", r.Proto, "HTTP/1.1 or HTTP/2")
	}
	// RFC 9110, 7.4: another scheme is another origin; see tellScheme. HTTP/1.1
	// says one in absolute-form targets alone.
	if r.ProtoMajor == 2 && r.TLS == nil {
		return req, otherScheme()
	}
	// RFC 9113, 8.1.1: HTTP/2 ends a body by itself, and a length that says
	// otherwise is malformed.
	if cl := r.Header["Content-Length"]; len(cl) > 0 {
		if n, err := strconv.ParseUint(cl[0], 10, 63); len(cl) > 1 || err != nil || int64(n) != r.ContentLength {
			return req, badRequest(http.StatusBadRequest, "content-length", strings.Join(cl, ", "), "the length of the body, once")
		}
	}
	if e := r.Header["Expect"]; len(e) > 0 && !tokens(e, "100-continue") { // RFC 9110, 10.1.1
		return req, badRequest(http.StatusExpectationFailed, "expect", strings.Join(e, ", "), "none, or 100-continue")
	}
	// RFC 9113, 8.3.1: the authority has a field of its own; net/http takes a
	// target that names another one.
	if r.ProtoMajor == 2 && !strings.HasPrefix(r.RequestURI, "/") {
		return req, badRequest(http.StatusBadRequest, "request target", r.RequestURI, "a path that begins with /")
	}
	uri, rej := originForm(r.RequestURI, app)
	if rej != nil {
		return req, rej
	}
	host, ok := appHost(r.Host, app)
	if !ok {
		return req, misdirected("host", r.Host, app)
	}
	// Who shakes hands for another name wants to be taken for a visitor of that.
	// One name of an app may be asked for on a connection to another (RFC 9113,
	// 9.1.1).
	if name != "" && !slices.Contains(app.Hosts, name) {
		rej := misdirected("tls server name", name, app)
		rej.close = true
		return req, rej
	}
	// RFC 9113, 8.3.1: a Host beside :authority must say the same. net/http
	// takes :authority and leaves the other where it is.
	for _, h := range r.Header["Host"] {
		if other, ok := appHost(h, app); !ok || other != host {
			return req, misdirected("host", h, app)
		}
	}
	req.host = host
	t, err := canonical(uri, keptOf(app))
	if err != nil {
		return req, badRequest(http.StatusBadRequest, "request target", err.Error(), "a target that can be read in one way only")
	}
	req.target.path = t.path
	if req.upgrade, rej = examineUpgrade(r, app); rej != nil {
		return req, rej
	}
	req.target = t
	return req, nil
}

// originForm takes the authority off an absolute-form target (RFC 9112, 3.2.2:
// it counts, and Host does not) after checking that it is the app's.
func originForm(uri string, app *policy.App) (string, *rejection) {
	if strings.HasPrefix(uri, "/") {
		return uri, nil
	}
	scheme, rest, ok := strings.Cut(uri, "://")
	if !ok || (!strings.EqualFold(scheme, "https") && !strings.EqualFold(scheme, "http")) {
		return "", badRequest(http.StatusBadRequest, "request target", uri, "a path that begins with /")
	}
	end := strings.IndexAny(rest, "/?#")
	if end < 0 || rest[end] != '/' {
		return "", badRequest(http.StatusBadRequest, "request target", uri, "a path that begins with /")
	}
	if _, ok := appHost(rest[:end], app); !ok {
		return "", misdirected("host", rest[:end], app)
	}
	if !strings.EqualFold(scheme, "https") {
		return "", otherScheme()
	}
	return rest[end:], nil
}

// appHost returns the app's own name that an authority means. A trailing dot
// is another name to certificates and cookies, so it is another one here.
func appHost(authority string, app *policy.App) (string, bool) {
	host := strings.ToLower(strings.TrimSuffix(authority, ":443"))
	return host, slices.Contains(app.Hosts, host)
}

func misdirected(what, host string, app *policy.App) *rejection {
	return &rejection{
		status:   http.StatusMisdirectedRequest,
		decision: policy.NewDecision(policy.ReasonMisdirected, &policy.Fact{Name: what, Value: printable(host), Wanted: strings.Join(app.Hosts, ", ")}),
	}
}

func otherScheme() *rejection {
	return &rejection{
		status:   http.StatusMisdirectedRequest,
		decision: policy.NewDecision(policy.ReasonMisdirected, &policy.Fact{Name: "scheme", Value: "http", Wanted: "https"}),
	}
}

// examineUpgrade lets a request leave HTTP for WebSocket only, and only where
// the app has it on (RFC 6455, 4.1).
func examineUpgrade(r *http.Request, app *policy.App) (string, *rejection) {
	if _, ok := r.Header["Http2-Settings"]; ok {
		return "", badRequest(http.StatusBadRequest, "upgrade", "h2c", "none, or websocket")
	}
	values := r.Header["Upgrade"]
	if len(values) == 0 {
		if tokens(r.Header["Connection"], "upgrade") {
			return "", badRequest(http.StatusBadRequest, "upgrade", "none named", "websocket")
		}
		return "", nil
	}
	if len(values) != 1 || !strings.EqualFold(values[0], "websocket") {
		return "", badRequest(http.StatusBadRequest, "upgrade", strings.Join(values, ", "), "none, or websocket")
	}
	if !app.WebSocket {
		return "", badRequest(http.StatusBadRequest, "upgrade", "websocket", "none (websocket is off for this app)")
	}
	if r.Method != http.MethodGet || r.ProtoMajor != 1 || !tokens(r.Header["Connection"], "upgrade") ||
		r.ContentLength != 0 || len(r.TransferEncoding) != 0 || len(r.Header["Sec-Websocket-Key"]) != 1 {
		return "", badRequest(http.StatusBadRequest, "upgrade", "an incomplete WebSocket handshake", "a handshake after RFC 6455, section 4.1")
	}
	return "websocket", nil
}

func tokens(values []string, token string) bool {
	for _, v := range values {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// crossSite refuses what another web page asks in the worker's name. Browsers
// set Origin and Sec-Fetch-* themselves and no page can change them; programs
// that are no browsers send neither.
func crossSite(r *http.Request, req request, app *policy.App) *rejection {
	exempt := req.upgrade == "" && crossSitePath(req.target.path, app.CrossSite)
	origins := r.Header["Origin"]
	known := len(origins) == 1 && ownOrigin(origins[0], app)
	if len(origins) > 0 && !known && !exempt {
		safe := (req.method == http.MethodGet || req.method == http.MethodHead) && req.upgrade == ""
		// A page without an origin of its own is never ours, whatever it asks.
		if !safe || slices.Contains(origins, "null") {
			return refuseCrossSite("origin", strings.Join(origins, ", "), "https://"+req.host)
		}
	}
	sites := r.Header["Sec-Fetch-Site"]
	if len(sites) == 0 || exempt || known {
		return nil
	}
	if len(sites) == 1 && (sites[0] == "same-origin" || sites[0] == "none") {
		return nil
	}
	navigation := (req.method == http.MethodGet || req.method == http.MethodHead) && req.upgrade == "" &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
	if navigation && len(sites) == 1 && (sites[0] == "cross-site" || sites[0] == "same-site") {
		return nil
	}
	return refuseCrossSite("sec-fetch-site", strings.Join(sites, ", "), "same-origin, or opening a page")
}

func refuseCrossSite(name, value, wanted string) *rejection {
	return &rejection{
		status:   http.StatusForbidden,
		decision: policy.NewDecision(policy.ReasonCrossSite, &policy.Fact{Name: name, Value: printable(value), Wanted: wanted}),
	}
}

func ownOrigin(origin string, app *policy.App) bool {
	if slices.Contains(app.Origins, origin) {
		return true
	}
	host, ok := strings.CutPrefix(origin, "https://")
	return ok && slices.Contains(app.Hosts, host)
}

// printable makes a client's text safe to show and to record: bounded, in
// UTF-8, without control characters.
func printable(s string) string {
	const limit = 256
	if len(s) > limit {
		s = s[:limit] + "..."
	}
	return refusal.Plain(s)
}

func crossSitePath(path string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return policy.MatchPath(p, path) })
}
