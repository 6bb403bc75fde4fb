package proxy

import (
	"net/http"
	"slices"
	"strings"
)

// ourCookies begins the names of the gateway's own cookies, also behind a prefix
// that browsers know. None is set on an app's host today. Whatever sets one has
// to call it so: no app gets it, and none sets it.
const ourCookies = "portvakt"

// cookiePrefixes are promises that a browser keeps by a cookie's name (RFC 6265bis,
// 4.1.3), the longer ones first.
var cookiePrefixes = [...]string{"__host-http-", "__host-", "__http-", "__secure-"}

// isOurCookie takes NAME=VALUE and what follows, of Cookie or Set-Cookie. Case does
// not count, as for the prefixes. A cookie without a name is sent as its value,
// which then is NAME=VALUE.
func isOurCookie(pair string) bool {
	pair = strings.TrimLeft(pair, " \t=")
	if pair == "" || pair[0]|0x20 != ourCookies[0] && pair[0] != '_' {
		return false
	}
	for _, p := range cookiePrefixes {
		if hasPrefixFold(pair, p) {
			pair = pair[len(p):]
			break
		}
	}
	return hasPrefixFold(pair, ourCookies)
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// theirCookies returns the Cookie headers that an app may have; values itself
// where none is ours, which costs no allocation.
func theirCookies(values []string) []string {
	if !slices.ContainsFunc(values, holdsOurs) {
		return values
	}
	var all []string
	for _, v := range values {
		var kept []string
		for pair := range strings.SplitSeq(v, ";") {
			if i := ourCookieIn(pair); i >= 0 {
				pair = pair[:i]
			}
			if pair = strings.Trim(pair, " \t"); pair != "" {
				kept = append(kept, pair)
			}
		}
		if len(kept) > 0 {
			all = append(all, strings.Join(kept, "; "))
		}
	}
	return all
}

func holdsOurs(value string) bool {
	for pair := range strings.SplitSeq(value, ";") {
		if ourCookieIn(pair) >= 0 {
			return true
		}
	}
	return false
}

// ourCookieIn says where in a pair a cookie of ours begins, -1 for nowhere. To
// some apps a comma ends a cookie too (RFC 2965).
func ourCookieIn(pair string) int {
	for at := 0; ; {
		if isOurCookie(pair[at:]) {
			return max(at-1, 0)
		}
		i := strings.IndexByte(pair[at:], ',')
		if i < 0 {
			return -1
		}
		at += i + 1
	}
}

// dropOurCookies takes the gateway's cookies out of an app's answer.
func dropOurCookies(h http.Header) {
	const name = "Set-Cookie"
	if !slices.ContainsFunc(h[name], isOurCookie) {
		return
	}
	if h[name] = slices.DeleteFunc(h[name], isOurCookie); len(h[name]) == 0 {
		delete(h, name)
	}
}
