package proxy

import (
	"net/http"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// reservedNames are request headers that an app may take for the gateway's
// word: who asks, from where, or which other method or path is meant. None of
// them passes from a client; those that the gateway speaks are set anew.
var reservedNames = map[string]bool{
	"forwarded": true, "x-forwarded": true,
	"x-real-ip": true, "x-client-ip": true, "client-ip": true, "true-client-ip": true, "x-cluster-client-ip": true, "cf-connecting-ip": true, "fastly-client-ip": true, "x-envoy-external-address": true, "x-originating-ip": true, "x-remote-ip": true, "x-remote-addr": true,
	"x-original-url": true, "x-original-uri": true, "x-original-host": true, "x-original-method": true, "x-rewrite-url": true, "x-host": true,
	"x-http-method": true, "x-http-method-override": true, "x-method-override": true,
	"remote-user": true, "x-remote-user": true,
	"proxy": true, // CVE-2016-5385: becomes HTTP_PROXY in CGI
}

var reservedPrefixes = []string{"portvakt-", "x-forwarded-"}

// reserved compares the way CGI, WSGI and their like do: case does not count,
// and whatever is neither letter nor digit is the same as "-".
func reserved(name string) bool {
	n := strings.Map(func(r rune) rune {
		switch {
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9':
			return r
		}
		return '-'
	}, name)
	if reservedNames[n] {
		return true
	}
	for _, p := range reservedPrefixes {
		if strings.HasPrefix(n, p) {
			return true
		}
	}
	return false
}

// ordinary are names that are known not to be reserved: those of nearly every
// request.
var ordinary = map[string]bool{
	"Accept": true, "Accept-Encoding": true, "Accept-Language": true, "Authorization": true, "Cache-Control": true, "Content-Type": true,
	"Cookie": true, "Dnt": true, "If-Match": true, "If-Modified-Since": true, "If-None-Match": true, "Origin": true, "Pragma": true,
	"Priority": true, "Range": true, "Referer": true, "Sec-Ch-Ua": true, "Sec-Ch-Ua-Mobile": true, "Sec-Ch-Ua-Platform": true,
	"Sec-Fetch-Dest": true, "Sec-Fetch-Mode": true, "Sec-Fetch-Site": true, "Sec-Fetch-User": true, "Sec-Gpc": true,
	"Upgrade-Insecure-Requests": true, "User-Agent": true, "X-Requested-With": true,
}

func dropReserved(h http.Header) {
	for name := range h {
		if reserved(name) {
			delete(h, name)
		}
	}
}

// maxRanges is how many byte ranges a request may ask for; RFC 9110, 14.2 lets
// a server ignore the header, which is cheaper than what more would cost an app.
const maxRanges = 10

func greedyRange(values []string) bool {
	n := 0
	for _, v := range values {
		n += 1 + strings.Count(v, ",")
	}
	return n > maxRanges
}

func appendTrailer(dst []byte, trailer http.Header, named nominated) []byte {
	for name, values := range trailer {
		if !trailerAllowed(name, named) {
			continue
		}
		for _, v := range values {
			if httpguts.ValidHeaderFieldValue(v) {
				dst = appendField(dst, name, v)
			}
		}
	}
	return append(dst, "\r\n"...)
}

// trailerAllowed says which of a device's trailers pass: none that is a header's
// business, and none that its Connection header names.
func trailerAllowed(name string, named nominated) bool {
	return !reserved(name) && afterBody(name, named)
}

// trailerReturns says which of an app's pass.
func trailerReturns(name string, named nominated) bool {
	return !ours(name) && afterBody(name, named)
}

// afterBody says which fields make sense behind a body and on more than one
// connection (RFC 9110, 6.5.1 and 7.6.1). Cookies do not: who reads them has read
// the headers, and the gateway's are looked for there.
func afterBody(name string, named nominated) bool {
	return name != "Cookie" && name != "Set-Cookie" && httpguts.ValidHeaderFieldName(name) && httpguts.ValidTrailerHeader(name) && !hopByHop[name] && !named[name]
}

// nominated are the fields that Connection headers name, which then are about one
// connection alone (RFC 9110, 7.6.1). Every field is looked up there, and both
// may be thousands: they are read once.
type nominated map[string]bool

// nominations reads Connection headers. What hopByHop has is not in it.
func nominations(connection []string) (named nominated) {
	for _, v := range connection {
		for name := range strings.SplitSeq(v, ",") {
			if name = http.CanonicalHeaderKey(strings.TrimSpace(name)); name == "" || hopByHop[name] {
				continue
			}
			if named == nil {
				named = nominated{}
			}
			named[name] = true
		}
	}
	return named
}
